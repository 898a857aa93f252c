"""Reading CSV tables with errors that name file, line and column."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from talstack.io.errors import InputError, MissingInputError

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
SHOWN_HEADER = 120  # characters of a header in a message


def read_header(path: Path) -> list[str]:
    """Return the column names of a CSV file, from its first line that is not blank, without quotes and blanks.

    Raises:
        InputError: the file is not text, or its lines end as old Macintosh programs ended them.
    """
    return _header(path)[0]


def read_csv(
    path: Path,
    schema: Mapping[str, type[pl.DataType]],
    *,
    optional: Sequence[str] = (),
    nullable: Sequence[str] = (),
    only_utf8: bool = False,
) -> pl.DataFrame:
    """Return the table with exactly the columns of `schema`, in its order, plus `line` (1-based line in the file).

    Texts come without outer white space. Further columns are ignored; a column `line` that `schema` wants is the
    file's own, and no line numbers are added then. An `optional` column that is absent is filled with null.

    Args:
        only_utf8: refuse bytes that are not UTF-8; otherwise each becomes U+FFFD, which can make one name of two.

    Raises:
        MissingInputError: there is no such file.
        InputError: no header, a missing column, a value that is not of the column's type, or an empty value in a
            column that is not `nullable`; the message gives file, line, column and value.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    names, header_end = _header(path)
    _check_header(names, schema, path)
    needed = [name for name in schema if name not in optional]
    raw, lines = _read_texts(path, names, needed, header_end=header_end, only_utf8=only_utf8)
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(f"{path}: missing column {', '.join(missing)}; found {', '.join(names):.{SHOWN_HEADER}}")
    columns = []
    for name, dtype in schema.items():
        text = raw.to_series(names.index(name)) if name in names else pl.Series([None] * raw.height, dtype=pl.String)
        may_be_null = name in nullable or name in optional
        columns.append(_cast(text.alias(name), dtype, lines, path, may_be_null=may_be_null))
    return pl.DataFrame(columns if "line" in schema else [*columns, lines])


def refuse_other_bytes(path: Path) -> None:
    """Raise InputError naming the first line that is not UTF-8, if there is one."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise InputError(
                    f"{path}, line {number}: byte {byte:#04x} is not UTF-8; save the file as UTF-8"
                ) from error


def _header(path: Path) -> tuple[list[str], int]:
    """Return the column names and the number of the line that they end on; none where the file is blank."""
    with open(path, "rb") as file:
        first = file.readline(1_000_000)
    if b"\0" in first or first.startswith(b"PAR1"):
        raise InputError(f"{path}: not a text file, although its name says CSV; expected UTF-8 text with a header")
    names_end, has_more = first.rstrip(b"\r\n").split(b"\r")[0], b"\r" in first.rstrip(b"\r\n")
    if has_more and names_end.count(b'"') % 2 == 0:  # else the return stands within a quoted name
        raise InputError(
            f"{path}: the lines end with a carriage return alone, as old Macintosh programs wrote them; "
            "save the file with line feeds"
        )
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            names = next((row for row in reader if row), [])
        except csv.Error as error:
            raise InputError(f"{path}: the first line is not the header of a table: {error}") from error
        return [name.strip().strip('"').strip() for name in names], reader.line_num


def _read_texts(
    path: Path, names: Sequence[str], needed: Sequence[str], *, header_end: int, only_utf8: bool
) -> tuple[pl.DataFrame, pl.Series]:
    """Return the rows as texts, blank ones left out, and the line that each starts on."""
    try:
        raw = pl.read_csv(path, infer_schema=False, encoding="utf8" if only_utf8 else "utf8-lossy")
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: empty file; expected a header with {', '.join(needed)}") from error
    except pl.exceptions.PolarsError as error:
        if only_utf8:
            refuse_other_bytes(path)
        _refuse_long_rows(path)
        raise InputError(f"{path}: not a readable CSV table: {str(error).splitlines()[0]}") from error
    if only_utf8 and "\ufffd" in "".join(names):  # polars looks at the rows only
        refuse_other_bytes(path)
    if raw.width != len(names):
        raise InputError(f"{path}: the header {','.join(names)[:SHOWN_HEADER]!r} has quotes that do not pair")
    lines = _line_numbers(raw, header_end, path)
    is_filled = raw.select(~pl.all_horizontal(pl.all().is_null())).to_series()
    return raw.filter(is_filled), lines.filter(is_filled)


def _line_numbers(raw: pl.DataFrame, header_end: int, path: Path) -> pl.Series:
    """Return the line that each row starts on, given that blank lines are rows and quoted texts may hold breaks."""
    lines = pl.int_range(header_end + 1, header_end + 1 + raw.height, eager=True).alias("line")
    if header_end + raw.height == _num_lines(path):
        return lines
    breaks = raw.select(pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True).fill_null(0))).to_series()
    return lines + breaks.cast(pl.Int64).cum_sum() - breaks.cast(pl.Int64)


def _num_lines(path: Path) -> int:
    count, last = 0, b"\n"
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            count, last = count + chunk.count(b"\n"), chunk[-1:]
    return count + (last != b"\n")


def _check_header(names: list[str], schema: Mapping[str, type[pl.DataType]], path: Path) -> None:
    """Raise InputError where another separator parts the columns, or one that is wanted stands there twice."""
    line = ",".join(names)
    for separator, called in SEPARATORS.items():
        if not set(names) & set(schema) and {part.strip(' "') for part in line.split(separator)} & set(schema):
            raise InputError(
                f"{path}: the header {line[:SHOWN_HEADER]!r} is parted by {called}; expected commas, "
                "with a point in numbers"
            )
    for name in schema:
        if names.count(name) > 1:
            raise InputError(f"{path}: column {name} stands twice in the header {line[:SHOWN_HEADER]!r}; keep one")


def _refuse_long_rows(path: Path) -> None:
    """Raise InputError naming the first line with more fields than the header, if there is one."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        try:
            num_fields = len(next((row for row in rows if row), []))
            row = next((row for row in rows if len(row) > num_fields), None)
        except csv.Error:  # a field too long for this reader; the caller says what polars found
            return
    if row is not None:
        raise InputError(
            f"{path}, line {rows.line_num}: {len(row)} fields where the header has {num_fields}; "
            "a comma within a name needs quotes around the name"
        )


def _cast(raw: pl.Series, dtype: type[pl.DataType], lines: pl.Series, path: Path, *, may_be_null: bool) -> pl.Series:
    text = raw.str.strip_chars()
    text = text.set(text == "", None)
    values = text.cast(dtype, strict=False)
    bad = values.is_null() & text.is_not_null()
    if not may_be_null:
        bad = bad | text.is_null()
    if bad.any():
        row = bad.arg_true()[0]
        value = "an empty value" if text[row] is None else repr(text[row])
        raise InputError(f"{path}, line {lines[row]}, column {raw.name}: expected {dtype.__name__}, got {value}")
    return values
