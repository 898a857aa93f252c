"""Proposals: scored-to-be intervals out of the curves of recordings, by thresholds or by hidden Markov model.

Proposals are the runs of the activity curve ("any action"), each labelled with its likeliest classes, and the runs
of each class's own curve, which alone can tell overlapping actions apart.
"""

from dataclasses import dataclass

import numpy as np

from talstack.ensemble.curves import CurveMeans
from talstack.ensemble.runs import Runs


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Runs with a class.

    Attributes:
        runs: where each comes from.
        label: (n,) int64, the class's column.
        intervals: (n, 2) float64 seconds; the run's own until its ends are refined.
    """

    runs: Runs
    label: np.ndarray
    intervals: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """Return the position of every proposal's recording, (n,) int64."""
        return self.runs.owner

    def rows(self, keep: np.ndarray) -> "Proposals":
        """Return some of the proposals."""
        return Proposals(self.runs.rows(keep), self.label[keep], self.intervals[keep])


def labelled(runs: Runs, means: CurveMeans, labels_per_run: int) -> Proposals:
    """Return the runs of class curves with their class, and those of the activity with their likeliest classes.

    They are in the order of their recordings, and in each the activity's come first.
    """
    own = np.flatnonzero(runs.curve > 0)
    shared = np.flatnonzero(runs.curve == 0)
    probs = means.at(runs.owner[shared]).inside(runs.intervals[shared], slice(1, None))
    num_labels = min(labels_per_run, probs.shape[1])
    likeliest = np.argsort(-probs, axis=1, kind="stable")[:, :num_labels]
    rows = np.concatenate([np.repeat(shared, num_labels), own])
    label = np.concatenate([likeliest.ravel(), runs.curve[own] - 1])
    order = np.argsort(runs.owner[rows], kind="stable")
    rows, label = rows[order], label[order]
    return Proposals(runs.rows(rows), label, runs.intervals[rows])
