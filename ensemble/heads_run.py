"""What stage two left in a run's folder: the out-of-fold table and the record of the heads."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.errors import InputError, LeakError, MissingInputError
from talstack.io.files import read_json, sha256_file
from talstack.io.manifest import Manifest
from talstack.io.predictions import SCHEMA, folds_in, read_table

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class HeadsRun:
    """The predictions of the heads and where they come from.

    Attributes:
        table: the out-of-fold table, `talstack.io.predictions.SCHEMA`.
        segment_s: length of its segments, seconds.
        seen: recordings that the backbone was fine-tuned on or stopped early by.
        sha256: content hash of the table's file.
    """

    table: pl.DataFrame
    segment_s: float
    seen: frozenset[str]
    sha256: str

    @classmethod
    def load(cls, run: Path, manifest: Manifest) -> "HeadsRun":
        """Read RUN/heads.json and RUN/oof.parquet.

        Raises:
            MissingInputError: one of them is not there.
            InputError: another format, made for another data set than `manifest`, or not the table that the record
                describes.
            LeakError: a recording's fold is not that of the manifest or of the heads, or it has none although heads
                learned from it: then it may have been predicted by a model that knows its labels.
        """
        record_path, table_path = run / "heads.json", run / "oof.parquet"
        for path in (record_path, table_path):
            if not path.is_file():
                raise MissingInputError(f"{path}: no such file; run `talstack heads` first")
        record = read_json(record_path)
        _check_record(record, manifest, where=record_path)
        table, sha256 = _read_table(table_path), sha256_file(table_path)
        if record.get("oof_sha256", sha256) != sha256:
            raise InputError(
                f"{table_path}: not the table that {record_path.name} describes; run `talstack heads` again"
            )
        return cls.of(table, record, manifest, sha256=sha256, where=table_path)

    @classmethod
    def of(
        cls, table: pl.DataFrame, record: Mapping[str, Any], manifest: Manifest, *, sha256: str, where: Path
    ) -> "HeadsRun":
        """Return the run of a table and its record, the content of heads.json.

        Args:
            sha256: hash of whatever the table's content depends on.
            where: what to call the table in messages.

        Raises:
            InputError, LeakError: as `load`.
        """
        _check_record(record, manifest, where=where)
        names = [name for name, kind in SCHEMA.items() if kind is pl.String]
        table = table.with_columns(pl.col(names).cast(pl.Categorical))  # comparing these is ten times faster
        predicted = folds_in(table)
        for folds in (dict(manifest.folds.iter_rows()), record.get("folds")):
            if folds:
                _check_folds(predicted, folds, record.get("learned_from", ()), where=where)
        return cls(table, float(record["segment_s"]), frozenset(record["seen"]), sha256)


def _check_record(record: Mapping[str, Any], manifest: Manifest, *, where: Path) -> None:
    """Raise InputError where heads.json is of another format or was made for another data set."""
    if record.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{where}: format_version {record.get('format_version')!r}, expected 1; run heads again")
    for name, expected in [("dataset", manifest.name), ("actions", manifest.actions), ("scenes", manifest.scenes)]:
        got = record.get(name)
        if (got if name == "dataset" else tuple(got or ())) != expected:
            raise InputError(
                f"{where}: made for {name} {got!r:.100}, the data set has {expected!r:.100}; run "
                "`talstack heads` on this data set"
            )


def _read_table(path: Path) -> pl.DataFrame:
    try:
        table = read_table(path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: not a readable parquet file; run `talstack heads` again ({error})") from error
    if dict(table.schema) != SCHEMA:
        raise InputError(f"{path}: expected columns {', '.join(SCHEMA)}, got {dict(table.schema)}; run heads again")
    return table


def _check_folds(
    predicted: Collection[tuple[str, int | None]],
    folds: Mapping[str, int],
    learned_from: Collection[str],
    *,
    where: Path,
) -> None:
    """Raise LeakError where a row may have been predicted by a model that learned from its recording."""
    for recording, fold in predicted:
        if fold is None and recording in learned_from:
            raise LeakError(f"{where}: {recording} has no fold, but heads learned from it; run `talstack heads` again")
        if fold is not None and fold != folds.get(recording):
            raise LeakError(
                f"{where}: {recording} was predicted as of fold {fold}, but is in fold {folds.get(recording)}: the "
                "model that predicted it may have learned from it; run `talstack heads` again"
            )
