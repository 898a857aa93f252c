"""Learning boundaries and scores from proposals on out-of-fold predictions.

Every group of recordings is decoded with what was learned on the others (`decode_held_out`), so that settings are
compared on detections that nothing was fitted to.
"""

from dataclasses import replace

import numpy as np
import polars as pl

from talstack.ensemble.calibration import Calibration
from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import Decoder, DecodeSettings, Fitted, Found
from talstack.ensemble.proposals import Proposals
from talstack.ensemble.refine import EdgeModel
from talstack.ensemble.scoring import Scorer
from talstack.evaluate.map import match_for_map
from talstack.io.intervals import pairwise_tiou

EDGE_L2 = 10.0
SCORE_L2 = 10.0
ROUNDS = 2  # of refinement: the second starts nearer to the end (34.5 to 37.1 mAP at tIoU 0.95 on mhad, out of fold)
CLOSE = 0.5  # a proposal tells where an instance's ends are from this tIoU on
Truth = dict[tuple[str, int], np.ndarray]


def truth_of(instances: pl.DataFrame, actions: tuple[str, ...]) -> Truth:
    """Return {(recording, class column): (n, 2) seconds}."""
    columns = {name: column for column, name in enumerate(actions)}
    parts = instances.filter(pl.col("label").is_in(list(actions))).partition_by("recording", "label", as_dict=True)
    return {
        (str(recording), columns[str(label)]): rows.select("start_s", "end_s").to_numpy().astype(np.float64)
        for (recording, label), rows in parts.items()
    }


def nearest_instances(recording: str, proposals: Proposals, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Return each proposal's best tIoU with an instance of its class, (n,), and that instance, (n, 2) seconds."""
    best, nearest = np.zeros(len(proposals.label)), np.zeros((len(proposals.label), 2))
    for label in np.unique(proposals.label):
        known = truth.get((recording, int(label)))
        if known is None:
            continue
        rows = np.flatnonzero(proposals.label == label)
        tiou = pairwise_tiou(proposals.intervals[rows], known)
        best[rows], nearest[rows] = tiou.max(axis=1), known[tiou.argmax(axis=1)]
    return best, nearest


def fit(
    decoder: Decoder, every: list[Found], truth: Truth, settings: DecodeSettings, *, tiou: tuple[float, ...]
) -> Fitted:
    """Return what the settings ask for, learned on proposals from predictions that are not in-sample.

    Args:
        every: `Decoder.propose` with the same settings.
        tiou: thresholds of the target metric; a proposal's quality is the share of them that it reaches.
    """
    fitted = Fitted(_fit_edges(decoder, every, truth) if settings.refine else ())
    if settings.score == "plain":
        return fitted
    return replace(fitted, scorer=_fit_scorer(decoder, every, truth, settings, fitted, tiou=tiou))


def _fit_edges(decoder: Decoder, every: list[Found], truth: Truth) -> tuple[EdgeModel, ...]:
    """Return the models of `ROUNDS` refinements, each fitted on what the one before has moved."""
    matched = []
    for found in every:
        best, nearest = nearest_instances(found.recording, found.proposals, truth)
        close = best >= CLOSE
        if close.any():
            proposals = found.proposals.rows(close)
            matched.append((replace(found, proposals=proposals), nearest[close], proposals.intervals))
    models: list[EdgeModel] = []
    for _ in range(ROUNDS if matched else 0):
        segment_s = matched[0][0].means.grid.segment_s
        features = np.concatenate([decoder.edge_features(found, now) for found, _, now in matched])
        late = np.concatenate([(nearest - now) / segment_s for _, nearest, now in matched])
        weights = np.concatenate([_one_per_instance(found, nearest) for found, nearest, _ in matched])
        model = EdgeModel.fit(features, late, weights, l2=EDGE_L2)
        if model is None:
            break
        models.append(model)
        matched = [(found, nearest, decoder.moved(found, now, model)) for found, nearest, now in matched]
    return tuple(models)


def _one_per_instance(found: Found, nearest: np.ndarray) -> np.ndarray:
    """Return weights that sum to one over the proposals of every instance, (n,)."""
    keys = np.column_stack([nearest, found.proposals.label])
    _, which, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1.0 / count[which.ravel()]
    return weights


def _fit_scorer(
    decoder: Decoder, every: list[Found], truth: Truth, settings: DecodeSettings, fitted: Fitted,
    *, tiou: tuple[float, ...],
) -> Scorer | None:  # fmt: skip
    features, quality = [], []
    for found in every:
        proposals = decoder.refined(found, settings, fitted)
        best, _ = nearest_instances(found.recording, proposals, truth)
        features.append(decoder.score_features(found, proposals))
        quality.append((best[:, None] >= np.array(tiou)).mean(axis=1))
    return Scorer.fit(np.concatenate(features), np.concatenate(quality), l2=SCORE_L2)


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


def decode_held_out(
    decoder: Decoder, curves: Curves, truth: Truth, settings: DecodeSettings,
    *, groups: dict[str, int], tiou: tuple[float, ...],
) -> pl.DataFrame:  # fmt: skip
    """Return the detections of every group of recordings, decoded with what was learned on the other groups.

    Args:
        groups: {recording: group}.
    """
    every = [found for batch in decoder.propose(curves, settings) for found in batch]
    if not settings.refine and settings.score == "plain":
        return decoder.detect(every, settings)
    parts = []
    for group in sorted({groups[found.recording] for found in every}):
        others = [found for found in every if groups[found.recording] != group]
        fitted = fit(decoder, others, truth, settings, tiou=tiou)
        parts.append(decoder.detect([found for found in every if groups[found.recording] == group], settings, fitted))
    return pl.concat(parts)
