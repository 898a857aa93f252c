"""What may be learned from, and predictions for it that are not in-sample.

The ensemble learns only from out-of-fold rows of recordings that the backbone has not seen and that are not
scored. Whatever is tuned on top of a fitted combiner is tuned on predictions of combiners fitted without the
recording in question: group by group of recordings, the folds of the heads.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import polars as pl
from joblib import Parallel, delayed

from talstack.ensemble.boosted import BoostedStacker, fit_boosted
from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.curves import Curves
from talstack.ensemble.direct import direct_weights
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.hierarchical import Penalty
from talstack.ensemble.stack import SHARES, Stack, mixed
from talstack.ensemble.stacker import Stacker, TrainingRows, fit_stackers, predict_each
from talstack.ensemble.weighted import ClassMean, combine, greedy_weights, negative_log_loss
from talstack.io.errors import LeakError
from talstack.io.predictions import folds_in

BY_CLASS = "weighted_by_class"  # the combiner whose mean is part of the stack
_HeldOut = tuple[list[Curves], list[np.ndarray]]  # predictions for every penalty, those of every number of trees
MAX_GROUPS = 5  # where the folds do not tell the recordings apart


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """The recordings to learn from.

    Attributes:
        evidence: what the heads say about them, out of fold.
        targets: (N, C) bool, which actions each segment carries.
        scene_ids: (R,) int64, -1 where the scene is unknown.
        groups: (R,) int64; recordings of a group are held out together.
        segment_s: length of a segment, seconds.
    """

    evidence: Evidence
    targets: np.ndarray
    scene_ids: np.ndarray
    groups: np.ndarray
    segment_s: float

    def part(self, members: np.ndarray) -> "Training":
        """Return the recordings for which `members`, (R,) bool, is true."""
        names = [name for name, member in zip(self.evidence.index.recordings, members, strict=True) if member]
        rows = members[self.evidence.segment_recordings()]
        return Training(
            self.evidence.subset(names),
            self.targets[rows],
            self.scene_ids[members],
            self.groups[members],
            self.segment_s,
        )

    def splits(self) -> Iterator[tuple["Training", "Training"]]:
        """Yield (all other groups, this group), group by group."""
        for group in np.unique(self.groups):
            yield self.part(self.groups != group), self.part(self.groups == group)


def refuse_leaks(recordings: Collection[str], off_limits: Collection[str], *, doing: str) -> None:
    """Check that nothing is learned from recordings that a lower level has seen or that are to be scored.

    Args:
        recordings: what would be learned from.
        off_limits: what must not.
        doing: what would be done, for the message.

    Raises:
        LeakError: they share a recording.
    """
    leaked = sorted(set(recordings) & set(off_limits))
    if leaked:
        raise LeakError(
            f"{doing}: {len(leaked)} of {len(recordings)} recordings were learned from further down or are to be "
            f"scored, the first: {leaked[0]}; leave them out"
        )


def learnable_folds(
    table: pl.DataFrame, *, seen: Collection[str], scored: Collection[str], groups: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return the group of every recording that the ensemble may learn from, sorted by recording.

    These have a fold in the out-of-fold table and are neither seen by the backbone nor to be scored. Groups are
    their folds, or parts of about equal size where they all lie in one fold.

    Args:
        groups: number of every recording's group (a person, a house), which such parts do not divide.

    Raises:
        LeakError: fewer than two recordings are left.
    """
    folds = {name: fold for name, fold in folds_in(table) if fold is not None}
    left = {name: fold for name, fold in folds.items() if name not in set(seen) | set(scored)}
    if len(left) < 2:
        raise LeakError(
            f"the ensemble has {len(left)} recordings to learn from, it needs 2: of {len(folds)} with out-of-fold "
            f"predictions, {len(set(folds) & set(seen))} were seen by the fine-tuned backbone and "
            f"{len(set(folds) & set(scored))} are to be scored; hold out folds in [finetune] (holdout_folds), or give "
            "the data set a val split"
        )
    if len(set(left.values())) == 1:
        together = {name: (groups or {}).get(name, name) for name in left}
        order = list(dict.fromkeys(together.values()))
        if len(order) == 1:  # nothing but recordings of one group is left
            return {name: position % MAX_GROUPS for position, name in enumerate(left)}
        return {name: order.index(together[name]) % MAX_GROUPS for name in left}
    return left


@dataclass(frozen=True, slots=True)
class Chosen:
    """What has the least log-loss on held-out groups.

    Attributes:
        penalty: of the logistic stacker.
        num_rounds: trees of the boosted stacker; None where it has no part.
        share: of the boosted stacker in the probabilities, 0 to 1.
    """

    penalty: Penalty
    num_rounds: int | None = None
    share: float = 0.0


def cross_fit_stacker(
    training: Training, *, config: EnsembleConfig, mean: Curves | None = None, jobs: int = 1
) -> tuple[Curves, Chosen]:
    """Return the stack's predictions for groups it was not fitted on, and what has the least log-loss there.

    Every group is predicted by stackers fitted on the others. Only the choice among a few penalties, numbers of trees
    and shares has looked at all groups.

    Args:
        mean: `cross_fit_weighted` by class, where it is there already.
    """
    return cross_fit_stackers(training, [config.stacker], config=config, mean=mean, jobs=jobs)[config.stacker]


def cross_fit_stackers(
    training: Training, kinds: Collection[str], *, config: EnsembleConfig, mean: Curves | None = None, jobs: int = 1
) -> dict[str, tuple[Curves, Chosen]]:
    """Return what `cross_fit_stacker` does, for several kinds of stack (`SHARES`) made of the same fits."""
    parts = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_predict_held_out)(fit, held_out, set(kinds) != {"logistic"}, config)
        for fit, held_out in training.splits()
    )
    return _chosen(training, parts, kinds, config=config, mean=_mean_of(training, mean, config, jobs))


def fit_and_cross_fit_stack(
    training: Training, *, config: EnsembleConfig, mean: tuple[np.ndarray, Curves] | None = None, jobs: int = 1
) -> tuple[Stack, Curves, Chosen]:
    """Return what `fit_stack` and `cross_fit_stacker` do, with what is fitted on everything fitted beside the groups.

    Its logistic stacker is the one on the path of penalties, its trees are the first ones of most, as they were scored;
    by themselves they differ from these in the third digit.

    Args:
        mean: weights by class and their held-out predictions, where they are there already.
    """
    with_trees = config.stacker != "logistic"
    weights, held_out = mean or (None, None)
    folds = (delayed(_predict_held_out)(fit, left, with_trees, config) for fit, left in training.splits())
    whole, *parts = Parallel(n_jobs=jobs, prefer="threads")(
        chain([delayed(_fit_candidates)(training, with_trees, config)], folds)
    )
    held_out = _mean_of(training, held_out, config, jobs)
    curves, chosen = _chosen(training, parts, [config.stacker], config=config, mean=held_out)[config.stacker]
    return _stack(training, chosen, *whole, config=config, weights=weights), curves, chosen


def _mean_of(training: Training, mean: Curves | None, config: EnsembleConfig, jobs: int) -> Curves | None:
    """Return the held-out mean weighted by class, where it is part of the stack; it may be there already."""
    if not config.stack_mean:
        return None
    return mean or cross_fit_weighted(training, config=config, combiner=BY_CLASS, jobs=jobs)


def _chosen(
    training: Training,
    parts: Sequence[_HeldOut],
    kinds: Collection[str],
    *,
    config: EnsembleConfig,
    mean: Curves | None,
) -> dict[str, tuple[Curves, Chosen]]:
    """Return by kind of stack the predictions of the best candidates, and which these are.

    Args:
        parts: what `_predict_held_out` gives for each of `training.splits()`.
    """
    held_out = [part for _, part in training.splits()]
    best = _least_loss([[curves.action for curves in logistic] for logistic, _ in parts], held_out)
    penalty, logistic = _penalties(config)[best], [curves[best] for curves, _ in parts]
    num_rounds, boosted = 0, [curves.action for curves in logistic]
    if set(kinds) != {"logistic"}:
        best = _least_loss([trees for _, trees in parts], held_out)
        num_rounds, boosted = _rounds(config)[best], [trees[best] for _, trees in parts]
    found = {}
    for kind in kinds:
        shares = SHARES[kind]
        candidates = [
            [(1.0 - share) * curves.action + share * action for share in shares]
            for curves, action in zip(logistic, boosted, strict=True)
        ]
        best = _least_loss(candidates, held_out)
        joined = [replace(curves, action=actions[best]) for curves, actions in zip(logistic, candidates, strict=True)]
        chosen = Chosen(penalty, num_rounds, shares[best]) if shares[best] else Chosen(penalty)
        stacked = _joined(training, joined)
        found[kind] = stacked if mean is None else mixed(stacked, mean, config.stack_mean), chosen
    return found


def _penalties(config: EnsembleConfig) -> list[Penalty]:
    return [Penalty(shared, deviation) for shared in config.shared_l2 for deviation in config.class_l2]


def _rounds(config: EnsembleConfig) -> list[int]:
    return sorted(set(config.gbm_rounds))


def _least_loss(predictions: Sequence[Sequence[np.ndarray]], held_out: Sequence[Training]) -> int:
    """Return the candidate with the least log-loss over all held-out groups; predictions[group][candidate]."""
    losses = [
        sum(len(part.targets) * -negative_log_loss(probs[i], part.targets) for probs, part in
            zip(predictions, held_out, strict=True))
        for i in range(len(predictions[0]))
    ]  # fmt: skip
    return int(np.argmin(losses))


def fit_stack(
    training: Training, chosen: Chosen, *, config: EnsembleConfig, weights: np.ndarray | None = None
) -> Stack:
    """Return the chosen stackers, fitted on all of `training`.

    Args:
        weights: `fit_weights` by class, where they are there already.
    """
    rows = _rows(training, config)
    logistic = fit_stackers(rows, penalties=[chosen.penalty])
    boosted = None
    if chosen.num_rounds is not None:
        boosted = fit_boosted(rows, num_rounds=chosen.num_rounds, config=config)
    return _stack(training, chosen, logistic, boosted, config=config, weights=weights)


def _stack(
    training: Training,
    chosen: Chosen,
    logistic: Sequence[Stacker],
    boosted: BoostedStacker | None,
    *,
    config: EnsembleConfig,
    weights: np.ndarray | None,
) -> Stack:
    """Return the stack of the chosen ones among fitted stackers, with the mean whose `weights` may be there already."""
    best = next(stacker for stacker in logistic if stacker.penalty == chosen.penalty)
    boosted = boosted.shortened(chosen.num_rounds) if boosted and chosen.num_rounds is not None else None
    mean = None
    if config.stack_mean:
        if weights is None:
            weights = fit_weights(training, config=config, combiner=BY_CLASS)
        mean = ClassMean(training.evidence.models, training.evidence.actions, weights)
    return Stack(best, boosted, chosen.share, mean, config.stack_mean)


def cross_fit_weighted(
    training: Training, *, config: EnsembleConfig, combiner: str = "weighted", jobs: int = 1
) -> Curves:
    """Return a weighted combiner's predictions for groups that its weights were not found on."""
    parts = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_weigh_held_out)(fit, held_out, config, combiner) for fit, held_out in training.splits()
    )
    return _joined(training, parts)


def fit_and_cross_fit_weighted(
    training: Training, combiners: Collection[str], *, config: EnsembleConfig, jobs: int = 1
) -> dict[str, tuple[np.ndarray, Curves]]:
    """Return what `fit_weights` and `cross_fit_weighted` do, for several combiners side by side."""
    splits = list(training.splits())
    weigh = delayed(fit_weights)
    found = Parallel(n_jobs=jobs, prefer="threads")(
        weigh(part, config=config, combiner=name) for name in combiners for part in [training, *[f for f, _ in splits]]
    )
    several = {}
    for number, name in enumerate(combiners):
        weights, *without = found[number * (len(splits) + 1) :][: len(splits) + 1]
        parts = [combine(part.evidence, own) for (_, part), own in zip(splits, without, strict=True)]
        several[name] = weights, _joined(training, parts)
    return several


def fit_weights(training: Training, *, config: EnsembleConfig, combiner: str = "weighted") -> np.ndarray:
    """Return the weights found on all of `training`, (M,) float64, or (M, C) by class.

    Args:
        combiner: weighted (greedy selection), weighted_direct (least log-loss) or weighted_by_class.
    """
    if combiner == "weighted":
        return greedy_weights(
            training.evidence,
            training.targets,
            rounds=config.weighted_rounds,
            metric=config.weighted_metric,
            bags=config.weighted_bags,
            seed=config.seed,
        )
    by_class = combiner == BY_CLASS
    return direct_weights(training.evidence, training.targets, pull=config.weighted_pull, by_class=by_class)


def _predict_held_out(fit: Training, held_out: Training, with_trees: bool, config: EnsembleConfig) -> _HeldOut:
    logistic, boosted = _fit_candidates(fit, with_trees, config)
    trees = boosted.predict_path(held_out.evidence, _rounds(config)) if boosted else []
    return predict_each(logistic, held_out.evidence), trees


def _fit_candidates(
    training: Training, with_trees: bool, config: EnsembleConfig
) -> tuple[list[Stacker], BoostedStacker | None]:
    """Return a stacker for every penalty, and the boosted one with most trees."""
    rows = _rows(training, config)
    boosted = fit_boosted(rows, num_rounds=_rounds(config)[-1], config=config) if with_trees else None
    return fit_stackers(rows, penalties=_penalties(config)), boosted


def _rows(training: Training, config: EnsembleConfig) -> TrainingRows:
    neighbours = config.neighbours(training.segment_s)
    return TrainingRows.of(
        training.evidence, training.targets, training.scene_ids, neighbours=neighbours, config=config
    )


def _weigh_held_out(fit: Training, held_out: Training, config: EnsembleConfig, combiner: str) -> Curves:
    return combine(held_out.evidence, fit_weights(fit, config=config, combiner=combiner))


def _joined(training: Training, parts: Sequence[Curves]) -> Curves:
    """Return the parts' rows in the order of the training recordings."""
    action = {name: part.action[rows] for part in parts for name, rows in part.index.slices()}
    activity = {name: part.activity[rows] for part in parts for name, rows in part.index.slices()}
    names = training.evidence.index.recordings
    return Curves(
        training.evidence.index,
        np.concatenate([action[name] for name in names]),
        np.concatenate([activity[name] for name in names]),
    )
