"""How often the bootstrap's intervals hold, and how often a comparison finds a difference that is not there.

    .venv/bin/python benchmarks/bootstrap.py

Test sets of 8, 20, 60 and 200 recordings are drawn from one made-up population: ten classes, recordings of unequal
difficulty, two proposals an instance. An interval should hold the mAP to be expected on a set of that size (the mean
over all sets) in 95 of 100 cases. Two systems that are equally good should differ significantly in 5 of 100 cases,
one that is better (more of its proposals are right) as often as possible. The bare percentiles of the draws stand
beside talstack's intervals.
"""

from collections.abc import Sequence

import click
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from talstack.evaluate.average_precision import average_precisions
from talstack.evaluate.bootstrap import bootstrap_map, compare_detections, draw_weights
from talstack.evaluate.map import match_for_map
from talstack.evaluate.matching import Matched

TIOU = (0.5, 0.75)
NUM_CLASSES = 10


def draw_instances(rng: np.random.Generator, num_recordings: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Return the instances of one test set, and how easy each one's recording is, (n,)."""
    counts = rng.integers(1, 9, num_recordings)
    recording = np.repeat(np.arange(num_recordings), counts)
    own = rng.integers(0, NUM_CLASSES, (num_recordings, 2))  # two classes happen in a recording
    start_s = np.concatenate([np.arange(count) * 12.0 for count in counts])
    columns = {
        "recording": recording.astype(str),
        "start_s": start_s,
        "end_s": start_s + 8,
        "label": own[recording, rng.integers(0, 2, recording.size)].astype(str),
    }
    return pl.DataFrame(columns), rng.normal(0, 1, num_recordings)[recording]


def detect(rng: np.random.Generator, instances: pl.DataFrame, ease: np.ndarray, quality: float) -> pl.DataFrame:
    """Return two proposals an instance; each is right with a chance of `quality`, more or less by ease."""
    odds = quality / (1 - quality) * np.exp(np.tile(ease, 2))
    table = pl.concat([instances, instances])
    right = rng.random(table.height) < odds / (1 + odds)
    shift = np.where(right, rng.normal(0, 0.7, right.size), rng.uniform(3, 8, right.size))
    score = rng.normal(0, 1, right.size) + 1.5 * right + 0.3 * np.tile(ease, 2)
    return table.with_columns(
        start_s=pl.col("start_s") + shift, end_s=pl.col("end_s") + shift + 0.3, score=pl.Series(score)
    )


def percentiles(matched: Matched, num_draws: int, seed: int) -> tuple[float, float]:
    """Return the bare 2.5 and 97.5 percentiles of the draws' average mAP."""
    drawn = average_precisions(matched, draw_weights(len(matched.recordings), num_draws, seed))
    low, high = np.nanquantile(np.nanmean(drawn, axis=1).mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def measure(num_recordings: int, *, sets: int, draws: int, better: float) -> tuple[float, ...]:
    """Return mean mAP, coverage of talstack's interval and of percentiles, false alarms, and power."""
    rows = []
    for seed in range(sets):
        rng = np.random.default_rng([num_recordings, seed])
        instances, ease = draw_instances(rng, num_recordings)
        systems = [detect(rng, instances, ease, quality) for quality in (0.6, 0.6, better)]
        matched, _ = match_for_map(systems[0], instances, TIOU)
        ours = bootstrap_map(matched, num_draws=draws, seed=seed).average_map
        verdicts = [
            compare_detections(systems[0], other, instances, tiou_thresholds=TIOU, num_draws=draws, seed=seed).verdict
            for other in systems[1:]
        ]
        bare = percentiles(matched, draws, seed)
        rows.append((ours.estimate, ours.low, ours.high, *bare, verdicts[0] != "undecided", verdicts[1] == "b"))
    table = np.array(rows, dtype=float)
    expected = table[:, 0].mean()
    holds = [((table[:, i] <= expected) & (expected <= table[:, i + 1])).mean() for i in (1, 3)]
    return float(expected), *map(float, holds), float(table[:, 5].mean()), float(table[:, 6].mean())


@click.command()
@click.option("--recordings", "sizes", multiple=True, type=click.IntRange(2), default=(8, 20, 60, 200))
@click.option("--sets", default=400, show_default=True, help="Test sets of each size.")
@click.option("--draws", default=300, show_default=True, help="Draws of the bootstrap.")
@click.option("--better", default=0.7, show_default=True, help="Share of right proposals of the better system.")
def main(sizes: Sequence[int], sets: int, draws: int, better: float) -> None:
    """Print one row per number of recordings."""
    table = Table(
        "recordings", "mean mAP, %", "interval holds, %", "bare percentiles hold, %", "false alarms, %",
        f"sees {better} over 0.6, %", title=f"{sets} test sets of each size, level 95 %",
    )  # fmt: skip
    for size in sizes:
        table.add_row(str(size), *(f"{100 * v:.1f}" for v in measure(size, sets=sets, draws=draws, better=better)))
    console = Console()
    Console(width=max(console.width, 120)).print(table)


if __name__ == "__main__":
    main()
