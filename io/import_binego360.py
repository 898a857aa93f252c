"""Import of BinEgo-360 / 360+x, from the challenge's folders or those of the development kit.

Challenge: panoramic/<id>.mp4, third_person/<id>.mp4, monocular/<id>/<clip>.mp4, binocular/<id>/<clip>.mp4.
Development kit: <id>/360/360_panoramic.mp4, <id>/360/front_view.mp4, <id>/Snapchat/<clip>/mono.mp4 and stereo.mp4.
Both: annotations in TAL_annotations/<id>.json (or anywhere as <id>.json, or as the only JSON file of a folder <id>),
the scene as plain text in <anything>/<id>/label.json or label/<id>.json.

Tables at the root may add what the data set does not say: scenes.csv (recording, scene), splits.csv (recording,
split), offsets.csv (recording, view, clip, offset_s).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.assemble import DEFAULT_FOLDS, Progress, assemble_manifest
from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import read_json
from talstack.io.labels import BINEGO360_ACTIONS, BINEGO360_SCENES
from talstack.io.manifest import Manifest, name_of
from talstack.io.source_rows import (
    MEDIA_SUFFIXES,
    ClipRow,
    InstanceRow,
    Origin,
    RecordingRow,
    SourceRows,
    check_split,
    line,
    read_pairs,
)
from talstack.io.tables import read_csv

WHOLE_VIEWS = ("panoramic", "third_person")  # one clip each, which starts with the recording
EGO_VIEWS = ("monocular", "binocular")  # several clips, at unknown times
KIT_WHOLE = {"360_panoramic": "panoramic", "front_view": "third_person"}
KIT_EGO = {"mono": "monocular", "monocular": "monocular", "stereo": "binocular", "binocular": "binocular"}
ANNOTATION_FOLDERS = ("TAL_annotations", "annotations")
SCENE_FOLDERS = ("label", "labels", "scene", "scenes")
DEFAULT_TEST_FRACTION = 0.2


def import_binego360(
    root: Path,
    *,
    test_fraction: float = DEFAULT_TEST_FRACTION,
    num_folds: int = DEFAULT_FOLDS,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of a BinEgo-360 folder; see the module for the layouts.

    Without splits.csv, recordings without annotations are test, and of the others the fraction that a hash of the
    id picks: the same recordings on every machine, whatever else is in the folder.

    Args:
        root: the data set's folder.
        test_fraction: share of the annotated recordings that becomes the test split, 0 to 1.
        num_folds: folds over the train recordings.
        progress: called with (clips measured, clips in all).

    Raises:
        MissingInputError: there is no such folder.
        InputError: no clips in either layout, an annotation file that is not JSON, or a table that cannot be used.
    """
    if not root.is_dir():
        raise MissingInputError(f"{root}: no such folder")
    if not 0 <= test_fraction <= 1:
        raise InputError(f"test fraction: expected 0 to 1, got {test_fraction}")
    root = root.resolve()
    rows = SourceRows()
    rows.clips = _with_offsets([*_challenge_clips(root, rows), *_kit_clips(root)], root / "offsets.csv", rows)
    recordings = sorted({row.recording for row in rows.clips})
    if not recordings:
        raise InputError(
            f"{root}: no clips found; expected panoramic/<id>.mp4, third_person/<id>.mp4, monocular/<id>/<clip>.mp4, "
            "binocular/<id>/<clip>.mp4 or <id>/360/360_panoramic.mp4, <id>/Snapchat/<clip>/mono.mp4"
        )
    annotations, labels = _find_json(root, set(recordings), rows)
    for recording, path in sorted(annotations.items()):
        rows.instances += _read_via(recording, path, rows)
    scenes = _scenes(root, labels, set(recordings), rows)
    splits = _splits(root, recordings, set(annotations), test_fraction, rows)
    rows.recordings = [RecordingRow(r, splits[r], scenes.get(r), None, Origin(root)) for r in recordings]
    return assemble_manifest(
        rows,
        name=name_of(root),
        media_root=root,
        actions=BINEGO360_ACTIONS,
        scenes=BINEGO360_SCENES,
        num_folds=num_folds,
        refuse_unknown_labels=False,
        progress=progress,
    )


def _visible(folder: Path) -> Iterator[Path]:
    """Yield what is in the folder, sorted, without hidden files (macOS leaves ._<name>.mp4 beside every clip)."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in MEDIA_SUFFIXES


def _clip(root: Path, path: Path, recording: str, view: str, clip: str) -> ClipRow:
    offset_s = 0.0 if view in WHOLE_VIEWS else None
    return ClipRow(recording, view, clip, path.relative_to(root).as_posix(), offset_s, Origin(path))


def _challenge_clips(root: Path, rows: SourceRows) -> Iterator[ClipRow]:
    for view in WHOLE_VIEWS:
        for path in _visible(root / view):
            if _is_media(path):
                yield _clip(root, path, path.stem, view, path.stem)
            else:
                rows.skip(Origin(path), path.stem, "not a media file")
    for view in EGO_VIEWS:
        for folder in _visible(root / view):
            for path in _visible(folder):
                if _is_media(path):
                    yield _clip(root, path, folder.name, view, path.stem)
                else:
                    rows.skip(Origin(path), folder.name, "not a media file")
            if folder.is_file():
                rows.skip(Origin(folder), folder.stem, f"not in a recording's folder: expected {view}/<id>/<clip>.mp4")


def _kit_clips(root: Path) -> Iterator[ClipRow]:
    for folder in _visible(root):
        for path in _visible(folder / "360"):
            if _is_media(path) and path.stem in KIT_WHOLE:
                yield _clip(root, path, folder.name, KIT_WHOLE[path.stem], folder.name)
        for clip_folder in _visible(folder / "Snapchat"):
            for path in _visible(clip_folder):
                if _is_media(path) and path.stem in KIT_EGO:
                    yield _clip(root, path, folder.name, KIT_EGO[path.stem], clip_folder.name)


def _with_offsets(clips: list[ClipRow], path: Path, rows: SourceRows) -> list[ClipRow]:
    """Return the clips with the offsets of the table, where there is one."""
    if not path.is_file():
        return clips
    schema = {"recording": pl.String, "view": pl.String, "clip": pl.String, "offset_s": pl.Float64}
    offsets: dict[tuple[str, str, str], tuple[float, Origin]] = {}
    for recording, view, clip, offset_s, number in read_csv(path, schema).iter_rows():
        key = (recording, view, clip)
        if key in offsets:
            raise InputError(f"{line(path, number)}: clip {'/'.join(key)} stands there twice; see {offsets[key][1]}")
        offsets[key] = (offset_s, line(path, number))
    known = {(row.recording, row.view, row.clip) for row in clips}
    for key, (_, origin) in offsets.items():
        if key not in known:
            rows.skip(origin, key[0], f"offset of an unknown clip: {'/'.join(key)}")
    return [
        replace(row, offset_s=offsets[key][0]) if (key := (row.recording, row.view, row.clip)) in offsets else row
        for row in clips
    ]


def _find_json(root: Path, recordings: set[str], rows: SourceRows) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return {recording: annotation file} and {recording: scene file}."""
    annotations: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    # files that bear a recording's name come first: beside one of those another in the same folder is not meant
    for path in sorted(root.rglob("*.json"), key=lambda p: (p.stem not in recordings, p)):
        is_label = path.name == "label.json" or path.parent.name in SCENE_FOLDERS
        recording = path.stem if path.stem in recordings else path.parent.name
        found = labels if is_label else annotations
        if path.name.startswith("."):
            continue
        if recording in found:
            rows.skip(Origin(path), recording, f"second file of this kind: {found[recording]} is used")
        elif recording in recordings:
            found[recording] = path
        elif is_label or path.parent.name in ANNOTATION_FOLDERS:
            unknown = path.parent.name if path.name == "label.json" else path.stem
            rows.skip(Origin(path), unknown, "unknown recording")
    return annotations, labels


def _read_via(recording: str, path: Path, rows: SourceRows) -> Iterator[InstanceRow]:
    """Yield the instances of a VIA-3 file, in either spelling; entries that say nothing are skipped and noted."""
    content = read_json(path)
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise InputError(
            f'{path}: expected VIA annotations, {{"metadata": {{key: {{...}}}}}}, of recording {recording!r}'
        )
    for key, entry in metadata.items():
        origin = Origin(path, str(key))
        try:
            start_s, end_s, label = _via_entry(entry)
        except ValueError as error:
            rows.skip(origin, recording, str(error))
            continue
        yield InstanceRow(recording, start_s, end_s, label, origin)


def _via_entry(entry: Any) -> tuple[float, float, str]:
    """Return start, end and label of an entry; ValueError with the reason where there are none."""
    if not isinstance(entry, dict):
        raise ValueError(f"not an entry: {entry!r:.60}")
    actions = entry.get("action", entry.get("av"))
    interval = entry.get("duration", entry.get("z"))
    if not isinstance(actions, dict) or not isinstance(actions.get("1"), str):
        raise ValueError('no action: the entry has no "1"')
    if not interval:
        raise ValueError(f"empty interval: {actions['1']}")
    numbers = isinstance(interval, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in interval
    )
    if not numbers or len(interval) != 2:
        raise ValueError(f"not an interval: {interval!r:.60} {actions['1']}")
    return float(interval[0]), float(interval[1]), actions["1"].strip()


def _scenes(root: Path, labels: dict[str, Path], recordings: set[str], rows: SourceRows) -> dict[str, str]:
    """Return {recording: scene} of the label files, and over them of scenes.csv."""
    named: dict[str, tuple[str | None, Origin]] = {r: (_label_text(path), Origin(path)) for r, path in labels.items()}
    if (root / "scenes.csv").is_file():
        named |= _known_pairs(root / "scenes.csv", "scene", recordings, rows)
    scenes: dict[str, str] = {}
    for recording, (scene, origin) in sorted(named.items()):
        if not scene:
            rows.skip(origin, recording, "no scene: left empty")
        elif scene not in BINEGO360_SCENES:
            rows.skip(origin, recording, f"unknown scene: {scene}")
        else:
            scenes[recording] = scene
    return scenes


def _label_text(path: Path) -> str:
    """Return the scene's name: the file's text, or the string in it where it is JSON after all."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").strip()
    if text.startswith('"'):
        try:
            return str(json.loads(text)).strip()
        except json.JSONDecodeError:
            return text
    return text


def _splits(
    root: Path, recordings: list[str], annotated: set[str], test_fraction: float, rows: SourceRows
) -> dict[str, str]:
    path = root / "splits.csv"
    if not path.is_file():
        return {r: "train" if r in annotated and _hash_fraction(r) >= test_fraction else "test" for r in recordings}
    pairs = _known_pairs(path, "split", set(recordings), rows)
    missing = [recording for recording in recordings if recording not in pairs]
    if missing:
        raise InputError(
            f"{path}: no row for recording {missing[0]!r} ({len(missing)} in all); add it or remove the table"
        )
    for recording, (split, origin) in pairs.items():
        check_split(split or "", recording, origin)
    return {recording: split for recording, (split, _) in pairs.items() if split}


def _known_pairs(
    path: Path, column: str, recordings: set[str], rows: SourceRows
) -> dict[str, tuple[str | None, Origin]]:
    pairs = read_pairs(path, column)
    for recording, (_, origin) in pairs.items():
        if recording not in recordings:
            rows.skip(origin, recording, "unknown recording")
    return {recording: pair for recording, pair in pairs.items() if recording in recordings}


def _hash_fraction(recording: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the id."""
    return int.from_bytes(hashlib.sha256(recording.encode()).digest()[:8], "big") / 2**64
