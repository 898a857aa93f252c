"""The rules for a file of the competition's action track: header, ids, bins, then every row's entries."""

from collections.abc import Sequence

import polars as pl

from talstack.io.bins import num_bins, parse_row_id
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.manifest import Manifest
from talstack.io.submission_entries import RowText, entry_findings, parse_rows
from talstack.io.submission_findings import ERROR, Finding, SubmissionCheck, error_lines, finding
from talstack.io.submission_ids import SplitRecordings, missing_rows, repeated_ids, spreadsheet_guess, white_space
from talstack.io.submission_rows import RawRow, RawTable

HEADER = ("id", "prediction")


def check_actions(table: RawTable, manifest: Manifest, recordings: SplitRecordings) -> SubmissionCheck:
    """Return what is wrong with the table, and its detections without an error.

    These are a table of `DETECTION_SCHEMA`, times rounded to 0.1 s as the competition rounds them.
    """
    if table.header is None:
        return SubmissionCheck("tal", (), 0, 0, (), pl.DataFrame(schema=DETECTION_SCHEMA))
    found_header, rows = _without_header(table, table.header)
    texts, found_rows, seen = _check_rows(rows, table.separator, recordings)
    entries, found_texts = parse_rows(texts)
    class_ids = dict(enumerate(manifest.actions, start=manifest.first_action_id))
    found_entries = found_texts + entry_findings(entries, class_ids)
    found_missing, missing = _missing(seen, recordings)
    return SubmissionCheck(
        track="tal",
        findings=(*found_header, *found_rows, *found_entries, *found_missing),
        num_rows=len(rows),
        num_entries=entries.height + sum(found.kind == "malformed entry" for found in found_texts),
        missing=tuple(missing),
        usable=_usable(entries, found_rows + found_entries, class_ids),
    )


def _missing(seen: set[str], recordings: SplitRecordings) -> tuple[list[Finding], list[str]]:
    """Return a finding per recording that lacks rows, and the ids of all of these."""
    findings, missing = [], []
    for recording, ids in recordings.bin_ids().items():
        absent = [name for name in ids if name not in seen]
        if absent:
            findings.append(missing_rows(recording, absent, num_expected=len(ids)))
            missing += absent
    return findings, missing


def _without_header(table: RawTable, header: RawRow) -> tuple[list[Finding], list[RawRow]]:
    """Return what is wrong with the header, and the rows with their columns in the order of `HEADER`."""
    rows, names = list(table.rows), tuple(header.fields)
    if names == HEADER:
        return [], rows
    cleaned = [name.strip().lower() for name in names]
    expected, got = ",".join(HEADER), ",".join(names)
    if _is_row_id(names[0].strip()):
        message = f"there is no header: the first line is a row already; expected {expected}"
        return [finding("header", message, line=header.line)], [header, *rows]
    if "0" in cleaned and "prediction" not in cleaned:
        message = f"{got[:60]!r} is the header of the scene track; expected {expected}, or use --track scene"
        return [finding("header", message, line=header.line)], rows
    if not set(HEADER) <= set(cleaned):
        return [finding("header", f"expected {expected}, got {got[:80]!r}", line=header.line)], rows
    message = f"expected exactly {expected}, got {got[:80]!r}"
    found = [finding("header", message, line=header.line)]
    extra = [name for name, clean in zip(names, cleaned, strict=True) if clean not in HEADER]
    found += [
        finding("header", f"column {name!r} is not part of the format", column=name, line=header.line) for name in extra
    ]
    order = [cleaned.index(name) for name in HEADER]
    return found, [_picked(row, order, len(names)) for row in rows]


def _picked(row: RawRow, order: Sequence[int], width: int) -> RawRow:
    if len(row.fields) != width:
        return row
    return RawRow(row.line, tuple(row.fields[place] for place in order), row.is_closed)


def _is_row_id(name: str) -> bool:
    try:
        parse_row_id(name)
    except (ValueError, OverflowError):
        return False
    return True


def _check_rows(
    rows: Sequence[RawRow], separator: str, recordings: SplitRecordings
) -> tuple[list[RowText], list[Finding], set[str]]:
    """Return the rows with their ids understood, findings of whole rows, and the ids that are there."""
    texts: list[RowText] = []
    findings: list[Finding] = []
    lines: dict[str, list[int]] = {}
    for row in rows:
        findings += white_space(row) + _shape_findings(row)
        name = row.fields[0].strip()
        text, found = _with_bin(name, row.line, _prediction_of(row, separator), recordings)
        findings += found
        texts.append(text)
        lines.setdefault(name, []).append(row.line)
    return texts, findings + repeated_ids(lines), set(lines)


def _shape_findings(row: RawRow) -> list[Finding]:
    if not row.is_closed:
        message = "a double quote has no partner, so the line cannot be split into fields for certain"
        return [finding("unclosed quote", message, line=row.line, column="prediction")]
    count = len(row.fields)
    if count == len(HEADER):
        return []
    why = "it has no prediction" if count == 1 else "the list must stand in double quotes, or its commas split it"
    message = f"the line has {count} field{'s' if count > 1 else ''}, expected {len(HEADER)}: {why}"
    return [finding("number of fields", message, line=row.line, column="prediction")]


def _prediction_of(row: RawRow, separator: str) -> str:
    """Return the prediction, put together again where missing quotes have split it."""
    text = separator.join(row.fields[1:]).strip()
    return text.strip("'\" ") if len(row.fields) > len(HEADER) else text


def _with_bin(name: str, line: int, text: str, recordings: SplitRecordings) -> tuple[RowText, list[Finding]]:
    """Return the row with the bin that its id names, and what is wrong with the id."""
    try:
        recording, bin_index = parse_row_id(name)
        low_s = float(bin_index * 10)
    except (ValueError, OverflowError):  # an id of thousands of digits is no number to Python
        message = f"id {name[:80]!r}: expected <recording>_<bin start>_<bin end> of a ten-second bin, such as x_20_30"
        found = finding("malformed id", message + spreadsheet_guess(name), line=line, column="id")
        return RowText(line, text), [found]
    unknown = recordings.check(recording, line=line)
    if unknown:
        return RowText(line, text, recording, low_s), unknown
    duration_s = recordings.durations_s[recording]
    count = num_bins(duration_s)
    known = RowText(line, text, recording, low_s, duration_s, count * 10.0)
    if bin_index < count:
        return known, []
    message = f"id {name!r}: the recording is {duration_s:.3f} s long, its last bin is {count * 10 - 10}_{count * 10}"
    return known, [finding("bin outside the recording", message, line=line, column="id")]


def _usable(entries: pl.DataFrame, findings: list[Finding], class_ids: dict[int, str]) -> pl.DataFrame:
    """Return the detections of the entries that carry no error, neither of their own nor of their row."""
    bad = {(f.line, f.entry) for f in findings if f.entry is not None and f.severity == ERROR}
    places = pl.DataFrame(list(bad), schema={"line": pl.Int64, "entry": pl.Int64}, orient="row")
    kept = entries.filter(~pl.col("line").is_in(list(error_lines(findings)))).join(
        places, on=["line", "entry"], how="anti"
    )
    label = pl.col("class_id").cast(pl.Int64).replace_strict(class_ids, return_dtype=pl.String)
    rounded = {name: pl.col(f"rounded_{name}") for name in ("start_s", "end_s")}
    return kept.with_columns(label=label, **rounded).select(list(DETECTION_SCHEMA))
