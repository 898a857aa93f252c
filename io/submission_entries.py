"""The entries of the competition's action track: what each row's prediction says, and the rules for it.

A prediction is a list literal of [class id, start, end, score]. Rows are parsed one by one, so that one broken
entry does not hide the next; the rules are polars expressions over one table of all entries.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

from talstack.io.bins import BIN_S, MIN_PIECE_S, SLACK_S, parse_entries
from talstack.io.errors import InputError
from talstack.io.submission_findings import Finding, finding

MANY_ENTRIES = 1000
ON_GRID_S = 1e-6  # 12.299999999 is 12.3 after arithmetic, not another time
PAST_END_S = 0.1  # a start just before the recording's end may round to just after it
FRAME_RATES = (30, 25, 24, 50, 60, 15, 10)

ROW_SCHEMA: dict[str, type[pl.DataType]] = {
    "line": pl.Int64,
    "recording": pl.String,
    "low_s": pl.Float64,
    "duration_s": pl.Float64,
    "last_s": pl.Float64,
}
NUMBERS = ("class_id", "start_s", "end_s", "score")

NUMPY_SCALAR = re.compile(r"(?:np|numpy)\.\w+\(([^()]*)\)")
INNERMOST_LIST = re.compile(r"[\[(]([^\[\]()]*)[\])]")


@dataclass(frozen=True, slots=True)
class RowText:
    """One row, its id understood.

    Attributes:
        line: line of the file.
        text: its prediction.
        recording, low_s: recording and start of the bin, seconds; None where the id names no bin of the split.
        duration_s: length of the recording.
        last_s: end of the recording's last bin.
    """

    line: int
    text: str
    recording: str | None = None
    low_s: float | None = None
    duration_s: float | None = None
    last_s: float | None = None


def parse_rows(rows: Sequence[RowText]) -> tuple[pl.DataFrame, list[Finding]]:
    """Return all entries that are four numbers, and findings about the text of the others.

    Returns:
        table (line, entry, class_id, start_s, end_s, score, rounded_start_s, rounded_end_s, recording, low_s,
        duration_s, last_s), numbers as float64, rounded ones to 0.1 s; entries are counted from 1 within their row.
    """
    findings: list[Finding] = []
    numbers: list[float] = []
    owners: list[int] = []
    places: list[int] = []
    for index, row in enumerate(rows):
        entries, problem = _entries_of(row.text)
        if problem is not None:
            findings.append(finding("not a list", problem, line=row.line, column="prediction"))
        values = _flat_numbers(entries)
        if values is None:
            for place, entry in enumerate(entries, start=1):
                own = _flat_numbers([entry])
                if own is None:
                    message = f"{_shown(entry)}: expected four numbers, [class id, start, end, score]"
                    findings.append(
                        finding("malformed entry", message, line=row.line, column="prediction", entry=place)
                    )
                    continue
                numbers += own
                owners.append(index)
                places.append(place)
        else:
            numbers += values
            owners += [index] * len(entries)
            places += range(1, len(entries) + 1)
    return _entry_table(rows, owners, places, numbers), findings


def _entry_table(rows: Sequence[RowText], owners: list[int], places: list[int], numbers: list[float]) -> pl.DataFrame:
    context = pl.DataFrame(
        [(r.line, r.recording, r.low_s, r.duration_s, r.last_s) for r in rows], schema=ROW_SCHEMA, orient="row"
    )
    columns = {name: pl.Series(numbers[place::4], dtype=pl.Float64) for place, name in enumerate(NUMBERS)}
    table = context[owners] if owners else context.clear()
    # numpy's rounding, as in `talstack.io.bins`: polars takes 0.05 the other way
    rounded = {f"rounded_{name}": pl.Series(np.round(columns[name].to_numpy(), 1)) for name in ("start_s", "end_s")}
    return table.with_columns(pl.Series("entry", places, dtype=pl.Int64), **columns, **rounded)


def _entries_of(text: str) -> tuple[list[Any], str | None]:
    """Return the entries that the text holds, and why it is not a list literal (None where it is one)."""
    try:
        entries = parse_entries(text)
    except InputError as error:
        return _salvage(text), _why_no_list(text, error)
    if entries and all(isinstance(entry, int | float) for entry in entries):
        return [entries], f"{text[:60]!r}: a single entry needs a list around it as well: [[class id, start, ...]]"
    return entries, None


def _salvage(text: str) -> list[Any]:
    """Return what looks like entries in a text that is no list literal, so that their numbers can be checked."""
    inner = INNERMOST_LIST.findall(NUMPY_SCALAR.sub(r"\1", text))
    return [[_number(token) for token in re.split(r"[,\s]+", part.strip(", \n")) if token] for part in inner if part]


def _number(token: str) -> float | str:
    try:
        return float(token)
    except ValueError:
        return token


def _why_no_list(text: str, error: InputError) -> str:
    stripped = text.strip()
    if not stripped:
        return "the prediction is empty; a bin with nothing is []"
    if stripped[0] == stripped[-1] and stripped[0] in "'\"":
        return (
            "the list is in quotes of its own, which makes it a text; a CSV takes double quotes right after the comma"
        )
    if NUMPY_SCALAR.search(text):
        return f"{text[:60]!r} holds numpy's own notation; write plain numbers: float(x)"
    if re.search(r"\b(nan|inf)\b", text):
        return f"{text[:60]!r} holds nan or inf, which no list literal can"
    if re.search(r"\d\.?\s+-?\d", text):
        return f"{text[:60]!r} holds numbers without commas between them (a printed array?)"
    return str(error)


def _flat_numbers(entries: Sequence[Any]) -> list[float] | None:
    """Return the numbers of all entries end to end; None unless each is a list of four plain numbers."""
    if not set(map(type, entries)) <= {list, tuple} or not set(map(len, entries)) <= {4}:
        return None
    numbers = list(chain.from_iterable(entries))
    if not set(map(type, numbers)) <= {int, float}:
        return None
    try:
        return list(map(float, numbers))
    except OverflowError:
        return None


def _shown(entry: object) -> str:
    try:
        text = repr(entry)
    except ValueError:  # an integer of more digits than Python prints
        text = "[a number of thousands of digits]"
    return text if len(text) <= 80 else text[:77] + "..."


def entry_findings(table: pl.DataFrame, class_ids: Iterable[int]) -> list[Finding]:
    """Return what the rules find in the table of `parse_rows`; entries of one row are compared in its order."""
    shown = pl.format("[{}, {}, {}, {}]", _class_text(), "start_s", "end_s", "score")
    rules = [*_class_rules(sorted(class_ids)), *_time_rules(), *_score_rules(), _duplicate_rule()]
    findings: list[Finding] = []
    for kind, condition, message in rules:
        bad = table.filter(condition).select("line", "entry", message=pl.format("{} {}", shown, message))
        findings += [
            finding(kind, text, line=line, column="prediction", entry=entry) for line, entry, text in bad.iter_rows()
        ]
    return findings + _row_findings(table)


Rule = tuple[str, pl.Expr, pl.Expr]


def _class_text() -> pl.Expr:
    whole = pl.col("class_id").cast(pl.Int64, strict=False)
    return (
        pl.when(whole == pl.col("class_id")).then(whole.cast(pl.String)).otherwise(pl.col("class_id").cast(pl.String))
    )


def _class_rules(class_ids: Sequence[int]) -> list[Rule]:
    class_id, known = pl.col("class_id"), pl.lit(f"{class_ids[0]}..{class_ids[-1]}")
    is_whole = class_id.is_finite() & (class_id == class_id.floor())
    background = pl.lit(0 not in class_ids) & (class_id == 0)
    message = (
        pl.when(background).then(pl.format("class 0 is background, which is not scored; classes are {}", known))
        .when(is_whole).then(pl.format("there is no class {}; expected one of {}", _class_text(), known))
        .otherwise(pl.format("class id {} is not a whole number; expected one of {}", _class_text(), known))
    )  # fmt: skip
    return [("unknown class", ~class_id.is_in([float(i) for i in class_ids]) | class_id.is_nan(), message)]


def _time_rules() -> list[Rule]:
    start, end, low = pl.col("start_s"), pl.col("end_s"), pl.col("low_s")
    finite = start.is_finite() & end.is_finite()
    ordered = finite & (end > start)
    outside = (low.is_not_null() & ((start < low) | (end > low + BIN_S))).fill_null(False)
    inside = ordered & ~outside
    short = end - start < MIN_PIECE_S - SLACK_S
    rounded_start, rounded_end = pl.col("rounded_start_s"), pl.col("rounded_end_s")
    rounded = rounded_end - rounded_start
    off_grid = ((start - rounded_start).abs() > ON_GRID_S) | ((end - rounded_end).abs() > ON_GRID_S)
    rounds_short = off_grid & (rounded < MIN_PIECE_S - SLACK_S)
    length = (end - start).round(3)
    return [
        ("time not finite", ~finite, pl.lit("start and end must be finite seconds")),
        ("end not after start", finite & ~ordered, pl.lit("end must be after start")),
        ("outside the bin", ordered & outside, _outside_message()),
        ("too short", inside & short, pl.format("is {} s long; pieces under 0.5 s in a bin are dropped", length)),
        (
            "too short",
            inside & ~short & rounds_short,
            pl.format("is {} s long after rounding to 0.1 s; pieces under 0.5 s are dropped", rounded.round(1)),
        ),
        ("off the 0.1 s grid", inside & off_grid, pl.lit("times are rounded to 0.1 s")),
        (
            "after the recording's end",
            inside & (start > pl.col("duration_s") + PAST_END_S).fill_null(False),
            pl.format("starts after the recording's end at {} s", pl.col("duration_s").round(3)),
        ),
    ]


def _outside_message() -> pl.Expr:
    """Return the message for times outside their bin, with the likeliest cause."""
    start, end, low = pl.col("start_s"), pl.col("end_s"), pl.col("low_s")
    high = low + BIN_S
    other = (start / BIN_S).floor() * BIN_S
    names = pl.format("{}_{}_{}", "recording", _seconds(other), _seconds(other + BIN_S))
    cause = (
        pl.when((start >= 0) & (end <= BIN_S))
        .then(pl.format("times seem to be relative to the bin; add {}, they count from the recording's start", low))
        .when((start < high) & (end > low)).then(pl.lit("it reaches over the bin's edge; cut it there"))
        .when((start >= 0) & (end <= other + BIN_S) & (end <= pl.col("last_s")))
        .then(pl.format("it lies in another bin; move it to the row {}", names))
        .when(_fits_scaled(1000)).then(pl.lit("times seem to be milliseconds; expected seconds"))
    )  # fmt: skip
    for rate in FRAME_RATES:
        text = pl.lit(f"times seem to be frame numbers ({rate} per second?); expected seconds")
        cause = cause.when(_fits_scaled(rate)).then(text)
    otherwise = cause.otherwise(pl.lit("expected seconds on the recording's clock, cut to the bin"))
    return pl.format("is not in the bin {} to {}: {}", _seconds(low), _seconds(high), otherwise)


def _fits_scaled(per_second: int) -> pl.Expr:
    low = pl.col("low_s")
    return (pl.col("start_s") / per_second >= low) & (pl.col("end_s") / per_second <= low + BIN_S)


def _seconds(whole: pl.Expr) -> pl.Expr:
    return whole.cast(pl.Int64, strict=False).cast(pl.String).fill_null("?")


def _score_rules() -> list[Rule]:
    score = pl.col("score")
    outside = score.is_finite() & ((score < 0) | (score > 1))
    return [
        ("score not finite", ~score.is_finite(), pl.lit("the score must be a finite number")),
        ("score outside 0 to 1", outside, pl.lit("a score is expected to lie in 0 to 1; only the order counts")),
    ]


def _duplicate_rule() -> Rule:
    again = pl.struct("line", *NUMBERS).is_first_distinct().not_()
    return "exact duplicate", again, pl.lit("is in this row already; every further one is a false positive")


def _row_findings(table: pl.DataFrame) -> list[Finding]:
    """Return the warnings about the order and the number of a row's entries."""
    ordered = table.sort("line", "entry")
    rising = ordered.filter(pl.col("score") > pl.col("score").shift(1).over("line")).unique(
        "line", keep="first", maintain_order=True
    )
    order = "entries are not in descending score; the metric sorts by itself, a reader that cuts the list off does not"
    found = [
        finding(
            "not in descending score", f"{order} (entry {entry} is the first to rise)", line=line, column="prediction"
        )
        for line, entry in rising.select("line", "entry").iter_rows()
    ]
    many = table.group_by("line").len().filter(pl.col("len") > MANY_ENTRIES)
    found += [
        finding("very many entries", f"{count} entries in one bin of ten seconds", line=line, column="prediction")
        for line, count in many.iter_rows()
    ]
    return found
