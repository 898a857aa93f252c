"""One shard: the features of one (recording, view, modality), and how it lies in an HDF5 file.

A shard carries the JSON of everything its numbers depend on and a checksum of its arrays. Both are compared on
read, so that a damaged file or one made under other settings is refused and never served.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from talstack.io.errors import InputError, StoreError
from talstack.io.files import atomic_path, canonical_json, sha256_text

FORMAT_VERSION = 1
EXTERNAL_VIEW = "external"  # the view of modalities that come from a feature file instead of a camera


@dataclass(frozen=True, slots=True)
class ShardKey:
    """What a shard is of, and everything its numbers depend on.

    Attributes:
        recording, view, modality: what was extracted.
        recipe: settings shared by a whole extraction (sampling, transform, backbone, decoder versions, ...).
        sources: one dict per clip or feature file: name, content hash, offset_s.
        duration_s, segment_s: the recording's segment grid, seconds.
    """

    recording: str
    view: str
    modality: str
    recipe: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]
    duration_s: float
    segment_s: float

    @property
    def identity(self) -> str:
        """The canonical JSON that the fingerprint is the hash of."""
        return canonical_json(
            {
                "format_version": FORMAT_VERSION,
                "recording": self.recording,
                "view": self.view,
                "modality": self.modality,
                "recipe": dict(self.recipe),
                "sources": [dict(source) for source in self.sources],
                "grid": {"duration_s": self.duration_s, "segment_s": self.segment_s},
            }
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the identity, 64 hex digits."""
        return sha256_text(self.identity)

    def __str__(self) -> str:
        return f"{self.recording} {self.view}/{self.modality}"


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Per-segment features.

    Attributes:
        features: (S, D) float16; rows where `valid` is False hold zeros and mean nothing.
        valid: (S,) bool.
        times_s: (S,) float64 middle of each segment: seconds on the recording's clock, or, where `aligned` is
            False, on the clip's own.
        aligned: whether row i is segment i of the recording's grid. Clips at an unknown offset are not.
        logits: (S, C + 1) float32 action logits of the backbone, background first; None without a classifier.
        scene_logits: (S, K) float32; None without a scene classifier.
        notes: why rows are invalid, which reader served, ...
    """

    features: np.ndarray
    valid: np.ndarray
    times_s: np.ndarray
    aligned: bool = True
    logits: np.ndarray | None = None
    scene_logits: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        num_segments = len(self.features)
        if self.features.ndim != 2 or self.features.dtype != np.float16:
            raise InputError(f"Shard: features must be (S, D) float16, got {self.features.shape} {self.features.dtype}")
        if not np.isfinite(self.features).all():
            raise InputError("Shard: features hold NaN or infinity (float16 reaches 65504); mask such rows instead")
        for name in ("valid", "times_s", "logits", "scene_logits"):
            array = getattr(self, name)
            if array is not None and len(array) != num_segments:
                raise InputError(f"Shard: {name} has {len(array)} rows, features have {num_segments}")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        named = {name: getattr(self, name) for name in ("features", "valid", "times_s", "logits", "scene_logits")}
        return {name: array for name, array in named.items() if array is not None}


def _checksum(arrays: Mapping[str, np.ndarray], *, aligned: bool, notes: str) -> str:
    digest = hashlib.sha256(f"aligned {aligned}\nnotes {notes}\n".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write_shard(path: Path, key: ShardKey, shard: Shard) -> None:
    """Write the shard atomically and durably; a file that is already there is replaced whole."""
    arrays, notes = shard.arrays, canonical_json(list(shard.notes))
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["identity"] = key.identity
        file.attrs["checksum"] = _checksum(arrays, aligned=shard.aligned, notes=notes)
        file.attrs["aligned"] = shard.aligned
        file.attrs["notes"] = notes
        for name, array in arrays.items():
            file.create_dataset(name, data=array, track_times=False)  # times would make equal shards differ


def read_shard(path: Path, key: ShardKey) -> Shard:
    """Return the shard of `key`, checked.

    Raises:
        StoreError: the file is missing or damaged, or was made for something else.
    """
    try:
        with h5py.File(path, "r") as file:
            identity = str(file.attrs["identity"])
            if identity != key.identity:
                raise StoreError(
                    f"{path}: holds another shard than {key} under these settings; remove it and extract again"
                )
            arrays = {name: _plain_dataset(file, name)[()] for name in file}
            checksum, aligned = str(file.attrs["checksum"]), bool(file.attrs["aligned"])
            notes = str(file.attrs["notes"])
    except StoreError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path}: not a readable shard of {key} ({error}); remove it and extract again") from error
    if _checksum(arrays, aligned=aligned, notes=notes) != checksum:
        raise StoreError(f"{path}: the content of {key} does not match its checksum; remove it and extract again")
    return Shard(aligned=aligned, notes=tuple(json.loads(notes)), **arrays)


def _plain_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return the data set, refusing what could read as zeros or lead out of the file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise StoreError(f"{file.filename}: {name} is a link; shards hold plain data sets only")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external is not None:
        raise StoreError(f"{file.filename}: {name} is not a plain data set")
    return dataset
