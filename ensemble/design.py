"""The stacker's features: what every model says about a class, here and around, and what it says against it.

For one recording of S segments, M models and C classes the features form a (K, M, S, C) array of K kinds:

- own: logit of the class in the segment
- one per neighbour window: mean logit of the segments that far before and after
- companion: logit of "any action"
- rival: logit of the likeliest other class

"Any action" itself is predicted from the first two kinds. NaN where a model has no prediction. `Scaling`
standardises the features by kind and model, and fills a missing model with the mean of those present, so that the
weight it would have had falls to them: with M views of about equal worth a fill by the training mean would
instead shrink every logit by the missing share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CLIP = 1e-3  # a head's 0.0001 says no more than its 0.001


def logits(probs: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)) of probabilities clipped to [CLIP, 1 - CLIP], float32; NaN stays."""
    clipped = np.clip(probs, CLIP, 1.0 - CLIP)
    return np.log(clipped / (1.0 - clipped)).astype(np.float32)


def action_features(action_probs: np.ndarray, activity_probs: np.ndarray, neighbours: Sequence[int]) -> np.ndarray:
    """Return the features of every action, (K, M, S, C) float32, of one recording.

    Args:
        action_probs: (M, S, C); NaN where missing.
        activity_probs: (M, S).
        neighbours: ascending reaches of the windows, segments.
    """
    own = logits(action_probs)
    companion = np.broadcast_to(logits(activity_probs)[..., None], own.shape)
    return np.stack([own, *neighbour_means(own, neighbours), companion, _rival(own)])


def activity_features(action_probs: np.ndarray, activity_probs: np.ndarray, neighbours: Sequence[int]) -> np.ndarray:
    """Return the features of "any action", (2, M, S, 1) float32: own and nearest window; arguments as above.

    Wider windows and the likeliest action blur the ends of actions (35 against 38 mAP at tIoU 0.95 on mhad).
    """
    del action_probs
    own = logits(activity_probs)[..., None]
    return np.stack([own, *neighbour_means(own, neighbours[:1])])


def neighbour_means(values: np.ndarray, neighbours: Sequence[int]) -> list[np.ndarray]:
    """Return per window the mean over the segments at that distance on both sides, shaped as the (M, S, C) input.

    Windows are 1..a, a+1..b, ... for reaches (a, b, ...). Only segments inside the recording with a value count;
    where there are none, the segment's own value stands in.
    """
    present, num_segments = ~np.isnan(values), values.shape[1]
    if present.all():
        total, count = _prefix_sum(values), np.arange(num_segments + 1.0)[None, :, None]
    else:
        total, count = _prefix_sum(np.where(present, values, 0.0)), _prefix_sum(present)
    here = np.arange(num_segments)
    means = []
    for nearest, reach in zip([1, *(r + 1 for r in neighbours[:-1])], neighbours, strict=True):
        sides = [(here - reach, here - nearest + 1), (here + nearest, here + reach + 1)]
        bounds = [(np.clip(low, 0, num_segments), np.clip(high, 0, num_segments)) for low, high in sides]
        sums = sum(total[:, high] - total[:, low] for low, high in bounds)
        counts = sum(count[:, high] - count[:, low] for low, high in bounds)
        means.append(np.divide(sums, counts, out=values.astype(np.float64), where=counts > 0).astype(np.float32))
    return means


def _prefix_sum(values: np.ndarray) -> np.ndarray:
    start = np.zeros((values.shape[0], 1, values.shape[2]))
    return np.concatenate([start, np.cumsum(values, axis=1, dtype=np.float64)], axis=1)


def _rival(own: np.ndarray) -> np.ndarray:
    """Return the largest logit among the other classes, (M, S, C); a class without rivals has the lowest logit."""
    if own.shape[2] == 1:
        return np.where(np.isnan(own), np.nan, logits(np.zeros(1))).astype(np.float32)
    ordered = np.sort(own, axis=2)
    top, second = ordered[..., -1:], ordered[..., -2:-1]
    return np.where(own >= top, second, top)


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Standardisation of features by kind and model.

    Attributes:
        mean, std: (K, M) float32 over the training rows.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Scaling":
        """Return the scaling of (K, M, N, C) features; a model without any row gets mean 0 and deviation 1."""
        mean, std = np.zeros(features.shape[:2]), np.ones(features.shape[:2])
        for place in np.ndindex(*features.shape[:2]):  # one at a time stays in a core's cache
            values = features[place][~np.isnan(features[place])]
            if len(values):
                mean[place] = values.mean(dtype=np.float64)
                values -= np.float32(mean[place])
                std[place] = np.sqrt(np.square(values).mean(dtype=np.float64))
        return cls(mean.astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32))

    def standardise(self, features: np.ndarray) -> np.ndarray:
        """Return (K, M, N, C) features with mean 0 and deviation 1 by kind and model; NaN stays."""
        return np.asarray((features - self.mean[..., None, None]) / self.std[..., None, None], dtype=np.float32)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return the standardised features, (C, N, K * M + M) float32: missing ones filled, indicators last.

        A missing model is filled with the mean of the present ones of its kind, and with 0, the training mean,
        where none is present. The M indicators are 1 where a model is missing, 0 where it is present.
        """
        num_kinds, num_models, num_rows, num_classes = features.shape
        scaled = self.standardise(features)
        missing = np.isnan(scaled)
        if missing.any():
            filled = np.where(missing, 0.0, scaled)
            count = np.maximum((~missing).sum(axis=1, keepdims=True), 1)
            scaled = np.where(missing, filled.sum(axis=1, keepdims=True) / count, filled)
        flat = scaled.reshape(num_kinds * num_models, num_rows, num_classes).transpose(2, 1, 0)
        absent = np.broadcast_to(missing[0, :, :, 0].T, (num_classes, num_rows, num_models))
        return np.concatenate([flat, absent], axis=2, dtype=np.float32)
