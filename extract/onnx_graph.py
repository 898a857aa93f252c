"""The backbone as an ONNX graph in which the temporal shift moves no data.

The T frames of a segment are separate tensors here, and so are the three groups of channels that the shift treats
differently. A shifted convolution is then the sum of three convolutions, each over one group of the frame that it
comes from: nothing is sliced, copied or concatenated, and the runtime keeps its own memory layout from the first
convolution to the last. (Slices and a concatenation make ONNX Runtime leave that layout before every block and enter
it again behind it: a quarter of the time. See docs/decisions/0013-runtimes.md.)
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from talstack.extract.backbone import TSMBackbone
from talstack.extract.folding import Convolution, Step, fold_network
from talstack.extract.rgbdiff import NUM_CHANNELS, NUM_DIFFERENCES, NUM_FRAMES
from talstack.extract.shift import shift_parts
from talstack.io.errors import ModelError

OPSET = 17
IR_VERSION = 8  # what onnxruntime 1.13 and later read
INPUT, OUTPUTS = "pixels", ("features", "logits", "scene_logits")

Range: TypeAlias = tuple[int, int] | None  # channels [first, past); None: all of them


def export_onnx(model: TSMBackbone, frame_size: int) -> bytes:
    """Return the serialised graph of a model in evaluation mode.

    Input `pixels` (B, T, frame_size, frame_size, 3) uint8 RGB, for rgbdiff (B, T, 6, ...); outputs as `BackboneOutput`
    has them, float32.

    Raises:
        ModelError: an operation that cannot be expressed.
    """
    proto = empty_model(model, frame_size)
    # written in place: every copy of the graph is another copy of the weights
    _Graph(fold_network(model.net), model, frame_size, proto.graph).write_outputs(model)
    serialised = bytes(proto.SerializeToString())
    del proto
    onnx.checker.check_model(serialised)
    return serialised


def empty_model(model: TSMBackbone, frame_size: int) -> onnx.ModelProto:
    """Return an ONNX model with the backbone's input and outputs, and no operations."""
    moments = (model.num_frames, NUM_FRAMES) if model.modality == "rgbdiff" else (model.num_frames,)
    shape = ("B", *moments, frame_size, frame_size, 3)
    widths = (model.feature_dim, model.action.out_features, model.scene.out_features)
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("B", width))
        for name, width in zip(OUTPUTS, widths, strict=True)
    ]
    made = helper.make_graph([], "backbone", [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)], outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class GraphWriter:
    """Writes operations and constants into a graph, each constant only once."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self._proto, self._constants = proto, set[str]()

    def _node(self, kind: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        name = name or f"{kind}_{len(self._proto.node)}"
        # named like its output: quantizers tell operations apart by their names
        self._proto.node.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, name: str, values: Callable[[], np.ndarray]) -> str:
        if name not in self._constants:
            self._proto.initializer.append(numpy_helper.from_array(np.array(values(), order="C"), name))
            self._constants.add(name)
        return name

    def _index(self, *values: int) -> str:
        return self._constant(f"index_{values}", lambda: np.array(values, dtype=np.int64))

    def _classified(self, model: TSMBackbone) -> None:
        """Write the logits of the features."""
        for name, layer in zip(OUTPUTS[1:], (model.action, model.scene), strict=True):
            weight = self._constant(f"{name}_weight", layer.weight.detach().numpy)
            bias = self._constant(f"{name}_bias", layer.bias.detach().numpy)
            self._node("Gemm", [OUTPUTS[0], weight, bias], name=name, transB=1)


class _Graph(GraphWriter):
    """Writes the steps' outputs on request, one frame and one range of channels at a time, each only once."""

    def __init__(self, steps: Sequence[Step], model: TSMBackbone, frame_size: int, proto: onnx.GraphProto) -> None:
        super().__init__(proto)
        self._steps, self._num_frames, self._size = steps, model.num_frames, frame_size
        self._is_motion = model.modality == "rgbdiff"
        self._normalisation = model.normalisation
        self._ranges = _channel_ranges(steps)
        self._written: dict[tuple[int, int, Range], str] = {}

    def write_outputs(self, model: TSMBackbone) -> None:
        """Write all steps, one after the other for all frames, and what the model makes of the last one."""
        for place in range(len(self._steps)):
            for frame in range(self._num_frames):
                for part in self._ranges.get(place, (None,)):
                    self._output(place, frame, part)
        frames = [self._output(len(self._steps) - 1, frame, None) for frame in range(self._num_frames)]
        share = self._constant("share", lambda: np.array(1 / len(frames), dtype=np.float32))
        total = self._node("Flatten", [self._node("Sum", frames)], axis=1)
        self._node("Mul", [total, share], name=OUTPUTS[0])
        self._classified(model)

    def _output(self, place: int, frame: int, channels: Range) -> str:
        """Return the name of a step's output for one frame: these channels, or all."""
        key = (place, frame, channels)
        if key not in self._written:
            self._written[key] = self._write(place, frame, channels)
        return self._written[key]

    def _write(self, place: int, frame: int, channels: Range) -> str:
        step = self._steps[place]
        if channels is None and step.kind != "conv" and place in self._ranges:
            return self._node("Concat", [self._output(place, frame, part) for part in self._ranges[place]], axis=1)
        if step.kind == "input":
            return self._stacked_differences(frame) if self._is_motion else self._standardised(frame)
        if step.kind == "conv":
            return self._convolved(place, frame, channels)
        inputs = [self._output(source, frame, channels) for source in step.inputs]
        if step.window is not None:
            kernel, stride, padding = step.window
            kernel_shape, strides, pads = [kernel] * 2, [stride] * 2, [padding] * 4
            return self._node("MaxPool", inputs, kernel_shape=kernel_shape, strides=strides, pads=pads)
        if step.kind == "relu6":
            lowest = self._constant("lowest", lambda: np.array(0, dtype=np.float32))
            highest = self._constant("highest", lambda: np.array(6, dtype=np.float32))
            return self._node("Clip", [*inputs, lowest, highest])
        return self._node({"relu": "Relu", "add": "Add", "mean": "GlobalAveragePool"}[step.kind], inputs)

    def _standardised(self, frame: int) -> str:
        """Write one frame, standardised: (B, 3, H, W) float32; see `talstack.extract.backbone.normalise`."""
        index = self._constant(f"frame_{frame}", lambda: np.array(frame, dtype=np.int64))
        picture = self._node("Transpose", [self._node("Gather", [INPUT, index], axis=1)], perm=[0, 3, 1, 2])
        picture = self._node("Cast", [picture], to=TensorProto.FLOAT)
        norm = self._normalisation
        mean, std = (np.array(v, dtype=np.float32)[:, None, None] * 255 for v in (norm.mean, norm.std))
        scaled = self._node("Mul", [picture, self._constant("pixel_scale", lambda: 1 / std)])
        return self._node("Add", [scaled, self._constant("pixel_offset", lambda: -mean / std)])

    def _stacked_differences(self, frame: int) -> str:
        """Write one moment's differences: (B, 15, H, W) float32; see `talstack.extract.motion.differences`."""
        index = self._constant(f"frame_{frame}", lambda: np.array(frame, dtype=np.int64))
        frames = self._node("Transpose", [self._node("Gather", [INPUT, index], axis=1)], perm=[0, 1, 4, 2, 3])
        frames = self._node("Cast", [frames], to=TensorProto.FLOAT)
        later = self._node("Slice", [frames, self._index(1), self._index(NUM_FRAMES), self._index(1)])
        earlier = self._node("Slice", [frames, self._index(0), self._index(NUM_DIFFERENCES), self._index(1)])
        steps = self._node("Sub", [later, earlier])
        shape = self._index(0, NUM_CHANNELS, self._size, self._size)
        std = np.array(self._normalisation.std, dtype=np.float32)[:, None, None] * 255
        return self._node(
            "Reshape", [self._node("Mul", [steps, self._constant("pixel_scale", lambda: 1 / std)]), shape]
        )

    def _convolved(self, place: int, frame: int, channels: Range) -> str:
        """Write a convolution: the sum over the groups of its input that are separate tensors."""
        conv, source = self._convolution(place), self._steps[place].inputs[0]
        terms: list[tuple[int, Range]] = [(frame, None)]
        if conv.fold:
            parts = shift_parts(conv.weight.shape[1], conv.fold, causal=conv.causal)
            terms = [(frame + part.step, (part.first, part.past)) for part in parts]
        elif source in self._ranges and conv.groups == 1:
            terms = [(frame, group) for group in self._ranges[source]]
        made = ""
        for at, group in reversed(terms):  # the largest group first, the others are added to it
            if 0 <= at < self._num_frames:  # beyond the segment's ends there is nothing to add
                term = self._term(place, self._output(source, at, group), rows=channels, columns=group, first=not made)
                made = self._node("Add", [term, made]) if made else term
        if not made:
            raise ModelError(f"frame {frame} has no channel of its own behind the shift; use another runtime")
        return made

    def _term(self, place: int, source: str, *, rows: Range, columns: Range, first: bool) -> str:
        conv = self._convolution(place)
        weight = self._constant(
            f"weight_{place}_{rows}_{columns}", lambda: conv.weight.numpy()[_slice(rows), _slice(columns)]
        )
        bias = [self._constant(f"bias_{place}_{rows}", lambda: conv.bias.numpy()[_slice(rows)])] if first else []
        return self._node(
            "Conv", [source, weight, *bias], strides=conv.stride, dilations=conv.dilation, group=conv.groups,
            kernel_shape=tuple(conv.weight.shape[2:]),
            **({"auto_pad": "SAME_UPPER"} if conv.same else {"pads": conv.padding * 2}),
        )  # fmt: skip

    def _convolution(self, place: int) -> Convolution:
        conv = self._steps[place].convolution
        if conv is None:
            raise ModelError(f"step {place} is no convolution")
        return conv


def _slice(channels: Range) -> slice:
    return slice(None) if channels is None else slice(*channels)


def _channel_ranges(steps: Sequence[Step]) -> dict[int, tuple[tuple[int, int], ...]]:
    """Return the ranges in which a step's channels are written, for the steps that a shift reads.

    Everything between that step and the convolutions before it works channel by channel and is written in the same
    ranges.
    """
    ranges: dict[int, tuple[tuple[int, int], ...]] = {}

    def spread(place: int, parts: tuple[tuple[int, int], ...]) -> None:
        step = steps[place]
        if step.kind == "input" or (step.convolution is not None and step.convolution.groups > 1):
            raise ModelError("a temporal shift behind a grouped convolution cannot be exported; use another runtime")
        if place not in ranges:
            ranges[place] = parts
            if step.kind != "conv":
                for source in steps[place].inputs:
                    spread(source, parts)

    for step in steps:
        conv = step.convolution
        if conv is not None and conv.fold:
            parts = shift_parts(conv.weight.shape[1], conv.fold, causal=conv.causal)
            spread(step.inputs[0], tuple((part.first, part.past) for part in parts))
    return ranges
