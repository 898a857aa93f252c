"""Which segments make a batch: groups from one recording and view each, with rare classes drawn more often.

A class is drawn in proportion to n^(1 - balance), n being how many segments it has, and then one of its segments in
proportion to its target. So balance 0 draws segments as they come, and balance 1 every class equally often.
"""

import numpy as np

from talstack.io.errors import InputError

STREAM = 0x5A3B1E  # tells these draws from others that are seeded alike


class BatchSampler:
    """Batches as a pure function of (seed, epoch, step).

    So a training that is resumed draws what it would have drawn, and every process of a distributed training draws
    the whole batch and takes its part. Memory: about five int64 or float64 per segment.

    Attributes:
        steps_per_epoch: batches that show about as many segments as there are; at least one.
    """

    def __init__(
        self,
        targets: np.ndarray,
        units: np.ndarray,
        *,
        batch_size: int,
        segments_per_recording: int,
        balance: float,
        seed: int,
    ) -> None:
        """Prepare the draws.

        Args:
            targets: (N, C + 1) float32 >= 0, background in front; every row has a class.
            units: (N,) int64, one number per recording and view.
            batch_size: a multiple of segments_per_recording.
            balance: in [0, 1].
            seed: >= 0.

        Raises:
            InputError: shapes or values other than these.
        """
        _check(targets, units, batch_size=batch_size, group_size=segments_per_recording, balance=balance)
        self.steps_per_epoch = max(1, len(targets) // batch_size)
        self._seed, self._group_size, self._num_groups = (
            seed,
            segments_per_recording,
            batch_size // segments_per_recording,
        )
        self._order = np.argsort(units, kind="stable")  # rows, unit after unit
        starts = np.flatnonzero(np.diff(units[self._order], prepend=units.min() - 1))
        self._ends = np.append(starts[1:], len(units))
        self._starts = starts
        shares = (targets / targets.sum(axis=1, keepdims=True, dtype=np.float64))[self._order]
        unit = np.repeat(np.arange(len(starts)), self._ends - starts)
        self._unit_weights = _balanced(shares, unit, starts, balance=balance)
        self._cumulative = np.cumsum(_balanced(shares, np.zeros_like(unit), np.zeros(1, np.int64), balance=balance))

    def batch(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows (batch_size,) int64 of one batch, and their groups 0, 0, ..., 1, 1, ... alike.

        The first row of a group is drawn from all segments; the others from its unit, none twice unless the unit has
        fewer rows than the group.
        """
        rng = np.random.default_rng([STREAM, self._seed, epoch, step])
        drawn = rng.random(self._num_groups) * self._cumulative[-1]
        # the last position is never passed: a product may round up to the whole sum
        anchors = np.minimum(np.searchsorted(self._cumulative, drawn, side="right"), len(self._order) - 1)
        positions = np.concatenate([self._group(int(anchor), rng) for anchor in anchors])
        return self._order[positions], np.repeat(np.arange(self._num_groups), self._group_size)

    def _group(self, anchor: int, rng: np.random.Generator) -> np.ndarray:
        """Return the positions of a group, its anchor first."""
        unit = int(np.searchsorted(self._ends, anchor, side="right"))
        start, end = int(self._starts[unit]), int(self._ends[unit])
        # exponential clocks with the weights as rates: the first to ring are a weighted draw without replacement
        rings = rng.exponential(size=end - start) / self._unit_weights[start:end]
        rings[anchor - start] = -1.0
        size = min(self._group_size, end - start)
        first = np.argpartition(rings, size - 1)[:size] if size < end - start else np.arange(size)
        return np.resize(start + first[np.argsort(rings[first])], self._group_size)


def _balanced(shares: np.ndarray, unit: np.ndarray, starts: np.ndarray, *, balance: float) -> np.ndarray:
    """Return the (N,) float64 weights that draw classes by n^(1 - balance) inside each unit, up to a factor per unit.

    Args:
        shares: (N, C + 1) float64, rows sum to one, sorted by unit.
        unit: (N,) int64, the unit of every row, counted from 0.
        starts: (U,) int64, the first row of every unit.
    """
    counts = np.add.reduceat(shares, starts, axis=0)
    drawn = np.power(counts, 1 - balance, where=counts > 0, out=np.zeros_like(counts))
    per_segment = np.divide(drawn, counts, where=counts > 0, out=np.zeros_like(counts))
    return np.einsum("nc,nc->n", shares, per_segment[unit])


def _check(targets: np.ndarray, units: np.ndarray, *, batch_size: int, group_size: int, balance: float) -> None:
    if targets.ndim != 2 or len(targets) == 0 or units.shape != targets.shape[:1]:
        raise InputError(f"sampler: targets {targets.shape} and units {units.shape}; expected (N, C+1) and (N,), N > 0")
    if group_size < 1 or batch_size < group_size or batch_size % group_size:
        raise InputError(f"sampler: batch_size {batch_size} must be a multiple of segments_per_recording {group_size}")
    if not 0 <= balance <= 1:
        raise InputError(f"sampler: balance must lie in [0, 1], got {balance}")
    bad = (targets < 0).any(axis=1) | ~(targets.sum(axis=1) > 0)
    if bad.any():
        raise InputError(
            f"sampler: targets of row {int(bad.argmax())} are negative or all zero; every row needs a class"
        )
