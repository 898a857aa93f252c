"""Predictions and the ground truth they are held against, for the commands that score, diagnose and compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from talstack.io.detections import Predictions
    from talstack.io.ground_truth import GroundTruth

DEFAULT_SYSTEM = "stack"
RUN_FILES = ("detections.parquet", "scene.parquet")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Predictions beside the instances that they are scored against.

    Attributes:
        name: what to call the predictions.
        predictions: as read.
        truth: as read.
        instances: the ground truth's instances; cut into ten-second bins where the predictions are.
    """

    name: str
    predictions: "Predictions"
    truth: "GroundTruth"
    instances: "pl.DataFrame"


def read_scored(
    path: Path,
    ground_truth: Path | None = None,
    *,
    split: str | None = None,
    system: str | None = None,
    score_column: str = "score",
) -> Scored:
    """Return what lies in a file of predictions or a run's folder, and its ground truth.

    Args:
        path: as `read_predictions`, or a run's folder: then its detections.parquet.
        ground_truth: as `read_ground_truth`; may be left out for a run, which knows its data.
        split: part of the ground truth; default for a run: the one it predicted.
        system: whose rows to take; default for a run: the stack.
        score_column: column to rank by.

    Raises:
        MissingInputError, InputError: as the readers, or no ground truth was named and the run knows none.
    """
    from talstack.io.bins import bin_instances
    from talstack.io.detections import read_predictions

    truth = truth_of(path, ground_truth, split=split)
    name = str(path)
    if path.is_dir():
        system = system or DEFAULT_SYSTEM
        path = path / "detections.parquet"
    predictions = read_predictions(path, score_column=score_column, system=system, class_ids=truth.class_ids)
    instances = bin_instances(truth.instances) if predictions.binned else truth.instances
    return Scored(f"{name} ({system})" if system else name, predictions, truth, instances)


def truth_of(path: Path, ground_truth: Path | None, *, split: str | None) -> "GroundTruth":
    """Return the ground truth of a file of predictions or of a run's folder; see `read_scored`."""
    from talstack.io.errors import InputError
    from talstack.io.ground_truth import read_ground_truth
    from talstack.io.runs import data_of, split_of

    if path.is_dir() and not any((path / name).is_file() for name in RUN_FILES):
        raise InputError(
            f"{path}: a folder, but no run's: expected {' or '.join(RUN_FILES)} in it. PREDICTIONS come first, then "
            "GROUND_TRUTH"
        )
    if path.is_dir():
        ground_truth = ground_truth or data_of(path)
        split = split or (split_of(path) if ground_truth.is_dir() else None)
    if ground_truth is None:
        raise InputError(f"{path}: a file does not know its ground truth; name it, or give a run's folder")
    return read_ground_truth(ground_truth, split=split)


def reading_warnings(scored: Scored) -> list[str]:
    """Return what was left out on reading or is odd about what was kept, one line each."""
    lines = [f"predictions: {text}" for text in scored.predictions.warnings]
    lines += [f"predictions: ignored {count}: {reason}" for reason, count in scored.predictions.dropped.items()]
    lines += [f"ground truth: {text}" for text in scored.truth.warnings]
    return lines + [f"ground truth: ignored {count}: {reason}" for reason, count in scored.truth.dropped.items()]
