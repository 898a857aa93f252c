"""What a run's folder says about itself: which data folder and which split."""

import os
from pathlib import Path
from typing import Any

from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import read_json, write_json

PROVENANCE = "provenance.json"


def record_data(run: Path, data: Path) -> None:
    """Note the data folder in the run's provenance.json, relative to the run's folder; other entries stay."""
    path = run / PROVENANCE
    record = _read(path) if path.is_file() else {}
    shown = os.path.relpath(data.resolve(), run.resolve())
    if record.get("data") != shown:
        write_json(path, {**record, "data": shown})


def data_of(run: Path) -> Path:
    """Return the data folder that the run was made from.

    Raises:
        MissingInputError: the run does not say, or the folder is not there any more.
        InputError: provenance.json is not what talstack writes.
    """
    path = run / PROVENANCE
    shown = _read(path).get("data") if path.is_file() else None
    if shown is None:
        raise MissingInputError(f"{run}: does not say which data it was made from; name the ground truth yourself")
    if not isinstance(shown, str):
        raise InputError(f"{path}: data must be the path of a data folder, got {shown!r}")
    data = Path(os.path.normpath(run / shown))
    if not data.is_dir():
        raise MissingInputError(f"{data}: the data folder of run {run} is not there; name the ground truth yourself")
    return data


def split_of(run: Path) -> str:
    """Return the split that the run's detections are of; test where the run does not say."""
    path = run / PROVENANCE
    submit = _read(path).get("submit") if path.is_file() else None
    split = submit.get("split") if isinstance(submit, dict) else None
    return split if isinstance(split, str) else "test"


def _read(path: Path) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected an object, got {type(record).__name__}")
    return record
