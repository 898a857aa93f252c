"""Choosing decode settings for the target metric on predictions that are not in-sample.

One setting after the other is tried over its candidates while the rest stay, until nothing improves; then the starts
and ends are shifted by the median error of the matched detections if that helps. Every system is tuned in the same
way, so that none is ahead by its settings.

Two guards against settings that fit the accidents of a few recordings. What the settings ask to be fitted (refined
ends, scores) is fitted on other recordings than those that are decoded with it. And a candidate replaces what is there
only if it is better in 19 of 20 draws of the recordings (`talstack.evaluate.bootstrap`, paired); so few
recordings keep the first candidates. `nested_average_map` says what is left of the gain when the choice itself
is made without the recordings that are scored.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import numpy as np
import polars as pl
from joblib import Parallel, delayed, effective_n_jobs
from threadpoolctl import threadpool_limits

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import refuse_leaks
from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import NOTHING, Decoder, DecodeSettings, Fitted
from talstack.ensemble.fit import Truth, fit_calibration, truth_of
from talstack.ensemble.held_out import HeldOutDecoder
from talstack.evaluate.bootstrap import compare_detections
from talstack.evaluate.map import evaluate_detections
from talstack.io.intervals import aligned_tiou

Result = TypeVar("Result")
TARGET_TIOU = (0.5, 0.75, 0.95)
MAX_PASSES = 3
CONFIDENCE = 0.95  # share of the draws in which a candidate must be better
NUM_DRAWS = 200
MIN_GROUPS = 3
SEARCHED = (
    "score", "refine", "proposals", "hmm", "smoothing_s", "smoothing_power", "gap_s", "margin", "contrast_weight",
    "nms_sigma",
)  # fmt: skip
MATTERS: dict[str, Callable[[DecodeSettings], bool]] = {  # settings that do so only beside certain others
    "margin": lambda settings: settings.score == "plain",
    "contrast_weight": lambda settings: settings.score == "plain",
    "smoothing_power": lambda settings: settings.smoothing_s > 0,
}


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What settings are tuned on.

    Attributes:
        decoder: knows the recordings of `curves`.
        curves: predictions that are not in-sample.
        instances: ground truth of these recordings.
        truth: the same by recording and class.
        groups: {recording: group}; what is fitted is fitted on other groups than it is used on.
        off_limits: recordings that a lower level has seen or that are to be scored; none of `curves`' is.
        threads: on how many its groups are worked on at once.
    """

    decoder: Decoder
    curves: Curves
    instances: pl.DataFrame
    truth: Truth
    groups: dict[str, int]
    off_limits: Collection[str]
    threads: int = 1

    @classmethod
    def of(
        cls, decoder: Decoder, curves: Curves, instances: pl.DataFrame, groups: dict[str, int],
        *, off_limits: Collection[str],
    ) -> "Problem":  # fmt: skip
        """Return the problem; instances of recordings that `curves` lacks are left out.

        Fewer than `MIN_GROUPS` groups are divided: half of a few recordings would be too few to fit anything on.

        Raises:
            LeakError: `curves` has a recording that is off limits.
        """
        refuse_leaks(curves.index.recordings, off_limits, doing="tuning of the intervals")
        known = instances.filter(pl.col("recording").is_in(list(curves.index.recordings)))
        groups = {name: groups[name] for name in curves.index.recordings}
        return cls(decoder, curves, known, truth_of(known, decoder.actions), _divided(groups), off_limits)

    def held_out(self) -> HeldOutDecoder:
        """Return what decodes the predictions out of fold."""
        return HeldOutDecoder(
            self.decoder, self.curves, self.truth, groups=self.groups, tiou=TARGET_TIOU, threads=self.threads
        )

    def without(self, group: int) -> "Problem":
        """Return the problem on all other groups."""
        names = [name for name in self.curves.index.recordings if self.groups[name] != group]
        part = Problem.of(
            self.decoder, self.curves.subset(names), self.instances, self.groups, off_limits=self.off_limits
        )
        return replace(part, threads=self.threads)


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """Settings of one system, and what was fitted for them.

    Attributes:
        settings: the chosen ones.
        fitted: on all recordings.
        average_map: out of fold, with the chosen settings; None without instances.
        first_average_map: with the first candidates.
        num_tried: how many settings were scored.
    """

    settings: DecodeSettings
    fitted: Fitted = NOTHING
    average_map: float | None = None
    first_average_map: float | None = None
    num_tried: int = 0


def solve_each(
    problems: Mapping[str, Problem], solve: Callable[[str, Problem], Result], *, jobs: int, search: bool
) -> dict[str, Result]:
    """Return what `solve` gives for the name and problem of every system, on so many processes or threads.

    A search goes through thousands of short steps, which threads of one process would take in turn: each process takes
    a system. Without one, starting processes costs more than it gains: each thread takes a system. Last ones, fewer
    than there are threads, have several threads each.

    Args:
        solve: can be sent to another process.
        search: whether `solve` looks for settings.
    """
    solve = partial(_on_one_core, solve) if search else solve
    jobs, names, found = effective_n_jobs(jobs), list(problems), []
    whole = len(names) if search and len(names) > jobs else len(names) - len(names) % jobs
    for several in (names[:whole], names[whole:]):
        at_once = min(jobs, len(several)) or 1
        found += Parallel(n_jobs=at_once, prefer="processes" if search else "threads")(
            delayed(solve)(name, replace(problems[name], threads=jobs // at_once)) for name in several
        )
    return dict(zip(names, found, strict=True))


def _on_one_core(solve: Callable[[str, Problem], Result], name: str, problem: Problem) -> Result:
    """Return what `solve` gives; a limit to the matrix library's threads does not reach other processes by itself."""
    with threadpool_limits(limits=1):
        return solve(name, problem)


def _divided(groups: dict[str, int]) -> dict[str, int]:
    """Return the groups, each divided into `MIN_GROUPS` parts of about equal size where there are too few."""
    if len(set(groups.values())) >= MIN_GROUPS:
        return groups
    seen: dict[int, int] = {}
    parts = {}
    for name, group in groups.items():
        seen[group] = seen.get(group, -1) + 1
        parts[name] = group * MIN_GROUPS + seen[group] % MIN_GROUPS
    return parts


def first_settings(config: EnsembleConfig) -> DecodeSettings:
    """Return the settings made of the first candidates."""
    values: dict[str, Any] = {name: getattr(config, name)[0] for name in SEARCHED}
    return DecodeSettings(
        nms=config.nms, nms_threshold=config.nms_threshold, max_detections=config.max_detections, **values
    )


def is_search(config: EnsembleConfig) -> bool:
    """Return whether the configuration leaves a choice of settings that matter."""
    first = first_settings(config)
    reached = [replace(first, **others) for others in _choices(config, ("score", "smoothing_s"))]
    return any(
        len(set(getattr(config, name))) > 1 and any(map(MATTERS.get(name, lambda settings: True), reached))
        for name in SEARCHED
    )


def _choices(config: EnsembleConfig, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for values in product(*(getattr(config, name) for name in names)):
        yield dict(zip(names, values, strict=True))


def tune(problem: Problem, *, config: EnsembleConfig, confidence: float = CONFIDENCE) -> Tuned:
    """Return the best settings for the average mAP over `TARGET_TIOU`; the first candidates without instances.

    Args:
        confidence: share of the draws of recordings in which a candidate must beat what is there; 0 takes every
            candidate that scores higher.
    """
    first = first_settings(config)
    if problem.instances.is_empty():
        return Tuned(first)
    search = _Search(problem, first, confidence)
    for _ in range(MAX_PASSES):
        before = search.settings
        for name in SEARCHED:
            for value in getattr(config, name):
                search.consider(replace(search.settings, **{name: value}))
        if search.settings == before:
            break
    start, end = boundary_bias(search.detections, problem.instances)
    search.consider(replace(search.settings, start_shift_s=-start, end_shift_s=-end))
    fitted = fit_all(problem, search.settings, search.held_out, search.detections)
    return Tuned(search.settings, fitted, search.average_map, search.tried[first], len(search.tried))


def tuned_with(problem: Problem, settings: DecodeSettings) -> Tuned:
    """Return what is fitted for settings that are chosen already."""
    if problem.instances.is_empty():
        return Tuned(settings)
    held_out = problem.held_out()
    detections = held_out.detections(settings)
    score, _ = average_map(detections, problem.instances, tiou=TARGET_TIOU)
    return Tuned(settings, fit_all(problem, settings, held_out, detections), score, num_tried=1)


def fit_all(
    problem: Problem, settings: DecodeSettings, held_out: HeldOutDecoder, detections: pl.DataFrame
) -> Fitted:  # fmt: skip
    """Return what the settings ask for, fitted on all recordings, and the scores' calibration.

    Args:
        held_out: `problem.held_out()`, at best one that has just seen these settings.
        detections: what it gives for them.
    """
    return replace(
        held_out.fitted(settings), calibration=fit_calibration(detections, problem.instances, tiou=TARGET_TIOU)
    )


def nested_average_map(problem: Problem, *, config: EnsembleConfig, confidence: float = CONFIDENCE) -> float | None:
    """Return the average mAP of every group decoded with settings that were tuned, and fitted, on the others."""
    if problem.instances.is_empty() or len(set(problem.groups.values())) < MIN_GROUPS:
        return None
    parts = list(_nested(problem, config, confidence))
    return average_map(pl.concat(parts), problem.instances, tiou=TARGET_TIOU)[0]


def _nested(problem: Problem, config: EnsembleConfig, confidence: float) -> Iterator[pl.DataFrame]:
    for group in sorted({problem.groups[name] for name in problem.curves.index.recordings}):
        tuned = tune(problem.without(group), config=config, confidence=confidence)
        names = [name for name in problem.curves.index.recordings if problem.groups[name] == group]
        yield problem.decoder.decode(problem.curves.subset(names), tuned.settings, tuned.fitted)


class _Search:
    """The best settings so far; `tried` holds the average mAP of all that were scored."""

    def __init__(self, problem: Problem, settings: DecodeSettings, confidence: float) -> None:
        self.problem, self.settings, self.confidence = problem, settings, confidence
        self.held_out = problem.held_out()
        self.detections = self.held_out.detections(settings)
        self.average_map = average_map(self.detections, problem.instances, tiou=TARGET_TIOU)[0]
        self.tried = {settings: self.average_map}

    def consider(self, candidate: DecodeSettings) -> None:
        """Take the candidate if it is better than what is there, beyond what luck may do."""
        idle = any(
            getattr(candidate, name) != getattr(self.settings, name) and not matters(candidate)
            for name, matters in MATTERS.items()
        )
        if idle or candidate in self.tried:
            return
        detections = self.held_out.detections(candidate)
        score, _ = average_map(detections, self.problem.instances, tiou=TARGET_TIOU)
        self.tried[candidate] = score
        if score > self.average_map and self._is_beyond_luck(detections):
            self.settings, self.detections, self.average_map = candidate, detections, score

    def _is_beyond_luck(self, detections: pl.DataFrame) -> bool:
        if self.confidence <= 0:
            return True
        if self.problem.instances["recording"].n_unique() < 2:
            return False
        comparison = compare_detections(
            detections, self.detections, self.problem.instances, tiou_thresholds=TARGET_TIOU, num_draws=NUM_DRAWS
        )  # fmt: skip
        return comparison.share_a_better >= self.confidence


def boundary_bias(detections: pl.DataFrame, instances: pl.DataFrame) -> tuple[float, float]:
    """Return the median of detected minus true start, and end, seconds, over instances that are found; 0 if none is.

    An instance's detection is the highest-scored one of its recording and class with tIoU >= 0.5.
    """
    pairs = instances.with_row_index("instance").join(detections, on=["recording", "label"], suffix="_found")
    true, found = (
        pairs.select(f"start_s{suffix}", f"end_s{suffix}").to_numpy().astype(np.float64) for suffix in ("", "_found")
    )
    close = aligned_tiou(tuple(true.T), tuple(found.T)) >= 0.5
    if not close.any():
        return 0.0, 0.0
    errors = pl.DataFrame((found - true)[close], schema=["start", "end"])
    best = (
        errors.with_columns(pairs.filter(close).select("instance", "score"))
        .sort("score", descending=True, maintain_order=True)
        .unique("instance", keep="first")
    )
    return tuple(float(best[side].median()) for side in ("start", "end"))  # type: ignore[arg-type,return-value]


def average_map(
    detections: pl.DataFrame, instances: pl.DataFrame, *, tiou: Collection[float]
) -> tuple[float, dict[str, float]]:
    """Return the average mAP and {threshold: mAP} over the tIoU thresholds, fractions."""
    result = evaluate_detections(detections, instances, tiou_thresholds=tuple(tiou))
    return result.average_map, {f"{t:g}": value for t, value in zip(result.tiou, result.map, strict=True)}
