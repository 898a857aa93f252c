"""Curves of a training for TensorBoard, where it is installed (extra `tensorboard`)."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Scalars:
    """A writer of scalars into a folder of TensorBoard events; does nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path | None, *, step: int = 0) -> None:
        self._writer: Any = None
        if folder is not None and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # what an interrupted training wrote beyond its last checkpoint is dropped
            self._writer = SummaryWriter(str(folder), purge_step=step)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the values that are known."""
        for name, value in values.items():
            if self._writer is not None and value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            self._writer.close()
