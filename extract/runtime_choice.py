"""Which runtime is the fastest on this machine: measured once, remembered in the user's cache folder.

Every candidate must first agree with the module on a random segment; one that does not, or cannot be built, is left
out with the reason. The choice decides the speed and not the features (within `runtimes.TOLERANCE`), so it is no part
of a fingerprint.
"""

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from talstack.extract.backbone import TSMBackbone
from talstack.extract.rgbdiff import NUM_FRAMES
from talstack.extract.runtimes import (
    TOLERANCE,
    Computed,
    EagerRuntime,
    Runtime,
    build_runtime,
    is_installed,
    largest_difference,
)
from talstack.io.errors import ModelError, TalstackError
from talstack.io.files import canonical_json, read_json, write_json

CANDIDATES = ("onnxruntime", "openvino", "folded", "eager")  # compile is never tried unasked: it takes minutes
CODE_VERSION = 2  # raise when a runtime's code changes, so that machines measure again
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome of a measurement.

    Attributes:
        name: the fastest runtime.
        segments_per_s: of every candidate that was timed.
        rejected: {candidate: why it was not}.
    """

    name: str
    segments_per_s: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)


def choose_runtime(model: TSMBackbone, *, frame_size: int, threads: int, cache: Path | None = None) -> Choice:
    """Return the fastest runtime for a model in evaluation mode on the CPU; measures where it has not before.

    Args:
        threads: of the computation.
        cache: file of earlier choices; default `cache_file()`.
    """
    cache = cache or cache_file()
    machine = _machine(model, frame_size, threads)
    known = _read(cache)
    if machine in known:
        return known[machine]
    choice = measure_runtimes(model, CANDIDATES, frame_size=frame_size, threads=threads)
    try:
        write_json(cache, {key: asdict(one) for key, one in {**_read(cache), machine: choice}.items()})
    except TalstackError:  # a home that cannot be written to costs a measurement per run, no more
        return choice
    return choice


def measure_runtimes(model: TSMBackbone, names: Sequence[str], *, frame_size: int, threads: int) -> Choice:
    """Return the fastest of the named runtimes, timed in turn on one random segment after one run to warm up."""
    pixels = random_pixels(model, frame_size)
    reference = EagerRuntime(model).run(pixels)
    built: dict[str, Runtime] = {}
    rejected: dict[str, str] = {}
    for name in names:
        if name in ("onnxruntime", "openvino") and not is_installed(name):
            continue
        try:
            runtime = build_runtime(name, model, frame_size=frame_size, threads=threads)
            check_agreement(runtime, runtime.run(pixels), reference)
            built[name] = runtime
        except Exception as error:  # noqa: BLE001 - whatever a library does on this machine, another one will serve
            rejected[name] = f"{type(error).__name__}: {error}"
    seconds = {name: min(_timed(runtime, pixels) for _ in range(ROUNDS)) for name, runtime in built.items()}
    fastest = min(seconds, key=lambda name: seconds[name], default="eager")
    return Choice(fastest, {name: 1 / spent for name, spent in seconds.items()}, rejected)


def check_agreement(runtime: Runtime, found: Computed, reference: Computed) -> None:
    """Check that a runtime computes what the module does.

    Raises:
        ModelError: features further apart than `TOLERANCE`.
    """
    apart = largest_difference(found, reference)
    if not apart <= TOLERANCE:  # NaN fails too
        raise ModelError(f"{runtime.name}: features differ from the module's by {apart:.2g} (at most {TOLERANCE:g})")


def random_pixels(model: TSMBackbone, frame_size: int) -> np.ndarray:
    """Return one random segment as the model's runtimes take it, uint8, always the same."""
    moments = (model.num_frames, NUM_FRAMES) if model.modality == "rgbdiff" else (model.num_frames,)
    return np.random.default_rng(0).integers(0, 256, (1, *moments, frame_size, frame_size, 3), dtype=np.uint8)


def cache_file() -> Path:
    """Return where choices are remembered: talstack/runtimes.json in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "talstack" / "runtimes.json"


def _timed(runtime: Runtime, pixels: np.ndarray) -> float:
    start = time.perf_counter()
    runtime.run(pixels)
    return time.perf_counter() - start


def _machine(model: TSMBackbone, frame_size: int, threads: int) -> str:
    """Return what a choice depends on, as one text."""
    shapes = [list(parameter.shape) for parameter in model.parameters()]
    shifted = [name for name, _ in model.named_modules() if name.endswith("conv1.net")]
    network = hashlib.sha256(canonical_json([shapes, shifted]).encode()).hexdigest()[:16]
    versions = {name: _version(name) for name in ("torch", "onnxruntime", "openvino")}
    return canonical_json([CODE_VERSION, _processor(), versions, network, model.num_frames, frame_size, threads])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> list[str]:
    """Return the processor's name and what torch makes of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = platform.processor()
    return [platform.machine(), name, torch.backends.cpu.get_cpu_capability()]


def _read(cache: Path) -> dict[str, Choice]:
    """Return the remembered choices; a file that cannot be used is no choice at all."""
    try:
        return {key: Choice(**values) for key, values in read_json(cache).items()}
    except (TalstackError, TypeError, AttributeError):
        return {}
