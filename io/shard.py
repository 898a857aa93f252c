"""One shard: the features of one (recording, view, modality), and how it lies in an HDF5 file.

A shard carries the JSON of everything its numbers depend on and a checksum of its arrays. Both are compared on
read, so that a damaged file or one made under other settings is refused and never served. What the file declares is
inspected before any of it is read (`shard_checks`). See docs/decisions/0008-reading-shards.md.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from talstack.io.errors import InputError, StoreError, WriteError
from talstack.io.files import canonical_json, sha256_text, write_bytes
from talstack.io.grid import SegmentGrid
from talstack.io.shard_checks import DATASETS, check_before_opening, check_structure

FORMAT_VERSION = 1
BLOCK_BYTES = 1 << 23  # how much of a shard is in memory while its checksum is worked out
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
        for name, array in self.arrays.items():
            num_axes, dtype = DATASETS[name]
            if array.ndim != num_axes or array.dtype != dtype:
                expected = f"{dtype.name} with {num_axes} axes"
                raise InputError(f"Shard: {name} must be {expected}, got {array.shape} {array.dtype}")
            if len(array) != num_segments:
                raise InputError(f"Shard: {name} has {len(array)} rows, features have {num_segments}")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        named = {name: getattr(self, name) for name in DATASETS}
        return {name: array for name, array in named.items() if array is not None}


def write_shard(path: Path, key: ShardKey, shard: Shard) -> None:
    """Write the shard atomically and durably; a file that is already there is replaced whole.

    Raises:
        StoreError: it could not be written (disk full, failing, read-only); what was there before is unchanged.
    """
    try:
        write_bytes(path, _image(key, shard))
    except WriteError as error:
        made = StoreError(f"{key}: {error}")
        made.errno = error.errno
        raise made from error


def _image(key: ShardKey, shard: Shard) -> bytes:
    """Return the shard's file, made in memory: on a full disk HDF5 leaves files open and errors without a number."""
    notes = canonical_json(list(shard.notes))
    name = f"shard-{secrets.token_hex(16)}"  # of no file, but HDF5 takes two open files of one name for the same
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        for part, array in shard.arrays.items():
            file.create_dataset(part, data=array, track_times=False)  # times would make equal shards differ
        file.attrs["identity"] = key.identity
        file.attrs["checksum"] = _checksum(shard.arrays, aligned=shard.aligned, notes=notes)
        file.attrs["aligned"] = bool(shard.aligned)
        file.attrs["notes"] = notes
        file.flush()
        return bytes(file.id.get_file_image())


def _checksum(arrays: Mapping[str, np.ndarray | h5py.Dataset], *, aligned: bool, notes: str) -> str:
    """Return the SHA-256 of arrays and flags; data sets are read a block of rows at a time."""
    digest = hashlib.sha256(f"aligned {aligned}\nnotes {notes}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for start in range(0, len(array), step):
            digest.update(np.ascontiguousarray(array[start : start + step]).data)
    return digest.hexdigest()


class OpenShard:
    """A shard's file that is open for reading and whose structure was checked.

    Attributes:
        path: where it lies.
        identity: canonical JSON of what it was made from, as stored.
        aligned, notes: as `Shard`.
        num_rows: how many segments it has.
    """

    def __init__(self, path: Path) -> None:
        """Open and inspect the file; no features are read.

        Raises:
            StoreError: it is missing, damaged, or holds what no shard holds.
        """
        self.path = path
        with _refusing(path):
            check_before_opening(path)
            # a shard never changes once it is there, so a lock protects nothing; many cluster disks have none
            self._file = h5py.File(path, "r", locking=False)
            try:
                check_structure(self._file, path.stat().st_size)
                values = {name: self._file.attrs[name] for name in ("identity", "checksum", "aligned", "notes")}
                self.identity, self._checksum, self._notes = (
                    _text(values[name]) for name in ("identity", "checksum", "notes")
                )
                self.aligned = bool(values["aligned"])
                self.num_rows = len(self._file["features"])
            except BaseException:
                self._file.close()
                raise

    @property
    def notes(self) -> tuple[str, ...]:
        """Why rows are invalid, which reader served, ..."""
        return tuple(json.loads(self._notes))

    @property
    def num_valid(self) -> int:
        """How many rows hold features; as stored, without a look at the checksum."""
        with _refusing(self.path):
            return int(np.count_nonzero(self._file["valid"][()]))

    def check_key(self, key: ShardKey) -> None:
        """Check that this is the shard of `key`.

        Raises:
            StoreError: it was made for something else, or has more rows than the recording has segments.
        """
        if self.identity != key.identity:
            raise StoreError(
                f"{self.path}: holds another shard than {key} under these settings; remove it and extract again"
            )
        num_segments = len(SegmentGrid(key.duration_s, key.segment_s))
        if self.aligned and self.num_rows > num_segments:
            raise StoreError(
                f"{self.path}: has {self.num_rows} rows, but {key} has {num_segments} segments; remove it and extract "
                "again"
            )

    def check_content(self) -> None:
        """Check all arrays against the checksum, a block of rows at a time.

        Raises:
            StoreError: they do not match.
        """
        with _refusing(self.path):
            self._compare({name: self._file[name] for name in self._file})

    def read(self) -> Shard:
        """Return the whole shard, checked against its checksum.

        Raises:
            StoreError: the content does not match.
        """
        with _refusing(self.path):
            arrays = {name: self._file[name][()] for name in self._file}
            self._compare(arrays)
            return Shard(aligned=self.aligned, notes=self.notes, **arrays)

    def rows(self, start: int = 0, stop: int | None = None) -> Shard:
        """Return rows start to stop as a shard of their own; only these are read, and nothing is checked.

        Args:
            start, stop: 0 <= start <= stop <= num_rows; None: to the end.

        Raises:
            InputError: rows that the shard does not have.
            StoreError: they cannot be read.
        """
        stop = self.num_rows if stop is None else stop
        if not 0 <= start <= stop <= self.num_rows:
            raise InputError(f"{self.path}: rows {start} to {stop} were asked for, it has {self.num_rows}")
        with _refusing(self.path):
            arrays = {name: self._file[name][start:stop] for name in self._file}
            return Shard(aligned=self.aligned, notes=self.notes, **arrays)

    def _compare(self, arrays: Mapping[str, np.ndarray | h5py.Dataset]) -> None:
        if _checksum(arrays, aligned=self.aligned, notes=self._notes) != self._checksum:
            raise StoreError(f"{self.path}: the content does not match its checksum; remove it and extract again")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "OpenShard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_shard(path: Path, key: ShardKey) -> Shard:
    """Return the shard of `key`, checked.

    Raises:
        StoreError: the file is missing or damaged, was made for something else, or holds what no shard holds.
    """
    with OpenShard(path) as opened:
        opened.check_key(key)
        return opened.read()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a StoreError; which exception it picks is not documented."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno:  # the system's word, not HDF5's: the file itself may be sound
            raise StoreError(f"{path}: could not be read ({error.strerror or error})") from error
        raise StoreError(f"{path}: not a readable shard ({error}); remove it and extract again") from error
    except (LookupError, RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise StoreError(f"{path}: not a readable shard ({error}); remove it and extract again") from error
