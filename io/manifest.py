"""The manifest: what was recorded, by which cameras, and which actions happen when.

A manifest is a folder with `dataset.toml` (name, media root, ordered class lists) and parquet tables, one per
entry of `SCHEMAS`. Times are seconds; instance times are on the recording's clock, and a clip's second 0 (its
first frame) lies at `offset_s` on that clock, null where unknown.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import atomic_path, write_text

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")

SCHEMAS: Mapping[str, dict[str, type[pl.DataType]]] = {
    "recordings": {"recording": pl.String, "duration_s": pl.Float64, "scene": pl.String, "split": pl.String},
    "clips": {
        "recording": pl.String,
        "view": pl.String,
        "clip": pl.String,
        "path": pl.String,
        "offset_s": pl.Float64,
        "duration_s": pl.Float64,
        "fps": pl.Float64,
        "width": pl.Int64,
        "height": pl.Int64,
        "has_audio": pl.Boolean,
    },
    "instances": {"recording": pl.String, "start_s": pl.Float64, "end_s": pl.Float64, "label": pl.String},
    "features": {"recording": pl.String, "modality": pl.String, "path": pl.String},
    "folds": {"recording": pl.String, "fold": pl.Int64},
    "skipped": {"file": pl.String, "where": pl.String, "recording": pl.String, "reason": pl.String},
}
# columns that a table may have besides, at its end
OPTIONAL: Mapping[str, dict[str, type[pl.DataType]]] = {"recordings": {"group": pl.String}}


def empty_table(name: str) -> pl.DataFrame:
    """Return a table of the manifest without rows."""
    return pl.DataFrame(schema=SCHEMAS[name])


def name_of(folder: Path) -> str:
    """Return what a data set in this folder is called: the folder's name, without the dot of a hidden one."""
    return folder.resolve().name.lstrip(".") or "data"


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """One data set.

    Attributes:
        name: what the data set is called.
        media_root: folder that the paths of `clips` and `features` are relative to.
        actions, scenes: ordered class lists; columns of every prediction follow them.
        recordings, clips, instances, features, folds, skipped: tables as `SCHEMAS` declares them. A clip that
            could not be read at import keeps its row, with null measurements. `recordings` may have a column `group`
            (a person, a house, a session): recordings of one group never lie in different folds; null is a group of
            its own.
        first_action_id: number of `actions[0]` in submission files (BinEgo-360 counts from 1).
    """

    name: str
    media_root: Path
    actions: tuple[str, ...]
    scenes: tuple[str, ...]
    recordings: pl.DataFrame
    clips: pl.DataFrame
    instances: pl.DataFrame
    features: pl.DataFrame = field(default_factory=lambda: empty_table("features"))
    folds: pl.DataFrame = field(default_factory=lambda: empty_table("folds"))
    skipped: pl.DataFrame = field(default_factory=lambda: empty_table("skipped"))
    first_action_id: int = 1

    def __post_init__(self) -> None:
        for name, schema in SCHEMAS.items():
            table: pl.DataFrame = getattr(self, name)
            if dict(table.schema) not in (schema, {**schema, **OPTIONAL.get(name, {})}):
                raise InputError(f"manifest table {name}: expected columns {schema}, got {dict(table.schema)}")
        _check(self)

    def media_path(self, relative: str) -> Path:
        """Return the file of a clip or feature row.

        Raises:
            InputError: the path leads out of the media root.
        """
        return resolve_inside(self.media_root, relative)

    def recordings_of(self, splits: Sequence[str]) -> list[str]:
        """Return the recordings of the given splits, sorted."""
        return sorted(self.recordings.filter(pl.col("split").is_in(list(splits)))["recording"].to_list())

    def duration_s(self, recording: str) -> float:
        """Return the recording's length in seconds."""
        return float(self.recordings.row(by_predicate=pl.col("recording") == recording, named=True)["duration_s"])

    @property
    def groups(self) -> dict[str, int]:
        """The number of every recording's group; recordings that must not be told apart in training share one."""
        table = self.recordings.sort("recording")
        named = table["group"].to_list() if "group" in table.columns else [None] * table.height
        keys = [
            (name, "") if name is not None else (None, own) for own, name in zip(table["recording"], named, strict=True)
        ]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return {own: numbers[key] for own, key in zip(table["recording"], keys, strict=True)}

    def with_folds(self, folds: pl.DataFrame) -> "Manifest":
        """Return the manifest with another fold table."""
        return replace(self, folds=folds)

    def save(self, folder: Path) -> None:
        """Write the manifest; `dataset.toml` comes last, so that its presence marks a complete folder."""
        for name in SCHEMAS:
            self.save_table(folder, name)
        root = self.media_root.resolve()
        parent = folder.resolve().parent
        shown = Path("..") / root.relative_to(parent) if root.is_relative_to(parent) else root
        lines = [
            "# talstack data set; media_root may be edited when the media move (relative to this folder, or absolute)",
            f"format_version = {FORMAT_VERSION}",
            f"name = {_toml(self.name)}",
            f"media_root = {_toml(str(shown))}",
            f"first_action_id = {self.first_action_id}",
            f"actions = {_toml(self.actions)}",
            f"scenes = {_toml(self.scenes)}",
        ]
        write_text(folder / "dataset.toml", "\n".join(lines) + "\n")

    def save_table(self, folder: Path, name: str) -> None:
        """Write one table of a manifest that is there; the rest of the folder stays as it is."""
        with atomic_path(folder / f"{name}.parquet") as temporary:
            getattr(self, name).write_parquet(temporary)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a manifest folder.

        Raises:
            MissingInputError: the folder or one of its files is not there.
            InputError: a file that is not what talstack wrote.
        """
        header = folder / "dataset.toml"
        if not header.is_file():
            raise MissingInputError(
                f"{folder}: not a talstack data folder (no dataset.toml); make one with `talstack import`"
            )
        try:
            values = tomllib.loads(header.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{header}: {error}") from error
        if values.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{header}: format_version {values.get('format_version')!r}, expected {FORMAT_VERSION}; import again"
            )
        tables = {}
        for name in SCHEMAS:
            path = folder / f"{name}.parquet"
            if not path.is_file():
                raise MissingInputError(f"{path}: missing; import the data set again")
            try:
                tables[name] = pl.read_parquet(path)
            except pl.exceptions.PolarsError as error:
                raise InputError(f"{path}: not a readable parquet file; import the data set again ({error})") from error
        try:
            return cls(
                name=values["name"],
                media_root=(folder / values["media_root"]).resolve(),
                actions=tuple(values["actions"]),
                scenes=tuple(values["scenes"]),
                first_action_id=values["first_action_id"],
                **tables,
            )
        except KeyError as error:
            raise InputError(f"{header}: missing key {error}") from error


def _toml(value: str | Sequence[str]) -> str:
    """Return the text or texts in TOML, which is JSON but for U+007F and for surrogates, which it has not."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"manifest: {value!r:.120} cannot be written as UTF-8; rename it") from error
    return text


def resolve_inside(root: Path, relative: str) -> Path:
    """Return root / relative, resolved.

    Raises:
        InputError: the result, links followed, lies outside the root.
    """
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise InputError(f"{relative!r} leads out of the data root {root}; paths must stay inside it")
    return path


def _check(manifest: Manifest) -> None:
    """Raise InputError where the tables contradict each other."""
    recordings = manifest.recordings
    repeated = recordings.filter(pl.col("recording").is_duplicated())["recording"].unique().sort()
    if len(repeated):
        raise InputError(f"recordings: {repeated[0]!r} appears more than once")
    _refuse(
        recordings,
        ~pl.col("duration_s").gt(0) | pl.col("duration_s").is_null(),
        "recordings: duration_s must be > 0",
    )
    _refuse(recordings, ~pl.col("split").is_in(SPLITS), f"recordings: split must be one of {', '.join(SPLITS)}")
    _refuse(
        recordings,
        pl.col("scene").is_not_null() & ~pl.col("scene").is_in(manifest.scenes),
        "recordings: unknown scene",
    )
    for name in ("clips", "instances", "features", "folds"):
        table: pl.DataFrame = getattr(manifest, name)
        _refuse(table, ~pl.col("recording").is_in(recordings["recording"].to_list()), f"{name}: unknown recording")
    _refuse(manifest.instances, ~pl.col("label").is_in(manifest.actions), "instances: unknown label")
    _refuse(manifest.instances, ~(pl.col("end_s") > pl.col("start_s")), "instances: end_s must be after start_s")
    clips = manifest.clips
    _refuse(
        clips,
        pl.struct("recording", "view", "clip").is_duplicated(),
        "clips: recording, view, clip must be unique",
    )
    if "group" in recordings.columns:
        of_groups = recordings.drop_nulls("group").join(manifest.folds, on="recording")
        _refuse(
            of_groups.select("recording", "group", "fold").sort("group", "recording"),
            pl.col("fold").n_unique().over("group") > 1,
            "folds: recordings of one group must lie in one fold (import again)",
        )


def _refuse(table: pl.DataFrame, condition: pl.Expr, message: str) -> None:
    bad = table.filter(condition)
    if bad.height:
        raise InputError(f"{message}; {bad.height} row(s), the first: {bad.row(0, named=True)}")
