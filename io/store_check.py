"""Whether every file of a store is what its name and place say.

Shallow: files open, declare what a shard declares, and lie where what they were made from puts them. Deep: all
content matches its checksum and is what a shard may hold. A bad file can be moved to the store's quarantine folder;
nothing is deleted.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from talstack.io.errors import StoreError, TalstackError
from talstack.io.files import canonical_json, read_json
from talstack.io.grid import SegmentGrid
from talstack.io.shard import FORMAT_VERSION, OpenShard, Shard, ShardKey
from talstack.io.store import FeatureStore, failure_path
from talstack.io.store_contents import (
    QUARANTINE,
    FileKind,
    StoreContents,
    StoreFile,
    key_of,
    load_entry,
    parse_identity,
    read_extraction,
    recipe_name,
)

CHECKED: tuple[FileKind, ...] = ("shard", "failure", "recipe", "extraction", "hashes")
TOLERANCE_S = 1e-6  # of segment times, against the rounding of a product


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that is not what it should be.

    Attributes:
        path: where it lies, or lay before it was moved.
        reason: what is wrong with it.
        movable: whether quarantine may take it. Not where the system denied reading it (the file may be sound), and
            not the record of an extraction: without it nothing says which recipes are in use.
        other_format: whether it is a shard of another format version, which this talstack can neither judge nor use.
        moved_to: where quarantine put it; None while it lies where it was.
    """

    path: Path
    reason: str
    movable: bool = True
    other_format: bool = False
    moved_to: Path | None = None


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What a check of a store found.

    Attributes:
        num_checked: files looked at, by kind.
        bad: files that are not what they should be, sorted by path.
        other_format: shards of another format version.
        foreign: files that no talstack puts there.
    """

    num_checked: dict[str, int]
    bad: tuple[BadFile, ...]
    other_format: tuple[BadFile, ...]
    foreign: tuple[Path, ...]


def check_store(
    contents: StoreContents, *, deep: bool = False, jobs: int = 1, report: Callable[[], None] = lambda: None
) -> StoreCheck:
    """Return what is wrong with the store's files.

    Args:
        deep: also read all content.
        jobs: threads of a deep check; hashing, which takes most of its time, runs outside Python's lock.
        report: called after every file.
    """
    files = contents.of_kind(*CHECKED)

    def look(file: StoreFile) -> BadFile | None:
        found = check_file(contents.root, file, deep=deep)
        report()
        return found

    # a shallow check holds HDF5's one lock nearly all the time: threads would only wait for each other
    with ThreadPoolExecutor(jobs if deep else 1) as pool:
        found = [bad for bad in pool.map(look, files) if bad is not None]
    return StoreCheck(
        num_checked={kind: sum(file.kind == kind for file in files) for kind in CHECKED},
        bad=tuple(bad for bad in found if not bad.other_format),
        other_format=tuple(bad for bad in found if bad.other_format),
        foreign=tuple(file.path for file in contents.of_kind("foreign")),
    )


class _OtherFormatError(StoreError):
    """A shard of another format version."""


def check_file(root: Path, file: StoreFile, *, deep: bool = False) -> BadFile | None:
    """Return what is wrong with one file of the store, or None; a file that is gone by now is not wrong."""
    try:
        with open(file.path, "rb"):
            pass
    except FileNotFoundError:
        return None
    except OSError as error:
        return BadFile(file.path, f"cannot be read: {error.strerror or error}", movable=False)
    try:
        if file.kind in ("shard", "failure"):
            _check_made(root, file, deep=deep)
        elif file.kind == "recipe":
            _check_recipe(file)
        elif file.kind == "extraction":
            read_extraction(root, file.path)
        elif not isinstance(read_json(file.path), dict):
            raise StoreError(f"{file.path}: expected a JSON object")
    except _OtherFormatError as error:
        return BadFile(file.path, str(error), movable=False, other_format=True)
    except (TalstackError, OSError) as error:
        if not file.path.exists():
            return None
        reason = str(error).removeprefix(f"{file.path}: ")
        system_error = isinstance(error.__cause__, OSError) and bool(error.__cause__.errno)
        return BadFile(file.path, reason, movable=file.kind != "extraction" and not system_error)
    return None


def _check_made(root: Path, file: StoreFile, *, deep: bool) -> None:
    """Check a shard or a recorded failure."""
    if file.kind == "failure":
        _check_place(root, file, load_entry(file).identity or {})
        return
    with OpenShard(file.path) as shard:
        key = _check_place(root, file, parse_identity(shard.identity, file.path))
        shard.check_key(key)
        if deep:
            _check_content(shard.read(), key)


def _check_place(root: Path, file: StoreFile, identity: Mapping[str, Any]) -> ShardKey:
    """Return the key with this identity, checked to belong where the file lies."""
    version = identity.get("format_version")
    if version != FORMAT_VERSION:
        raise _OtherFormatError(f"format version {version!r}, this talstack knows {FORMAT_VERSION}")
    key = key_of(identity)
    place = FeatureStore(root).path_of(key)
    place = failure_path(place) if file.kind == "failure" else place
    if key.identity != canonical_json(identity):
        raise StoreError("what it was made from has fields that this format does not have")
    if place != file.path:
        raise StoreError(f"was made for {key} and belongs at {place.relative_to(root)}; it is never found here")
    return key


def _check_content(shard: Shard, key: ShardKey) -> None:
    """Check what only the arrays tell; that they are finite and fit their checksum was checked on reading."""
    if not np.isfinite(shard.times_s).all():
        raise StoreError("times_s holds NaN or infinity")
    centres_s = SegmentGrid(key.duration_s, key.segment_s).centres_s[: len(shard.times_s)]
    if shard.aligned and not np.allclose(shard.times_s, centres_s, rtol=0, atol=TOLERANCE_S):
        row = int(np.argmax(np.abs(shard.times_s - centres_s) > TOLERANCE_S))
        raise StoreError(
            f"row {row} lies at {shard.times_s[row]:g} s, segment {row} of {key.segment_s:g} s at {centres_s[row]:g} s"
        )
    if shard.features[~shard.valid].any():
        row = int(np.flatnonzero(~shard.valid & shard.features.any(axis=1))[0])
        raise StoreError(f"row {row} is marked as not valid but holds features; such rows are zero")


def _check_recipe(file: StoreFile) -> None:
    recipe = read_json(file.path)
    if not isinstance(recipe, dict) or recipe_name(recipe) != file.recipe:
        raise StoreError("does not hold the settings that the folder is named by")


def quarantine(contents: StoreContents, bad: Sequence[BadFile]) -> list[BadFile]:
    """Move bad files into the store's quarantine folder, each under the path it had; return them with `moved_to`.

    Raises:
        StoreError: one cannot be moved.
    """
    return [_move_out(contents.root, found) if found.movable else found for found in bad]


def _move_out(root: Path, bad: BadFile) -> BadFile:
    target = root / QUARANTINE / bad.path.relative_to(root)
    number = 1
    while target.exists():
        target = target.with_name(f"{bad.path.name}.{number}")
        number += 1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(bad.path, target)
    except OSError as error:
        raise StoreError(f"{bad.path}: could not be moved to {target} ({error.strerror or error})") from error
    return replace(bad, moved_to=target)
