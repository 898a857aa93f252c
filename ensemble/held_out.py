"""Decoding of every group of recordings with what was learned on the others.

So settings are compared on detections that nothing was fitted to. A search changes one setting at a time: what the
last settings have in common with these is not made again.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import polars as pl

from talstack.ensemble.curves import CurveMeans, Curves
from talstack.ensemble.decode import NOTHING, Decoder, DecodeSettings, Fitted, Found
from talstack.ensemble.fit import Learned, Learner, Moved, Truth
from talstack.ensemble.runs import Runs

Value = TypeVar("Value")
Item = TypeVar("Item")

# Settings by the step that they come in at; all others change the proposals.
_SELECTION = ("margin", "contrast_weight", "nms", "nms_threshold", "nms_sigma", "min_score", "max_detections")
_LIMITS = ("start_shift_s", "end_shift_s", "shortest", "longest", "score")
_ENDS = ("refine",)
# what the curves, and besides them the runs of the Markov model, depend on
_SMOOTHING = ("smoothing_s", "smoothing_power")
_MODEL = ("hmm", "hmm_levels", "hmm_weight")
KEPT = 2  # smoothings whose curves are kept, those that were asked for last
_DEFAULTS = {field.name: field.default for field in fields(DecodeSettings)}


class HeldOutDecoder:
    """Decodes the same predictions with any settings."""

    def __init__(
        self,
        decoder: Decoder,
        curves: Curves,
        truth: Truth,
        *,
        groups: dict[str, int],
        tiou: tuple[float, ...],
        threads: int = 1,
    ) -> None:
        """Take the predictions.

        Args:
            curves: predictions that are not in-sample.
            groups: {recording: group}; what is learned is learned on other groups than it is used on.
            tiou: thresholds of the target metric.
            threads: on how many groups are worked on at once.
        """
        self._threads = threads
        self._decoder, self._curves, self._truth, self._tiou = decoder, curves, truth, tiou
        self._groups = np.array([groups[name] for name in curves.index.recordings])
        self._smoothed: dict[tuple[Any, ...], CurveMeans] = {}
        self._markov: dict[tuple[Any, ...], Runs] = {}  # few runs, and slow to find
        self._found: _Last[Found] = _Last()
        self._learner: _Last[Learner] = _Last()
        self._moved: _Last[list[Moved]] = _Last()
        self._learned: _Last[list[Learned]] = _Last()

    def found(self, settings: DecodeSettings) -> Found:
        """Return the proposals."""
        key = _without(settings, _SELECTION, _LIMITS, _ENDS)
        if not self._found.holds(key):
            for made_of_it in (self._learner, self._moved, self._learned):
                made_of_it.forget()
        return self._found.of(key, lambda: self._proposed(settings))

    def detections(self, settings: DecodeSettings) -> pl.DataFrame:
        """Return the detections of every group, decoded with what was learned on the other groups."""
        if not settings.refine and settings.score == "plain":
            found = self.found(settings)
            return self._decoder.detect(
                self._decoder.limited(found, found.proposals.intervals, settings)[0], settings
            )  # fmt: skip
        key = _without(settings, _SELECTION)
        learned = self._learned.of(key, lambda: self._learn(settings))
        return pl.concat(self._each(lambda one: self._shown(one, settings), learned))

    def fitted(self, settings: DecodeSettings) -> Fitted:
        """Return what the settings ask for, learned on all groups, as `talstack.ensemble.fit.fit` does."""
        if not settings.refine and settings.score == "plain":
            return NOTHING
        every = np.ones(len(self.found(settings).proposals.label), dtype=bool)
        learner = self._learner_of(settings)
        return learner.learned(learner.moved(every, shown=~every, refine=settings.refine), settings).fitted

    def _proposed(self, settings: DecodeSettings) -> Found:
        if settings.smoothing_s <= 0:
            settings = replace(settings, smoothing_power=0.0)  # nothing is smoothed: it does not matter
        smoothing, model = _values(settings, _SMOOTHING), _values(settings, _MODEL)
        means = self._smoothed.pop(smoothing, None)
        if means is None:
            if len(self._smoothed) == KEPT:
                del self._smoothed[next(iter(self._smoothed))]  # the one that was asked for longest ago
            means = self._decoder.smoothed(self._curves, settings)
        self._smoothed[smoothing] = means
        if (smoothing, model) not in self._markov:
            self._markov[smoothing, model] = self._decoder.markov_runs(means, settings)
        names = self._curves.index.recordings
        return self._decoder.proposed(names, means, self._markov[smoothing, model], settings)

    def _shown(self, learned: Learned, settings: DecodeSettings) -> pl.DataFrame:
        scorer = learned.fitted.scorer
        if learned.features is None or scorer is None:
            return self._decoder.detect(learned.refined, settings)
        return self._decoder.select(learned.refined, scorer.scores(learned.features), settings)

    def _learn(self, settings: DecodeSettings) -> list[Learned]:
        found = self.found(settings)
        learner = self._learner_of(settings)
        learner.prepare(settings)

        def move() -> list[Moved]:
            own = self._groups[found.proposals.owner]
            return self._each(
                lambda group: learner.moved(own != group, shown=own == group, refine=settings.refine),
                np.unique(self._groups).tolist(),
            )

        key = _without(settings, _SELECTION, _LIMITS)
        return self._each(lambda moved: learner.learned(moved, settings), self._moved.of(key, move))

    def _each(self, work: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
        """Return what the work gives for every item, in their order."""
        if self._threads == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(work, items))

    def _learner_of(self, settings: DecodeSettings) -> Learner:
        found, key = self.found(settings), _without(settings, _SELECTION, _LIMITS, _ENDS)
        return self._learner.of(key, lambda: Learner(self._decoder, found, self._truth, self._tiou))


class _Last(Generic[Value]):
    """A value, kept as long as what it depends on stays the same."""

    def __init__(self) -> None:
        self._key: DecodeSettings | None = None
        self._value: Value | None = None

    def holds(self, key: DecodeSettings) -> bool:
        return self._value is not None and self._key == key

    def forget(self) -> None:
        self._key = self._value = None

    def of(self, key: DecodeSettings, make: Callable[[], Value]) -> Value:
        if self._value is None or self._key != key:
            self.forget()  # never two of them in memory
            self._value, self._key = make(), key
        return self._value


def _values(settings: DecodeSettings, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in names)


def _without(settings: DecodeSettings, *steps: tuple[str, ...]) -> DecodeSettings:
    """Return the settings with those of some steps as by default."""
    changed: dict[str, Any] = {name: _DEFAULTS[name] for step in steps for name in step}
    return replace(settings, **changed)
