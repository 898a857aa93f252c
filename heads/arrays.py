"""Named arrays as safetensors files: plain numbers, nothing that is executed on reading."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from talstack.io.errors import ModelError
from talstack.io.files import atomic_path


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write the arrays atomically and return the path."""
    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    return path


def read_arrays(path: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays by name.

    Raises:
        ModelError: the file is missing or damaged, or lacks one of `names`.
    """
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); run `talstack heads` again") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ModelError(f"{path}: array {missing[0]!r} is missing; run `talstack heads` again")
    return arrays
