"""Learning boundaries and scores from proposals on out-of-fold predictions.

`talstack.ensemble.held_out` decodes every group of recordings with what was learned here on the others.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from talstack.ensemble.calibration import Calibration
from talstack.ensemble.decode import Decoder, DecodeSettings, Fitted, Found
from talstack.ensemble.proposals import Proposals
from talstack.ensemble.refine import CHUNK, EdgeModel
from talstack.ensemble.scoring import Scorer, run_features
from talstack.evaluate.map import match_for_map
from talstack.io.intervals import aligned_tiou

EDGE_L2 = 10.0
SCORE_L2 = 10.0
ROUNDS = 2  # of refinement: the second starts nearer to the end (34.5 to 37.1 mAP at tIoU 0.95 on mhad, out of fold)
MAX_ROWS = 20_000  # proposals that ends and scores are learned from: enough for three dozen weights
CLOSE = 0.5  # a proposal tells where an instance's ends are from this tIoU on
Truth = dict[tuple[str, int], np.ndarray]


def truth_of(instances: pl.DataFrame, actions: tuple[str, ...]) -> Truth:
    """Return {(recording, class column): (n, 2) seconds}."""
    columns = pl.DataFrame(
        {"label": actions, "column": range(len(actions))}, schema={"label": pl.String, "column": pl.Int64}
    )
    known = instances.join(columns, on="label", maintain_order="left").sort("recording", "column", maintain_order=True)
    if known.is_empty():
        return {}
    keys = list(known.select("recording", "column").iter_rows())
    first = [0, *(row for row in range(1, len(keys)) if keys[row] != keys[row - 1])]
    rows = known.select("start_s", "end_s").to_numpy().astype(np.float64)
    return dict(zip((keys[row] for row in first), np.split(rows, first[1:]), strict=True))


def fit(decoder: Decoder, found: Found, truth: Truth, settings: DecodeSettings, *, tiou: tuple[float, ...]) -> Fitted:
    """Return what the settings ask for, learned on proposals from predictions that are not in-sample.

    Args:
        found: `Decoder.propose` with the same settings.
        tiou: thresholds of the target metric; a proposal's quality is the share of them that it reaches.
    """
    found = found.rows(thinned(np.arange(len(found.proposals.label))))
    every = np.ones(len(found.proposals.label), dtype=bool)
    learner = Learner(decoder, found, truth, tiou)
    return learner.learned(learner.moved(every, shown=~every, refine=settings.refine), settings).fitted


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """Some of the proposals with ends as refined by models that were learned on part of them.

    Attributes:
        found: the proposals, as they were.
        rows: (n,) which of the learner's they are.
        own: (n,) bool, which of them were learned from.
        shown: (n,) bool, which others the models are to be applied to.
        models: one per round of refinement; none where nothing is refined.
        intervals: (n, 2) seconds, the ends by now.
    """

    found: Found
    rows: np.ndarray
    own: np.ndarray
    shown: np.ndarray
    models: tuple[EdgeModel, ...]
    intervals: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What was learned on some of the proposals, and what it makes of others.

    Attributes:
        fitted: the models.
        refined: those that are shown with their ends moved, as far as they are neither too short nor too long.
        features: of the fitted score, of these; None where there is no such score.
    """

    fitted: Fitted
    refined: Found
    features: np.ndarray | None


class Learner:
    """Learns ends and score on any part of the same proposals; what does not depend on the part is made once."""

    def __init__(self, decoder: Decoder, found: Found, truth: Truth, tiou: tuple[float, ...]) -> None:
        self._decoder, self._found, self._tiou = decoder, found, tiou
        self._instances = _Instances(found, truth, len(decoder.actions))
        self._best, self._nearest = self._instances.nearest(found.proposals)

    def prepare(self, settings: DecodeSettings) -> None:
        """Make what all parts share, so that several threads may learn at once."""
        _ = self._features if settings.refine else None
        _ = self._run_features if settings.score == "fitted" else None

    def moved(self, part: np.ndarray, *, shown: np.ndarray, refine: bool) -> Moved:
        """Return proposals with refined ends, learned where `part`, (n,) bool, on at most `MAX_ROWS` of them.

        Args:
            shown: (n,) bool, which others it is to be applied to.
        """
        rows = np.sort(np.concatenate([thinned(np.flatnonzero(part & ~shown)), np.flatnonzero(shown)]))
        found, own = self._found.rows(rows), part[rows]
        models, intervals = self._edges(found, rows, own) if refine else ((), found.proposals.intervals)
        return Moved(found, rows, own, shown[rows], models, intervals)

    def learned(self, moved: Moved, settings: DecodeSettings) -> Learned:
        """Return what is left of moved proposals with these settings, and the score that was learned for them."""
        refined, left = self._decoder.limited(moved.found, moved.intervals, settings)
        own, on_show = moved.own[left], moved.shown[left]
        if settings.score == "plain":
            return Learned(Fitted(moved.models), refined.rows(on_show), None)
        features = self._decoder.finished(refined, self._run_features[moved.rows[left]])
        best, _ = self._instances.nearest(refined.proposals.rows(own))
        quality = (best[:, None] >= np.array(self._tiou)).mean(axis=1)
        scorer = Scorer.fit(features[own], quality, l2=SCORE_L2)
        return Learned(Fitted(moved.models, scorer), refined.rows(on_show), features[on_show])

    @cached_property
    def _features(self) -> np.ndarray:
        """Those of the unrefined ends of all proposals."""
        return self._decoder.edge_features(self._found, self._found.proposals.intervals)

    @cached_property
    def _run_features(self) -> np.ndarray:
        """Those of the score of all proposals that refinement does not change; in parts that stay in the cache."""
        every = np.arange(len(self._found.proposals.label))
        parts = (self._found.rows(part) for part in np.array_split(every, -(-len(every) // CHUNK) or 1))
        return np.concatenate([run_features(part.at, part.proposals) for part in parts])

    def _edges(self, found: Found, rows: np.ndarray, own: np.ndarray) -> tuple[tuple[EdgeModel, ...], np.ndarray]:
        """Return the models of `ROUNDS` refinements, each on what the one before has moved, and all moved intervals.

        Args:
            found: the proposals at `rows`; learned from where `own`, (n,) bool.
        """
        intervals = found.proposals.intervals
        close = np.flatnonzero(own & (self._best[rows] >= CLOSE))
        if not len(close):
            return (), intervals
        segment_s, nearest, features = found.means.segment_s, self._nearest[rows[close]], self._features[rows]
        weights = _one_per_instance(found.proposals.rows(close), nearest)
        models: list[EdgeModel] = []
        for round_ in range(ROUNDS):
            features = self._decoder.edge_features(found, intervals) if round_ else features
            model = EdgeModel.fit(features[close], (nearest - intervals[close]) / segment_s, weights, l2=EDGE_L2)
            if model is None:
                break
            models.append(model)
            intervals = self._decoder.moved(found, intervals, features, model)
        return tuple(models), intervals


def thinned(rows: np.ndarray) -> np.ndarray:
    """Return at most `MAX_ROWS` of the rows, evenly spread over all recordings."""
    return rows[:: max(1, -(-len(rows) // MAX_ROWS))]


class _Instances:
    """The instances of the recordings of proposals, by recording and class."""

    def __init__(self, found: Found, truth: Truth, num_classes: int) -> None:
        owners = {name: position for position, name in enumerate(found.recordings)}
        known = sorted(
            (owners[recording] * num_classes + label, rows)
            for (recording, label), rows in truth.items()
            if recording in owners
        )
        counts = [len(rows) for _, rows in known]
        self._num_classes = num_classes
        self._first = np.zeros(len(owners) * num_classes, dtype=np.int64)
        self._count = np.zeros(len(owners) * num_classes, dtype=np.int64)
        keys = [key for key, _ in known]
        self._first[keys], self._count[keys] = np.cumsum([0, *counts])[:-1], counts
        self._intervals = np.concatenate([np.zeros((0, 2)), *(rows for _, rows in known)])

    def nearest(self, proposals: Proposals) -> tuple[np.ndarray, np.ndarray]:
        """Return each proposal's best tIoU with an instance of its class, (n,), and that instance, (n, 2) seconds."""
        best, nearest = np.zeros(len(proposals.label)), np.zeros((len(proposals.label), 2))
        keys = proposals.owner * self._num_classes + proposals.label
        first, count = self._first[keys], self._count[keys]
        for number in range(int(count.max(initial=0))):
            rows = np.flatnonzero(count > number)
            other = self._intervals[first[rows] + number]
            tiou = aligned_tiou(tuple(proposals.intervals[rows].T), tuple(other.T))
            better = tiou > best[rows]
            best[rows[better]], nearest[rows[better]] = tiou[better], other[better]
        return best, nearest


def _one_per_instance(proposals: Proposals, nearest: np.ndarray) -> np.ndarray:
    """Return weights that sum to one over the proposals of every instance, (n,)."""
    keys = np.column_stack([nearest, proposals.owner, proposals.label])
    _, which, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1.0 / count[which.ravel()]
    return weights


def fit_calibration(
    detections: pl.DataFrame, instances: pl.DataFrame, *, tiou: tuple[float, ...]
) -> Calibration | None:
    """Return the map from the scores of held-out detections to their precision, averaged over the thresholds."""
    known = detections.filter(pl.col("label").is_in(instances["label"].unique().to_list()))
    if known.is_empty():
        return None
    matched, _ = match_for_map(known, instances, tiou)
    quality = np.zeros(known.height)
    for hits in matched.hits:
        quality[matched.detections.row[hits.detection]] += 1.0 / len(tiou)
    return Calibration.fit(known["score"].to_numpy(), quality)
