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
_MOST_AXES = 1024  # leading ones; bounds time and memory, beyond them lies next to nothing (docs/decisions, 16)
_AXES_ROWS = 16_384  # that axes are found on
_CHOICE_ROWS, _CHOICE_AXES = 32_768, 512  # that choices are made on: rows next to each other say nearly the same
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
        axes = choice.axes.leading(_MOST_AXES, floor=_AXIS_FLOOR * choice.l2)
        problem = _Problem.whole(rows, learned, axes, link=link, config=config)
        start = _widened(choice.start, axes) if len(choice.start.bias) == learned.shape[1] else None
        (found,) = problem.solve([0], [choice.l2], start=start)
        bias = temper(found.bias - problem.shift, problem.anchor, choice.temperature)
        weights = axes.vectors @ (found.weights / np.float32(choice.temperature))
        return cls(link, columns, Weights(weights, bias), choice.l2, choice.gain, choice.temperature)

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
    """Return what suits these rows, all or some that are evenly spread; classes that do not vary say nothing."""
    num_positives = targets.sum(axis=0)
    varied = (num_positives > 0) & (num_positives < len(rows))
    targets = targets[:, varied] if not varied.all() else targets
    is_open = len(np.unique(folds)) > 1  # otherwise nothing can be compared
    gains = config.linear_context_gain if context.any() and is_open else config.linear_context_gain[:1]
    l2s = sorted(config.linear_l2, reverse=True)
    some = rows[:: -(-len(rows) // _AXES_ROWS)]
    gram = mean_products(some) if len(some) >= rows.shape[1] else None  # else axes come from the rows' own products
    best: _Choice | None = None
    for gain in gains:
        scale = np.where(context, np.float32(gain), np.float32(1))
        axes = Axes.of(some, floor=_AXIS_FLOOR * min(config.linear_l2), scale=scale, gram=gram)
        axes = replace(axes, vectors=axes.vectors * scale[:, None])
        if not is_open:
            bias = _anchor(targets, link)
            start = Weights(np.zeros((axes.vectors.shape[1], len(bias)), np.float32), bias)
            return _Choice(axes, l2s[len(l2s) // 2], 0.0, start, gain=gain)
        problem = _Problem.of(rows, targets, folds, axes.leading(_CHOICE_AXES), link=link, config=config)
        found = problem.choose_l2(l2s, near=None if best is None else best.l2)
        choice = replace(found, gain=gain, axes=axes)
        if best is None or choice.loss < best.loss:
            best = choice
    assert best is not None
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """What the inner folds were used for: penalty, size of context and temperature.

    Attributes:
        axes: of the rows that it was made on, leading ones of which were looked at.
        l2, gain, temperature: what was chosen.
        loss: on held-out inner folds.
        start: a guess at the solution.
    """

    axes: Axes
    l2: float
    loss: float
    start: Weights
    temperature: float = 1.0
    gain: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Training rows along their principal axes, by inner fold.

    Attributes:
        rows: the N rows, their targets and weights; inner folds are slices of them.
        axes: those, scaled as the columns of the rows are.
        folds: the rows of each inner fold.
        shift: (C,) what weighting adds to the logits, to be taken off again, so that probabilities stay honest.
        anchor: (C,) logits of the classes' rates.
    """

    rows: Rows
    axes: Axes
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
        axes: Axes,
        *,
        link: Link,
        config: HeadsConfig,
    ) -> "_Problem":
        """Return the problem with its rows rotated, which pays where they are looked at many times."""
        order = np.argsort(folds, kind="stable")
        along = np.empty((len(rows), axes.vectors.shape[1]), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            np.matmul(rows[order[part]], axes.vectors, out=along[part])
        edges = np.flatnonzero(np.diff(folds[order], prepend=-1, append=-1))
        parts = tuple(slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True))
        targets = np.ascontiguousarray(targets[order])
        weights, shift = _class_weights(targets, link, CLASS_WEIGHT_POWER[config.class_weight])
        return cls(Rows.all_of(along, targets, weights), axes, parts, link, shift, _anchor(targets, link))

    @classmethod
    def whole(
        cls, rows: np.ndarray, targets: np.ndarray, axes: Axes, *, link: Link, config: HeadsConfig
    ) -> "_Problem":  # fmt: skip
        """Return the problem of all rows, as one part and as they are."""
        weights, shift = _class_weights(targets, link, CLASS_WEIGHT_POWER[config.class_weight])
        part = slice(0, len(rows))
        return cls(Rows.all_of(rows, targets, weights, axes), axes, (part,), link, shift, _anchor(targets, link))

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
        size = (self.rows.width, self.rows.targets.shape[1])
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

    def choose_l2(self, l2s: Sequence[float], *, near: float | None = None) -> _Choice:
        """Return the penalty with the least log-loss on held-out inner folds, of which there are two or more.

        Penalties are tried from the largest down, and no further once the loss rises: the small ones cost most.

        Args:
            l2s: descending.
            near: the one to begin with; from there it goes up only where the way down does not pay at once.
        """
        first = 0 if near is None else l2s.index(near)
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
        return _Choice(self.axes, best.l2, best.loss, mean, temperature)

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


def _widened(start: Weights, axes: Axes) -> Weights:
    """Return the solution along as many axes as there are: others count nothing yet, or are left out."""
    weights = np.zeros((axes.vectors.shape[1], start.weights.shape[1]), np.float32)
    known = start.weights[: len(weights)]
    weights[: len(known)] = known
    return Weights(weights, start.bias)


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
