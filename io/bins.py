"""The ten-second bins of the BinEgo-360 competition: cutting intervals into them, and the text of one row.

A submission has one row per recording and bin; ids and times follow FACTS: `<recording>_<bin start>_<bin end>`,
seconds on the recording's own clock. Pieces shorter than `MIN_PIECE_S` do not exist in the competition's ground
truth, so they are dropped on both sides.
"""

import ast
import json
import math
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from talstack.io.errors import InputError

BIN_S = 10.0
MIN_PIECE_S = 0.5
MAX_BINS = 1_000_000  # 116 days
MAX_DIGITS = 15  # of a time in an id: whole numbers that a float holds exactly
OUTSIDE = "outside the recording's bins"
SHORT_PIECE = "piece under half a second"
SLACK_S = 1e-9  # 12.8 - 12.3 must still count as 0.5


def num_bins(duration_s: float) -> int:
    """Return how many bins a recording of this length has; the last one may be partly empty."""
    return max(1, math.ceil((duration_s - SLACK_S) / BIN_S))


def bin_of(time_s: float) -> int:
    """Return the index of the bin that the time lies in."""
    return math.floor(time_s / BIN_S)


def row_id(recording: str, bin_index: int) -> str:
    """Return the id of one row of the competition's file."""
    return f"{recording}_{bin_index * BIN_S:.0f}_{(bin_index + 1) * BIN_S:.0f}"


def parse_row_id(text: str) -> tuple[str, int]:
    """Return (recording, bin index) of a row's id.

    Raises:
        InputError: the id is not `<recording>_<bin start>_<bin end>` of a ten-second bin.
    """
    recording, *ends = text.rsplit("_", 2)
    if len(ends) == 2 and recording and all(_is_whole(end) for end in ends):
        bin_index = int(ends[0]) // int(BIN_S)
        if text == row_id(recording, bin_index):
            return recording, bin_index
    raise InputError(
        f"id {text[:120]!r}: expected <recording>_<bin start>_<bin end> with ten-second bins, such as <recording>_20_30"
    )


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def cut_into_bins(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with every interval cut at the bins' edges, pieces under half a second dropped.

    Args:
        table: any table with start_s and end_s, seconds, 0 <= start_s < end_s. Other columns are repeated.

    Raises:
        InputError: an interval that reaches further than any recording, whose pieces would fill the memory.
    """
    return _cut(table).filter(_long_enough())


def _cut(table: pl.DataFrame) -> pl.DataFrame:
    last_s = table["end_s"].max() if table.height else 0.0
    if isinstance(last_s, float) and last_s > MAX_BINS * BIN_S:
        raise InputError(
            f"an interval ends at {last_s:g} s, past {MAX_BINS} ten-second bins; are its times in seconds?"
        )
    # numpy, because polars divides by a constant as a multiplication: 30.0 / 10.0 gives 3.0000000000000004
    first = pl.Series(np.floor(table["start_s"].to_numpy() / BIN_S), dtype=pl.Int64)
    past = pl.Series(np.ceil(table["end_s"].to_numpy() / BIN_S), dtype=pl.Int64)
    edge = pl.col("bin") * BIN_S
    return (
        table.with_columns(bin=pl.int_ranges(first, past, eager=True))
        .explode("bin")
        .with_columns(start_s=pl.max_horizontal("start_s", edge), end_s=pl.min_horizontal("end_s", edge + BIN_S))
        .drop("bin")
    )


def bin_instances(
    instances: pl.DataFrame, durations_s: Mapping[str, float] | None = None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the ground truth as the competition scores it, and {reason: count} of what is not scored.

    Instances are cut into bins; times stay exact. What lies before second 0 or past the last bin of its recording
    can be in no file, so it is cut off; pieces under half a second are dropped.

    Args:
        instances: table (recording, start_s, end_s, label).
        durations_s: length of each recording; where it is unknown nothing is cut off at the end.
    """
    ends = {name: num_bins(duration_s) * BIN_S for name, duration_s in (durations_s or {}).items()}
    end_s = pl.col("recording").replace_strict(ends, default=None, return_dtype=pl.Float64)
    inside = instances.with_columns(
        start_s=pl.max_horizontal("start_s", 0.0), end_s=pl.min_horizontal("end_s", end_s)
    ).filter(pl.col("end_s") > pl.col("start_s"))
    pieces = _cut(inside)
    kept = pieces.filter(_long_enough())
    counts = {
        OUTSIDE: instances.height - inside.height,
        SHORT_PIECE: pieces.height - kept.height,
    }
    return kept, {f"{reason} (instance)": count for reason, count in counts.items() if count}


def bin_detections(detections: pl.DataFrame) -> pl.DataFrame:
    """Return the detections as a submission states them: cut into bins, times rounded to 0.1 s.

    A piece is dropped if it is shorter than half a second before or after rounding: the first is the rule, the
    second keeps a file from stating a piece that the rule would refuse. Binning twice changes nothing.
    """
    pieces = cut_into_bins(detections)
    rounded = [pl.Series(name, np.round(pieces[name].to_numpy(), 1)) for name in ("start_s", "end_s")]
    return pieces.with_columns(rounded).filter(_long_enough())


def _long_enough() -> pl.Expr:
    return pl.col("end_s") - pl.col("start_s") >= MIN_PIECE_S - SLACK_S


def format_prediction(pieces: Iterable[tuple[int, float, float, float]]) -> str:
    """Return the list literal of one row from (class id, start_s, end_s, score), scores in full precision."""
    return "[" + ", ".join(f"[{i}, {start:.1f}, {end:.1f}, {score!r}]" for i, start, end, score in pieces) + "]"


def parse_entries(text: str) -> list[object]:
    """Return the entries of a row's list literal as they stand there; it is never evaluated as code.

    Raises:
        InputError: it is not a list literal.
    """
    try:
        entries = _literal(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise InputError(f"prediction {text[:80]!r} is not a list literal: {error}") from error
    if not isinstance(entries, list | tuple):
        raise InputError(f"prediction {text[:80]!r}: expected a list, got {type(entries).__name__}")
    return list(entries)


def parse_prediction(text: str) -> list[tuple[int, float, float, float]]:
    """Return [(class id, start_s, end_s, score)] from a row's list literal, which is never evaluated as code.

    Raises:
        InputError: it is not a list of lists of four numbers with a whole first one.
    """
    try:
        return [_piece(entry) for entry in parse_entries(text)]
    except OverflowError as error:
        raise InputError(f"prediction {text[:80]!r}: a number is too large") from error


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # tuples and trailing commas are Python literals but not JSON
        return ast.literal_eval(text)


def _piece(entry: object) -> tuple[int, float, float, float]:
    if isinstance(entry, list | tuple) and len(entry) == 4:
        numbers = [v for v in entry if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == 4 and math.isfinite(numbers[0]) and numbers[0] == int(numbers[0]):
            return int(numbers[0]), float(numbers[1]), float(numbers[2]), float(numbers[3])
    raise InputError(f"prediction entry {entry!r}: expected [class id, start, end, score]")
