"""Measures which runtime is the fastest here.

Every candidate must first agree with the module on a random segment; one that does not, or cannot be built, is left
out with the reason.
"""

import time
from collections.abc import Sequence

import numpy as np

from talstack.extract.backbone import TSMBackbone
from talstack.extract.rgbdiff import NUM_FRAMES
from talstack.extract.runtime_choice import TOLERANCE, Choice
from talstack.extract.runtimes import (
    Computed,
    EagerRuntime,
    Runtime,
    build_runtime,
    is_installed,
    largest_difference,
)
from talstack.extract.watchdog import beat
from talstack.io.errors import ModelError

ROUNDS = 3


def measure_runtimes(model: TSMBackbone, names: Sequence[str], *, frame_size: int, threads: int) -> Choice:
    """Return the fastest of the named runtimes, timed in turn on one random segment after one run to warm up."""
    pixels = random_pixels(model, frame_size)
    reference = EagerRuntime(model).run(pixels)
    built: dict[str, Runtime] = {}
    rejected: dict[str, str] = {}
    for name in names:
        if name in ("onnxruntime", "openvino") and not is_installed(name):
            continue
        beat()
        try:
            runtime = build_runtime(name, model, frame_size=frame_size, threads=threads)
            check_agreement(runtime, runtime.run(pixels), reference)
            built[name] = runtime
        except Exception as error:  # noqa: BLE001 - whatever a library does on this machine, another one will serve
            rejected[name] = f"{type(error).__name__}: {error}"
    seconds = {name: min(_timed(runtime, pixels) for _ in range(ROUNDS)) for name, runtime in built.items()}
    fastest = min(seconds, key=lambda name: seconds[name], default="eager")
    return Choice(fastest, {name: 1 / spent for name, spent in seconds.items()}, rejected)


def check_agreement(runtime: Runtime, found: Computed, reference: Computed, *, tolerance: float = TOLERANCE) -> None:
    """Check that a runtime computes what the module does.

    Raises:
        ModelError: features further apart than `tolerance`, a share of the largest one.
    """
    apart = largest_difference(found, reference)
    if not apart <= tolerance:  # NaN fails too
        raise ModelError(f"{runtime.name}: features differ from the module's by {apart:.2g} (at most {tolerance:g})")


def random_pixels(model: TSMBackbone, frame_size: int) -> np.ndarray:
    """Return one random segment as the model's runtimes take it, uint8, always the same."""
    moments = (model.num_frames, NUM_FRAMES) if model.modality == "rgbdiff" else (model.num_frames,)
    return np.random.default_rng(0).integers(0, 256, (1, *moments, frame_size, frame_size, 3), dtype=np.uint8)


def _timed(runtime: Runtime, pixels: np.ndarray) -> float:
    start = time.perf_counter()
    runtime.run(pixels)
    return time.perf_counter() - start
