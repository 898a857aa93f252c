"""Several backbones for one data set: which of them makes which recording's features, and what their shards share.

A member is a backbone that serves some views, and some folds that it was not trained on. Each network has coordinates
of its own, so features of different members cannot be compared; their log-probabilities can, and a recording with
several members has the mean of these.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import log_expit, log_softmax

from talstack.io.shard import Shard
from talstack.io.view_names import split_view

Link = Literal["softmax", "sigmoid"]
_LARGEST_LOG_PROB = -1e-7  # a logit of 16: float32 has no larger probability below one


@dataclass(frozen=True, slots=True)
class Member:
    """One backbone of several.

    Attributes:
        name: of its folder.
        backbone: what identifies its weights, for recipes.
        views: it serves, pieces of their pictures too; empty = all.
        folds: of the data set that it was not trained on, and whose recordings it serves; empty = every recording.
        known: recordings that it was trained on or stopped early by.
    """

    name: str
    backbone: Mapping[str, Any] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    known: tuple[str, ...] = ()


def members_of_view(members: Iterable[Member], view: str) -> tuple[Member, ...]:
    """Return the members that serve a view: those that name it, else the view it is cut from, else those for all."""
    members = tuple(members)
    named = (tuple(m for m in members if name in m.views) for name in (view, split_view(view)[0]))
    return next(filter(None, named), ()) or tuple(m for m in members if not m.views)


def choose_members(members: Iterable[Member], view: str, fold: int | None) -> tuple[Member, ...]:
    """Return the members that make the features of a view of a recording, sorted by name.

    Args:
        fold: the recording's; the members that were not trained on it are chosen. None, or a fold that no member was
            trained without: all of the view, whose log-probabilities are averaged.
    """
    own = sorted(members_of_view(members, view), key=lambda member: member.name)
    return tuple(member for member in own if fold is not None and fold in member.folds) or tuple(own)


def mean_shard(shards: Sequence[Shard], *, link: Link) -> Shard:
    """Return the shard that several members' shards of one recording and view have in common.

    It has no feature columns. Its logits are such that their log-probabilities are the mean of the members', but for a
    constant of each segment under softmax; a segment is valid where it is for all.

    Args:
        shards: of the same segments, with logits.
        link: between the action logits and probabilities; that of scenes is softmax.
    """
    first = shards[0]
    valid = np.all([shard.valid for shard in shards], axis=0)
    return Shard(
        np.zeros((len(valid), 0), dtype=np.float16), valid, first.times_s, aligned=first.aligned,
        logits=_mean_logits([shard.logits for shard in shards], valid, link),
        scene_logits=_mean_logits([shard.scene_logits for shard in shards], valid, "softmax"),
        notes=tuple(dict.fromkeys(note for shard in shards for note in shard.notes)),
    )  # fmt: skip


def log_probs(logits: np.ndarray, link: Link) -> np.ndarray:
    """Return the (N, C) log-probabilities of (N, C) logits."""
    return np.asarray(log_softmax(logits, axis=1) if link == "softmax" else log_expit(logits))


def _mean_logits(logits: Sequence[np.ndarray | None], valid: np.ndarray, link: Link) -> np.ndarray | None:
    there = [one.astype(np.float64) for one in logits if one is not None]
    if len(there) < len(logits):
        return None
    if len(there) == 1 and link == "sigmoid":
        return np.asarray(there[0].astype(np.float32))
    mean = np.mean([log_probs(one, link) for one in there], axis=0)
    if link == "sigmoid":  # log(p) becomes log(p / (1 - p)), so that whoever reads logits finds logits
        mean = np.minimum(mean, _LARGEST_LOG_PROB)
        mean -= np.log(-np.expm1(mean))
    mean[~valid] = 0.0
    return np.asarray(mean.astype(np.float32))
