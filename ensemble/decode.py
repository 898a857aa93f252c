"""From probabilities over segments to detections: proposals, refined ends, scores, suppression.

`Decoder` composes the steps, each in a module of its own: smoothing, runs above thresholds or of the hidden Markov
model, refined boundaries, scores, suppression. `DecodeSettings` declares which and how; what is learned for them
from out-of-fold predictions is a `Fitted` (see `talstack.ensemble.fit`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import polars as pl

from talstack.ensemble.calibration import Calibration
from talstack.ensemble.curves import CurveMeans, Curves, RowMeans
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.hmm import Durations, viterbi_runs
from talstack.ensemble.nms import Method, suppress, top_k
from talstack.ensemble.proposals import Proposals, labelled
from talstack.ensemble.refine import BoundaryVotes, EdgeModel, edge_features
from talstack.ensemble.runs import Runs, threshold_runs
from talstack.ensemble.scoring import Scorer, plain_scores, run_features, with_deviation
from talstack.ensemble.smoothing import class_lengths, smooth
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest

BATCH = 64  # recordings decoded at once: memory stays flat, and suppression sees many groups

ProposalCurves = Literal["activity", "class", "both"]


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How curves become detections.

    Attributes:
        smoothing_s: standard deviation of the Gaussian that smooths the curves, seconds; 0 for none.
        smoothing_power: how far that length follows a class's typical duration: 0 not at all, 1 in proportion.
        proposals: runs of the activity curve, of the class curves, or both.
        activity_thresholds, class_thresholds: levels at which runs are cut out of the curves.
        hmm: whether the hidden Markov model looks for runs too.
        hmm_levels: at which levels.
        hmm_weight: how much a segment counts there.
        gap_s: runs with at most this between them are one, seconds.
        labels_per_run: how many classes an activity run is proposed for.
        margin: width of the surroundings that a run is contrasted with, as a share of its length (at least one
            segment on either side).
        contrast_weight: exponent of the contrast in the plain score; 0 ranks by class probability alone.
        score: plain, or the fitted one.
        refine: whether the fitted model of boundaries moves starts and ends.
        start_shift_s, end_shift_s: added to every start and end, seconds; corrects a bias of the heads.
        shortest, longest: a proposal lasts at least / at most this many times the shortest / longest training
            instance of its class.
        nms, nms_threshold, nms_sigma: suppression within a class, see `talstack.ensemble.nms`.
        min_score: proposals below are dropped.
        max_detections: best ones kept per recording.
    """

    smoothing_s: float = 0.0
    smoothing_power: float = 0.0
    proposals: ProposalCurves = "both"
    activity_thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    class_thresholds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    hmm: bool = False
    hmm_levels: tuple[float, ...] = (0.2, 0.35, 0.5)
    hmm_weight: float = 0.5
    gap_s: float = 0.0
    labels_per_run: int = 6
    margin: float = 0.2
    contrast_weight: float = 1.0
    score: Literal["plain", "fitted"] = "plain"
    refine: bool = False
    start_shift_s: float = 0.0
    end_shift_s: float = 0.0
    shortest: float = 0.5
    longest: float = 1.5
    nms: Method = "gaussian"
    nms_threshold: float = 0.5
    nms_sigma: float = 0.5
    min_score: float = 0.001
    max_detections: int = 200


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was learned from out-of-fold proposals, as far as the settings ask for it and there was enough.

    Attributes:
        edges: models that move the ends, one after the other.
        scorer: the fitted score.
        calibration: maps the scores of detections to the precision to be expected; changes no ranking.
    """

    edges: tuple[EdgeModel, ...] = ()
    scorer: Scorer | None = None
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the models as plain values."""
        return {
            "edges": [model.to_json() for model in self.edges],
            "scorer": self.scorer.to_json() if self.scorer else None,
            "calibration": self.calibration.to_json() if self.calibration else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fitted":
        """Return what `to_json` gave."""
        return cls(
            tuple(EdgeModel.from_json(model) for model in values["edges"]),
            Scorer.from_json(values["scorer"]) if values["scorer"] else None,
            Calibration.from_json(values["calibration"]) if values["calibration"] else None,
        )


NOTHING = Fitted()


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Proposals of some recordings, and what they are judged by.

    Attributes:
        recordings: which; the `owner` of a proposal is a position here.
        means: their curves.
        boundaries: what boundary heads say of the segments of `means`; None where there are none.
        proposals: in the order of the recordings.
    """

    recordings: tuple[str, ...]
    means: CurveMeans
    boundaries: BoundaryVotes | None
    proposals: Proposals

    @property
    def at(self) -> RowMeans:
        """The curves of every proposal's recording."""
        return self.means.at(self.proposals.owner)

    def rows(self, keep: np.ndarray) -> "Found":
        """Return some of the proposals."""
        return replace(self, proposals=self.proposals.rows(keep))


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """What decoding needs to know of a data set.

    Attributes:
        actions: class names in column order.
        grids: the segment grid of every recording.
        durations: of every class's training instances.
        boundaries: what boundary heads say, by recording; empty where there are none.
    """

    actions: tuple[str, ...]
    grids: dict[str, SegmentGrid]
    durations: ClassDurations
    boundaries: dict[str, BoundaryVotes] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, segment_s: float, training: list[str]) -> "Decoder":
        """Return the decoder whose durations come from the instances of the `training` recordings."""
        durations = dict(manifest.recordings.select("recording", "duration_s").iter_rows())
        grids = {recording: SegmentGrid(duration, segment_s) for recording, duration in durations.items()}
        return cls(manifest.actions, grids, ClassDurations.of(manifest, training))

    def decode(self, curves: Curves, settings: DecodeSettings, fitted: Fitted = NOTHING) -> pl.DataFrame:
        """Return the detections: recording, start_s, end_s, label, score; by recording, then descending score."""
        names, tables = list(curves.index.recordings), [pl.DataFrame(schema=DETECTION_SCHEMA)]
        for start in range(0, len(names), BATCH):
            found = self.propose(curves.subset(names[start : start + BATCH]), settings)
            tables.append(self.detect(self.refined(found, settings, fitted), settings, fitted.scorer))
        table = pl.concat(tables)
        if fitted.calibration is not None:
            table = table.with_columns(score=pl.Series(fitted.calibration.apply(table["score"].to_numpy())))
        return table.sort("recording", "score", descending=[False, True], maintain_order=True)

    def propose(self, curves: Curves, settings: DecodeSettings) -> Found:
        """Return the proposals, as the curves give them: not refined, not limited."""
        names, means = curves.index.recordings, self.smoothed(curves, settings)
        return self.proposed(names, means, self.markov_runs(means, settings), settings)

    def smoothed(self, curves: Curves, settings: DecodeSettings) -> CurveMeans:
        """Return the curves that proposals are read from; settings.smoothing_* matter."""
        grids = [self.grids[name] for name in curves.index.recordings]
        segment_s, values = grids[0].segment_s, [values for _, values in curves]
        if settings.smoothing_s > 0:
            lengths = class_lengths(self.durations.typical_s(), settings.smoothing_power)
            sigmas = settings.smoothing_s * np.append(1.0, lengths) / segment_s
            values = [smooth(of_one, sigmas) for of_one in values]
        return CurveMeans(values, segment_s, [grid.duration_s for grid in grids])

    def proposed(self, names: Sequence[str], means: CurveMeans, markov: Runs, settings: DecodeSettings) -> Found:
        """Return the proposals where what `smoothed` and `markov_runs` give for the settings is there already."""
        parts = [markov.rows(self._is_wanted(markov.curve, settings))]
        for kind, columns, thresholds in (
            ("activity", slice(0, 1), settings.activity_thresholds),
            ("class", slice(1, None), settings.class_thresholds),
        ):
            if settings.proposals in (kind, "both"):
                parts.append(threshold_runs(means, thresholds, columns=columns, gap_s=settings.gap_s))
        proposals = labelled(Runs.joined(parts), means, settings.labels_per_run)
        return Found(tuple(names), means, self._boundaries(names, means), proposals)

    def refined(self, found: Found, settings: DecodeSettings, fitted: Fitted) -> Found:
        """Return the proposals with refined ends, without those that last too short or too long."""
        intervals = found.proposals.intervals
        for model in fitted.edges if settings.refine else ():
            intervals = self.moved(found, intervals, self.edge_features(found, intervals), model)
        return self.limited(found, intervals, settings)[0]

    def limited(self, found: Found, intervals: np.ndarray, settings: DecodeSettings) -> tuple[Found, np.ndarray]:
        """Return the proposals with these (n, 2) ends, shifted and cut, and which are left: not too short or long."""
        proposals = found.proposals
        longest_s = found.means.durations_s[proposals.owner][:, None]
        intervals = np.clip(intervals + [settings.start_shift_s, settings.end_shift_s], 0.0, longest_s)
        length = intervals[:, 1] - intervals[:, 0]
        low, high = self.durations.limits_s[proposals.label].T
        fits = (length >= low * settings.shortest) & (length <= high * settings.longest) & (length > 0)
        return replace(found, proposals=replace(proposals, intervals=intervals).rows(fits)), fits

    def edge_features(self, found: Found, intervals: np.ndarray) -> np.ndarray:
        """Return what is known around the (n, 2) ends that the proposals have by now, (n, 2, F)."""
        proposals = found.proposals
        return edge_features(found.at, intervals, proposals.label, proposals.runs.level, found.boundaries)

    def moved(self, found: Found, intervals: np.ndarray, features: np.ndarray, model: EdgeModel) -> np.ndarray:
        """Return the (n, 2) intervals after one more refinement, inside their recordings, seconds.

        Args:
            features: `edge_features` of these intervals.
        """
        longest_s = found.means.durations_s[found.proposals.owner][:, None]
        moved = np.clip(model.move(intervals, features, found.means.segment_s), 0.0, longest_s)
        return np.where((moved[:, 1] > moved[:, 0])[:, None], moved, intervals)

    def score_features(self, found: Found) -> np.ndarray:
        """Return what the fitted score of refined proposals is made of, (n, F)."""
        return self.finished(found, run_features(found.at, found.proposals))

    def finished(self, found: Found, features: np.ndarray) -> np.ndarray:
        """Return the same, where the `run_features` of the proposals are there already."""
        proposals = found.proposals
        length = proposals.intervals[:, 1] - proposals.intervals[:, 0]
        return with_deviation(features, self.durations.deviation(proposals.label, length))

    def markov_runs(self, means: CurveMeans, settings: DecodeSettings) -> Runs:
        """Return the runs of the hidden Markov model, none where the settings ask for none; settings.hmm* matter."""
        if not settings.hmm:
            return Runs.none()
        levels, durations = np.array(settings.hmm_levels), self._markov_durations(means.segment_s)
        owner, level, curve, segments = viterbi_runs(
            means.values, durations, levels=settings.hmm_levels, weight=settings.hmm_weight
        )
        return Runs.between(means, owner, curve, levels[level], segments, markov=True).real()

    def _markov_durations(self, segment_s: float) -> Durations:
        """Return the durations of the activity, which are those of all classes, and of every class."""
        d = self.durations
        overall = np.array([d.log_mean.mean(), np.sqrt(d.log_mean.var() + np.square(d.log_spread).mean())])
        mean, spread = np.append(overall[0], d.log_mean), np.append(overall[1], d.log_spread)
        longest = np.append(d.limits_s[:, 1].max(), d.limits_s[:, 1]) / segment_s
        return Durations.log_normal(mean - np.log(segment_s), spread, np.minimum(longest, 1e6))

    def _boundaries(self, names: Sequence[str], means: CurveMeans) -> BoundaryVotes | None:
        """Return what boundary heads say of these recordings, end to end; nothing is likely where they do not speak."""
        if not self.boundaries:
            return None
        silent = [np.zeros(num) for num in means.num_segments]
        parts = [
            self.boundaries.get(name, BoundaryVotes(zeros, zeros, zeros, zeros))
            for name, zeros in zip(names, silent, strict=True)
        ]
        return BoundaryVotes(*(np.concatenate([getattr(p, side) for p in parts]) for side in BoundaryVotes.__slots__))

    def _is_wanted(self, curve: np.ndarray, settings: DecodeSettings) -> np.ndarray:
        if settings.proposals == "both":
            return np.ones(len(curve), dtype=bool)
        wanted: np.ndarray = (curve == 0) == (settings.proposals == "activity")
        return wanted

    def detect(self, found: Found, settings: DecodeSettings, scorer: Scorer | None = None) -> pl.DataFrame:
        """Return the detections out of refined proposals, in no order; scores are not calibrated.

        Args:
            scorer: the fitted score, where the settings ask for it and there is one.
        """
        if settings.score == "fitted" and scorer is not None:
            return self.select(found, scorer.scores(self.score_features(found)), settings)
        margin, contrast_weight = settings.margin, settings.contrast_weight
        scores = plain_scores(found.at, found.proposals, margin=margin, contrast_weight=contrast_weight)
        return self.select(found, scores, settings)

    def select(self, found: Found, scores: np.ndarray, settings: DecodeSettings) -> pl.DataFrame:
        """Return what suppression leaves of proposals with these (n,) scores, the best ones of each recording."""
        owner, label, intervals = found.proposals.owner, found.proposals.label, found.proposals.intervals
        real = np.flatnonzero(scores > 0)
        kept, decayed = suppress(
            intervals[real],
            scores[real],
            owner[real] * len(self.actions) + label[real],
            method=settings.nms,
            threshold=settings.nms_threshold,
            sigma=settings.nms_sigma,
            min_score=settings.min_score,
        )
        best = top_k(decayed, owner[real[kept]], settings.max_detections)
        rows, decayed = real[kept[best]], decayed[best]
        names = np.array(found.recordings, dtype=object)
        return pl.DataFrame(
            {
                "recording": names[owner[rows]].tolist(),
                "start_s": intervals[rows, 0],
                "end_s": intervals[rows, 1],
                "label": np.array(self.actions, dtype=object)[label[rows]].tolist(),
                "score": decayed,
            },
            schema=DETECTION_SCHEMA,
        )
