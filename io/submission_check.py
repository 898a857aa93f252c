"""What the BinEgo-360 competition would refuse or silently drop in a submission file, all of it in one run.

The rules are those of the competition's two tracks: `talstack.io.submission_actions` (temporal action
localization) and `talstack.io.submission_scenes`. Nothing in the file stops the check; only a missing file or a
data set that cannot be used does.
"""

from dataclasses import replace
from pathlib import Path

from talstack.io.errors import InputError
from talstack.io.manifest import SPLITS, Manifest
from talstack.io.submission_actions import check_actions
from talstack.io.submission_findings import SubmissionCheck
from talstack.io.submission_ids import SplitRecordings
from talstack.io.submission_rows import read_rows
from talstack.io.submission_scenes import check_scenes

TRACKS = ("tal", "scene")


def check_submission(path: Path, manifest: Manifest, *, track: str, split: str = "test") -> SubmissionCheck:
    """Return everything that the competition would refuse or silently drop in the file.

    Args:
        path: the CSV.
        manifest: names the recordings, their lengths and splits, the actions and the scenes.
        track: tal (`id,prediction`) or scene (`id,0,1,...`).
        split: which recordings the file must cover.

    Raises:
        MissingInputError: there is no such file.
        InputError: an unknown track or split, a split without recordings, or a data set without the track's classes.
    """
    if track not in TRACKS:
        raise InputError(f"track {track!r}; expected one of {', '.join(TRACKS)}")
    if split not in SPLITS:
        raise InputError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
    if not (manifest.actions if track == "tal" else manifest.scenes):
        raise InputError(
            f"data set {manifest.name!r} has no {'actions' if track == 'tal' else 'scenes'} to check against"
        )
    recordings = SplitRecordings.of(manifest, split)
    table = read_rows(path)
    check = check_actions if track == "tal" else check_scenes
    found = check(table, manifest, recordings)
    findings = sorted([*table.findings, *found.findings], key=lambda f: (f.line or 0, f.entry or 0, f.severity, f.kind))
    return replace(found, findings=tuple(findings))
