"""Which runtime is the fastest on this machine, remembered in the user's cache folder. Needs no torch.

The choice decides the speed and not the features (within `TOLERANCE`, which is checked), so it is no part of a
fingerprint. It is measured once for a network, a number of threads, a processor and the versions of the libraries
(`talstack.extract.runtime_measure`).
"""

import os
import platform
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from talstack.extract.card import BackboneSource
from talstack.extract.item import NetworkOrder
from talstack.io.errors import TalstackError
from talstack.io.files import canonical_json, read_json, write_json

CANDIDATES = ("onnxruntime", "openvino", "folded", "eager")  # compile is slower than the first
CODE_VERSION = 3  # raise when a runtime's code changes, so that machines measure again
TOLERANCE = 1e-4  # of the largest feature: how far a runtime may be from the module


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


def with_fastest_runtime(order: NetworkOrder) -> NetworkOrder:
    """Return the order with what "auto" means on this machine, measured where it has not been.

    Done before workers start: several that measure at once would measure each other. On a GPU the order stays.
    """
    if order.runtime != "auto" or order.precision != "float32":
        return order
    choice = recall(order.source, order.threads)
    if choice is None:
        from talstack.extract.networks import measure_here

        choice = measure_here(order)
    return order if choice is None else replace(order, runtime=choice.name)


def recall(source: BackboneSource, threads: int) -> Choice | None:
    """Return what was measured on this machine before, or None."""
    return _read(cache_file()).get(_machine(source, threads))


def remember(source: BackboneSource, threads: int, choice: Choice) -> None:
    """Keep a choice; where the folder cannot be written to it is measured again next time."""
    known = {**_read(cache_file()), _machine(source, threads): choice}
    try:
        write_json(cache_file(), {machine: asdict(one) for machine, one in known.items()})
    except TalstackError:
        return


def cache_file() -> Path:
    """Return where choices are remembered: talstack/runtimes.json in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "talstack" / "runtimes.json"


def _machine(source: BackboneSource, threads: int) -> str:
    """Return what a choice depends on, as one text: the shape of the network and not its weights."""
    card = source.card
    shape: list[Any] = [card.network, card.frames_per_segment, card.frame_size]
    versions = {name: _version(name) for name in ("torch", "onnxruntime", "openvino")}
    return canonical_json([CODE_VERSION, _processor(), versions, shape, threads])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> list[str]:
    """Return the processor's kind, name and vector units."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = [flag for flag in found.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    return [platform.machine(), found.get("model name", ""), " ".join(sorted(vectors))]


def _read(cache: Path) -> dict[str, Choice]:
    """Return the remembered choices; a file that cannot be used is no choice at all."""
    try:
        return {key: Choice(**values) for key, values in read_json(cache).items()}
    except (TalstackError, TypeError, AttributeError, OSError):
        return {}
