"""The detections table: its checks, its readers and its writers.

A detection is a row (recording, start_s, end_s, label, score) of `DETECTION_SCHEMA`; times are seconds on the
recording's clock. Accepted files: talstack's parquet, plain CSV, ActivityNet result JSON (which OpenTAD writes
too) and the BinEgo-360 competition's CSV. Ground truth is read in `talstack.io.ground_truth`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.bins import BIN_S, parse_prediction, parse_row_id
from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import atomic_path, read_json, write_text
from talstack.io.labels import BINEGO360_ACTIONS
from talstack.io.manifest import SCHEMAS
from talstack.io.tables import read_csv

INSTANCE_SCHEMA = SCHEMAS["instances"]
DETECTION_SCHEMA: dict[str, type[pl.DataType]] = {**INSTANCE_SCHEMA, "score": pl.Float64}
ZERO_LENGTH = "zero length"
BINEGO360_CLASSES: Mapping[int, str] = dict(enumerate(BINEGO360_ACTIONS, start=1))


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Detections as read from a file.

    Attributes:
        detections: checked table of `DETECTION_SCHEMA`; starts before 0 are kept, as the evaluators keep them.
        binned: the file is a competition CSV, whose pieces end at the edges of ten-second bins.
        dropped: {reason: count} of rows left out.
        warnings: what is odd about the rows that were kept.
    """

    detections: pl.DataFrame
    binned: bool
    dropped: Mapping[str, int]
    warnings: tuple[str, ...]


def validate_detections(table: pl.DataFrame, *, where: str, allow_negative: bool = False) -> pl.DataFrame:
    """Return the table with the columns of `DETECTION_SCHEMA`, numbers as float64.

    A column `line`, which `read_csv` adds, is used to name rows and then left out.

    Args:
        where: file or step that the table comes from, for messages.
        allow_negative: let detections start before second 0.

    Raises:
        InputError: a missing, unknown or mistyped column; an empty value; a time or score that is not finite; an
            end that is not after its start; a negative time. The message names the first such row.
    """
    return _validate(table, DETECTION_SCHEMA, where=where, allow_negative=allow_negative)


def validate_instances(table: pl.DataFrame, *, where: str, allow_negative: bool = False) -> pl.DataFrame:
    """Return the table with the columns of `INSTANCE_SCHEMA`, checked as `validate_detections` does."""
    return _validate(table, INSTANCE_SCHEMA, where=where, allow_negative=allow_negative)


def drop_zero_length(table: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the table without rows that end where they start, and {reason: count} of those (empty if none)."""
    kept = table.filter((pl.col("end_s") != pl.col("start_s")).fill_null(True))
    count = table.height - kept.height
    return kept, {ZERO_LENGTH: count} if count else {}


def count_negative(table: pl.DataFrame) -> tuple[str, ...]:
    """Return a warning that counts the intervals that start before second 0; nothing where there is none."""
    count = int((table["start_s"] < 0).sum())
    return (f"{count} of {table.height} intervals start before second 0; they are kept as they are",) if count else ()


def sort_detections(detections: pl.DataFrame) -> pl.DataFrame:
    """Return the rows by recording, then descending score, then start, end and label."""
    order = ["recording", "score", "start_s", "end_s", "label"]
    return detections.sort(order, descending=[False, True, False, False, False])


def read_predictions(
    path: Path,
    *,
    score_column: str = "score",
    system: str | None = None,
    class_ids: Mapping[int, str] = BINEGO360_CLASSES,
) -> Predictions:
    """Return the detections of a parquet, CSV, ActivityNet JSON or competition CSV file, told apart by content.

    Args:
        path: the file.
        score_column: column to rank by, in parquet and plain CSV.
        system: which system's rows to take where a `system` column names several.
        class_ids: label of each class id in a competition CSV; BinEgo-360's own by default.

    Raises:
        MissingInputError: there is no such file.
        InputError: another format, or values that `validate_detections` refuses; names the file and the row.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of predictions")
    binned = path.suffix == ".csv" and _header(path)[:2] == ["id", "prediction"]
    if path.suffix not in (".parquet", ".csv", ".json"):
        raise InputError(f"{path}: predictions must be .parquet, .csv or .json, got {path.suffix or 'no suffix'!r}")
    if (binned or path.suffix == ".json") and (score_column != "score" or system is not None):
        raise InputError(
            f"{path}: this format has one score and one system; a score column or a system cannot be chosen"
        )
    if binned:
        table = _read_competition_csv(path, class_ids)
    elif path.suffix == ".json":
        table = _read_activitynet(path)
    else:
        table = _read_columns(path, score_column, system)
    kept, dropped = drop_zero_length(table)
    detections = validate_detections(kept, where=str(path), allow_negative=True)
    return Predictions(detections, binned=binned, dropped=dropped, warnings=count_negative(detections))


def activitynet_columns(entries: Iterable[tuple[str, Any]], *, keys: tuple[str, ...], where: Path) -> pl.DataFrame:
    """Return a table of ActivityNet's JSON entries: recording, start_s, end_s, then one column per key.

    Args:
        entries: (recording, list of {"segment": [start, end], "label": str, ...}).
        keys: "label" and, for results, "score".
        where: the file, for messages.

    Raises:
        InputError: an entry of another form; the message names the recording and the entry.
    """
    rows: list[tuple[Any, ...]] = []
    for recording, items in entries:
        if not isinstance(items, list):
            raise InputError(f"{where}, recording {recording!r}: expected a list of entries, got {items!r:.80}")
        for index, item in enumerate(items):
            try:
                start, end = item["segment"]
                row = (recording, float(start), float(end), *(item[key] for key in keys))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{where}, recording {recording!r}, entry {index}: expected segment [start, end], "
                    f"{', '.join(keys)}; got {item!r:.120} ({error!r})"
                ) from error
            rows.append(row)
    names = ("recording", "start_s", "end_s", *keys)
    columns = [[row[place] for row in rows] for place in range(len(names))]
    try:
        return pl.DataFrame([pl.Series(n, c, dtype=DETECTION_SCHEMA[n]) for n, c in zip(names, columns, strict=True)])
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{where}: a label is not a text or a score is not a number: {error}") from error


def write_activitynet(detections: pl.DataFrame, path: Path, *, recordings: Iterable[str] = ()) -> None:
    """Write ActivityNet's result JSON; `recordings` without a detection get an empty list."""
    results: dict[str, list[dict[str, Any]]] = {recording: [] for recording in sorted(recordings)}
    for recording, start, end, label, score in sort_detections(detections).select(list(DETECTION_SCHEMA)).iter_rows():
        results.setdefault(recording, []).append({"label": label, "segment": [start, end], "score": score})
    value = {"version": "VERSION 1.3", "results": results, "external_data": {}}
    write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(detections: pl.DataFrame, path: Path) -> None:
    """Write the plain CSV: recording, start_s, end_s, label, score in full precision."""
    with atomic_path(path) as temporary:
        sort_detections(detections).select(list(DETECTION_SCHEMA)).write_csv(temporary)


def write_parquet(detections: pl.DataFrame, path: Path) -> None:
    """Write talstack's parquet table, further columns (such as `system`) included."""
    with atomic_path(path) as temporary:
        sort_detections(detections).write_parquet(temporary)


def _header(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return [name.strip().strip('"') for name in file.readline().split(",")]


def _read_columns(path: Path, score_column: str, system: str | None) -> pl.DataFrame:
    schema: dict[str, type[pl.DataType]] = {**INSTANCE_SCHEMA, score_column: pl.Float64, "system": pl.String}
    if path.suffix == ".csv":
        table = read_csv(path, schema, optional=["system"])
    else:
        try:
            table = pl.read_parquet(path)
        except pl.exceptions.PolarsError as error:
            raise InputError(f"{path}: not a readable parquet file ({error})") from error
        missing = [name for name in schema if name not in table.columns and name != "system"]
        if missing:
            raise InputError(f"{path}: missing column {', '.join(missing)}; found {', '.join(table.columns)}")
    if "system" in table.columns:
        table = _one_system(table, system, path)
    elif system is not None:
        raise InputError(f"{path}: there is no column `system` to choose {system!r} from")
    lines = [pl.col("line")] if path.suffix == ".csv" else []
    return table.select(*INSTANCE_SCHEMA, pl.col(score_column).alias("score"), *lines)


def _one_system(table: pl.DataFrame, system: str | None, path: Path) -> pl.DataFrame:
    systems = table["system"].drop_nulls().unique().sort().to_list()
    if system is None and len(systems) > 1:
        raise InputError(f"{path}: holds several systems, choose one of them: {', '.join(systems)}")
    if system is not None and system not in systems:
        raise InputError(f"{path}: no system {system!r}; found {', '.join(systems) or 'none'}")
    return table.filter(pl.col("system") == system) if system is not None else table


def _read_activitynet(path: Path) -> pl.DataFrame:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise InputError(f'{path}: expected ActivityNet results, {{"results": {{recording: [...]}}}}')
    return activitynet_columns(content["results"].items(), keys=("label", "score"), where=path)


def _read_competition_csv(path: Path, class_ids: Mapping[int, str]) -> pl.DataFrame:
    rows = read_csv(path, {"id": pl.String, "prediction": pl.String})
    repeated = rows.filter(pl.col("id").is_duplicated())
    if repeated.height:
        raise InputError(f"{path}, line {repeated['line'][-1]}: id {repeated['id'][-1]!r} appears more than once")
    records: list[tuple[str, float, float, str, float]] = []
    for name, text, line in rows.iter_rows():
        try:
            records += _competition_row(name, text, class_ids)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    return pl.DataFrame(records, schema=DETECTION_SCHEMA, orient="row")


def _competition_row(
    name: str, text: str, class_ids: Mapping[int, str]
) -> Iterable[tuple[str, float, float, str, float]]:
    recording, bin_index = parse_row_id(name)
    low, high = bin_index * BIN_S, (bin_index + 1) * BIN_S
    for class_id, start, end, score in parse_prediction(text):
        if class_id not in class_ids:
            raise InputError(f"class id {class_id} is not one of {min(class_ids)}..{max(class_ids)}")
        if not low <= start <= end <= high:
            raise InputError(
                f"[{start}, {end}] does not lie in the bin {low:.0f} to {high:.0f}; "
                "times are seconds on the recording's clock, not relative to the bin"
            )
        yield recording, start, end, class_ids[class_id], score


def _validate(
    table: pl.DataFrame, schema: Mapping[str, type[pl.DataType]], *, where: str, allow_negative: bool
) -> pl.DataFrame:
    lines = table["line"] if "line" in table.columns else None
    table = _with_schema(table.drop("line", strict=False), schema, where)
    numbers = [name for name, dtype in schema.items() if dtype == pl.Float64]
    rules = [
        (pl.any_horizontal(pl.all().is_null()), "an empty value"),
        (~pl.all_horizontal(pl.col(numbers).is_finite()), f"{', '.join(numbers)} must be finite"),
        (pl.col("end_s") <= pl.col("start_s"), "end_s must be after start_s"),
        (pl.lit(not allow_negative) & (pl.col("start_s") < 0), "start_s must not be negative"),
    ]
    for condition, message in rules:
        bad = table.with_row_index("row").filter(condition)
        if bad.height:
            values = bad.row(0, named=True)
            row = values.pop("row")
            place = f"row {row} (counted from 0)" if lines is None else f"line {lines[row]}"
            raise InputError(f"{where}: {message}; {bad.height} row(s), the first is {place}: {values}")
    return table


def _with_schema(table: pl.DataFrame, schema: Mapping[str, type[pl.DataType]], where: str) -> pl.DataFrame:
    missing = [name for name in schema if name not in table.columns]
    unknown = [name for name in table.columns if name not in schema]
    if missing or unknown:
        what = f"missing column {', '.join(missing)}" if missing else f"unknown column {', '.join(unknown)}"
        raise InputError(f"{where}: {what}; expected {', '.join(schema)}")
    for name, expected in schema.items():
        got = table.schema[name]
        fits = got.is_numeric() if expected == pl.Float64 else isinstance(got, pl.String | pl.Categorical | pl.Enum)
        if not fits and got != pl.Null:
            raise InputError(f"{where}, column {name}: expected {expected.__name__}, got {got}")
    return table.select(pl.col(name).cast(expected) for name, expected in schema.items())
