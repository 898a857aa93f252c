"""The backbone in 8-bit integers: made once from pictures of the data set, computed by ONNX Runtime or OpenVINO.

Activations are unsigned with one range per operation, found on those pictures; weights are signed with one range per
channel. Weights take 7 bits: with 8 the sums of two products overflow 16 bits on processors without VNNI instructions,
and features would depend on the machine. See docs/decisions/0013-runtimes.md.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talstack.extract.backbone import TSMBackbone
from talstack.extract.item import QuantizedNetwork
from talstack.extract.onnx_graph import INPUT
from talstack.extract.onnx_stacked import export_stacked
from talstack.extract.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime
from talstack.io.errors import MissingInputError, ModelError

OPERATIONS = ("Conv", "Add", "Relu", "Clip", "MaxPool", "Concat", "Slice", "Pad")  # the rest stays float32


@dataclass(frozen=True, slots=True)
class Int8Form:
    """How numbers are written, in the words of ONNX Runtime's quantizer; benchmarks/int8_forms.py compares others.

    Attributes:
        layout: QDQ (operations between conversions) or QOperator (operations on integers).
        weights, activations: QInt8 or QUInt8.
        reduced: weights take 7 bits instead of 8.
    """

    layout: str = "QDQ"
    weights: str = "QInt8"
    activations: str = "QUInt8"
    reduced: bool = True


TAKEN = Int8Form()


def quantize(model: TSMBackbone, batches: Iterable[np.ndarray], *, frame_size: int, form: Int8Form = TAKEN) -> bytes:
    """Return the serialised int8 graph of a model in evaluation mode.

    Args:
        model: on the CPU.
        batches: pixels of segments, as runtimes take them, that show what ranges values have; each is looked at once.
        form: how numbers are written.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            pixels = next(self._batches, None)
            return None if pixels is None else {INPUT: pixels}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        whole, small = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        whole.write_bytes(export_stacked(model, frame_size))
        quantize_static(
            whole, small, Reader(), quant_format=QuantFormat[form.layout], op_types_to_quantize=list(OPERATIONS),
            per_channel=True, reduce_range=form.reduced, activation_type=QuantType[form.activations],
            weight_type=QuantType[form.weights],
        )  # fmt: skip
        return small.read_bytes()


def build_quantized(network: QuantizedNetwork, *, threads: int) -> Runtime:
    """Return what computes a quantized network.

    Raises:
        MissingInputError: its file is gone.
        ModelError: the file is not the one that the order names.
    """
    try:
        graph = network.path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError(f"{network.path}: the int8 network is missing; run `talstack extract` again") from error
    if hashlib.sha256(graph).hexdigest() != network.sha256:
        raise ModelError(f"{network.path}: changed since the extraction began; remove it and run `talstack extract`")
    runtime = (
        OpenVinoRuntime(graph, threads=threads)
        if network.runtime == "openvino"
        else OnnxRuntime(graph, threads=threads)
    )
    runtime.name += " int8"
    return runtime


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice that onnxruntime's quantizer gives to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
