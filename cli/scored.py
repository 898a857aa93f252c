"""Predictions and the ground truth they are held against, for the commands that score, diagnose and compare."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        predictions, truth: as read.
        detections, instances: what is scored: as read, or, where the predictions are a competition file, by its
            rules: ten-second bins, times of detections rounded to 0.1 s, no piece under half a second.
        unscored: {reason: count} of what was left out before the score.
        num_seen: recordings of the ground truth that the run's backbone was fine-tuned on.
    """

    name: str
    predictions: "Predictions"
    truth: "GroundTruth"
    detections: "pl.DataFrame"
    instances: "pl.DataFrame"
    unscored: Mapping[str, int]
    num_seen: int = 0


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
    from talstack.io.detections import read_predictions

    truth = truth_of(path, ground_truth, split=split)
    name, num_seen = str(path), 0
    if path.is_dir():
        system, num_seen = system or DEFAULT_SYSTEM, len(seen_by(path) & set(truth.recordings))
        path = path / "detections.parquet"
    predictions = read_predictions(path, score_column=score_column, system=system, class_ids=truth.class_ids)
    unscored = {**predictions.dropped, **{f"{reason} (instance)": count for reason, count in truth.dropped.items()}}
    scored = Scored(
        f"{name} ({system})" if system else name,
        predictions,
        truth,
        predictions.detections,
        truth.instances,
        unscored,
        num_seen,
    )
    return in_bins(scored) if predictions.binned else scored


def in_bins(scored: Scored) -> Scored:
    """Return the same by the competition's rules."""
    from talstack.io.bins import SHORT_PIECE, bin_detections, bin_instances

    whole = scored.predictions.detections
    inside = whole.with_columns(start_s=whole["start_s"].clip(0.0)).filter(whole["end_s"] > 0)
    detections = bin_detections(inside)
    instances, cut_off = bin_instances(scored.truth.instances, scored.truth.durations_s)
    short = inside.height - detections.height if scored.predictions.binned else 0
    counts = {"before second 0": whole.height - inside.height, SHORT_PIECE: short}
    unscored = {**scored.unscored, **{reason: count for reason, count in counts.items() if count}, **cut_off}
    return replace(scored, detections=detections, instances=instances, unscored=unscored)


def seen_by(run: Path) -> frozenset[str]:
    """Return the recordings that the run's backbone was fine-tuned on; their scores are optimistic."""
    from talstack.io.errors import InputError
    from talstack.io.files import read_json

    path = run / "heads.json"
    if not path.is_file():
        return frozenset()
    heads = read_json(path)
    seen = heads.get("seen", []) if isinstance(heads, dict) else None
    if not isinstance(seen, list):
        raise InputError(f"{path}: expected an object with a list `seen`, as `talstack heads` writes it")
    return frozenset(map(str, seen))


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
        raise InputError(f"{path}: a file does not know its ground truth; name it too (for compare: --data)")
    return read_ground_truth(ground_truth, split=split)


def warnings_of(scored: Scored, *, compat: str | None = None) -> list[str]:
    """Return what a reader of any figure about these predictions should know, one line each.

    Args:
        compat: whose rules the figure follows, where they are not ActivityNet's.
    """
    import polars as pl

    from talstack.evaluate.map import UNKNOWN_LABEL
    from talstack.evaluate.thumos14 import AMBIGUOUS

    lines = [f"predictions: {text}" for text in scored.predictions.warnings]
    lines += [f"ground truth: {text}" for text in scored.truth.warnings]
    lines += [f"ignored {count}: {reason}" for reason, count in scored.unscored.items()]
    labels = scored.truth.instances["label"].unique().to_list()
    known = scored.detections.filter(pl.col("label").is_in(labels))
    if known.height < scored.detections.height:
        lines.append(f"ignored {scored.detections.height - known.height}: {UNKNOWN_LABEL}")
    num_unlisted = known.filter(~pl.col("recording").is_in(scored.truth.recordings)).height
    if num_unlisted:
        lines.append(
            f"{num_unlisted} predictions are on recordings that the ground truth does not list (another split?); "
            "they count as false positives"
        )
    if known.is_empty():
        lines.append("there is no prediction to score")
    if AMBIGUOUS in labels and compat != "thumos14":
        lines.append(f"the ground truth has a class {AMBIGUOUS}, scored as any other; --compat thumos14 ignores it")
    if scored.num_seen:
        lines.append(
            f"{scored.num_seen} of these recordings were seen by the fine-tuned backbone; their figures are optimistic"
        )
    return lines
