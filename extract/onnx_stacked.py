"""The backbone as an ONNX graph with one operation per step, its frames stacked in one batch: what int8 is made from.

All first frames come before all second ones, so that the temporal shift moves whole blocks of the batch: two slices,
padded with zeros, and a concatenation. On 8-bit values that costs little, and a convolution stays one operation with
one range. In float32 it is slower than the graph of `talstack.extract.onnx_graph`, which moves nothing.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from talstack.extract.backbone import TSMBackbone
from talstack.extract.folding import Convolution, Step, fold_network
from talstack.extract.onnx_graph import INPUT, OUTPUTS, GraphWriter, empty_model
from talstack.extract.rgbdiff import NUM_DIFFERENCES, NUM_FRAMES

_END = 2**31 - 1  # beyond every axis


def export_stacked(model: TSMBackbone, frame_size: int) -> bytes:
    """Return the serialised graph of a model in evaluation mode; input and outputs as `export_onnx` has them.

    Raises:
        ModelError: an operation that cannot be expressed.
    """
    proto = empty_model(model, frame_size)
    _Stacked(proto.graph, model, frame_size).write(model)
    serialised = bytes(proto.SerializeToString())
    del proto
    onnx.checker.check_model(serialised)
    return serialised


class _Stacked(GraphWriter):
    """Writes the steps in their order; every value is (T * B, C, H, W), frame by frame."""

    def __init__(self, proto: onnx.GraphProto, model: TSMBackbone, frame_size: int) -> None:
        super().__init__(proto)
        self._num_frames, self._size = model.num_frames, frame_size
        self._is_motion = model.modality == "rgbdiff"
        self._mean, self._std = (
            np.array(values, dtype=np.float32)[:, None, None] * 255
            for values in (model.normalisation.mean, model.normalisation.std)
        )

    def write(self, model: TSMBackbone) -> None:
        """Write the whole graph."""
        values: list[str] = []
        self._batch = self._node("Slice", [self._node("Shape", [INPUT]), self._index(0), self._index(1)])
        for step in fold_network(model.net):
            values.append(self._step(step, [values[source] for source in step.inputs]))
        frames = self._node("Reshape", [values[-1], self._index(self._num_frames, -1, model.feature_dim)])
        self._node("ReduceMean", [frames], name=OUTPUTS[0], axes=[0], keepdims=0)
        self._classified(model)

    def _step(self, step: Step, inputs: list[str]) -> str:
        if step.kind == "input":
            return self._differences() if self._is_motion else self._pictures()
        if step.convolution is not None:
            return self._convolved(step.convolution, inputs[0])
        if step.window is not None:
            kernel, stride, padding = step.window
            kernel_shape, strides, pads = [kernel] * 2, [stride] * 2, [padding] * 4
            return self._node("MaxPool", inputs, kernel_shape=kernel_shape, strides=strides, pads=pads)
        if step.kind == "relu6":
            bounds = (self._constant(f"bound_{n}", lambda n=n: np.array(n, dtype=np.float32)) for n in (0, 6))  # type: ignore[misc]
            return self._node("Clip", [*inputs, *bounds])
        return self._node({"relu": "Relu", "add": "Add", "mean": "GlobalAveragePool"}[step.kind], inputs)

    def _pictures(self) -> str:
        """Write the frames, standardised; see `talstack.extract.backbone.normalise`."""
        stacked = self._node("Transpose", [INPUT], perm=[1, 0, 4, 2, 3])
        stacked = self._node("Reshape", [stacked, self._index(-1, 3, self._size, self._size)])
        scaled = self._scaled(stacked, 1 / self._std)
        return self._node("Add", [scaled, self._constant("pixel_offset", lambda: -self._mean / self._std)])

    def _differences(self) -> str:
        """Write the moments' differences; see `talstack.extract.motion.differences`."""
        stacked = self._node("Transpose", [INPUT], perm=[1, 0, 2, 5, 3, 4])
        stacked = self._node("Reshape", [stacked, self._index(-1, NUM_FRAMES * 3, self._size, self._size)])
        scale = np.tile(1 / self._std, (NUM_FRAMES, 1, 1))
        frames = self._scaled(stacked, scale)
        later = self._part(frames, (3,), (_END,), axes=(1,))
        return self._node("Sub", [later, self._part(frames, (0,), (3 * NUM_DIFFERENCES,), axes=(1,))])

    def _scaled(self, pixels: str, scale: np.ndarray) -> str:
        floats = self._node("Cast", [pixels], to=TensorProto.FLOAT)
        return self._node("Mul", [floats, self._constant("pixel_scale", lambda: scale)])

    def _part(self, source: str, first: Sequence[int], past: Sequence[int], *, axes: Sequence[int]) -> str:
        return self._node("Slice", [source, self._index(*first), self._index(*past), self._index(*axes)])

    def _convolved(self, conv: Convolution, source: str) -> str:
        if conv.fold:
            source = self._shifted(source, conv.fold, causal=conv.causal)
        number = len(self._proto.node)
        weight = self._constant(f"weight_{number}", conv.weight.numpy)
        bias = self._constant(f"bias_{number}", conv.bias.numpy)
        return self._node(
            "Conv", [source, weight, bias], strides=conv.stride, dilations=conv.dilation, group=conv.groups,
            kernel_shape=tuple(conv.weight.shape[2:]),
            **({"auto_pad": "SAME_UPPER"} if conv.same else {"pads": conv.padding * 2}),
        )  # fmt: skip

    def _shifted(self, source: str, fold: int, *, causal: bool) -> str:
        """Write the temporal shift; see `talstack.extract.shift`. A frame is `B` rows of the batch."""
        moved = [self._from_before(source, 0, fold)]
        if not causal:
            moved = [self._from_next(source, fold), self._from_before(source, fold, 2 * fold)]
        rest = self._part(source, (len(moved) * fold,), (_END,), axes=(1,))
        return self._node("Concat", [*moved, rest], axis=1)

    def _from_next(self, source: str, past: int) -> str:
        next_first = self._node("Concat", [self._batch, self._index(0)], axis=0)
        later = self._node("Slice", [source, next_first, self._index(_END, past), self._index(0, 1)])
        behind = self._node("Concat", [self._index(0, 0, 0, 0), self._batch, self._index(0, 0, 0)], axis=0)
        return self._node("Pad", [later, behind])

    def _from_before(self, source: str, first: int, past: int) -> str:
        last = self._node("Concat", [self._node("Neg", [self._batch]), self._index(past)], axis=0)
        before = self._node("Slice", [source, self._index(0, first), last, self._index(0, 1)])
        ahead = self._node("Concat", [self._batch, self._index(0, 0, 0, 0, 0, 0, 0)], axis=0)
        return self._node("Pad", [before, ahead])
