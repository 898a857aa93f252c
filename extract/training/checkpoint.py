"""What a killed training goes on from: one file, replaced as a whole.

All randomness of a training is a function of (seed, step), so that weights, optimizer and the number of steps are
all there is to keep; a training that goes on ends with the weights of one that was never stopped.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from talstack.io.files import atomic_path

FOLDER = "unfinished"


def checkpoint_path(out: Path, fingerprint: str) -> Path:
    """Return where the checkpoint of a training of this fingerprint lies; trainings of other settings keep theirs."""
    return out / FOLDER / f"{fingerprint[:32]}.pt"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint by `state`, nested dicts and lists of tensors and plain values."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state, tensors on the CPU, or None where there is none that can be read: training starts afresh."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None


def remove_checkpoint(path: Path) -> None:
    """Remove the checkpoint of a training that is done, and its folder where it was the last."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
