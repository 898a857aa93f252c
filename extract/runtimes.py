"""What computes the features: the same network in several forms, each (pixels in, numpy arrays out).

    eager        the module itself; runs everywhere, and on a GPU
    folded       batch norm folded, channels_last, additions and ReLUs inside the convolutions (torch alone; GPU too;
                 the one of 16 bits)
    compile      torch.compile with freezing (CPU; needs a C++ compiler where it runs)
    onnxruntime  ONNX Runtime (CPU)
    openvino     OpenVINO (CPU; `pip install 'talstack[openvino]'`)

They take uint8 pixels, (B, T, H, W, 3) for rgb and (B, T, 6, H, W, 3) for rgbdiff, and do the rest themselves. All are
made from the module that was trained and agree with it; which one is fastest depends on the machine
(`talstack.extract.runtime_choice`).
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

import numpy as np
import torch

from talstack.extract.backbone import BackboneOutput, TSMBackbone, normalise
from talstack.extract.folded_steps import fuse_steps, move_steps, run_steps
from talstack.extract.folding import fold_network
from talstack.extract.motion import differences
from talstack.io.errors import ConfigError, TalstackError

# What a CPU computes at once: more only takes memory, and makes folded a quarter slower
# (docs/decisions/0013-runtimes.md)
PASS_PIXELS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """Features of B segments, all float32: features (B, D), logits (B, C + 1), scene_logits (B, K)."""

    features: np.ndarray
    logits: np.ndarray
    scene_logits: np.ndarray


def in_passes(compute: Callable[[np.ndarray], Computed], pixels: np.ndarray) -> Computed:
    """Return what `compute` makes of (B, T, ..., H, W, 3) pixels, a few segments at a time."""
    most = max(1, PASS_PIXELS // (pixels.shape[1] * pixels.shape[-3] * pixels.shape[-2]))
    parts = [compute(pixels[first : first + most]) for first in range(0, len(pixels), most)]
    if len(parts) == 1:
        return parts[0]
    return Computed(*(np.concatenate([getattr(part, name) for part in parts]) for name in Computed.__slots__))


class Runtime(Protocol):
    """Computes features of segments."""

    name: str

    def run(self, pixels: np.ndarray) -> Computed:
        """Return the features of the pixels of B segments."""
        ...


class EagerRuntime:
    """The module as it is, on any device."""

    def __init__(self, model: TSMBackbone, device: torch.device | None = None, *, precision: str = "float32") -> None:
        self.name = f"torch eager {version('torch').split('+')[0]} {precision}"
        self._device = device or torch.device("cpu")
        self._precision = getattr(torch, precision)
        # TF32 would move features by 1e-3; without it a GPU's agree with a CPU's, and one store may hold both
        torch.backends.cudnn.allow_tf32 = False
        self._model = model.to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, pixels: np.ndarray) -> Computed:
        """Return the features of the pixels of B segments."""
        is_mixed = self._precision != torch.float32
        with _told_of_memory(), torch.autocast(self._device.type, self._precision, enabled=is_mixed):
            found = self._model(_frames(self._model, _sent(pixels, self._device)))
            return Computed(*(tensor.float().cpu().numpy() for tensor in found))


class FoldedRuntime:
    """The folded steps on channels_last tensors, with ReLU and addition fused into the convolutions."""

    def __init__(self, model: TSMBackbone, device: torch.device | None = None, *, precision: str = "float32") -> None:
        self._device, self._dtype = device or torch.device("cpu"), getattr(torch, precision)
        self.name = f"torch folded {version('torch').split('+')[0]}{_on(self._device, precision)}"
        torch.backends.cudnn.allow_tf32 = False  # as in EagerRuntime
        self._steps = move_steps(fuse_steps(fold_network(model.net)), self._device, self._dtype)
        self._model = model.to(self._device)

    def run(self, pixels: np.ndarray) -> Computed:
        """Return the features of the pixels of B segments."""
        return in_passes(self._run, pixels) if self._device.type == "cpu" else self._run(pixels)

    @torch.inference_mode()
    def _run(self, pixels: np.ndarray) -> Computed:
        with _told_of_memory():
            found = self.compute(_frames(self._model, _sent(pixels, self._device)))
            return Computed(*(tensor.cpu().numpy() for tensor in found))

    def compute(self, frames: torch.Tensor) -> BackboneOutput:
        """Return what the module makes of (B, T, C, H, W) frames on the device, float32."""
        num_frames = self._model.num_frames
        flat = frames.flatten(0, 1).to(self._dtype).contiguous(memory_format=torch.channels_last)
        pooled = run_steps(self._steps, flat, num_frames=num_frames).float()
        features = pooled.reshape(-1, num_frames, pooled.shape[1]).mean(dim=1)
        return BackboneOutput(features, self._model.action(features), self._model.scene(features))


class CompiledRuntime:
    """The module through torch.compile, weights frozen."""

    def __init__(self, model: TSMBackbone) -> None:
        import torch._inductor.config as inductor  # noqa: PLC0415 - half a second

        self.name = f"torch compile {version('torch').split('+')[0]}"
        inductor.freezing = True
        self._model = model
        self._compiled = torch.compile(model.to(memory_format=torch.channels_last), dynamic=False)

    @torch.no_grad()  # freezing wants it; inference mode would switch it off
    def run(self, pixels: np.ndarray) -> Computed:
        """Return the features of the pixels of B segments."""
        return Computed(*(tensor.numpy() for tensor in self._compiled(_frames(self._model, torch.from_numpy(pixels)))))


class OnnxRuntime:
    """ONNX Runtime on a graph: that of `talstack.extract.onnx_graph`, or an int8 one."""

    def __init__(self, graph: bytes, *, threads: int) -> None:
        import onnxruntime  # noqa: PLC0415 - not every command computes features

        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # waiting threads that spin take the decoding thread's core
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, pixels: np.ndarray) -> Computed:
        """Return the features of the pixels of B segments."""
        return in_passes(self._run, np.ascontiguousarray(pixels))

    def _run(self, pixels: np.ndarray) -> Computed:
        return Computed(*self._session.run(None, {self._session.get_inputs()[0].name: pixels}))


class OpenVinoRuntime:
    """OpenVINO on the same graphs."""

    def __init__(self, graph: bytes, *, threads: int) -> None:
        import openvino  # noqa: PLC0415 - an extra

        self.name = f"openvino {openvino.__version__.split('-')[0]}"
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.compile_model(openvino.Core().read_model(graph), "CPU", settings)

    def run(self, pixels: np.ndarray) -> Computed:
        """Return the features of the pixels of B segments."""
        return in_passes(self._run, np.ascontiguousarray(pixels))

    def _run(self, pixels: np.ndarray) -> Computed:
        found = self._compiled(pixels)
        return Computed(*(np.array(found[place]) for place in range(3)))


def _on(device: torch.device, precision: str) -> str:
    return "" if device.type == "cpu" and precision == "float32" else f" {device.type} {precision}"


def _sent(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the pixels on the device: bytes travel, floats are made there."""
    here = torch.from_numpy(pixels)
    return here if device.type == "cpu" else here.pin_memory().to(device, non_blocking=True)


@contextmanager
def _told_of_memory() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise TalstackError(f"the GPU's memory is full ({error}); set extract.batch_segments lower") from error


def _frames(model: TSMBackbone, pixels: torch.Tensor) -> torch.Tensor:
    """Return what the module takes, (B, T, C, H, W) float32, of uint8 pixels."""
    prepare = differences if model.modality == "rgbdiff" else normalise
    return prepare(pixels, model.normalisation)


def build_runtime(name: str, model: TSMBackbone, *, frame_size: int, threads: int) -> Runtime:
    """Return the runtime of that name, for a model in evaluation mode on the CPU.

    Args:
        threads: of the computation; torch's own number is set by the caller.

    Raises:
        ConfigError: an unknown name, or its package is not installed.
        ModelError: the network has an operation that the runtime lacks.
    """

    def graph() -> bytes:
        from talstack.extract.onnx_graph import export_onnx  # noqa: PLC0415 - a GPU needs no onnx

        return export_onnx(model, frame_size)

    makers: dict[str, Callable[[], Runtime]] = {
        "eager": lambda: EagerRuntime(model),
        "folded": lambda: FoldedRuntime(model),
        "compile": lambda: CompiledRuntime(model),
        "onnxruntime": lambda: OnnxRuntime(graph(), threads=threads),
        "openvino": lambda: OpenVinoRuntime(graph(), threads=threads),
    }
    if name not in makers:
        raise ConfigError(f"runtime {name!r}: expected one of {', '.join(makers)}")
    if name in ("onnxruntime", "openvino") and not is_installed(name):
        raise ConfigError(f"runtime {name!r} is not installed; run: pip install {name}, or set extract.runtime = auto")
    if name == "compile" and not has_compiler():
        raise ConfigError("runtime 'compile' needs a C++ compiler, and there is none here; set extract.runtime = auto")
    return makers[name]()


def has_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler here."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ("g++", "clang++", "c++")))


def is_installed(name: str) -> bool:
    """Return whether the package behind a runtime can be imported."""
    return importlib.util.find_spec(name) is not None


def largest_difference(found: Computed, reference: Computed) -> float:
    """Return how far the features are apart, as a share of the largest one."""
    largest = float(np.abs(reference.features).max())
    return float(np.abs(found.features - reference.features).max()) / (largest or 1.0)
