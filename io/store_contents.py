"""What lies in a feature store: every file by what it is, and every recipe with what was made by it.

Reads names and the headers of shards, never features. Links are not followed: one is a foreign file. Files that
vanish while the store is read were removed by somebody at work in it and are left out.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from talstack.io.errors import InputError, MissingInputError, StoreError, TalstackError
from talstack.io.extraction import Extraction
from talstack.io.files import TEMPORARY_PREFIX, canonical_json, read_json, sha256_text
from talstack.io.journal import JOURNAL_FOLDER
from talstack.io.shard import OpenShard, ShardKey
from talstack.io.store import NETWORK_FOLDER

FileKind = Literal[
    "shard",
    "failure",
    "recipe",
    "extraction",
    "hashes",
    "journal",
    "index",
    "temporary",
    "quarantined",
    "network",
    "foreign",
]

INDEX = "index.parquet"  # see `store_index`
QUARANTINE = "quarantine"  # folder that `verify --quarantine` moves bad files to
REMOVAL_PREFIX = ".gc-"  # a recipe's folder while it is being removed
_RECIPE = re.compile(r"[0-9a-f]{16}")
_SHARD = re.compile(r".+-.+-[0-9a-f]{16}\.h5")
_FAILURE = re.compile(r".+-.+-[0-9a-f]{16}\.failed\.json")


@dataclass(frozen=True, slots=True)
class StoreFile:
    """One file of a store.

    Attributes:
        path: where it lies.
        kind: what its name and place say it is.
        recipe: name of the recipe folder it lies in; "" outside of one.
        size_bytes: its size.
        changed_s: when it was last written, or, for a quarantined file, moved; seconds since 1970.
        mtime_ns: when it was last written, to the nanosecond.
    """

    path: Path
    kind: FileKind
    recipe: str
    size_bytes: int
    changed_s: float
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class StoreContents:
    """Everything in a store.

    Attributes:
        root: the store.
        files: every file, sorted by path.
        interrupted: folders that a killed `gc` was removing.
    """

    root: Path
    files: tuple[StoreFile, ...]
    interrupted: tuple[Path, ...]

    def of_kind(self, *kinds: FileKind) -> list[StoreFile]:
        """Return the files of these kinds."""
        return [file for file in self.files if file.kind in kinds]

    @property
    def recipes(self) -> list[str]:
        """Names of the recipe folders that hold anything, sorted."""
        return sorted({file.recipe for file in self.files if file.recipe})


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard or recorded failure, and what it was made from.

    Attributes:
        file: where it lies.
        identity: what it was made from, parsed; None where that cannot be read.
        num_segments: rows of the shard; 0 for a failure.
        reason: why it failed or cannot be read; "" for a shard.
    """

    file: StoreFile
    identity: Mapping[str, Any] | None
    num_segments: int = 0
    reason: str = ""

    @property
    def group(self) -> tuple[str, str, str] | None:
        """Recording, view and modality."""
        if self.identity is None:
            return None
        return self.identity["recording"], self.identity["view"], self.identity["modality"]


def scan_store(root: Path) -> StoreContents:
    """Return what lies in the store.

    Raises:
        MissingInputError: there is no such folder.
    """
    if not root.is_dir():
        raise MissingInputError(f"{root}: no such folder; a feature store is made by `talstack extract`")
    files = sorted(_walk(root, root), key=lambda file: file.path)
    interrupted = sorted(path for path in root.glob(f"{REMOVAL_PREFIX}*") if is_removal(path.name) and path.is_dir())
    return StoreContents(root, tuple(files), tuple(interrupted))


def is_removal(name: str) -> bool:
    """Return whether this is the name of a recipe's folder that is being removed."""
    return name.startswith(REMOVAL_PREFIX) and _RECIPE.fullmatch(name.removeprefix(REMOVAL_PREFIX)) is not None


def load_entry(file: StoreFile) -> ShardEntry:
    """Return what a shard or a recorded failure was made from.

    Raises:
        TalstackError, OSError: it cannot be read.
    """
    if file.kind == "failure":
        text, reason = _read_failure(file.path)
        return ShardEntry(file, parse_identity(text, file.path), reason=reason)
    with OpenShard(file.path) as shard:
        return ShardEntry(file, parse_identity(shard.identity, file.path), shard.num_rows)


def read_entry(file: StoreFile) -> ShardEntry:
    """Return what a shard or a recorded failure was made from; one that cannot be read says why."""
    try:
        return load_entry(file)
    except (TalstackError, OSError) as error:
        return ShardEntry(file, None, reason=str(error))


def _read_failure(path: Path) -> tuple[str, str]:
    """Return the identity that a failure is recorded for, as canonical JSON, and the reason."""
    record = read_json(path)
    if not (isinstance(record, dict) and isinstance(record.get("key"), dict) and "reason" in record):
        raise StoreError(f"{path}: not a recorded failure: expected an object with `key` and `reason`")
    return canonical_json(record["key"]), str(record["reason"])


def parse_identity(identity: str, path: Path) -> Mapping[str, Any]:
    """Return the identity in a shard's file as a dictionary whose fields have the types that they must have.

    Raises:
        StoreError: it is no JSON, or not of a shard.
    """
    try:
        values = json.loads(identity)
        names = [values[name] for name in ("recording", "view", "modality")]
        seconds = [values["grid"][name] for name in ("duration_s", "segment_s")]
        sources, recipe = values["sources"], values["recipe"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: what it was made from is not the JSON of a shard ({error!r})") from error
    named = all(isinstance(name, str) and name for name in names)
    on_grid = all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in seconds)
    listed = isinstance(sources, list) and all(isinstance(source, dict) for source in sources)
    if not (named and on_grid and listed and isinstance(recipe, dict)):
        raise StoreError(f"{path}: what it was made from has fields of other types than a shard's")
    return dict(values)


def key_of(identity: Mapping[str, Any]) -> ShardKey:
    """Return the key that has the fields of this identity."""
    return ShardKey(
        identity["recording"], identity["view"], identity["modality"], identity["recipe"], tuple(identity["sources"]),
        identity["grid"]["duration_s"], identity["grid"]["segment_s"],
    )  # fmt: skip


def read_extractions(contents: StoreContents) -> list[Extraction]:
    """Return every extraction that is recorded in the store, sorted by name.

    Raises:
        InputError: a record that cannot be read: what it refers to is not known.
    """
    return [read_extraction(contents.root, file.path) for file in contents.of_kind("extraction")]


def read_extraction(root: Path, path: Path) -> Extraction:
    """Return one recorded extraction.

    Raises:
        InputError: it cannot be read.
    """
    try:
        extraction = Extraction.load(root, path.stem)
        recipe_names(extraction)
    except (TalstackError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable record of an extraction ({error}); run that `talstack extract` again, or move "
            "the file out of the store"
        ) from error
    return extraction


def recipe_names(extraction: Extraction) -> set[str]:
    """Return the names of the recipe folders that an extraction's shards lie in."""
    return {recipe_name(recipe) for recipe in extraction.all_recipes}


def recipe_name(recipe: Mapping[str, Any]) -> str:
    """Return the name of the folder of a recipe's shards."""
    return sha256_text(canonical_json(dict(recipe)))[:16]


def _walk(root: Path, folder: Path) -> Iterator[StoreFile]:
    try:
        with os.scandir(folder) as found:
            entries: Sequence[os.DirEntry[str]] = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            if not (folder == root and is_removal(entry.name)):
                yield from _walk(root, path)
            continue
        try:
            stat = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        parts = path.relative_to(root).parts
        # links, pipes and the like are never opened
        kind: FileKind = _kind(parts) if entry.is_file(follow_symlinks=False) else "foreign"
        recipe = parts[0] if len(parts) > 1 and _RECIPE.fullmatch(parts[0]) else ""
        changed_s = stat.st_ctime if kind == "quarantined" else stat.st_mtime
        yield StoreFile(path, kind, recipe, stat.st_size, changed_s, stat.st_mtime_ns)


def _kind(parts: tuple[str, ...]) -> FileKind:
    """Return what a file is by its place under the store's root."""
    name, depth = parts[-1], len(parts)
    in_recipe = _RECIPE.fullmatch(parts[0]) is not None
    if parts[0] == QUARANTINE and depth > 1:
        return "quarantined"
    if name.startswith(TEMPORARY_PREFIX) and (depth == 1 or in_recipe or parts[0] in ("extractions", NETWORK_FOLDER)):
        return "temporary"
    if depth == 1:
        return "hashes" if name == "clip-hashes.json" else "index" if name == INDEX else "foreign"
    if depth == 2 and parts[0] == JOURNAL_FOLDER and name.endswith(".jsonl"):
        return "journal"
    if depth == 2 and parts[0] == NETWORK_FOLDER and name.endswith(".onnx"):
        return "network"
    if depth == 2 and parts[0] == "extractions" and name.endswith(".json"):
        return "extraction"
    if depth == 2 and in_recipe and name == "recipe.json":
        return "recipe"
    if depth == 3 and in_recipe:
        return "shard" if _SHARD.fullmatch(name) else "failure" if _FAILURE.fullmatch(name) else "foreign"
    return "foreign"
