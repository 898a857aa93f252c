"""Reading CSV tables with errors that name file, line and column."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from talstack.io.errors import InputError, MissingInputError


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
    try:
        raw = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy", row_index_name="line", row_index_offset=2)
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: empty file; expected a header with {', '.join(schema)}") from error
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: not a readable CSV table: {error}") from error
    raw = raw.rename({name: name.strip().lstrip("\ufeff") for name in raw.columns})
    raw = raw.filter(~pl.all_horizontal(pl.exclude("line").is_null()))  # blank lines
    missing = [name for name in schema if name not in raw.columns and name not in optional]
    if missing:
        raise InputError(
            f"{path}: missing column {', '.join(missing)}; found {', '.join(c for c in raw.columns if c != 'line')}"
        )
    columns = [
        _cast(raw, name, dtype, path, may_be_null=name in nullable or name in optional)
        for name, dtype in schema.items()
    ]
    return pl.DataFrame([*columns, raw["line"]])


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
