"""Readers of ground truth: ActivityNet JSON, plain CSV, a talstack data folder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.detections import (
    BINEGO360_CLASSES,
    INSTANCE_SCHEMA,
    activitynet_columns,
    count_negative,
    drop_zero_length,
    validate_instances,
)
from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import read_json
from talstack.io.manifest import SPLITS, Manifest
from talstack.io.tables import read_csv

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
    """Return the ground truth of an ActivityNet JSON, a CSV (recording, start_s, end_s, label) or a data folder.

    Args:
        path: the file or folder.
        split: the part to take: in ActivityNet JSON its `subset` (train, val and test stand for training,
            validation and testing where the file says so; needed where there are several); in a data folder
            train, val or test, the last being the default; not possible with CSV.

    Raises:
        MissingInputError: nothing is there.
        InputError: another format, an unknown split, or an instance that `validate_instances` refuses.
    """
    if path.is_dir():
        return _from_folder(path, split or "test")
    if not path.is_file():
        raise MissingInputError(f"{path}: no such ground truth")
    if path.suffix == ".json":
        return _from_activitynet(path, split)
    if path.suffix != ".csv":
        raise InputError(f"{path}: ground truth must be a .json or .csv file or a data folder")
    if split is not None:
        raise InputError(f"{path}: a CSV has no splits, so {split!r} cannot be chosen; filter its rows instead")
    table = read_csv(path, INSTANCE_SCHEMA)
    return _checked(table, table["recording"].unique().to_list(), path, BINEGO360_CLASSES)


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
    return dict(recordings.select("recording", column).drop_nulls().iter_rows())


def _from_activitynet(path: Path, subset: str | None) -> GroundTruth:
    content = read_json(path)
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
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(
                f"{path}, recording {name!r}: duration must be a positive number of seconds, got {value!r}"
            )
        durations[name] = float(value)
    return durations


def _choose_subset(database: Mapping[str, Mapping[str, Any]], subset: str | None, path: Path) -> str | None:
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
    kept, dropped = drop_zero_length(table)
    instances = validate_instances(kept, where=str(path), allow_negative=True)
    return GroundTruth(instances, tuple(sorted(recordings)), dropped, count_negative(instances), class_ids)
