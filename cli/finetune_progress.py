"""The progress of fine-tuning: a bar over the steps, a table of the epochs, curves for TensorBoard."""

import functools
from collections import Counter
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.scalars import Scalars
from talstack.extract.training.trainer import EpochRow, Watcher


class FinetuneProgress:
    """Shows a training while it runs, and what it came to."""

    def __init__(self, console: Console, config: FinetuneConfig, out: Path) -> None:
        self._console, self._config, self._out = console, config, out
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed}/{task.total}"),
            TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal or console.quiet,
        )  # fmt: skip
        self._task = self._bar.add_task("fine-tuning", total=None)
        self._epochs: Counter[str] = Counter()
        self._table = Table(
            "backbone",
            "epoch",
            "action loss",
            "scene loss",
            "accuracy",
            "segment mAP",
            "lr",
            "segments/s",
            title="fine-tuning",
        )
        self._scalars = Scalars(None)

    def watcher_of(self, member: str) -> Watcher:
        """Return what the training of a backbone reports to; one of several has a name."""
        self._scalars.close()
        self._scalars = Scalars(None)
        return Watcher(self._step, functools.partial(self._epoch, member))

    def epochs_of(self, member: str) -> int:
        """Return how many epochs of a backbone were run this time."""
        return self._epochs[member]

    def _step(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def _epoch(self, member: str, row: EpochRow, segments_per_s: float) -> None:
        if not self._epochs[member]:
            self._scalars = Scalars(self._out / member / "tensorboard", step=row.epoch)
        self._epochs[member] += 1
        val_map = "" if row.val_map is None else f"{row.val_map:.1%}"
        self._table.add_row(
            member, str(row.epoch), f"{row.action_loss:.3f}", f"{row.scene_loss:.3f}", f"{row.accuracy:.1%}", val_map,
            f"{row.lr:.1e}", f"{segments_per_s:.1f}",
        )  # fmt: skip
        self._scalars.write(
            row.epoch,
            {
                "loss/action": row.action_loss, "loss/scene": row.scene_loss, "train/accuracy": row.accuracy,
                "validation/segment mAP": row.val_map, "train/lr": row.lr, "train/segments per second": segments_per_s,
            },
        )  # fmt: skip
        self._bar.update(self._task, description=f"epoch {row.epoch}/{self._config.epochs}")
        measured = f", segment mAP {val_map}" if val_map else ""
        self._console.print(
            f"{member and member + ', '}epoch {row.epoch}/{self._config.epochs}: action loss {row.action_loss:.3f}, "
            f"accuracy {row.accuracy:.1%}{measured}", highlight=False,
        )  # fmt: skip

    def __enter__(self) -> "FinetuneProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        self._scalars.close()
        if kind is None and self._table.row_count:
            self._console.print(self._table)
