"""L-BFGS for many independent smooth problems at once, one per column.

Classes of a one-vs-rest regression share their rows and nothing else. Run together, each with its own history and
step length, they share the matrix products; a class that has converged drops out of them. Nocedal and Wright,
Numerical Optimization, algorithm 7.4, with backtracking (Armijo) steps.
"""

from collections.abc import Callable

import numpy as np

# (n, P) parameters of the given (P,) columns -> their (P,) values and (n, P) gradients
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_HISTORY = 10
_ARMIJO = 1e-4
_MAX_HALVINGS = 20
_SMALLEST_CURVATURE = 1e-10  # s.y relative to s.s below which a step teaches nothing


def minimise_columns(objective: Objective, start: np.ndarray, *, tolerance: float, max_iterations: int) -> np.ndarray:
    """Return the (n, P) minimisers, each column to a largest gradient entry below `tolerance`.

    Args:
        start: (n, P) float64. Scale the problems so that their curvature is about one.
    """
    found = start.copy()
    columns = np.arange(start.shape[1])
    params, memory = start.copy(), _Memory(*start.shape)
    values, gradients = objective(params, columns)
    for _ in range(max_iterations):
        running = np.abs(gradients).max(axis=0) > tolerance
        if not running.all():
            found[:, columns] = params
            if not running.any():
                return found
            columns, params = columns[running], params[:, running]
            values, gradients = values[running], gradients[:, running]
            memory.keep(running)
        steps = memory.direction(gradients)
        moved, new_values, new_gradients = _line_search(objective, columns, params, values, gradients, steps)
        memory.add(moved - params, new_gradients - gradients)
        stuck = new_values >= values  # no float32 progress is left in these: their gradient counts as zero
        params, values, gradients = moved, new_values, np.where(stuck, 0.0, new_gradients)
    found[:, columns] = params
    return found


def _line_search(
    objective: Objective,
    columns: np.ndarray,
    params: np.ndarray,
    values: np.ndarray,
    gradients: np.ndarray,
    steps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (params, values, gradients) after a step that lowers every column's value enough, or no step."""
    slope = (gradients * steps).sum(axis=0)
    moved, new_values, new_gradients = params.copy(), values.copy(), gradients.copy()
    open_columns, length = np.arange(len(columns)), np.ones(len(columns))
    for _ in range(_MAX_HALVINGS):
        tried = params[:, open_columns] + length[open_columns] * steps[:, open_columns]
        tried_values, tried_gradients = objective(tried, columns[open_columns])
        good = tried_values <= values[open_columns] + _ARMIJO * length[open_columns] * slope[open_columns]
        done = open_columns[good]
        moved[:, done], new_values[done], new_gradients[:, done] = (
            tried[:, good],
            tried_values[good],
            tried_gradients[:, good],
        )
        open_columns = open_columns[~good]
        if not len(open_columns):
            break
        length[open_columns] /= 2
    return moved, new_values, new_gradients


class _Memory:
    """The last steps and gradient changes of every column."""

    def __init__(self, num_params: int, num_columns: int) -> None:
        self._steps: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []
        self._rho: list[np.ndarray] = []  # 1 / (s.y), zero where the pair is not to be used
        self._scale = np.ones(num_columns)

    def keep(self, columns: np.ndarray) -> None:
        """Keep some of the columns, (P,) bool."""
        self._steps = [pair[:, columns] for pair in self._steps]
        self._changes = [pair[:, columns] for pair in self._changes]
        self._rho = [rho[columns] for rho in self._rho]
        self._scale = self._scale[columns]

    def add(self, steps: np.ndarray, changes: np.ndarray) -> None:
        """Remember one step and what it did to the gradient, (n, P) each."""
        product = (steps * changes).sum(axis=0)
        useful = product > _SMALLEST_CURVATURE * (steps * steps).sum(axis=0)
        rho = np.where(useful, 1.0 / np.where(useful, product, 1.0), 0.0)
        energy = (changes * changes).sum(axis=0)
        self._scale = np.where(useful, product / np.where(useful, energy, 1.0), self._scale)
        for kept, new in ((self._steps, steps), (self._changes, changes), (self._rho, rho)):
            kept.append(new)
            del kept[:-_HISTORY]

    def direction(self, gradients: np.ndarray) -> np.ndarray:
        """Return the descent direction of every column: the two-loop recursion, (n, P)."""
        direction = -gradients
        alphas = []
        for step, change, rho in zip(reversed(self._steps), reversed(self._changes), reversed(self._rho), strict=True):
            alpha = rho * (step * direction).sum(axis=0)
            direction = direction - alpha * change
            alphas.append(alpha)
        direction = direction * self._scale
        for step, change, rho, alpha in zip(self._steps, self._changes, self._rho, reversed(alphas), strict=True):
            beta = rho * (change * direction).sum(axis=0)
            direction = direction + (alpha - beta) * step
        return direction
