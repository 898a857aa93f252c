"""The ids of a submission's rows: do they name recordings of the split, each once?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from talstack.io.bins import num_bins, row_id
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.submission_findings import Finding, finding
from talstack.io.submission_rows import RawRow

NUM_NAMED = 3  # how many missing rows a message names
# 1.2E+05, 5-Mar, 03/05/2025, ####: what spreadsheets make of ids
SPREADSHEET = re.compile(r"\d[\d.,]*E[+-]?\d+|\d{1,2}[-/.][A-Za-z]{3}|[A-Za-z]{3}[-/.]\d{2}|\d+[./]\d+[./]\d{2,4}|#+")


@dataclass(frozen=True, slots=True)
class SplitRecordings:
    """The recordings that a file must cover.

    Attributes:
        split: train, val or test.
        durations_s: length of each recording of the split, in sorted order.
        splits: split of every recording of the data set.
    """

    split: str
    durations_s: dict[str, float]
    splits: dict[str, str]

    @classmethod
    def of(cls, manifest: Manifest, split: str) -> "SplitRecordings":
        """Return the recordings of one split.

        Raises:
            InputError: no recording is in the split.
        """
        rows = manifest.recordings.sort("recording")
        splits = dict(rows.select("recording", "split").iter_rows())
        lengths = dict(rows.select("recording", "duration_s").iter_rows())
        durations = {recording: lengths[recording] for recording, own in splits.items() if own == split}
        if not durations:
            raise InputError(
                f"data set {manifest.name!r}: no recording is in split {split!r}; "
                f"its recordings are in {', '.join(sorted(set(splits.values()))) or 'none'}: choose one with --split"
            )
        return cls(split, durations, splits)

    def bin_ids(self) -> dict[str, list[str]]:
        """Return the row ids of every recording's bins."""
        return {name: [row_id(name, i) for i in range(num_bins(s))] for name, s in self.durations_s.items()}

    def check(self, recording: str, *, line: int) -> list[Finding]:
        """Return what is wrong with the name of a recording; nothing where it is one of the split."""
        if recording in self.durations_s:
            return []
        if recording in self.splits:
            message = f"recording {recording!r} is in split {self.splits[recording]!r}, not in {self.split!r}"
            return [finding("other split", message, line=line, column="id")]
        message = f"the data set has no recording {recording!r}{self._guess(recording)}"
        return [finding("unknown recording", message, line=line, column="id")]

    def _guess(self, name: str) -> str:
        """Return what may have happened to an unknown name, to be added to a message."""
        folded = {known.casefold().lstrip("0"): known for known in self.splits}
        known = folded.get(name.casefold().lstrip("0"))
        if known is not None:
            return f"; is it {known!r}, changed by a spreadsheet?"
        return spreadsheet_guess(name)


def spreadsheet_guess(name: str) -> str:
    """Return a hint where the text looks like what a spreadsheet makes of an id, else nothing."""
    return "; a spreadsheet seems to have rewritten it as a number or a date" if SPREADSHEET.match(name) else ""


def white_space(row: RawRow) -> list[Finding]:
    """Return a finding where the id has white space around it."""
    name = row.fields[0]
    if name == name.strip():
        return []
    message = f"{name!r} has white space around it; a reader that keeps it finds no such id"
    return [finding("white space in id", message, line=row.line, column="id")]


def repeated_ids(lines: Mapping[str, Sequence[int]]) -> list[Finding]:
    """Return a finding for every line whose id is on other lines too, given the lines of every id.

    None of them is the right one: taking the first would make a score depend on the order of rows.
    """
    findings = []
    for name, places in lines.items():
        if len(places) > 1:
            named = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
            message = f"id {name!r} is on {len(places)} lines: {named}; expected one row per id"
            findings += [finding("repeated id", message, line=line, column="id") for line in places]
    return findings


def missing_rows(recording: str, missing: Sequence[str], *, num_expected: int) -> Finding:
    """Return the finding of a recording whose rows are not all there; names the first of them."""
    named = ", ".join(missing[:NUM_NAMED]) + (", ..." if len(missing) > NUM_NAMED else "")
    count = "all" if len(missing) == num_expected else str(len(missing))
    message = f"recording {recording!r}: {count} of {num_expected} rows are missing: {named}"
    return finding("missing rows", message, column="id")
