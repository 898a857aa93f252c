"""Import of annotations in ActivityNet's JSON format, with clips from a folder or a table.

{"database": {"<recording>": {"subset": "training" | "validation" | "testing", "duration": seconds,
                              "annotations": [{"label": "...", "segment": [start, end]}, ...]}}}
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from talstack.io.assemble import DEFAULT_FOLDS, Progress, assemble_manifest
from talstack.io.errors import InputError, MissingInputError
from talstack.io.ground_truth import SPLIT_NAMES
from talstack.io.manifest import Manifest, name_of
from talstack.io.source_rows import (
    MEDIA_SUFFIXES,
    ClipRow,
    InstanceRow,
    Origin,
    RecordingRow,
    SourceRows,
    read_clip_rows,
    read_feature_rows,
    read_name_list,
    read_recording_rows,
    read_unique_json,
)

SPLIT_OF_SUBSET = {subset: split for split, subset in SPLIT_NAMES.items()} | {name: name for name in SPLIT_NAMES}
MAIN_VIEW = "main"


def import_activitynet(
    annotations: Path,
    *,
    media: Path,
    clips: Path | None = None,
    recordings: Path | None = None,
    features: Path | None = None,
    classes: Path | None = None,
    group_column: str | None = None,
    num_folds: int = DEFAULT_FOLDS,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of ActivityNet annotations and their media.

    Args:
        annotations: the JSON file; its subsets become the splits train, val and test.
        media: folder that the paths of `clips` and `features` are relative to, and must stay inside.
        clips: table of recording, view, clip, path, offset_s; without it every recording is one clip
            `<media>/<recording>.<mp4, mkv, ...>` (or `v_<recording>...`) of the view "main".
        recordings: table of recording, scene, split, optionally duration_s and group; adds scenes, groups and
            recordings without annotations, and its split goes before the subset.
        features: table of recording, modality, path of an .npz with `values` and `times_s`.
        classes: text file, one class a line, that fixes their order; else classes.txt beside the annotations, else
            alphabetical.
        group_column: of `recordings`, that says which of them must share a fold, instead of `group`.
        num_folds: folds over the train and val recordings.
        progress: called with (clips measured, clips in all).

    Raises:
        MissingInputError: one of the files or the media folder is not there.
        InputError: something in them that cannot be used; the message names file and line or entry.
    """
    if not media.is_dir():
        raise MissingInputError(f"{media}: no such media folder")
    if group_column is not None and recordings is None:
        raise InputError(f"group column {group_column!r}: there is no table of recordings to take it from")
    media = media.resolve()
    rows = SourceRows()
    _read_database(annotations, rows)
    if recordings is not None:
        _merge_recordings(rows, read_recording_rows(recordings, group_column=group_column))
    rows.clips = read_clip_rows(clips) if clips else _find_clips(rows, media)
    rows.features = read_feature_rows(features) if features else []
    beside = annotations.parent / "classes.txt"
    listed = classes or (beside if beside.is_file() else None)
    return assemble_manifest(
        rows,
        name=name_of(annotations.resolve().parent),
        media_root=media,
        actions=read_name_list(listed) if listed else sorted({row.label for row in rows.instances}),
        scenes=sorted({row.scene for row in rows.recordings if row.scene is not None}),
        num_folds=num_folds,
        progress=progress,
    )


def _read_database(path: Path, rows: SourceRows) -> None:
    """Add the recordings and instances of the JSON file."""
    content = read_unique_json(path)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise InputError(f'{path}: expected ActivityNet annotations, {{"database": {{recording: {{...}}}}}}')
    for recording, entry in database.items():
        origin = Origin(path, f"database.{recording}")
        if not isinstance(entry, dict):
            raise InputError(f"{origin}: expected an object with subset and annotations, got {entry!r:.80}")
        subset = str(entry.get("subset", "")).lower()
        if subset not in SPLIT_OF_SUBSET:
            raise InputError(f"{origin}: subset {entry.get('subset')!r}; expected {', '.join(SPLIT_NAMES.values())}")
        duration_s = _number(entry["duration"], origin, "duration") if entry.get("duration") is not None else None
        rows.recordings.append(RecordingRow(recording, SPLIT_OF_SUBSET[subset], None, duration_s, origin))
        rows.instances += _instances(recording, entry, path)


def _instances(recording: str, entry: Mapping[str, Any], path: Path) -> list[InstanceRow]:
    found: list[InstanceRow] = []
    for index, item in enumerate(entry.get("annotations") or []):
        origin = Origin(path, f"database.{recording}.annotations[{index}]")
        segment = item.get("segment") if isinstance(item, dict) else None
        if not isinstance(segment, list) or len(segment) != 2 or not isinstance(item.get("label"), str):
            raise InputError(f"{origin}: expected segment [start, end] and label, got {item!r:.120}")
        start_s, end_s = (_number(value, origin, "segment") for value in segment)
        found.append(InstanceRow(recording, start_s, end_s, item["label"].strip(), origin))
    return found


def _number(value: Any, origin: Origin, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{origin}: {what}: expected a number of seconds, got {value!r}")
    return float(value)


def _merge_recordings(rows: SourceRows, table: list[RecordingRow]) -> None:
    """Give the recordings their scene and split, and add those that have no annotations."""
    annotated = {row.recording: position for position, row in enumerate(rows.recordings)}
    for row in table:
        position = annotated.get(row.recording)
        if position is None:
            rows.recordings.append(row)
            continue
        old = rows.recordings[position]
        if old.split != row.split:
            rows.skip(row.origin, row.recording, f"split of the table used: {row.split} instead of {old.split}")
        duration_s = row.duration_s if old.duration_s is None else old.duration_s
        rows.recordings[position] = replace(
            old, split=row.split, scene=row.scene, duration_s=duration_s, group=row.group
        )


def _find_clips(rows: SourceRows, media: Path) -> list[ClipRow]:
    """Return the clip of every recording that has a file of its name, with or without ActivityNet's "v_" before it."""
    found: list[ClipRow] = []
    for row in rows.recordings:
        names = [f"{prefix}{row.recording}{suffix}" for prefix in ("", "v_") for suffix in MEDIA_SUFFIXES]
        present = [name for name in names if (media / name).exists()]
        for name in present[:1]:
            found.append(ClipRow(row.recording, MAIN_VIEW, row.recording, name, 0.0, Origin(media / name)))
        for name in present[1:]:
            rows.skip(Origin(media / name), row.recording, f"second file of a recording: {present[0]} is used")
    return found
