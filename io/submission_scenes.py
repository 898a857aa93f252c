"""The rules for a file of the competition's scene track: one row per recording, one column per scene."""

from collections.abc import Sequence

import polars as pl

from talstack.io.manifest import Manifest
from talstack.io.submission_findings import Finding, SubmissionCheck, error_lines, finding
from talstack.io.submission_ids import SplitRecordings, missing_rows, repeated_ids, white_space
from talstack.io.submission_rows import RawRow, RawTable

SUM_TOLERANCE = 0.02  # 28 probabilities of three decimals may sum to 1.014

VALUE_SCHEMA: dict[str, type[pl.DataType]] = {"line": pl.Int64, "scene": pl.Int64, "text": pl.String}


def check_scenes(table: RawTable, manifest: Manifest, recordings: SplitRecordings) -> SubmissionCheck:
    """Return what is wrong with the table, and its rows without an error.

    These are `recording` and one float64 column per scene, by name.
    """
    names = manifest.scenes
    if table.header is None:
        return SubmissionCheck("scene", (), 0, 0, (), _wide(_values([], None, width=0), {}, names))
    found_header, order, rows = _scene_columns(table, table.header, names)
    width = len(table.header.fields)
    found_rows, owners = _check_rows(rows, recordings, width=width)
    values = _values(rows, order, width=width)
    found_values = _value_findings(values, names)
    seen = set(owners.values())
    missing = [name for name in recordings.durations_s if name not in seen]
    found_missing = [missing_rows(name, [name], num_expected=1) for name in missing]
    bad = error_lines(found_rows + found_values)
    return SubmissionCheck(
        track="scene",
        findings=(*found_header, *found_rows, *found_values, *found_missing),
        num_rows=len(rows),
        num_entries=0,
        missing=tuple(missing),
        usable=_wide(values, {line: name for line, name in owners.items() if line not in bad}, names),
    )


def _scene_columns(
    table: RawTable, header: RawRow, names: Sequence[str]
) -> tuple[list[Finding], list[int] | None, list[RawRow]]:
    """Return what is wrong with the header, the field of each scene (None where unknown), and the rows."""
    expected = ["id", *(str(i) for i in range(len(names)))]
    got = [name.strip() for name in header.fields]
    rows, positions = list(table.rows), list(range(1, len(expected)))
    if list(header.fields) == expected:
        return [], positions, rows
    shown = f"id,0,1,...,{len(names) - 1}"
    if set(expected) <= set(got):
        extra = [name for name in got if name not in expected]
        what = f"further columns: {', '.join(map(repr, extra))}" if extra else "another order, or white space"
        order = [got.index(name) for name in expected[1:]]
        return [finding("header", f"expected exactly {shown}; got {what}", line=header.line)], order, rows
    if got == ["id", *names]:
        message = f"columns have the scenes' names; expected their numbers, {shown}"
        return [finding("header", message, line=header.line)], positions, rows
    if "prediction" in got:
        message = f"this is the header of the action track; expected {shown}, or use --track tal"
        return [finding("header", message, line=header.line)], None, rows
    if len(got) == len(expected) and _is_number(got[1]) and got[0].lower() not in ("id", "recording"):
        message = f"there is no header: the first line is a row already; expected {shown}"
        return [finding("header", message, line=header.line)], positions, [header, *rows]
    lacking = [name for name in expected if name not in got]
    message = f"expected {shown}, got {len(got)} columns; missing: {', '.join(lacking[:5])}"
    known = positions if len(got) == len(expected) else None
    return [finding("header", message, line=header.line)], known, rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_rows(
    rows: Sequence[RawRow], recordings: SplitRecordings, *, width: int
) -> tuple[list[Finding], dict[int, str]]:
    """Return findings of whole rows, and the recording that each line names."""
    findings: list[Finding] = []
    owners: dict[int, str] = {}
    lines: dict[str, list[int]] = {}
    for row in rows:
        name = row.fields[0].strip()
        findings += white_space(row) + recordings.check(name, line=row.line)
        if not row.is_closed:
            message = "a double quote has no partner, so the line cannot be split into fields for certain"
            findings.append(finding("unclosed quote", message, line=row.line))
        elif len(row.fields) != width:
            message = f"the line has {len(row.fields)} fields, the header {width}"
            findings.append(finding("number of fields", message, line=row.line))
        lines.setdefault(name, []).append(row.line)
        owners[row.line] = name
    return findings + repeated_ids(lines), owners


def _values(rows: Sequence[RawRow], order: list[int] | None, *, width: int) -> pl.DataFrame:
    """Return (line, scene, text, value): every value of the rows that have as many fields as the header."""
    whole = [row for row in rows if len(row.fields) == width] if order is not None else []
    cells = [(row.line, scene, row.fields[place].strip()) for row in whole for scene, place in enumerate(order or [])]
    table = pl.DataFrame(cells, schema=VALUE_SCHEMA, orient="row")
    return table.with_columns(value=pl.col("text").cast(pl.Float64, strict=False))


def _value_findings(values: pl.DataFrame, names: Sequence[str]) -> list[Finding]:
    value, text = pl.col("value"), pl.col("text")
    comma = text.str.contains(r"^-?\d+,\d+$")
    rules = [
        ("not a number", value.is_null() & (text == ""), pl.lit("the value is empty; expected a probability")),
        (
            "not a number",
            value.is_null() & (text != ""),
            pl.format("got '{}'; expected a probability{}", text.str.slice(0, 40), pl.when(comma).then(pl.lit(
                " with a decimal point, not a comma")).otherwise(pl.lit(""))),
        ),
        ("value not finite", ~value.is_finite(), pl.format("got {}; expected a probability", text)),
        ("negative value", value.is_finite() & (value < 0), pl.format("got {}; expected a probability", text)),
    ]  # fmt: skip
    findings = []
    for kind, condition, message in rules:
        bad = values.filter(condition.fill_null(False)).select("line", "scene", message=message)
        findings += [
            finding(kind, f"{message} of scene {names[scene]!r}", line=line, column=str(scene))
            for line, scene, message in bad.iter_rows()
        ]
    return findings + _row_findings(values)


def _row_findings(values: pl.DataFrame) -> list[Finding]:
    """Return what is wrong with rows all of whose values are probabilities by themselves."""
    value = pl.col("value")
    rows = values.group_by("line").agg(
        fine=(value.is_finite() & (value >= 0)).fill_null(False).all(),
        total=value.sum(),
        top=value.max(),
        num_top=(value == value.max()).sum(),
    )
    rows = rows.filter(pl.col("fine")).sort("line")
    findings = []
    for line, total, top, num_top in rows.select("line", "total", "top", "num_top").iter_rows():
        if top == 0:
            findings.append(finding("all zeros", "every scene has the value 0: no scene is named", line=line))
            continue
        if abs(total - 1.0) > SUM_TOLERANCE:
            message = f"the values sum to {total:.6g}; probabilities sum to 1"
            findings.append(finding("sum is not 1", message, line=line))
        if num_top > 1:
            message = f"{num_top} scenes share the highest value {top:.6g}: which of them counts as first is undefined"
            findings.append(finding("tie at the top", message, line=line))
    return findings


def _wide(values: pl.DataFrame, recordings: dict[int, str], names: Sequence[str]) -> pl.DataFrame:
    """Return `recording` and one column per scene, for the given lines."""
    schema = {"recording": pl.String, **dict.fromkeys(names, pl.Float64)}
    lines = values.filter(pl.col("line").is_in(list(recordings)))["line"].unique().sort().to_list()
    if not lines:
        return pl.DataFrame(schema=schema)
    kept = values.filter(pl.col("line").is_in(lines)).sort("line", "scene")
    matrix = kept["value"].to_numpy().reshape(len(lines), len(names))
    columns = {"recording": [recordings[line] for line in lines], **dict(zip(names, matrix.T, strict=True))}
    return pl.DataFrame(columns, schema=schema)
