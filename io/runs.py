"""What a run's folder says about itself: which data folder, which feature store and which split."""

import os
from pathlib import Path
from typing import Any

from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import read_json, write_json

PROVENANCE = "provenance.json"


def record_data(run: Path, data: Path, store: Path | None = None) -> None:
    """Note the data folder, and the store, in the run's provenance.json, relative to the run; other entries stay."""
    path = run / PROVENANCE
    record = _read(path) if path.is_file() else {}
    folders = {"data": data} if store is None else {"data": data, "store": store}
    shown = {name: os.path.relpath(folder.resolve(), run.resolve()) for name, folder in folders.items()}
    if {**record, **shown} != record:
        write_json(path, {**record, **shown})


def data_of(run: Path) -> Path:
    """Return the data folder that the run was made from.

    Raises:
        MissingInputError: the run does not say, or the folder is not there any more.
        InputError: provenance.json is not what talstack writes.
    """
    return _folder_of(run, "data", "data folder", "name the ground truth yourself")


def store_of(run: Path) -> Path:
    """Return the feature store that the run's heads were fitted from; raises as `data_of`."""
    return _folder_of(run, "store", "feature store", "name it with --store")


def _folder_of(run: Path, entry: str, what: str, remedy: str) -> Path:
    path = run / PROVENANCE
    shown = _read(path).get(entry) if path.is_file() else None
    if shown is None:
        raise MissingInputError(f"{run}: does not say which {what} it was made from; {remedy}")
    if not isinstance(shown, str):
        raise InputError(f"{path}: {entry} must be the path of a {what}, got {shown!r}")
    folder = Path(os.path.normpath(run / shown))
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: the {what} of run {run} is not there; {remedy}")
    return folder


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
