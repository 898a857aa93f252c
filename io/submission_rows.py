"""The rows of a submission CSV, read so that one broken row does not hide the next.

`talstack.io.tables.read_csv` stops at the first line that does not fit; a validator must go on. A quoted field may
hold line breaks; a quote that is opened and never closed ends with its line.
"""

import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from talstack.io.errors import InputError, MissingInputError
from talstack.io.submission_findings import Finding, finding

SIGNATURES: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a parquet table",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
}
SEPARATORS: Mapping[str, str] = {",": "commas", ";": "semicolons", "\t": "tabs"}
BLANKS = " \r\n\ufeff"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record of the file.

    Attributes:
        line: line that it starts on, counted from 1.
        fields: its texts, white space kept.
        is_closed: no quote is left open.
    """

    line: int
    fields: tuple[str, ...]
    is_closed: bool = True


@dataclass(frozen=True, slots=True)
class RawTable:
    """A file as read.

    Attributes:
        header: the first record; None where the file cannot be read as a table at all.
        rows: the others, blank lines left out.
        separator: what separates the columns.
        findings: about the file and its encoding.
    """

    header: RawRow | None
    rows: tuple[RawRow, ...]
    separator: str
    findings: tuple[Finding, ...]


def read_rows(path: Path) -> RawTable:
    """Return the records of the file; whatever the file is, what is wrong with it is a finding.

    Raises:
        MissingInputError: there is no such file.
        InputError: it may not be read.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such submission file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    text, findings = _decode(content)
    lines = list(StringIO(text, newline=""))
    first = next((line for line in lines if line.strip(BLANKS)), None)
    if first is None:
        return RawTable(None, (), ",", tuple(findings or [finding("empty file", "the file is empty")]))
    separator = min((mark for mark in SEPARATORS if mark in first), key=first.index, default=",")
    if separator != ",":
        message = f"columns are separated by {SEPARATORS[separator]} (a spreadsheet's export?); expected commas"
        findings.append(finding("separator", message, line=lines.index(first) + 1))
    records = list(_records(lines, separator))
    broken = next((row.line for row in records[1:] if lines[row.line - 2].endswith("\r")), None)
    if broken is not None:
        message = "the line ends with a carriage return alone, as old Macintosh programs wrote; save with line feeds"
        findings.append(finding("encoding", message, line=broken - 1))
    return RawTable(records[0], tuple(records[1:]), separator, tuple(findings))


def _decode(content: bytes) -> tuple[str, list[Finding]]:
    """Return the text, empty where there is none to read, and what is wrong with its encoding."""
    what = next((name for start, name in SIGNATURES.items() if content.startswith(start)), None)
    if what is not None:
        return "", [finding("not a CSV file", f"the file is {what}; expected a CSV text file")]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        message = "the file is UTF-16 (a spreadsheet's 'Unicode text'?); save it as UTF-8"
        return content.decode("utf-16", errors="replace"), [finding("encoding", message)]
    if b"\x00" in content:
        line = content[: content.index(b"\x00")].count(b"\n") + 1
        return "", [finding("not a CSV file", "the file is binary: it holds a zero byte; expected a CSV", line=line)]
    try:
        text, findings = content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        message = f"byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        text, findings = content.decode("utf-8", errors="replace"), [finding("encoding", message, line=line)]
    if re.match(r"\s*[\[{]", text):
        message = "the file is JSON; the competition takes the CSV (`talstack submit --format binego360` writes it)"
        return "", [finding("not a CSV file", message, line=1)]
    return text, findings


def _records(lines: Sequence[str], separator: str) -> Iterator[RawRow]:
    """Yield the records; lines whose quotes do not pair are joined up to the next such line where that fits."""
    odd = [index for index, line in enumerate(lines) if line.count('"') % 2]
    closing = dict(zip(odd, odd[1:], strict=False))
    width, at = 0, 0
    with _fields_of_any_size():
        while at < len(lines):
            fields, end = _one_record(lines, at, closing=closing, separator=separator, width=width)
            if fields is None:
                yield RawRow(at + 1, tuple(lines[at].replace('"', "").strip(BLANKS).split(separator)), is_closed=False)
            elif any(field.strip(BLANKS) for field in fields):
                yield RawRow(at + 1, tuple(fields))
                width = width or len(fields)
            at = end + 1


def _one_record(
    lines: Sequence[str], at: int, *, closing: Mapping[int, int], separator: str, width: int
) -> tuple[list[str] | None, int]:
    """Return the fields of the record that starts at line index `at`, None where its quote stays open; its last line.

    Args:
        closing: for each line with an odd number of quotes, the next such line.
        width: number of fields of the header; 0 for the header itself.
    """
    if lines[at].count('"') % 2 == 0:
        return _fields(lines[at], separator), at
    end = closing.get(at)
    joined = _fields("".join(lines[at : end + 1]), separator, strict=True) if end is not None else None
    if joined is None or end is None or (width and len(joined) != width):
        return None, at
    return joined, end


def _fields(text: str, separator: str, *, strict: bool = False) -> list[str] | None:
    try:
        return next(csv.reader([text.rstrip(BLANKS)], delimiter=separator, strict=strict), [])
    except csv.Error:
        return None


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Lift csv's limit of 131072 characters per field, which is one for the whole process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
