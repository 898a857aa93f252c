"""From the rows that an importer has read to a checked manifest: clips measured, instances fitted, folds dealt.

What cannot be used is left out and noted in the manifest's `skipped` table. A clip that cannot be read keeps its
row with null measurements, so that the extraction can record the failure too.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from joblib import Parallel, delayed

from talstack.io.errors import InputError, MediaError
from talstack.io.folds import assign_folds
from talstack.io.manifest import OPTIONAL, SCHEMAS, Manifest, resolve_inside
from talstack.io.media import ClipInfo, probe
from talstack.io.source_rows import ClipRow, FeatureRow, InstanceRow, Origin, RecordingRow, SourceRows, refuse_repeated

Progress = Callable[[int, int], None]
Row = TypeVar("Row", ClipRow, FeatureRow, InstanceRow)

DEFAULT_FOLDS = 5
PROBE_THREADS = 2
# an end this little past the recording's is rounding, not a mistake worth a line in the report
ROUNDING_S = 1e-3


@dataclass(frozen=True, slots=True)
class MeasuredClip:
    """A clip row with the path relative to the media root and what the file says, None where it is unreadable."""

    row: ClipRow
    path: str
    info: ClipInfo | None


def assemble_manifest(
    rows: SourceRows,
    *,
    name: str,
    media_root: Path,
    actions: Sequence[str],
    scenes: Sequence[str],
    num_folds: int = DEFAULT_FOLDS,
    refuse_unknown_labels: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of the rows.

    Args:
        rows: what the importer has read; everything that is skipped is added to it.
        name: of the data set.
        media_root: folder that the paths of clips and features are relative to.
        actions, scenes: ordered class lists.
        num_folds: folds over the train and val recordings; fewer groups of recordings than that get a fold each,
            and a single one gets none.
        refuse_unknown_labels: whether a label outside the list is an error or is skipped.
        progress: called with (clips measured, clips in all).

    Raises:
        InputError: a recording or clip that stands there twice, a path that leads out of the media root, an
            unknown label (where refused) or scene, no recording left; the message names file and line.
    """
    refuse_repeated(rows.recordings)
    known = {row.recording for row in rows.recordings}
    clips = _measure(_of_known(rows, rows.clips, known), media_root, rows, progress)
    features = _present_features(_of_known(rows, rows.features, known), media_root, rows)
    durations = _durations(rows, clips, features, media_root)
    if not durations:
        raise InputError(
            f"{name}: no recording is left, {len(rows.skipped)} things were skipped; {_first_reason(rows)}"
        )
    kept = [row for row in rows.recordings if row.recording in durations]
    instances = _fit(_of_known(rows, rows.instances, known), durations, actions, rows, refuse=refuse_unknown_labels)
    manifest = Manifest(
        name=name,
        media_root=media_root,
        actions=tuple(actions),
        scenes=tuple(scenes),
        recordings=_recording_table(kept, durations, scenes),
        clips=_clip_table([clip for clip in clips if clip.row.recording in durations]),
        instances=_table("instances", instances),
        features=_table("features", [row for row in features if row[0] in durations]),
        skipped=rows.skipped_table(),
    )
    return _with_folds(manifest, num_folds)


def _first_reason(rows: SourceRows) -> str:
    return f"the first: {rows.skipped[0][0]}: {rows.skipped[0][3]}" if rows.skipped else "nothing was found"


def _table(name: str, rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema=SCHEMAS[name], orient="row")
    return table.sort(table.columns)


def _of_known(rows: SourceRows, found: Sequence[Row], known: Collection[str]) -> list[Row]:
    for row in found:
        if row.recording not in known:
            rows.skip(row.origin, row.recording, "unknown recording")
    return [row for row in found if row.recording in known]


def _inside(media_root: Path, path: str, origin: Origin, recording: str) -> str:
    """Return the path relative to the media root."""
    try:
        resolve_inside(media_root, path)
    except InputError as error:
        raise InputError(f"{origin}: recording {recording!r}: {error}") from error
    given = Path(path)
    return given.relative_to(media_root).as_posix() if given.is_relative_to(media_root) else given.as_posix()


def _measure(
    found: Sequence[ClipRow], media_root: Path, rows: SourceRows, progress: Progress | None
) -> list[MeasuredClip]:
    """Open every clip; note those that cannot be read."""
    seen: dict[tuple[str, str, str], Origin] = {}
    paths = [_inside(media_root, row.path, row.origin, row.recording) for row in found]
    for row in found:
        key = (row.recording, row.view, row.clip)
        if key in seen:
            raise InputError(f"{row.origin}: clip {'/'.join(key)} stands there twice; see {seen[key]}")
        seen[key] = row.origin
    measured: list[MeasuredClip] = []
    work = (delayed(_probe)(media_root / path) for path in paths)
    results = Parallel(n_jobs=PROBE_THREADS, prefer="threads", return_as="generator")(work)
    for row, path, (info, reason) in zip(found, paths, results, strict=True):
        if reason is not None:
            rows.skip(row.origin, row.recording, f"unreadable: {reason}")
        measured.append(MeasuredClip(row, path, info))
        if progress:
            progress(len(measured), len(found))
    return measured


def _probe(path: Path) -> tuple[ClipInfo | None, str | None]:
    try:
        return probe(path), None
    except MediaError as error:
        return None, str(error)


def _present_features(found: Sequence[FeatureRow], media_root: Path, rows: SourceRows) -> list[tuple[str, str, str]]:
    present: dict[tuple[str, str], tuple[str, str, str]] = {}
    for row in found:
        path = _inside(media_root, row.path, row.origin, row.recording)
        key = (row.recording, row.modality)
        if key in present:
            raise InputError(f"{row.origin}: features {'/'.join(key)} stand there twice")
        if (media_root / path).is_file():
            present[key] = (*key, path)
        else:
            rows.skip(row.origin, row.recording, f"missing feature file: {path}")
    return list(present.values())


def _durations(
    rows: SourceRows, clips: Sequence[MeasuredClip], features: Sequence[tuple[str, str, str]], media_root: Path
) -> dict[str, float]:
    """Return the length of every recording that has media: as given, or as its clips or features show."""
    clips_of: dict[str, list[MeasuredClip]] = defaultdict(list)
    series_of: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        clips_of[clip.row.recording].append(clip)
    for recording, _, path in features:
        series_of[recording].append(path)
    durations: dict[str, float] = {}
    for row in rows.recordings:
        own, series = clips_of[row.recording], series_of[row.recording]
        if not own and not series:
            rows.skip(row.origin, row.recording, "no media: the recording is left out")
            continue
        duration_s = row.duration_s
        if duration_s is None:
            duration_s = _clip_end_s(own) or _series_end_s(media_root, series)
        if duration_s is None:
            rows.skip(row.origin, row.recording, "unknown length: none of its clips can be read; left out")
        elif not (math.isfinite(duration_s) and duration_s > 0):
            raise InputError(f"{row.origin}: recording {row.recording!r} has length {duration_s} s; expected > 0")
        else:
            durations[row.recording] = duration_s
    return durations


def _clip_end_s(clips: Sequence[MeasuredClip]) -> float | None:
    """Return the longest clip that starts with the recording, or where the last one ends, or the longest."""
    readable = [(clip.row.offset_s, clip.info.duration_s) for clip in clips if clip.info and clip.info.duration_s > 0]
    whole = [duration_s for offset_s, duration_s in readable if offset_s == 0]
    placed = [offset_s + duration_s for offset_s, duration_s in readable if offset_s is not None]
    anywhere = [duration_s for _, duration_s in readable]
    return next((max(ends) for ends in (whole, placed, anywhere) if ends), None)


def _series_end_s(media_root: Path, paths: Sequence[str]) -> float | None:
    ends: list[float] = []
    for path in paths:
        try:
            with np.load(media_root / path, allow_pickle=False) as arrays:
                times_s = np.asarray(arrays["times_s"], dtype=np.float64)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{media_root / path}: expected an .npz with `values` and `times_s`: {error}") from error
        if len(times_s):
            ends.append(float(times_s[-1] + np.median(np.diff(times_s))) if len(times_s) > 1 else float(times_s[0]))
    return max(ends, default=None)


def _fit(
    found: Sequence[InstanceRow], durations: dict[str, float], actions: Sequence[str], rows: SourceRows, *, refuse: bool
) -> list[tuple[str, float, float, str]]:
    """Return the instances that can be used, ends clipped to the recording; note the rest."""
    known = set(actions)
    fitted: list[tuple[str, float, float, str]] = []
    for row in found:
        if row.label not in known and refuse:
            raise InputError(
                f"{row.origin}: recording {row.recording!r} has label {row.label!r}, which is not in the class list; "
                "add it there or remove the instance"
            )
        reason = _fault(row, durations, known)
        if reason:
            rows.skip(row.origin, row.recording, reason)
            continue
        start_s, end_s = max(row.start_s, 0.0), min(row.end_s, durations[row.recording])
        if start_s > row.start_s + ROUNDING_S or end_s < row.end_s - ROUNDING_S:
            rows.skip(row.origin, row.recording, f"clipped to the recording: [{row.start_s}, {row.end_s}] {row.label}")
        fitted.append((row.recording, start_s, end_s, row.label))
    return fitted


def _fault(row: InstanceRow, durations: dict[str, float], known: Collection[str]) -> str | None:
    """Return why the instance cannot be used, or None."""
    shown = f"[{row.start_s}, {row.end_s}] {row.label}"
    if row.recording not in durations:
        return f"instance of a recording that is left out: {shown}"
    if row.label not in known:
        return f"unknown label: {row.label}"
    if not (math.isfinite(row.start_s) and math.isfinite(row.end_s)):
        return f"not an interval: {shown}"
    if row.start_s >= row.end_s:
        return f"start not before end: {shown}"
    if row.start_s >= durations[row.recording] or row.end_s <= 0:
        return f"outside the recording: {shown}, it is {durations[row.recording]:.3f} s long"
    return None


def _recording_table(rows: Sequence[RecordingRow], durations: dict[str, float], scenes: Sequence[str]) -> pl.DataFrame:
    for row in rows:
        if row.scene is not None and row.scene not in scenes:
            raise InputError(
                f"{row.origin}: recording {row.recording!r} has scene {row.scene!r}, which is not in the list"
            )
    table = _table("recordings", [(r.recording, durations[r.recording], r.scene, r.split) for r in rows])
    groups = {row.recording: row.group for row in rows}
    if not any(groups.values()):
        return table
    named = [groups[name] or None for name in table["recording"]]
    return table.with_columns(pl.Series("group", named, dtype=OPTIONAL["recordings"]["group"]))


def _clip_table(clips: Sequence[MeasuredClip]) -> pl.DataFrame:
    def measurements(info: ClipInfo | None) -> tuple[object, ...]:
        if info is None:
            return (None,) * 5
        return (info.duration_s or None, info.fps or None, info.width or None, info.height or None, info.has_audio)

    rows = [(c.row.recording, c.row.view, c.row.clip, c.path, c.row.offset_s, *measurements(c.info)) for c in clips]
    return _table("clips", rows)


def _with_folds(manifest: Manifest, num_folds: int) -> Manifest:
    groups = manifest.groups
    fitted = min(num_folds, len({groups[name] for name in manifest.recordings_of(("train", "val"))}))
    return manifest.with_folds(assign_folds(manifest, fitted)) if fitted >= 2 else manifest
