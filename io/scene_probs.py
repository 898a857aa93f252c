"""Reader of scene predictions: scene.parquet of a run, or the competition's CSV (id, 0, 1, ..., K-1).

Both give the same table: `recording` and one float64 column per scene, by name. It stops at the first thing that
is wrong; values need not add up to 1, since only their order counts.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from talstack.io.errors import InputError, MissingInputError
from talstack.io.tables import read_csv, refuse_other_bytes


def read_scene_probs(path: Path, *, scenes: Sequence[str]) -> pl.DataFrame:
    """Return `recording` and one column per scene, sorted by recording.

    Args:
        path: .parquet with columns `recording` and the scenes' names, or .csv with `id` and the scenes' numbers
            from 0, in the order of `scenes`.
        scenes: the K scenes, ordered.

    Raises:
        MissingInputError: there is no such file.
        InputError: another format, a missing or surplus column, a line of another length, a repeated or empty id, or
            a value that is missing, not finite or negative; the message names file, line (row of a parquet file,
            counted from 0) and column.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of scene predictions")
    if not scenes:
        raise InputError(f"{path}: the data set has no scenes, so there is nothing to read scene predictions for")
    if path.suffix == ".parquet":
        table, columns = _read_parquet(path, scenes), dict(zip(scenes, scenes, strict=True))
    elif path.suffix == ".csv":
        table, columns = _read_submission(path, scenes), {scene: str(i) for i, scene in enumerate(scenes)}
    else:
        raise InputError(f"{path}: scene predictions must be .parquet or .csv, got {path.suffix or 'no suffix'!r}")
    _check(table, columns, path)
    return table.select("recording", *scenes).sort("recording")


def _read_parquet(path: Path, scenes: Sequence[str]) -> pl.DataFrame:
    """Return recording, one column per scene and `place`, which names each row."""
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error})") from error
    _check_columns(table.columns, ["recording", *scenes], path)
    for name, dtype in table.schema.items():
        is_text = isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
        if not (is_text if name == "recording" else dtype.is_numeric() or dtype == pl.Null):
            expected = "texts" if name == "recording" else "numbers"
            raise InputError(f"{path}, column {name}: expected {expected}, got {dtype}")
    place = pl.format("row {} (counted from 0)", pl.int_range(pl.len()))
    table = table.select(pl.col("recording").cast(pl.String), pl.col(list(scenes)).cast(pl.Float64), place=place)
    return table.with_columns(pl.col("recording").str.strip_chars())


def _read_submission(path: Path, scenes: Sequence[str]) -> pl.DataFrame:
    """Return recording, one column per scene and `place`, which names each line."""
    numbers = [str(index) for index in range(len(scenes))]
    refuse_other_bytes(path)
    _check_lines(path, ["id", *numbers])
    table = read_csv(path, {"id": pl.String, **dict.fromkeys(numbers, pl.Float64)}, only_utf8=True)
    renamed = {"id": "recording", **dict(zip(numbers, scenes, strict=True))}
    return table.select(pl.exclude("line"), place=pl.format("line {}", "line")).rename(renamed)


def _check_lines(path: Path, expected: Sequence[str]) -> None:
    """Raise InputError where the header is not the one expected or a line has another length than it."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = [name.strip() for name in next((row for row in reader if row), [])]
            _check_columns(header, expected, path)
            for values in reader:
                if values and len(values) != len(header):
                    where = f"{path}, line {reader.line_num}"
                    raise InputError(f"{where}: {len(values)} values, expected {len(header)}: id and one per scene")
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not a line of scene predictions: {error}") from error


def _check_columns(found: Sequence[str], expected: Sequence[str], path: Path) -> None:
    wanted = f"{expected[0]} and {len(expected) - 1} scenes, {expected[1]!r} to {expected[-1]!r}"
    missing = [name for name in expected if name not in found]
    surplus = [name for place, name in enumerate(found) if name not in expected or name in found[:place]]
    if missing:
        raise InputError(f"{path}: missing column {missing[0]!r}, {len(found)} columns found; expected {wanted}")
    if surplus:
        raise InputError(f"{path}: surplus column {surplus[0]!r}, {len(found)} columns found; expected {wanted}")


def _check(table: pl.DataFrame, columns: dict[str, str], path: Path) -> None:
    """Raise InputError at the first row that is wrong; `columns` are the names that the file gives to the scenes."""
    for message, bad in (
        ("has no recording", pl.col("recording").is_null() | (pl.col("recording") == "")),
        ("appears more than once", ~pl.col("recording").is_first_distinct()),
    ):
        rows = table.filter(bad)
        if rows.height:
            raise InputError(f"{path}, {rows['place'][0]}: {rows['recording'][0]!r} {message}")
    for scene, column in columns.items():
        rows = table.filter(~(pl.col(scene).is_finite() & (pl.col(scene) >= 0)).fill_null(False))
        if rows.height:
            raise InputError(
                f"{path}, {rows['place'][0]}, column {column}: expected a finite number of at least 0, "
                f"got {rows[scene][0]}"
            )
