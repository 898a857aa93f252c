"""Time and memory of mean average precision, beside the definition walked one prediction at a time.

    .venv/bin/python benchmarks/map.py

For every size it makes predictions and instances from a seed, scores them with `talstack.evaluate.map` and with the
plain walk below, both on one core and in a process of their own, and prints the median CPU times, the median of the
paired ratios, how the time grows from size to size, the memory that scoring adds to its tables, and the largest
difference between the two APs. The last row is the worst case: all predictions are of one class and on one recording.
"""

import json
import os
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from talstack.evaluate.map import PRESETS, evaluate_detections

T = TypeVar("T")
THRESHOLDS = np.array(PRESETS["anet"])
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
SINGLE_RUN_FROM = 500_000  # the plain walk over more predictions than these is timed once
CROWD_INSTANCES, CROWD_S = 1_000, 600.0


@dataclass(frozen=True, slots=True)
class Case:
    """What to score: `num_classes` is 1 for the worst case, which has one recording too."""

    num_predictions: int
    num_classes: int
    repeats: int
    with_walk: bool
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the repeats; the walk's entries are None where it was left out."""

    num_predictions: int
    num_classes: int
    num_recordings: int
    num_instances: int
    seconds: float
    added_mib: float
    average_map: float
    walk_seconds: float | None
    ratio: float | None
    max_ap_difference: float | None


def walk_predictions(detections: pl.DataFrame, instances: pl.DataFrame, thresholds: np.ndarray) -> dict[str, list]:
    """Return {class: AP at each threshold}, as one reads it in the definition: no trick, one prediction at a time.

    The shape of ActivityNet's evaluator: by class, in descending score, each prediction looks up the instances of
    its video, measures its tIoU with all of them in numpy, and takes the best free one at each threshold.
    """
    return {
        label: _walk_class(detections.filter(pl.col("label") == label), truth, thresholds)
        for (label,), truth in instances.group_by("label")
    }


def _walk_class(detections: pl.DataFrame, truth: pl.DataFrame, thresholds: np.ndarray) -> list[float]:
    of_video: dict[str, list[int]] = defaultdict(list)
    for index, video in enumerate(truth["recording"]):
        of_video[video].append(index)
    bounds = truth.select("start_s", "end_s").to_numpy()
    rows_of = {video: np.array(rows) for video, rows in of_video.items()}
    taken = np.zeros((thresholds.size, truth.height), dtype=bool)
    hits = np.zeros((thresholds.size, detections.height), dtype=bool)
    order = ["score", "recording", "start_s", "end_s"]
    ranked = detections.sort(order, descending=[True, False, False, False])
    for rank, (video, start, end) in enumerate(ranked.select("recording", "start_s", "end_s").iter_rows()):
        if video not in rows_of:
            continue
        rows = rows_of[video]
        tiou = _tiou(start, end, bounds[rows])
        best_first = np.argsort(-tiou, kind="stable")
        for place, threshold in enumerate(thresholds):
            for candidate in best_first:
                if tiou[candidate] < threshold:
                    break
                if not taken[place, rows[candidate]]:
                    taken[place, rows[candidate]] = hits[place, rank] = True
                    break
    return [_area(row, truth.height) for row in hits]


def _tiou(start: float, end: float, segments: np.ndarray) -> np.ndarray:
    """Return (n,): the tIoU of one prediction with each of the segments, (n, 2)."""
    overlap = (np.minimum(end, segments[:, 1]) - np.maximum(start, segments[:, 0])).clip(0)
    return overlap / ((end - start) + (segments[:, 1] - segments[:, 0]) - overlap)


def _area(hits: np.ndarray, num_instances: int) -> float:
    """Return the interpolated area under the precision-recall curve of one class at one threshold."""
    found = np.cumsum(hits)
    precision = np.concatenate([[0.0], found / np.arange(1, hits.size + 1), [0.0]])
    recall = np.concatenate([[0.0], found / num_instances, [1.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def make_tables(case: Case) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (detections, instances): recordings of ten minutes with 15 instances and 250 detections each.

    As in THUMOS14, a recording shows few of the classes (here 5), several times each. Of the detections 60 % are
    jittered instances, 20 % jittered instances under another label of the recording, 20 % anything anywhere in it;
    the jittered ones score higher. The worst case has 1,000 instances on one recording, and only jittered ones.
    """
    rng = np.random.default_rng(case.seed)
    n, crowded = case.num_predictions, case.num_classes == 1
    num_recordings, shown = (1, 1) if crowded else (max(case.num_classes // 5, n // 250), 5)
    label_of = rng.permuted(np.arange(num_recordings * shown) % case.num_classes).reshape(num_recordings, shown)
    recording = np.repeat(np.arange(num_recordings), CROWD_INSTANCES if crowded else 15)
    label = label_of[recording, np.arange(recording.size) % shown]
    start, length = rng.uniform(0, CROWD_S, recording.size), rng.lognormal(2.0, 0.8, recording.size)
    kind = np.zeros(n) if crowded else rng.choice(3, size=n, p=(0.6, 0.2, 0.2))
    of = rng.integers(recording.size, size=n)
    shift, stretch = rng.normal(0, 0.2, n), np.exp(rng.normal(0, 0.25, n))
    low = np.where(kind == 2, rng.uniform(0, CROWD_S, n), start[of] + shift * length[of])
    other = label_of[recording[of], rng.integers(shown, size=n)]
    labels = np.select([kind == 0, kind == 1], [label[of], other], rng.integers(case.num_classes, size=n))
    videos = pl.Series([f"recording_{index:06d}" for index in range(num_recordings)])
    classes = pl.Series([f"class_{index:04d}" for index in range(case.num_classes)])
    found = {"recording": videos.gather(recording[of]), "start_s": low, "end_s": low + stretch * length[of]}
    found |= {"label": classes.gather(labels), "score": rng.random(n) * np.exp(-np.abs(shift) * 2 - kind)}
    truth = {"recording": videos.gather(recording), "start_s": start, "end_s": start + length}
    return pl.DataFrame(found), pl.DataFrame({**truth, "label": classes.gather(label)})


def measure(case: Case) -> Measured:
    """Return the figures of one case; meant for a process of its own, since memory peaks are kept for good."""
    detections, instances = make_tables(case)
    thresholds = THRESHOLDS.tolist()
    before = _peak_mib()
    result = evaluate_detections(detections, instances, tiou_thresholds=thresholds)
    added_mib = _peak_mib() - before
    walks = 0 if not case.with_walk else 1 if case.num_predictions >= SINGLE_RUN_FROM else case.repeats
    seconds, walk_seconds, difference = [], [], None
    for turn in range(case.repeats):
        seconds.append(_timed(lambda: evaluate_detections(detections, instances, tiou_thresholds=thresholds))[0])
        if turn < walks:
            spent, walked = _timed(lambda: walk_predictions(detections, instances, THRESHOLDS))
            walk_seconds.append(spent)
            difference = max(float(np.abs(np.subtract(result.ap[label], ap)).max()) for label, ap in walked.items())
    ratios = [slow / fast for fast, slow in zip(seconds, walk_seconds, strict=False)]
    return Measured(
        num_predictions=case.num_predictions,
        num_classes=case.num_classes,
        num_recordings=detections["recording"].n_unique(),
        num_instances=instances.height,
        seconds=statistics.median(seconds),
        added_mib=added_mib,
        average_map=result.average_map,
        walk_seconds=statistics.median(walk_seconds) if walk_seconds else None,
        ratio=statistics.median(ratios) if ratios else None,
        max_ap_difference=difference,
    )


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()  # one thread: what others do on the machine does not count
    value = call()
    return time.process_time() - start, value


def _peak_mib() -> float:
    """Return the most memory this process has held so far."""
    status = Path("/proc/self/status")  # Linux's getrusage also counts what the parent process held
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_table(rows: list[Measured]) -> None:
    """Print one line per case."""
    columns = ["predictions", "recordings", "classes", "instances", "talstack, CPU s", "growth", "added MiB"]
    columns += ["one by one, CPU s", "ratio", "largest AP difference"]
    table = Table(*columns, title="mAP at 10 thresholds, one core")
    last: Measured | None = None
    for row in rows:
        same_kind = last is not None and last.num_classes == row.num_classes
        growth = f"{row.seconds / last.seconds:.1f}x" if last is not None and same_kind else "-"
        counts = (row.num_predictions, row.num_recordings, row.num_classes, row.num_instances)
        table.add_row(
            *(f"{count:,}" for count in counts), f"{row.seconds:.3f}", growth, f"{row.added_mib:.0f}",
            _shown(row.walk_seconds, ".1f"), _shown(row.ratio, ".0f"), _shown(row.max_ap_difference, ".1e"),
        )  # fmt: skip
        last = row
    Console(width=140).print(table)


@click.command()
@click.option("--sizes", default="10000,100000,1000000", show_default=True, help="Numbers of predictions.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Runs behind each median.")
@click.option("--classes", default=200, show_default=True, type=click.IntRange(2), help="Number of classes.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of the table.")
def main(sizes: str, repeats: int, classes: int, as_json: bool) -> None:
    """Measure and print; the walk over half a million predictions or more is timed once."""
    numbers = sorted(int(size) for size in sizes.split(","))
    cases = [Case(number, classes, repeats, with_walk=True) for number in numbers]
    cases += [Case(min(numbers), 1, repeats, with_walk=True), Case(max(numbers), 1, repeats, with_walk=False)]
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, "1"))  # read by the child processes as they import
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    for case in cases:
        Console(stderr=True).print(f"{case.num_predictions:,} predictions of {case.num_classes} classes ...")
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(measure, case).result())
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], allow_nan=False))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
