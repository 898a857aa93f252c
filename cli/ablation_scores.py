"""Scores of the variants of an ablation, best first, each beside the first variant on the same draws of recordings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from talstack.cli.ablation import EnsembleJob, Exam, Planned, read_record
from talstack.cli.ablation_grid import Variant, refuse_unknown_names
from talstack.evaluate.bootstrap import Interval, MapIntervals, bootstrap_map, compare_detections
from talstack.evaluate.map import PRESETS, match_for_map
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.errors import MissingInputError
from talstack.io.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One variant's place in the table.

    Attributes:
        rank: 1 is the highest average mAP.
        variant: what it is.
        scores: its mAP, fractions, with intervals.
        difference: its average mAP minus that of the reference; None for the reference itself.
        share_better: share of the draws in which it beats the reference; None as above.
        seconds: what fitting its heads and ensemble took, whenever that was; None where a head's time is not known.
        num_heads: how many heads it combines.
        folder: name of its folder under RUN/ablation.
        warnings: of its ensemble.
    """

    rank: int
    variant: Variant
    scores: MapIntervals
    difference: Interval | None
    share_better: float | None
    seconds: float | None
    num_heads: int
    folder: str
    warnings: tuple[str, ...]


def score_variants(
    planned: Sequence[Planned],
    ensembles: Sequence[EnsembleJob],
    manifest: Manifest,
    exam: Exam,
    *,
    preset: str,
    num_draws: int,
    level: float,
    seed: int,
    seconds: Mapping[str, float],
) -> list[Row]:
    """Return the rows, best first; the first variant is the reference.

    Args:
        preset: which tIoU thresholds, `talstack.evaluate.map.PRESETS`.
        num_draws, level, seed: of the bootstrap over recordings.
        seconds: {fingerprint: seconds} of the heads.

    Raises:
        ConfigError: a variant names a system that its ensemble does not have.
        InputError: fewer than two recordings to draw from.
    """
    instances = manifest.instances.filter(pl.col("recording").is_in(exam.recordings))
    tables = [_detections(plan, job) for plan, job in zip(planned, ensembles, strict=True)]
    matched = match_for_map(tables[0], instances, PRESETS[preset], recordings=exam.recordings)[0]
    first = bootstrap_map(matched, recordings=exam.recordings, num_draws=num_draws, level=level, seed=seed)
    scored: list[tuple[MapIntervals, Interval | None, float | None]] = [(first, None, None)]
    for table in tables[1:]:
        found = compare_detections(
            table, tables[0], instances, tiou_thresholds=PRESETS[preset], recordings=exam.recordings,
            num_draws=num_draws, level=level, seed=seed,
        )  # fmt: skip
        scored.append((found.a, found.average_difference, found.share_a_better))
    order = sorted(range(len(scored)), key=lambda i: (-scored[i][0].average_map.estimate, i))
    return [
        _row(rank, planned[i], ensembles[i], scored=scored[i], seconds=seconds) for rank, i in enumerate(order, start=1)
    ]


def _detections(plan: Planned, job: EnsembleJob) -> pl.DataFrame:
    table = pl.read_parquet(job.folder / "detections.parquet")
    system = plan.variant.selection.system
    refuse_unknown_names(
        [system], table["system"].unique().sort().to_list(), what=f"variant {plan.variant.name!r}: no system"
    )
    return table.filter(pl.col("system") == system).select(list(DETECTION_SCHEMA))


def _row(
    rank: int,
    plan: Planned,
    job: EnsembleJob,
    *,
    scored: tuple[MapIntervals, Interval | None, float | None],
    seconds: Mapping[str, float],
) -> Row:
    record = read_record(job)
    if record is None:
        raise MissingInputError(f"{job.folder}: has gone since it was fitted; run the command again")
    names = [task.job.fingerprint for task in plan.tasks]
    known = all(name in seconds for name in names)
    spent = sum(seconds[name] for name in names) + record["seconds"] if known else None
    return Row(rank, plan.variant, *scored, spent, len(names), job.folder.name, tuple(record["warnings"]))
