"""What an importer reads from a data set's own files, before it is checked and becomes a manifest.

Every row remembers its file and where in it it stood, so that a message or the `skipped` table can name them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from talstack.io.errors import InputError, MissingInputError
from talstack.io.manifest import SCHEMAS, SPLITS
from talstack.io.tables import read_csv

MEDIA_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row comes from: a file and a line, entry or key in it."""

    file: Path
    where: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.where}" if self.where else str(self.file)


@dataclass(frozen=True, slots=True)
class RecordingRow:
    """A recording; `duration_s` is None where it has to be measured, `group` where it is a group of its own."""

    recording: str
    split: str
    scene: str | None
    duration_s: float | None
    origin: Origin
    group: str | None = None


@dataclass(frozen=True, slots=True)
class ClipRow:
    """A clip; `path` is relative to the media root, `offset_s` None where unknown."""

    recording: str
    view: str
    clip: str
    path: str
    offset_s: float | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """An annotated action, as it stands in the file."""

    recording: str
    start_s: float
    end_s: float
    label: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """A series of external features; `path` is relative to the media root."""

    recording: str
    modality: str
    path: str
    origin: Origin


@dataclass(slots=True)
class SourceRows:
    """Everything that an importer has read; `skipped` has (file, where, recording, "category: detail")."""

    recordings: list[RecordingRow] = field(default_factory=list)
    clips: list[ClipRow] = field(default_factory=list)
    instances: list[InstanceRow] = field(default_factory=list)
    features: list[FeatureRow] = field(default_factory=list)
    skipped: list[tuple[str, str, str, str]] = field(default_factory=list)

    def skip(self, origin: Origin, recording: str, reason: str) -> None:
        """Note that something was left out or changed; `reason` is "category" or "category: detail"."""
        self.skipped.append((str(origin.file), origin.where, recording, reason))

    def skipped_table(self) -> pl.DataFrame:
        """Return the manifest's table of what was skipped."""
        return pl.DataFrame(self.skipped, schema=SCHEMAS["skipped"], orient="row")


def line(path: Path, number: int) -> Origin:
    """Return the origin of a line of a table."""
    return Origin(path, f"line {number}")


def read_clip_rows(path: Path) -> list[ClipRow]:
    """Return the rows of CLIPS.csv: recording, view, clip, path, offset_s (empty: unknown).

    An empty or absent clip name becomes the file's name without suffix.

    Raises:
        MissingInputError, InputError: as `read_csv`.
    """
    schema = {"recording": pl.String, "view": pl.String, "clip": pl.String, "path": pl.String, "offset_s": pl.Float64}
    table = read_csv(path, schema, optional=("clip", "offset_s"))
    return [
        ClipRow(recording, view, clip or Path(file).stem, file, offset_s, line(path, number))
        for recording, view, clip, file, offset_s, number in table.iter_rows()
    ]


def read_feature_rows(path: Path) -> list[FeatureRow]:
    """Return the rows of FEATURES.csv: recording, modality, path.

    Raises:
        MissingInputError, InputError: as `read_csv`.
    """
    table = read_csv(path, {"recording": pl.String, "modality": pl.String, "path": pl.String})
    return [
        FeatureRow(recording, modality, file, line(path, number))
        for recording, modality, file, number in table.iter_rows()
    ]


def read_instance_rows(path: Path) -> list[InstanceRow]:
    """Return the rows of instances.csv: recording, start_s, end_s, label.

    Raises:
        MissingInputError, InputError: as `read_csv`; nothing labelled is said by a file with the header alone.
    """
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file; where nothing is labelled it holds its header alone: recording,start_s,end_s,label"
        )
    table = read_csv(path, {"recording": pl.String, "start_s": pl.Float64, "end_s": pl.Float64, "label": pl.String})
    return [
        InstanceRow(recording, start_s, end_s, label, line(path, number))
        for recording, start_s, end_s, label, number in table.iter_rows()
    ]


def read_recording_rows(path: Path, *, group_column: str | None = None) -> list[RecordingRow]:
    """Return the rows of RECORDINGS.csv: recording, scene (may be empty), split, and optionally duration_s and group.

    Args:
        group_column: takes the groups from another column, which must be there; empty is a group of its own.

    Raises:
        MissingInputError, InputError: as `read_csv`; also a split that is not train, val or test, and a recording
            that stands there twice.
    """
    if group_column in ("recording", "split", "duration_s"):
        raise InputError(f"{path}: recordings cannot be grouped by their column {group_column!r}")
    group = group_column or "group"
    schema = {"recording": pl.String, "scene": pl.String, "split": pl.String, "duration_s": pl.Float64}
    optional = ("duration_s",) if group_column else ("duration_s", group)
    table = read_csv(path, {group: pl.String, **schema}, optional=optional, nullable=("scene", group))
    rows = [
        RecordingRow(
            row["recording"], row["split"], row["scene"], row["duration_s"], line(path, row["line"]), row[group]
        )
        for row in table.iter_rows(named=True)
    ]
    refuse_repeated(rows)
    for row in rows:
        check_split(row.split, row.recording, row.origin)
    return rows


def read_pairs(path: Path, column: str) -> dict[str, tuple[str | None, Origin]]:
    """Return {recording: (value, origin)} of a table with the columns recording and `column`, which may be empty.

    Raises:
        MissingInputError, InputError: as `read_csv`; also a recording that stands there twice.
    """
    table = read_csv(path, {"recording": pl.String, column: pl.String}, nullable=(column,))
    pairs: dict[str, tuple[str | None, Origin]] = {}
    for recording, value, number in table.iter_rows():
        if recording in pairs:
            raise InputError(
                f"{line(path, number)}: recording {recording!r} stands there twice; see {pairs[recording][1]}"
            )
        pairs[recording] = (value, line(path, number))
    return pairs


def read_name_list(path: Path) -> tuple[str, ...]:
    """Return the names of a text file, one a line, in order.

    Raises:
        MissingInputError: there is no such file.
        InputError: it is empty, or a name stands there twice.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    names: dict[str, int] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        name = text.strip()
        if name in names:
            raise InputError(f"{path}, line {number}: {name!r} stands there twice; see line {names[name]}")
        if name:
            names[name] = number
    if not names:
        raise InputError(f"{path}: empty; expected one name a line")
    return tuple(names)


def read_unique_json(path: Path) -> object:
    """Return the parsed JSON file in which no object has a key twice (Python would keep the last one silently).

    Raises:
        MissingInputError: there is no such file.
        InputError: it is not JSON, or a key is repeated; the message gives line and column, or the key.
    """

    def refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{path}: {repeated!r} stands there twice in one object; keep one of them")
        return found

    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        return json.loads(text, object_pairs_hook=refuse_repeated_keys)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error


def check_split(split: str, recording: str, origin: Origin) -> None:
    """Raise InputError unless the split is one of the manifest's."""
    if split not in SPLITS:
        raise InputError(f"{origin}: recording {recording!r} has split {split!r}; expected one of {', '.join(SPLITS)}")


def refuse_repeated(rows: Iterable[RecordingRow]) -> None:
    """Raise InputError where a recording stands twice."""
    seen: dict[str, Origin] = {}
    for row in rows:
        if row.recording in seen:
            raise InputError(f"{row.origin}: recording {row.recording!r} stands there twice; see {seen[row.recording]}")
        seen[row.recording] = row.origin
