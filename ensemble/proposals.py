"""Proposals: scored-to-be intervals out of the curves of recordings, by thresholds or by hidden Markov model.

Proposals are the runs of the activity curve ("any action"), each labelled with its likeliest classes, and the runs
of each class's own curve, which alone can tell overlapping actions apart.
"""

from dataclasses import dataclass

import numpy as np

from talstack.ensemble.curves import CurveMeans


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of curves; arrays (n,) but for the intervals.

    Attributes:
        curve: column of the curve, 0 for the activity, 1 + class for a class, int64.
        level: threshold that the run is above, float64.
        intervals: (n, 2) float64 seconds.
        markov: whether a hidden Markov model found it.
    """

    curve: np.ndarray
    level: np.ndarray
    intervals: np.ndarray
    markov: np.ndarray

    def rows(self, keep: np.ndarray) -> "Runs":
        """Return some of the runs."""
        return Runs(self.curve[keep], self.level[keep], self.intervals[keep], self.markov[keep])


_NONE = Runs(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=bool))


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Runs with a class.

    Attributes:
        runs: where each comes from.
        owner: (n,) int64, position of its recording.
        label: (n,) int64, the class's column.
        intervals: (n, 2) float64 seconds; the run's own until its ends are refined.
    """

    runs: Runs
    owner: np.ndarray
    label: np.ndarray
    intervals: np.ndarray

    def rows(self, keep: np.ndarray) -> "Proposals":
        """Return some of the proposals."""
        return Proposals(self.runs.rows(keep), self.owner[keep], self.label[keep], self.intervals[keep])


def join_runs(parts: list[Runs]) -> Runs:
    """Return the runs of all parts, one after the other."""
    return Runs(*(np.concatenate([getattr(part, name) for part in [_NONE, *parts]]) for name in Runs.__slots__))


def labelled(runs: Runs, owner: np.ndarray, means: CurveMeans, labels_per_run: int) -> Proposals:
    """Return the runs of class curves with their class, and those of the activity with their likeliest classes.

    They are in the order of their recordings, and in each the activity's come first.

    Args:
        owner: (n,) int64, position of each run's recording in `means`, ascending.
    """
    own = np.flatnonzero(runs.curve > 0)
    shared = np.flatnonzero(runs.curve == 0)
    probs = means.at(owner[shared]).inside(runs.intervals[shared], slice(1, None))
    num_labels = min(labels_per_run, probs.shape[1])
    likeliest = np.argsort(-probs, axis=1, kind="stable")[:, :num_labels]
    rows = np.concatenate([np.repeat(shared, num_labels), own])
    label = np.concatenate([likeliest.ravel(), runs.curve[own] - 1])
    order = np.argsort(owner[rows], kind="stable")
    rows, label = rows[order], label[order]
    return Proposals(runs.rows(rows), owner[rows], label, runs.intervals[rows])
