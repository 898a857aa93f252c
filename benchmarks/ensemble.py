"""Speed of decoding and suppression: a large data set decoded, and Soft-NMS beside a loop over the proposals.

    .venv/bin/python benchmarks/ensemble.py [--recordings 2000] [--segments 400] [--classes 34]

The first table decodes made-up curves with several settings, on one core (CPU seconds; recordings are independent, so
two cores take half). The second and third suppress proposals of one class in one recording, which gets longer with
their number, against the definition written as a loop, one proposal at a time: median of the rounds, both sides in
turn.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import Decoder, DecodeSettings, Fitted
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.fit import Truth, fit
from talstack.ensemble.nms import METHODS, suppress
from talstack.io.grid import SegmentGrid
from talstack.io.predictions import SegmentIndex

TIOU = (0.5, 0.75, 0.95)
console = Console(width=110)


def made_up(num_recordings: int, num_segments: int, num_classes: int) -> tuple[Decoder, Curves, Truth]:
    """Return curves of 1-s segments with 16 actions of 3 to 15 s per recording, noisy, and where the actions are."""
    rng = np.random.default_rng(0)
    names = tuple(f"r{i:05d}" for i in range(num_recordings))
    action = rng.normal(-5.0, 1.0, (num_recordings, num_segments, num_classes)).astype(np.float32)
    truth: Truth = {}
    centres = np.arange(num_segments) + 0.5
    for row, name in enumerate(names):
        for _ in range(16):
            label, start, length = int(rng.integers(num_classes)), rng.uniform(0, num_segments - 15), rng.uniform(3, 15)
            rise = np.clip(3 * np.minimum(centres - start, start + length - centres), -9, rng.uniform(0, 4))
            action[row, :, label] = np.maximum(action[row, :, label], rise + rng.normal(0, 1, num_segments))
            known = truth.get((name, label), np.zeros((0, 2)))
            truth[name, label] = np.append(known, [[start, start + length]], axis=0)
    probs = 1 / (1 + np.exp(-action.reshape(-1, num_classes)))
    durations = ClassDurations(
        np.tile([3.0, 15.0], (num_classes, 1)), np.full(num_classes, np.log(8.0)), np.full(num_classes, 0.45)
    )
    grids = dict.fromkeys(names, SegmentGrid(float(num_segments), 1.0))
    decoder = Decoder(tuple(f"action {c}" for c in range(num_classes)), grids, durations)
    return decoder, Curves(SegmentIndex(names, (num_segments,) * num_recordings), probs, probs.max(axis=1)), truth


def decoding(num_recordings: int, num_segments: int, num_classes: int) -> None:
    decoder, curves, truth = made_up(num_recordings, num_segments, num_classes)
    learned = curves.subset(list(curves.index.recordings[:40]))
    fitting = DecodeSettings(refine=True, score="fitted")
    fitted = fit(decoder, decoder.propose(learned, fitting), truth, fitting, tiou=TIOU)
    title = f"decoding {num_recordings} recordings x {num_segments} segments x {num_classes} classes, one core"
    table = Table("settings", "detections", "CPU s", "ratio", "wall s", title=title)
    first = 0.0
    for name, settings in {
        "plain": DecodeSettings(),
        "refined": DecodeSettings(refine=True),
        "refined, fitted score (default)": fitting,
        "the same, smoothed by class": replace(fitting, smoothing_s=1.0, smoothing_power=1.0),
        "the same as default, with Markov runs": replace(fitting, hmm=True),
    }.items():
        wall, cpu = time.perf_counter(), time.process_time()
        found = decoder.decode(curves, settings, fitted if settings.refine else Fitted())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        first = first or cpu
        table.add_row(name, f"{found.height:,}", f"{cpu:.1f}", f"{cpu / first:.2f}", f"{wall:.1f}")
    console.print(table)


def loop(
    intervals: np.ndarray, scores: np.ndarray, weight: Callable[[float], float], min_score: float
) -> dict[int, float]:
    """Return {row: score} of what stays, by the definition: one proposal at a time."""
    left = {row: score for row, score in enumerate(scores.tolist()) if score >= min_score}
    ends = intervals.tolist()
    kept = {}
    while left:
        best = max(left, key=left.__getitem__)
        kept[best] = left.pop(best)
        start, end = ends[best]
        for row in list(left):
            other_start, other_end = ends[row]
            inner = max(0.0, min(end, other_end) - max(start, other_start))
            left[row] *= weight(inner / (end - start + other_end - other_start - inner))
            if left[row] < min_score or left[row] == 0:
                del left[row]
    return kept


WEIGHTS: dict[str, Callable[[float], float]] = {
    "hard": lambda t: 0.0 if t >= 0.5 else 1.0,
    "linear": lambda t: 1.0 - t if t >= 0.5 else 1.0,
    "gaussian": lambda t: math.exp(-t * t / 0.5),
}


def proposals(number: int, per_second: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 2) intervals of about 3 s in a recording as long as their number asks for, and scores."""
    rng = np.random.default_rng(1)
    start = rng.random(number) * number / per_second
    return np.stack([start, start + rng.lognormal(1.0, 0.6, number)], axis=1), rng.random(number)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def against_loop(number: int, rounds: int) -> None:
    title = f"Soft-NMS of {number:,} proposals of one class, min_score 0.001, median of {rounds}"
    table = Table(
        "proposals per second", "method", "ours ms", "loop s", "loop / ours", "largest difference", title=title
    )
    for per_second in (5.0, 20.0, 100.0):
        intervals, scores = proposals(number, per_second)
        groups = np.zeros(number, dtype=np.int64)
        for method in METHODS:
            ours, theirs = [], []
            for _ in range(rounds):
                seconds, (kept, decayed) = timed(
                    partial(suppress, intervals, scores, groups, method=method, min_score=0.001)
                )
                ours.append(seconds)
                seconds, expected = timed(partial(loop, intervals, scores, WEIGHTS[method], 0.001))
                theirs.append(seconds)
            same = kept.tolist() == sorted(expected)
            gap = max(abs(decayed - np.array([expected[row] for row in sorted(expected)]))) if same else math.inf
            fast, slow = statistics.median(ours), statistics.median(theirs)
            table.add_row(
                f"{per_second:g}", method, f"{1e3 * fast:.1f}", f"{slow:.2f}", f"{slow / fast:.0f}", f"{gap:.0e}"
            )
    console.print(table)


def growth(rounds: int) -> None:
    table = Table("proposals", "ms", "us per proposal", title="growth of Gaussian Soft-NMS, 5 proposals per second")
    for number in (500, 1000, 2000, 4000, 8000, 16000):
        intervals, scores = proposals(number, 5.0)
        groups = np.zeros(number, dtype=np.int64)
        seconds = statistics.median(
            timed(lambda: suppress(intervals, scores, groups, min_score=0.001))[0]  # noqa: B023
            for _ in range(rounds)
        )
        table.add_row(f"{number:,}", f"{1e3 * seconds:.1f}", f"{1e6 * seconds / number:.1f}")
    console.print(table)


@click.command()
@click.option("--recordings", default=2000, show_default=True)
@click.option("--segments", default=400, show_default=True)
@click.option("--classes", default=34, show_default=True)
@click.option("--proposals", "number", default=2000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(recordings: int, segments: int, classes: int, number: int, rounds: int) -> None:
    """Print how long decoding and suppression take."""
    decoding(recordings, segments, classes)
    against_loop(number, rounds)
    growth(rounds)


if __name__ == "__main__":
    main()
