"""Readers of ground truth: ActivityNet JSON, challenge records, plain CSV, a talstack data folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.detections import (
    ARGUMENTS,
    BINEGO360_CLASSES,
    INSTANCE_SCHEMA,
    MAX_TIME_S,
    check_read_rows,
    count_negative,
    count_repeated,
    is_competition_csv,
    strip_names,
)
from talstack.io.errors import InputError, MissingInputError
from talstack.io.manifest import SPLITS, Manifest
from talstack.io.result_json import RESULT_KEYS, activitynet_columns, read_result_json, record_columns
from talstack.io.tables import read_csv, read_header

SWAPPED = f"holds predictions, not ground truth. Are the two files swapped? {ARGUMENTS}"
SCORED = f"there are scores, which are not used. Is it a file of predictions? {ARGUMENTS}"
SPLIT_NAMES: Mapping[str, str] = {"train": "training", "val": "validation", "test": "testing"}  # ActivityNet's


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """What happens when, in the recordings that are evaluated.

    Attributes:
        instances: checked table (recording, start_s, end_s, label).
        recordings: every recording that is listed, those without an instance too; sorted.
        dropped: {reason: count} of instances left out.
        warnings: what is odd about the instances that were kept.
        class_ids: label of each class id in competition files.
        durations_s: length of each recording in seconds; of those where it is known.
        scenes: scene of each recording; of those where it is known.
        scene_names: the ordered scene list; empty where there is none.
    """

    instances: pl.DataFrame
    recordings: tuple[str, ...]
    dropped: Mapping[str, int]
    warnings: tuple[str, ...]
    class_ids: Mapping[int, str]
    durations_s: Mapping[str, float] = field(default_factory=dict)
    scenes: Mapping[str, str] = field(default_factory=dict)
    scene_names: tuple[str, ...] = ()


def read_ground_truth(path: Path, *, split: str | None = None) -> GroundTruth:
    """Return the ground truth of a data folder, a CSV (recording, start_s, end_s, label) or a JSON file.

    JSON is ActivityNet's annotations or the challenge's records, [{"video_id", "t_start", "t_end", "label"}].

    Args:
        path: the file or folder.
        split: the part to take: in ActivityNet JSON its `subset` (train, val and test stand for training,
            validation and testing where the file says so; needed where there are several); in a data folder
            train, val or test, the last being the default; not possible with CSV and records.

    Raises:
        MissingInputError: nothing is there.
        InputError: another format, an unknown split, or an instance that `check_read_rows` refuses.
    """
    if path.is_dir():
        return _from_folder(path, split or "test")
    if not path.is_file():
        raise MissingInputError(f"{path}: no such ground truth")
    if path.suffix == ".json":
        return _from_json(path, split)
    if path.suffix != ".csv":
        hint = f". Is it a file of predictions? {ARGUMENTS}" if path.suffix == ".parquet" else ""
        raise InputError(f"{path}: ground truth must be a .json or .csv file or a data folder{hint}")
    _refuse_split(path, split, "a CSV has")
    header = read_header(path)
    if is_competition_csv(header):
        raise InputError(f"{path}: {SWAPPED}")
    table = read_csv(path, INSTANCE_SCHEMA, only_utf8=True)
    truth = _checked(table, table["recording"].unique().to_list(), path, BINEGO360_CLASSES)
    return replace(truth, warnings=(*truth.warnings, SCORED)) if "score" in header else truth


def _refuse_split(path: Path, split: str | None, what: str) -> None:
    if split is not None:
        raise InputError(f"{path}: {what} no splits, so {split!r} cannot be chosen; filter its rows instead")


def _from_folder(folder: Path, split: str) -> GroundTruth:
    if split not in SPLITS:
        raise InputError(f"{folder}: split {split!r}; expected one of {', '.join(SPLITS)}")
    manifest = Manifest.load(folder)
    recordings = manifest.recordings_of([split])
    if not recordings:
        raise InputError(f"{folder}: no recording is in split {split!r}; choose another with --split")
    instances = manifest.instances.filter(pl.col("recording").is_in(recordings))
    class_ids = dict(enumerate(manifest.actions, start=manifest.first_action_id))
    truth = _checked(instances, recordings, folder, class_ids)
    rows = manifest.recordings.filter(pl.col("recording").is_in(recordings))
    return replace(
        truth,
        durations_s=_known(rows, "duration_s"),
        scenes=_known(rows, "scene"),
        scene_names=manifest.scenes,
    )


def _known(recordings: pl.DataFrame, column: str) -> dict[str, Any]:
    return dict(recordings.select(pl.col("recording").str.strip_chars(), column).drop_nulls().iter_rows())


def _from_json(path: Path, split: str | None) -> GroundTruth:
    content = read_result_json(path)
    if isinstance(content, dict) and "database" not in content and any(key in content for key in RESULT_KEYS):
        raise InputError(f"{path}: {SWAPPED}")
    if not isinstance(content, list):
        return _from_activitynet(content, path, split)
    _refuse_split(path, split, "a list of records has")
    if any(isinstance(item, dict) and "score" in item for item in content):
        raise InputError(f"{path}: {SWAPPED}")
    table, _ = record_columns(content, class_ids=BINEGO360_CLASSES, where=path)
    return _checked(table.drop("score"), table["recording"].unique().to_list(), path, BINEGO360_CLASSES)


def _from_activitynet(content: Any, path: Path, subset: str | None) -> GroundTruth:
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        raise InputError(f'{path}: expected ActivityNet annotations, {{"database": {{recording: {{...}}}}}}')
    chosen = _choose_subset(database, subset, path)
    entries = {name: entry.get("annotations", []) for name, entry in database.items() if entry.get("subset") == chosen}
    table = activitynet_columns(entries.items(), keys=("label",), where=path)
    truth = _checked(table, list(entries), path, BINEGO360_CLASSES)
    return replace(truth, durations_s=_durations(database, list(entries), path))


def _durations(database: Mapping[str, Mapping[str, Any]], names: list[str], path: Path) -> dict[str, float]:
    """Return the `duration` of the recordings that state one."""
    durations = {}
    for name in names:
        value = database[name].get("duration")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TIME_S:
            raise InputError(
                f"{path}, recording {name!r}: duration must be a positive number of seconds, at most {MAX_TIME_S:g}, "
                f"got {value!r:.80}"
            )
        durations[name.strip()] = float(value)
    return durations


def _choose_subset(database: Mapping[str, Mapping[str, Any]], subset: str | None, path: Path) -> str | None:
    for recording, entry in database.items():
        if not isinstance(entry.get("subset"), str | None):
            raise InputError(f"{path}, recording {recording!r}: subset must be a text, got {entry['subset']!r:.80}")
    found = {entry.get("subset") for entry in database.values()}
    if subset is None and len(found) <= 1:
        return next(iter(found), None)
    names = ", ".join(sorted(map(str, found)))
    if subset is None:
        raise InputError(f"{path}: holds several subsets, choose one with --subset: {names}")
    for name in (subset, SPLIT_NAMES.get(subset)):
        if name in found:
            return name
    raise InputError(f"{path}: no subset {subset!r}; found {names}")


def _checked(table: pl.DataFrame, recordings: list[str], path: Path, class_ids: Mapping[int, str]) -> GroundTruth:
    instances, dropped = check_read_rows(table, INSTANCE_SCHEMA, where=str(path))
    repeated = count_repeated(instances, "an instance that is listed twice counts twice")
    warnings = (*count_negative(instances), *repeated)
    names = strip_names(
        pl.DataFrame({"recording": recordings}, schema={"recording": pl.String}), ["recording"], where=str(path)
    )
    return GroundTruth(instances, tuple(names["recording"].sort()), dropped, warnings, class_ids)
