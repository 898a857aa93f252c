"""The detections table: its checks, its readers and its writers.

A detection is a row (recording, start_s, end_s, label, score) of `DETECTION_SCHEMA`; times are seconds on the
recording's clock. Accepted files: talstack's parquet, plain CSV, the JSON forms of `talstack.io.result_json` and the
BinEgo-360 competition's CSV. Ground truth is read in `talstack.io.ground_truth`.

In every format white space around a recording or a label is no part of the name; empty names are refused, and so are
two names of a file that only such white space tells apart (in a CSV, where it is layout, they are one name).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import polars as pl

from talstack.io.bins import BIN_S, parse_prediction, parse_row_id
from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import atomic_path, write_text
from talstack.io.labels import BINEGO360_ACTIONS
from talstack.io.manifest import SCHEMAS
from talstack.io.result_json import RESULT_KEYS, activitynet_columns, read_result_json, record_columns
from talstack.io.tables import read_csv, read_header

INSTANCE_SCHEMA = SCHEMAS["instances"]
DETECTION_SCHEMA: dict[str, type[pl.DataType]] = {**INSTANCE_SCHEMA, "score": pl.Float64}
MAX_TIME_S = 1e12  # 31,700 years; beyond about 1e308 the tIoU of two intervals is not a number
ZERO_LENGTH = "zero length"
NO_SYSTEM = "row without a system"
NAMES = ("recording", "label")
ARGUMENTS = "talstack evaluate takes PREDICTIONS first, then GROUND_TRUTH"
COMPETITION_HEADER = ("id", "prediction")
REPEATED = "they are kept, as the reference keeps them, and at most one of each can be a hit per instance"
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
        InputError: a missing, unknown or mistyped column; an empty value; a time or score that is not finite; a time
            beyond `MAX_TIME_S`; an end that is not after its start; a negative time. The message names the first
            such row.
    """
    return _validate(table, DETECTION_SCHEMA, where=where, allow_negative=allow_negative)


def validate_instances(table: pl.DataFrame, *, where: str, allow_negative: bool = False) -> pl.DataFrame:
    """Return the table with the columns of `INSTANCE_SCHEMA`, checked as `validate_detections` does."""
    return _validate(table, INSTANCE_SCHEMA, where=where, allow_negative=allow_negative)


def drop_zero_length(table: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the table without rows that end where they start, and {reason: count} of those (empty if none).

    Rows whose times are missing or not finite stay, for `validate_detections` to refuse.
    """
    is_empty = (pl.col("end_s") == pl.col("start_s")) & pl.col("start_s").is_finite()  # to polars NaN is NaN
    kept = table.filter(~is_empty.fill_null(False))
    count = table.height - kept.height
    return kept, {ZERO_LENGTH: count} if count else {}


def check_read_rows(
    table: pl.DataFrame, schema: Mapping[str, type[pl.DataType]], *, where: str
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the rows of a file as `schema` wants them, names without outer white space, and {reason: count} dropped.

    Args:
        table: the columns of `schema`, and `line` where rows have one.

    Raises:
        InputError: what `validate_detections` refuses, an empty name, or two names that only outer white space tells
            apart.
    """
    checked = _validate(table, schema, where=where, allow_negative=True, allow_zero_length=True)
    return drop_zero_length(strip_names(checked, NAMES, where=where))


def strip_names(table: pl.DataFrame, columns: Sequence[str], *, where: str) -> pl.DataFrame:
    """Return the table with no white space around the texts of the columns.

    Raises:
        InputError: two different texts of a column would become one, or one would become empty.
    """
    for column in columns:
        names = table[column].drop_nulls().unique()
        stripped = names.str.strip_chars()
        if (stripped == "").any():
            row = (table[column].str.strip_chars() == "").arg_max()
            raise InputError(f"{where}, row {row} (counted from 0): the {column} is an empty text; expected a name")
        repeated = names.filter(stripped.is_duplicated()).sort()
        if len(repeated):
            raise InputError(
                f"{where}: only white space tells these {column}s apart: {', '.join(map(repr, repeated.head(4)))}; "
                "it is no part of a name, so rename one of them"
            )
        if (names != stripped).any():
            table = table.with_columns(pl.col(column).str.strip_chars())
    return table


def count_negative(table: pl.DataFrame) -> tuple[str, ...]:
    """Return a warning that counts the intervals that start before second 0; nothing where there is none."""
    count = int((table["start_s"] < 0).sum())
    return (f"{count} of {table.height} intervals start before second 0; they are kept as they are",) if count else ()


def count_repeated(table: pl.DataFrame, effect: str) -> tuple[str, ...]:
    """Return a warning that counts the rows that repeat an earlier one in every column; nothing where there is none."""
    hashes = table.hash_rows()
    suspects = table.filter(hashes.is_duplicated())  # few, while rows themselves take ten times the memory
    count = suspects.height - suspects.n_unique() if suspects.height else 0
    return (f"{count} of {table.height} rows repeat another one exactly; {effect}",) if count else ()


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
    """Return the detections of a parquet, CSV, JSON or competition CSV file, told apart by suffix and content.

    Args:
        path: the file.
        score_column: column to rank by, in parquet and plain CSV.
        system: which system's rows to take where a `system` column holds several; rows without one count as another.
        class_ids: label of each class id in a competition CSV and in challenge records; BinEgo-360's own by default.

    Raises:
        MissingInputError: there is no such file.
        InputError: another format, or values that `validate_detections` refuses; names the file and the row.
    """
    source = _open(path, score_column, system, class_ids)
    detections, dropped = check_read_rows(source.table, DETECTION_SCHEMA, where=str(path))
    warnings = (*source.warnings, *count_negative(detections), *count_repeated(detections, REPEATED))
    return Predictions(detections, binned=source.binned, dropped={**source.dropped, **dropped}, warnings=warnings)


def is_competition_csv(header: Sequence[str]) -> bool:
    """Return whether these are the columns of the competition's file, in whichever order, rather than of a table."""
    return set(COMPETITION_HEADER) <= set(header) and not set(INSTANCE_SCHEMA) <= set(header)


class _Source(NamedTuple):
    """A file's rows before they are checked, and what to say about them."""

    table: pl.DataFrame
    binned: bool = False
    warnings: tuple[str, ...] = ()
    dropped: Mapping[str, int] = MappingProxyType({})


def _open(path: Path, score_column: str, system: str | None, class_ids: Mapping[int, str]) -> _Source:
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected a file of predictions; {ARGUMENTS}")
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of predictions")
    if path.suffix not in (".parquet", ".csv", ".json"):
        raise InputError(f"{path}: predictions must be .parquet, .csv or .json, got {path.suffix or 'no suffix'!r}")
    binned = path.suffix == ".csv" and is_competition_csv(read_header(path))
    if not binned and path.suffix != ".json":
        return _read_columns(path, score_column, system)
    if score_column != "score" or system is not None:
        raise InputError(
            f"{path}: this format has one score and one system; a score column or a system cannot be chosen"
        )
    return _Source(_read_competition_csv(path, class_ids), binned=True) if binned else _read_json(path, class_ids)


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


def _read_columns(path: Path, score_column: str, system: str | None) -> _Source:
    if score_column in (*NAMES, "system"):
        raise InputError(f"{path}: column {score_column} holds names; a score column needs numbers to rank by")
    schema: dict[str, type[pl.DataType]] = {**INSTANCE_SCHEMA, score_column: pl.Float64, "system": pl.String}
    if path.suffix == ".csv":
        _refuse_ground_truth(read_header(path), score_column, path)
        table = read_csv(path, schema, optional=["system"], only_utf8=True)
    else:
        table = _read_parquet(path, schema, score_column)
    dropped: dict[str, int] = {}
    if "system" in table.columns:
        table, dropped = _one_system(table, system, path)
    elif system is not None:
        raise InputError(f"{path}: there is no column `system` to choose {system!r} from")
    lines = [pl.col("line")] if path.suffix == ".csv" and score_column != "line" else []
    return _Source(table.select(*INSTANCE_SCHEMA, pl.col(score_column).alias("score"), *lines), dropped=dropped)


def _read_parquet(path: Path, schema: Mapping[str, type[pl.DataType]], score_column: str) -> pl.DataFrame:
    try:
        found = list(pl.read_parquet_schema(path))
        _refuse_ground_truth(found, score_column, path)
        missing = [name for name in schema if name not in found and name != "system"]
        if missing:
            raise InputError(f"{path}: missing column {', '.join(missing)}; found {', '.join(found)}")
        return pl.read_parquet(path, columns=[name for name in schema if name in found])
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error})") from error


def _refuse_ground_truth(found: list[str], score_column: str, path: Path) -> None:
    if set(INSTANCE_SCHEMA) <= set(found) and score_column not in found:
        raise InputError(
            f"{path}: missing column {score_column}; found {', '.join(found)}. Is this the ground truth? {ARGUMENTS}; "
            "if it is predictions, --score-column names the column to rank by"
        )


def _one_system(table: pl.DataFrame, system: str | None, path: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the rows of one system, and {reason: count} of rows without any that were left out for it."""
    dtype = table.schema["system"]
    if not (dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)):
        raise InputError(f"{path}, column system: expected names, got {dtype}")
    table = table.with_columns(pl.col("system").cast(pl.String))
    systems = table["system"].drop_nulls().unique().sort().to_list()
    nameless = table["system"].null_count()
    if system is None and len(systems) + bool(nameless) > 1:
        others = f"; {nameless} rows have none" if nameless else ""
        raise InputError(f"{path}: holds several systems, choose one of them: {', '.join(systems)}{others}")
    if system is None:
        return table, {}
    if system not in systems:
        raise InputError(f"{path}: no system {system!r}; found {', '.join(systems) or 'none'}")
    return table.filter(pl.col("system") == system), {NO_SYSTEM: nameless} if nameless else {}


def _read_json(path: Path, class_ids: Mapping[int, str]) -> _Source:
    content = read_result_json(path)
    if isinstance(content, list):
        table, warnings = record_columns(content, class_ids=class_ids, where=path)
        return _Source(table, warnings=warnings)
    if isinstance(content, dict) and "database" in content:
        raise InputError(f"{path}: holds annotations, not predictions. Are the two files swapped? {ARGUMENTS}")
    results = [content[key] for key in RESULT_KEYS if key in content] if isinstance(content, dict) else []
    if not results or not isinstance(results[0], dict):
        raise InputError(
            f'{path}: expected ActivityNet results, {{"results": {{recording: [{{"segment", "label", "score"}}]}}}}, '
            'or a list of {"video_id", "t_start", "t_end", "label", "score"}'
        )
    return _Source(activitynet_columns(results[0].items(), keys=("label", "score"), where=path))


def _read_competition_csv(path: Path, class_ids: Mapping[int, str]) -> pl.DataFrame:
    header = read_header(path)
    if len(header) > len(COMPETITION_HEADER):
        found = ",".join(header)
        raise InputError(f"{path}: expected exactly id,prediction, got {found[:80]!r}; remove the other columns")
    rows = read_csv(path, dict.fromkeys(COMPETITION_HEADER, pl.String), only_utf8=True)
    repeated = rows.filter(pl.col("id").is_duplicated())
    if repeated.height:
        raise InputError(f"{path}, line {repeated['line'][-1]}: id {repeated['id'][-1]!r} appears more than once")
    records: list[tuple[str, float, float, str, float, int]] = []
    for name, text, line in rows.iter_rows():
        try:
            records += [(*record, line) for record in _competition_row(name, text, class_ids)]
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    return pl.DataFrame(records, schema={**DETECTION_SCHEMA, "line": pl.Int64}, orient="row")


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
    table: pl.DataFrame,
    schema: Mapping[str, type[pl.DataType]],
    *,
    where: str,
    allow_negative: bool,
    allow_zero_length: bool = False,
) -> pl.DataFrame:
    lines = table["line"] if "line" in table.columns else None
    table = _with_schema(table.drop("line", strict=False), schema, where)
    numbers = [name for name, dtype in schema.items() if dtype == pl.Float64]
    start_s, end_s = pl.col("start_s"), pl.col("end_s")
    is_reversed = end_s < start_s if allow_zero_length else end_s <= start_s
    rules = [
        (pl.any_horizontal(pl.all().is_null()), "an empty value"),
        (~pl.all_horizontal(pl.col(numbers).is_finite()), f"{', '.join(numbers)} must be finite"),
        (
            pl.any_horizontal(pl.col("start_s", "end_s").abs() > MAX_TIME_S),
            f"start_s, end_s must lie within {MAX_TIME_S:g} seconds of 0",
        ),
        (is_reversed, "end_s must be after start_s"),
        (pl.lit(not allow_negative) & (pl.col("start_s") < 0), "start_s must not be negative"),
    ]
    broken = table.select(condition.any().alias(message) for condition, message in rules).row(0)
    for (condition, message), is_broken in zip(rules, broken, strict=True):
        if is_broken:
            bad = table.with_row_index("row").filter(condition)
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
