"""The index of a store: one table of what lies in it, for looking through many shards quickly.

    STORE/index.parquet

It follows from the shards, the recorded failures and the workers' journals, and can be removed at any time. An entry
counts only while the file that it speaks of has the size and the modification time that it had, and the entry its own
checksum. Whether features are served is never decided here: that is one look at the shard's place.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.errors import TalstackError
from talstack.io.files import atomic_path, canonical_json, sha256_text
from talstack.io.journal import read_journals
from talstack.io.shard import OpenShard
from talstack.io.store_contents import (
    INDEX,
    ShardEntry,
    StoreContents,
    StoreFile,
    parse_identity,
    read_entry,
)

SCHEMA: Mapping[str, type[pl.DataType]] = {
    "path": pl.String,  # under the store
    "recipe": pl.String,
    "recording": pl.String,
    "view": pl.String,
    "modality": pl.String,
    "fingerprint": pl.String,
    "outcome": pl.String,  # done, failed, unreadable
    "reason": pl.String,
    "rows": pl.Int64,
    "valid": pl.Int64,  # rows that hold features
    "size_bytes": pl.Int64,
    "mtime_ns": pl.Int64,
    "made_s": pl.Float64,  # seconds since 1970
    "worker": pl.String,  # host and process; null where no journal tells
    "identity": pl.String,  # JSON of what it was made from
    "check": pl.String,  # of all other columns of the row
}


@dataclass(frozen=True, slots=True)
class IndexUpdate:
    """A new index.

    Attributes:
        table: it, with the columns of `SCHEMA`, sorted by path.
        num_read: files that had to be opened for it; the others were known.
    """

    table: pl.DataFrame
    num_read: int


def index_path(root: Path) -> Path:
    """Return where the store's index lies."""
    return root / INDEX


def update_index(contents: StoreContents, *, rebuild: bool = False) -> IndexUpdate:
    """Write the store's index anew and return it.

    Args:
        rebuild: open every file, whatever the index that is there says.
    """
    known = {} if rebuild else _known(contents)
    makers = _makers(contents.root)
    rows, num_read = [], 0
    for file in contents.of_kind("shard", "failure"):
        row = known.get(file.path)
        if row is None:
            row = _read(file, contents.root)
            num_read += 1
        made_s, worker = makers.get(row["fingerprint"][:16], (file.changed_s, None))
        row = {**row, "made_s": made_s, "worker": worker}
        rows.append({**row, "check": _check(row)})
    table = pl.DataFrame(rows, schema=dict(SCHEMA), orient="row").sort("path")
    with atomic_path(index_path(contents.root)) as temporary:
        table.write_parquet(temporary)
    return IndexUpdate(table, num_read)


def read_index(root: Path) -> pl.DataFrame | None:
    """Return the index as it lies there; None where there is none or it cannot be read."""
    try:
        table = pl.read_parquet(index_path(root), memory_map=False)
    except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    return table if dict(table.schema) == dict(SCHEMA) else None


def indexed_entries(contents: StoreContents) -> Callable[[StoreFile], ShardEntry]:
    """Return a reader of entries like `read_entry` that opens only files that the index does not know as they are."""
    known = _known(contents)

    def entry(file: StoreFile) -> ShardEntry:
        row = known.get(file.path)
        if row is None or row["outcome"] == "unreadable":
            return read_entry(file)
        return ShardEntry(file, parse_identity(row["identity"], file.path), row["rows"], row["reason"])

    return entry


def _known(contents: StoreContents) -> dict[Path, dict[str, Any]]:
    """Return the index's rows that still hold, by path."""
    table = read_index(contents.root)
    if table is None:
        return {}
    files = {str(file.path.relative_to(contents.root)): file for file in contents.of_kind("shard", "failure")}
    known = {}
    for row in table.iter_rows(named=True):
        file = files.get(row["path"])
        holds = file is not None and (row["size_bytes"], row["mtime_ns"]) == (file.size_bytes, file.mtime_ns)
        if file is not None and holds and row.pop("check") == _check(row):
            known[file.path] = row
    return known


def _read(file: StoreFile, root: Path) -> dict[str, Any]:
    """Return what the file itself tells of its row."""
    entry, valid = _look(file)
    identity = "" if entry.identity is None else canonical_json(dict(entry.identity))
    recording, view, modality = entry.group or (None, None, None)
    outcome = "unreadable" if entry.identity is None else "done" if file.kind == "shard" else "failed"
    return {
        "path": str(file.path.relative_to(root)), "recipe": file.recipe, "recording": recording, "view": view,
        "modality": modality, "fingerprint": sha256_text(identity) if identity else "", "outcome": outcome,
        "reason": entry.reason, "rows": entry.num_segments, "valid": valid, "size_bytes": file.size_bytes,
        "mtime_ns": file.mtime_ns, "made_s": file.changed_s, "worker": None, "identity": identity,
    }  # fmt: skip


def _look(file: StoreFile) -> tuple[ShardEntry, int | None]:
    """Return what a file was made from and how many of its rows hold features."""
    if file.kind != "shard":
        return read_entry(file), None
    try:
        with OpenShard(file.path) as shard:
            return ShardEntry(file, parse_identity(shard.identity, file.path), shard.num_rows), shard.num_valid
    except (TalstackError, OSError) as error:
        return ShardEntry(file, None, reason=str(error)), None


def _check(row: Mapping[str, Any]) -> str:
    return sha256_text(json.dumps([row[name] for name in SCHEMA if name != "check"]))[:16]


def _makers(root: Path) -> dict[str, tuple[float, str]]:
    """Return when and by which worker each shard was made, by the first digits of its fingerprint."""
    makers = {}
    for attempt in read_journals(root):
        made = {
            (row.get("recording"), row.get("view"), row.get("modality"))
            for row in attempt.rows
            if row.get("outcome") in ("done", "failed")
        }
        for recording, view, modality, fingerprint in attempt.shards:
            if attempt.ended_s is not None and (recording, view, modality) in made:
                makers[fingerprint] = (attempt.ended_s, attempt.worker)
    return makers
