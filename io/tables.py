"""Reading CSV tables with errors that name file, line and column."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from talstack.io.errors import InputError, MissingInputError

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
SHOWN_HEADER = 120  # characters of a header in a message


def read_header(path: Path) -> list[str]:
    """Return the column names in the first line of a CSV file, without quotes and blanks.

    Raises:
        InputError: the file is not text.
    """
    with open(path, "rb") as file:
        first = file.readline(1_000_000)
    if b"\0" in first or first.startswith(b"PAR1"):
        raise InputError(f"{path}: not a text file, although its name says CSV; expected UTF-8 text with a header")
    text = first.decode("utf-8-sig", errors="replace")
    return [name.strip().strip('"').strip() for name in text.split(",")]


def read_csv(
    path: Path,
    schema: Mapping[str, type[pl.DataType]],
    *,
    optional: Sequence[str] = (),
    nullable: Sequence[str] = (),
) -> pl.DataFrame:
    """Return the table with exactly the columns of `schema`, in its order, plus `line` (1-based line in the file).

    Further columns are ignored; an `optional` column that is absent is filled with null.

    Raises:
        MissingInputError: there is no such file.
        InputError: no header, a missing column, a value that is not of the column's type, or an empty value in a
            column that is not `nullable`; the message gives file, line, column and value.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    _check_header(read_header(path), schema, path)
    try:
        raw = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy", row_index_name="line", row_index_offset=2)
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: empty file; expected a header with {', '.join(schema)}") from error
    except pl.exceptions.PolarsError as error:
        _refuse_long_rows(path)
        raise InputError(f"{path}: not a readable CSV table: {str(error).splitlines()[0]}") from error
    raw = raw.rename({name: name.strip().lstrip("\ufeff") for name in raw.columns})
    raw = raw.filter(~pl.all_horizontal(pl.exclude("line").is_null()))  # blank lines
    missing = [name for name in schema if name not in raw.columns and name not in optional]
    if missing:
        found = ", ".join(name for name in raw.columns if name != "line")
        raise InputError(f"{path}: missing column {', '.join(missing)}; found {found:.{SHOWN_HEADER}}")
    columns = [
        _cast(raw, name, dtype, path, may_be_null=name in nullable or name in optional)
        for name, dtype in schema.items()
    ]
    return pl.DataFrame([*columns, raw["line"]])


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
        num_fields = len(next(rows, []))
        for row in rows:
            if len(row) > num_fields:
                raise InputError(
                    f"{path}, line {rows.line_num}: {len(row)} fields where the header has {num_fields}; "
                    "a comma within a name needs quotes around the name"
                )


def _cast(raw: pl.DataFrame, name: str, dtype: type[pl.DataType], path: Path, *, may_be_null: bool) -> pl.Series:
    if name not in raw.columns:
        return pl.Series(name, [None] * raw.height, dtype=dtype)
    text = raw[name].str.strip_chars()
    text = text.set(text == "", None)
    values = text.cast(dtype, strict=False)
    bad = values.is_null() & text.is_not_null()
    if not may_be_null:
        bad = bad | text.is_null()
    if bad.any():
        row = bad.arg_true()[0]
        value = "an empty value" if text[row] is None else repr(text[row])
        raise InputError(f"{path}, line {raw['line'][row]}, column {name}: expected {dtype.__name__}, got {value}")
    return values
