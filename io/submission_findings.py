"""What can be wrong with a submission file: kinds of finding, how severe each is, where a finding lies, the result."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

Severity = Literal["error", "warning"]
ERROR: Severity = "error"
WARNING: Severity = "warning"

# An error is refused or silently dropped by the competition; a warning is accepted but probably not meant.
KINDS: Mapping[str, Severity] = {
    "not a CSV file": ERROR,
    "empty file": ERROR,
    "encoding": ERROR,
    "separator": ERROR,
    "header": ERROR,
    "number of fields": ERROR,
    "unclosed quote": ERROR,
    "malformed id": ERROR,
    "white space in id": WARNING,
    "unknown recording": ERROR,
    "other split": ERROR,
    "bin outside the recording": ERROR,
    "repeated id": ERROR,
    "missing rows": ERROR,
    "not a list": ERROR,
    "malformed entry": ERROR,
    "unknown class": ERROR,
    "time not finite": ERROR,
    "end not after start": ERROR,
    "outside the bin": ERROR,
    "too short": ERROR,
    "off the 0.1 s grid": WARNING,
    "after the recording's end": WARNING,
    "score not finite": ERROR,
    "score outside 0 to 1": WARNING,
    "not in descending score": WARNING,
    "exact duplicate": WARNING,
    "very many entries": WARNING,
    "not a number": ERROR,
    "value not finite": ERROR,
    "negative value": ERROR,
    "all zeros": ERROR,
    "sum is not 1": WARNING,
    "tie at the top": WARNING,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the competition would refuse, drop or misread.

    Attributes:
        line: line of the file, counted from 1; None where it concerns the whole file.
        column: name of the file's column; None where it concerns the whole line or file.
        severity: error (refused or dropped) or warning (accepted, probably not meant).
        kind: one of `KINDS`.
        message: what was found, what was expected, what to do.
        entry: which entry of the line's prediction, counted from 1; None where it concerns all of them.
    """

    line: int | None
    column: str | None
    severity: Severity
    kind: str
    message: str
    entry: int | None = None

    @property
    def place(self) -> str:
        """Where it lies, as text."""
        parts = [f"line {self.line}"] if self.line is not None else []
        parts += [f"column {self.column}"] if self.column is not None else []
        parts += [f"entry {self.entry}"] if self.entry is not None else []
        return ", ".join(parts) or "file"


@dataclass(frozen=True, slots=True, eq=False)
class SubmissionCheck:
    """The result of checking one file.

    Attributes:
        track: tal or scene.
        findings: errors and warnings in the order of the file, those of the whole file first.
        num_rows: rows of the file, the header not counted.
        num_entries: detections that the rows list, malformed ones too; 0 in the scene track.
        missing: ids of the rows that are not there.
        usable: what carries no error. tal: detections, a table (recording, start_s, end_s, label, score), times
            rounded to 0.1 s. scene: `recording` and one float64 column per scene, by name.
    """

    track: str
    findings: tuple[Finding, ...]
    num_rows: int
    num_entries: int
    missing: tuple[str, ...]
    usable: pl.DataFrame

    @property
    def num_errors(self) -> int:
        """Findings that the competition would refuse or drop."""
        return sum(found.severity == ERROR for found in self.findings)

    @property
    def num_left_out(self) -> int:
        """Entries (tal) or rows (scene) that carry an error, their own or their row's."""
        return (self.num_entries if self.track == "tal" else self.num_rows) - self.usable.height

    def counts(self) -> dict[str, int]:
        """Return {kind: number of findings}, errors first, then the most frequent first."""
        severity = {found.kind: found.severity for found in self.findings}
        counts = Counter(found.kind for found in self.findings)
        return dict(sorted(counts.items(), key=lambda item: (severity[item[0]], -item[1], item[0])))


def finding(
    kind: str, message: str, *, line: int | None = None, column: str | None = None, entry: int | None = None
) -> Finding:
    """Return the finding with the severity that its kind has."""
    return Finding(line, column, KINDS[kind], kind, message, entry)


def error_lines(findings: Iterable[Finding]) -> set[int]:
    """Return the lines that carry an error of the whole line, not only of one entry."""
    return {f.line for f in findings if f.line is not None and f.entry is None and f.severity == ERROR}
