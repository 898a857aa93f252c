"""The linear learner: logistic regression, its penalty and temperature chosen on inner folds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from talstack.heads.arrays import read_arrays, write_arrays
from talstack.heads.calibration import HeldOut, choose_temperature, log_loss, temper
from talstack.heads.config import HeadsConfig
from talstack.heads.solver import PROBS, TOLERANCE, Axes, Link, Rows, Weights, logistic_path, mean_products
from talstack.heads.targets import ClassColumns

CLASS_WEIGHT_POWER = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
_AXIS_FLOOR = 1e-3  # axes with less energy than this share of the smallest penalty move a logit by about as little
_AXES_ROWS = 8192  # that axes are found on
# what choices are made on, since rows next to each other say nearly the same (docs/decisions, 16): the size of context,
# then penalty and temperature
_GAIN_ROWS, _GAIN_AXES = 8192, 256
_CHOICE_ROWS, _CHOICE_AXES = 32_768, 512
_BLOCK_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """A fitted head: probabilities of its classes from rows of the design matrix.

    Attributes:
        link: softmax over the classes or one sigmoid each.
        columns: which classes were learned.
        solution: weights (D, learned) and bias, temperature included.
        l2: the penalty taken.
        context_gain: the size of context columns taken.
        temperature: what the logits were divided by.
    """

    link: Link
    columns: ClassColumns
    solution: Weights
    l2: float
    context_gain: float
    temperature: float

    @classmethod
    def fit(
        cls,
        rows: np.ndarray,
        targets: np.ndarray,
        *,
        folds: np.ndarray,
        link: Link,
        config: HeadsConfig,
        context: np.ndarray | None = None,
    ) -> "LinearHead":
        """Return the head fitted on all rows.

        Args:
            rows: (N, D) float32 of the design matrix.
            targets: (N, C) bool.
            folds: (N,) int, the inner fold of each row; all 0 where nothing can be chosen.
            context: (D,) bool, which columns are context; None for none.
        """
        columns = ClassColumns.of(targets)
        if context is None or not context.any():
            context = np.zeros(rows.shape[1], dtype=bool)
        learned, step = targets[:, columns.learned], -(-len(rows) // _CHOICE_ROWS)
        choice = _choose(rows[::step], learned[::step], folds[::step], context=context, link=link, config=config)
        problem = _Problem.whole(rows, learned, choice.axes, choice.scale, link=link, config=config)
        l2, start, temperature = choice.found.l2, choice.found.start, choice.found.temperature
        start = replace(start, weights=choice.axes.vectors @ start.weights)
        (found,) = problem.solve([0], [l2], start=start if len(start.bias) == learned.shape[1] else None)
        bias = temper(found.bias - problem.shift, problem.anchor, temperature)
        weights = found.weights * (choice.scale / np.float32(temperature))[:, None]
        return cls(link, columns, Weights(weights, bias), l2, choice.gain, temperature)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Return (N, C) float32 probabilities."""
        return self.columns.expand(PROBS[self.link](self.solution.logits(rows)), self.link)

    @property
    def summary(self) -> dict[str, Any]:
        """What was chosen in fitting."""
        return {"l2": self.l2, "context_gain": self.context_gain, "temperature": self.temperature}

    def save(self, stem: Path) -> list[Path]:
        """Write `stem`.safetensors; return the files written."""
        arrays = {
            "weights": self.solution.weights,
            "bias": self.solution.bias,
            "learned": self.columns.learned,
            "constant": self.columns.constant,
        }
        return [write_arrays(stem.with_name(stem.name + ".safetensors"), arrays)]

    @classmethod
    def load(cls, stem: Path, *, link: Link, summary: dict[str, Any]) -> "LinearHead":
        """Read a head.

        Raises:
            ModelError: the file is missing, damaged or of another kind.
        """
        arrays = read_arrays(stem.with_name(stem.name + ".safetensors"), ("weights", "bias", "learned", "constant"))
        columns, solution = (
            ClassColumns(arrays["learned"], arrays["constant"]),
            Weights(arrays["weights"], arrays["bias"]),
        )
        return cls(link, columns, solution, *(float(summary[name]) for name in ("l2", "context_gain", "temperature")))


def _choose(
    rows: np.ndarray, targets: np.ndarray, folds: np.ndarray, *, context: np.ndarray, link: Link, config: HeadsConfig
) -> "_Choice":
    """Return what suits these rows, all or some that are evenly spread."""
    is_open = len(np.unique(folds)) > 1  # otherwise nothing can be compared
    gains = config.linear_context_gain if context.any() and is_open else config.linear_context_gain[:1]
    some = rows[:: -(-len(rows) // _AXES_ROWS)]
    gram = mean_products(some) if len(some) >= rows.shape[1] else None  # else axes come from the rows' own products
    search = _Search(some, gram, context, link, config)
    if not is_open:
        return search.unchosen(targets, gains[0])
    near, step = None, -(-len(rows) // _GAIN_ROWS)
    if len(gains) > 1 and step > 1 and len(np.unique(folds[::step])) > 1:
        first = search.best(rows[::step], targets[::step], folds[::step], gains, most_axes=_GAIN_AXES)
        gains, near = (first.gain,), first.found.l2
    return search.best(rows, targets, folds, gains, most_axes=_CHOICE_AXES, near=near)


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """Looks for what suits rows of the same columns.

    Attributes:
        some: rows that axes are found on.
        gram: `mean_products` of them, where they are more than columns.
        context: (D,) bool, which columns are context.
        link, config: of the head.
    """

    some: np.ndarray
    gram: np.ndarray | None
    context: np.ndarray
    link: Link
    config: HeadsConfig

    def best(
        self,
        rows: np.ndarray,
        targets: np.ndarray,
        folds: np.ndarray,
        gains: Sequence[float],
        *,
        most_axes: int,
        near: float | None = None,
    ) -> "_Choice":
        """Return what has the least loss on held-out inner folds; classes that do not vary say nothing.

        Args:
            gains: sizes of context to choose from.
            most_axes: how many of the leading axes are looked along.
            near: the penalty to expect.
        """
        targets, l2s = _varied(targets), sorted(self.config.linear_l2, reverse=True)
        best: _Choice | None = None
        for gain in gains:
            scale, axes = self._axes(gain, most_axes)
            along = axes.vectors * scale[:, None]
            problem = _Problem.of(rows, targets, folds, along, link=self.link, config=self.config)
            found = problem.choose_l2(l2s, near=near if best is None else best.found.l2)
            if best is None or found.loss < best.found.loss:
                best = _Choice(gain, scale, axes, found)
        assert best is not None
        return best

    def unchosen(self, targets: np.ndarray, gain: float) -> "_Choice":
        """Return what is taken where nothing can be compared; it starts from the rates of the classes that vary."""
        scale, axes = self._axes(gain, _CHOICE_AXES)
        l2s, bias = sorted(self.config.linear_l2, reverse=True), _anchor(_varied(targets), self.link)
        start = Weights(np.zeros((axes.vectors.shape[1], len(bias)), np.float32), bias)
        return _Choice(gain, scale, axes, _Found(l2s[len(l2s) // 2], 0.0, start))

    def _axes(self, gain: float, most: int) -> tuple[np.ndarray, Axes]:
        """Return what a size of context multiplies the columns by, (D,) float32, and the leading axes then."""
        scale = np.where(self.context, np.float32(gain), np.float32(1))
        floor = _AXIS_FLOOR * min(self.config.linear_l2)
        return scale, Axes.of(self.some, floor=floor, scale=scale, gram=self.gram, most=most)


@dataclass(frozen=True, slots=True)
class _Found:
    """What has the least log-loss on held-out inner folds.

    Attributes:
        l2, temperature: what was chosen.
        loss: the least.
        start: a guess at the solution on all of them.
    """

    l2: float
    loss: float
    start: Weights
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """A size of context, and what was found with it.

    Attributes:
        gain: that size.
        scale: (D,) float32, what it multiplies the columns by.
        axes: of the scaled columns, along which was looked; the start is a solution along them.
        found: what has the least loss.
    """

    gain: float
    scale: np.ndarray
    axes: Axes
    found: _Found


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Training rows by inner fold.

    Attributes:
        rows: the N rows, their targets and weights; inner folds are slices of them.
        folds: the rows of each inner fold.
        shift: (C,) what weighting adds to the logits, to be taken off again, so that probabilities stay honest.
        anchor: (C,) logits of the classes' rates.
    """

    rows: Rows
    folds: tuple[slice, ...]
    link: Link
    shift: np.ndarray
    anchor: np.ndarray

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        targets: np.ndarray,
        folds: np.ndarray,
        axes: np.ndarray,
        *,
        link: Link,
        config: HeadsConfig,
    ) -> "_Problem":
        """Return the problem with its rows multiplied by (D, K) axes, which pays where they are looked at often."""
        order = np.argsort(folds, kind="stable")
        along = np.empty((len(rows), axes.shape[1]), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            np.matmul(rows[order[part]], axes, out=along[part])
        edges = np.flatnonzero(np.diff(folds[order], prepend=-1, append=-1))
        parts = tuple(slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True))
        targets = np.ascontiguousarray(targets[order])
        weights, shift = _class_weights(targets, link, CLASS_WEIGHT_POWER[config.class_weight])
        return cls(Rows.all_of(along, targets, weights), parts, link, shift, _anchor(targets, link))

    @classmethod
    def whole(
        cls, rows: np.ndarray, targets: np.ndarray, axes: Axes, scale: np.ndarray, *, link: Link, config: HeadsConfig
    ) -> "_Problem":  # fmt: skip
        """Return the problem of all rows, as one part and as they are; `axes` are those of the scaled columns."""
        weights, shift = _class_weights(targets, link, CLASS_WEIGHT_POWER[config.class_weight])
        part = slice(0, len(rows))
        problem = Rows.all_of(rows, targets, weights, axes, scale)
        return cls(problem, (part,), link, shift, _anchor(targets, link))

    def solve(
        self,
        folds: Sequence[int],
        l2s: Sequence[float],
        *,
        start: Weights | None = None,
        tolerance: float = TOLERANCE,
    ) -> list[Weights]:
        """Return a solution per penalty on some inner folds; a class that is constant there keeps zero weights."""
        part = self.rows.only([self.folds[fold] for fold in folds])
        learned = np.flatnonzero(self.learned_on(part))
        size = (self.rows.rows.shape[1], self.rows.targets.shape[1])
        solutions = [Weights(np.zeros(size, np.float32), np.zeros(size[1], np.float32)) for _ in l2s]
        if not len(learned):
            return solutions
        started = None if start is None else Weights(start.weights[:, learned], start.bias[learned])
        path = logistic_path(part, l2s, link=self.link, columns=learned, start=started, tolerance=tolerance)
        for solution, found in zip(solutions, path, strict=True):
            solution.weights[:, learned], solution.bias[learned] = found.weights, found.bias
        return solutions

    @staticmethod
    def learned_on(part: Rows) -> np.ndarray:
        """Return which classes vary on the rows, (C,) bool."""
        return (part.num_positives > 0) & (part.num_positives < part.num_rows)

    def choose_l2(self, l2s: Sequence[float], *, near: float | None = None) -> _Found:
        """Return the penalty with the least log-loss on held-out inner folds, of which there are two or more.

        Penalties are tried from the largest down, and no further once the loss rises: the small ones cost most.

        Args:
            l2s: descending.
            near: the one to expect. The next larger one is the first, since solutions on the way down are better than
                those sought at once (docs/decisions, 16); it goes up only where the way down does not pay at once.
        """
        first = 0 if near is None else max(0, l2s.index(near) - 1)
        best = self._try(l2s[first], [None for _ in self.folds])
        for way in (l2s[first + 1 :], l2s[:first][::-1]):
            before = best
            for l2 in way:
                tried = self._try(l2, best.starts)
                if tried.loss >= best.loss:
                    break
                best = tried
            if best is not before:
                break
        mean = Weights(*(np.mean([getattr(w, name) for w in best.starts], axis=0) for name in ("weights", "bias")))
        temperature = choose_temperature(best.held_out, self.link)
        return _Found(best.l2, best.loss, mean, temperature)

    def _try(self, l2: float, starts: Sequence[Weights | None]) -> "_Trial":
        """Return how well a penalty does on each inner fold, sought from a solution for each."""
        # the curve needs no full convergence: at three times the tolerance the same penalty wins
        found = [
            self.solve([n for n in range(len(self.folds)) if n != fold], [l2], start=start, tolerance=3 * TOLERANCE)[0]
            for fold, start in enumerate(starts)
        ]
        held_out = [self._held_out(fold, weights) for fold, weights in enumerate(found)]
        loss = sum(log_loss(part.logits, part.targets, self.link) for part in held_out)
        return _Trial(l2, loss, found, held_out)

    def _held_out(self, fold: int, weights: Weights) -> HeldOut:
        """Return what a solution says of the fold that it was not fitted on; classes it could not learn left out."""
        part = self.folds[fold]
        others = self.rows.only([other for number, other in enumerate(self.folds) if number != fold])
        learned = self.learned_on(others)
        logits = (weights.logits(self.rows.rows[part]) - self.shift)[:, learned]
        return HeldOut(logits, self.rows.targets[part][:, learned], self.anchor[learned])


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """A penalty: its loss on held-out inner folds, each fold's solution, and what that says of the fold."""

    l2: float
    loss: float
    starts: Sequence[Weights | None]
    held_out: list[HeldOut]


def _varied(targets: np.ndarray) -> np.ndarray:
    """Return the columns of the classes that some rows have and others have not."""
    num_positives = targets.sum(axis=0)
    varied = (num_positives > 0) & (num_positives < len(targets))
    return targets if varied.all() else targets[:, varied]


def _anchor(targets: np.ndarray, link: Link) -> np.ndarray:
    """Return the logits of the classes' rates, (C,) float32."""
    rate = targets.mean(axis=0, dtype=np.float64)
    return (np.log(rate) - (np.log1p(-rate) if link == "sigmoid" else 0.0)).astype(np.float32)


def _class_weights(targets: np.ndarray, link: Link, power: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the weight of every row and class, (N, C), and what this adds to each class's logit, (C,)."""
    rate = targets.mean(axis=0, dtype=np.float64)
    if not power:
        return None, np.zeros(len(rate), np.float32)
    if link == "softmax":
        ratio = (rate.max(initial=0.0) / rate) ** power
        weights = np.broadcast_to((targets * ratio).sum(axis=1, keepdims=True), targets.shape)
    else:
        ratio = ((1 - rate) / rate) ** power
        weights = np.where(targets, ratio, 1.0)
    return (weights / weights.mean(axis=0)).astype(np.float32), np.log(ratio).astype(np.float32)
