"""Nothing is tuned or scored on what it was fitted on."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import (
    BY_CLASS,
    Chosen,
    Training,
    cross_fit_stacker,
    cross_fit_weighted,
    fit_and_cross_fit_stack,
    fit_and_cross_fit_weighted,
    fit_stack,
    fit_weights,
    learnable_folds,
)
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.hierarchical import Penalty
from talstack.ensemble.stacker import TrainingRows, fit_stackers, predict_each
from talstack.ensemble.weighted import combine, negative_log_loss
from talstack.io.errors import LeakError
from talstack.io.targets import scene_targets, segment_index, segment_targets

CONFIG = EnsembleConfig(shared_l2=(1.0, 1000.0), class_l2=(10.0,), weighted_rounds=5, stacker="logistic")


@pytest.fixture(scope="module")
def training(world) -> Training:
    manifest, table = world
    folds = learnable_folds(table, seen=(), scored=())
    index = segment_index(manifest, 1.0, list(folds))
    return Training(
        Evidence.of(table, index, actions=manifest.actions, scenes=manifest.scenes),
        segment_targets(manifest, index, 1.0),
        scene_targets(manifest, list(folds)),
        np.array(list(folds.values())),
        1.0,
    )


def lies_about(training: Training, group: int) -> tuple[Training, np.ndarray]:
    """Return the training with the targets of one group turned round, and which rows these are."""
    rows = (training.groups == group)[training.evidence.segment_recordings()]
    targets = training.targets.copy()
    targets[rows] = ~targets[rows]
    return replace(training, targets=targets), rows


@pytest.mark.parametrize("stacker", ["logistic", "gbm"])  # of both, the share has looked at all groups
def test_held_out_predictions_never_saw_their_own_targets(training, stacker) -> None:
    one_penalty = replace(CONFIG, shared_l2=(1.0,), stacker=stacker, gbm_rounds=(20,))
    honest, _ = cross_fit_stacker(training, config=one_penalty)
    false, rows = lies_about(training, 2)
    told, _ = cross_fit_stacker(false, config=one_penalty)
    np.testing.assert_array_equal(told.action[rows], honest.action[rows])
    np.testing.assert_array_equal(told.activity[rows], honest.activity[rows])
    assert np.abs(told.action[~rows] - honest.action[~rows]).max() > 0.01
    # in-sample predictions do follow the false targets: this is what nesting is for
    share = float(stacker == "gbm")
    chosen = Chosen(Penalty(1.0, 10.0), 20 if share else None, share)
    in_sample = [fit_stack(t, chosen, config=one_penalty).predict(t.evidence).action[rows] for t in (training, false)]
    assert np.abs(in_sample[0] - in_sample[1]).max() > 0.01


def test_combiners_side_by_side_are_what_each_is_alone(training) -> None:
    names = ["weighted_by_class", "weighted", "weighted_direct"]
    for name, (weights, held_out) in fit_and_cross_fit_weighted(training, names, config=CONFIG, jobs=2).items():
        np.testing.assert_array_equal(weights, fit_weights(training, config=CONFIG, combiner=name))
        alone = cross_fit_weighted(training, config=CONFIG, combiner=name)
        np.testing.assert_array_equal(held_out.action, alone.action)
        np.testing.assert_array_equal(held_out.activity, alone.activity)


def test_stackers_that_predict_together_are_what_each_is_alone(training) -> None:
    rows = TrainingRows.of(training.evidence, training.targets, training.scene_ids, neighbours=(1,), config=CONFIG)
    stackers = fit_stackers(rows, penalties=[Penalty(1.0, 10.0), Penalty(1000.0, 10.0)])
    one, two = predict_each(stackers, training.evidence)
    for stacker, curves in zip(stackers, (one, two), strict=True):
        np.testing.assert_array_equal(stacker.predict(training.evidence).action, curves.action)
        np.testing.assert_array_equal(stacker.predict(training.evidence).activity, curves.activity)
    assert np.abs(one.action - two.action).max() > 0.01 < np.abs(one.activity - two.activity).max()


@pytest.mark.parametrize("combiner", ["weighted", "weighted_direct", "weighted_by_class"])
def test_weights_are_held_out_too(training, combiner) -> None:
    honest = cross_fit_weighted(training, config=CONFIG, combiner=combiner)
    false, rows = lies_about(training, 1)
    told = cross_fit_weighted(false, config=CONFIG, combiner=combiner)
    np.testing.assert_array_equal(told.action[rows], honest.action[rows])
    assert np.abs(told.action[~rows] - honest.action[~rows]).max() > 0.01
    in_sample = [
        combine(t.evidence, fit_weights(t, config=CONFIG, combiner=combiner)).action[rows] for t in (training, false)
    ]
    assert np.abs(in_sample[0] - in_sample[1]).max() > 0.01


def test_penalty_that_predicts_better_is_chosen(training) -> None:
    assert cross_fit_stacker(training, config=CONFIG)[1].penalty.shared == 1.0


def test_number_of_trees_that_predicts_better_is_chosen(training) -> None:
    config = replace(CONFIG, shared_l2=(1.0,), stacker="gbm", gbm_rounds=(100, 1))
    curves, chosen = cross_fit_stacker(training, config=config)
    assert chosen.num_rounds == 100
    stump, _ = cross_fit_stacker(training, config=replace(config, gbm_rounds=(1,)))
    assert negative_log_loss(curves.action, training.targets) > negative_log_loss(stump.action, training.targets) + 0.1


@pytest.mark.parametrize("stacker", ["logistic", "gbm", "both"])
def test_stack_fitted_beside_its_folds_is_what_it_is_alone(training, stacker) -> None:
    config = replace(CONFIG, stacker=stacker, gbm_rounds=(40, 20), stack_mean=0.25)
    stack, held_out, chosen = fit_and_cross_fit_stack(training, config=config, jobs=2)
    alone, chosen_alone = cross_fit_stacker(training, config=config)
    assert chosen == chosen_alone
    np.testing.assert_array_equal(held_out.action, alone.action)
    fitted = fit_stack(training, chosen, config=config)
    np.testing.assert_array_equal(stack.mean.weights, fitted.mean.weights)
    found, expected = stack.predict(training.evidence), fitted.predict(training.evidence)
    np.testing.assert_allclose(found.action, expected.action, atol=0.01)  # the solver came along the path of penalties
    np.testing.assert_allclose(found.activity, expected.activity, atol=0.01)
    mean = fit_and_cross_fit_weighted(training, [BY_CLASS], config=config)[BY_CLASS]
    again, _, _ = fit_and_cross_fit_stack(training, config=config, mean=mean)
    np.testing.assert_array_equal(again.predict(training.evidence).action, found.action)


def test_threads_change_nothing(training) -> None:
    one, _ = cross_fit_stacker(training, config=CONFIG, jobs=1)
    two, _ = cross_fit_stacker(training, config=CONFIG, jobs=2)
    np.testing.assert_array_equal(one.action, two.action)


def test_held_out_stack_has_the_mean_whose_weights_were_found_without_it(training) -> None:
    config = replace(CONFIG, shared_l2=(1.0,))
    alone, _ = cross_fit_stacker(training, config=replace(config, stack_mean=0.0))
    found, _ = cross_fit_stacker(training, config=replace(config, stack_mean=0.25))
    mean = cross_fit_weighted(training, config=config, combiner="weighted_by_class")
    np.testing.assert_allclose(found.action, 0.75 * alone.action + 0.25 * mean.action, atol=1e-6)
    given, _ = cross_fit_stacker(training, config=replace(config, stack_mean=0.25), mean=mean)
    np.testing.assert_array_equal(given.action, found.action)


def test_rows_come_back_in_the_order_of_the_recordings(training) -> None:
    config = replace(CONFIG, shared_l2=(1.0,), stacker="both", gbm_rounds=(20,))
    curves, chosen = cross_fit_stacker(training, config=config)
    group = training.groups[-1]
    fit, held_out = next(pair for pair in training.splits() if (pair[1].groups == group).all())
    alone = fit_stack(fit, chosen, config=config).predict(held_out.evidence)
    last = training.evidence.index.recordings[-1]
    mine, theirs = dict(curves.index.slices())[last], dict(alone.index.slices())[last]
    np.testing.assert_allclose(curves.action[mine], alone.action[theirs], atol=1e-6)


def test_seen_and_scored_recordings_are_not_learned_from(world) -> None:
    manifest, table = world
    everything = learnable_folds(table, seen=(), scored=())
    assert sorted(everything) == manifest.recordings_of(["train", "val"])
    assert everything == dict(manifest.folds.iter_rows())
    left = learnable_folds(table, seen=["rec00", "rec01"], scored=["rec08", "rec12"])
    assert set(everything) - set(left) == {"rec00", "rec01", "rec08"}


def test_too_little_left_says_what_to_do(world) -> None:
    manifest, table = world
    seen = manifest.recordings_of(["train", "val"])[:-1]
    with pytest.raises(LeakError, match="1 recordings to learn from.*9 were seen.*holdout_folds.*val split"):
        learnable_folds(table, seen=seen, scored=())


def test_recordings_of_one_fold_are_told_apart(world) -> None:
    manifest, table = world
    fold = dict(manifest.folds.iter_rows())
    seen = [name for name in fold if fold[name] != 0]
    left = learnable_folds(table, seen=seen, scored=())
    assert set(left) == {name for name in fold if fold[name] == 0}
    assert len(set(left.values())) >= 2


def test_recordings_of_one_group_are_not_told_apart(world) -> None:
    manifest, table = world
    fold = dict(manifest.folds.iter_rows())
    own = sorted(name for name in fold if fold[name] == 0)
    seen = set(fold) - set(own)
    groups = {name: 7 if name in own[:2] else i for i, name in enumerate(own)}
    left = learnable_folds(table, seen=seen, scored=(), groups=groups)
    assert left[own[0]] == left[own[1]] != left[own[2]]
    alone = learnable_folds(table, seen=seen, scored=(), groups=dict.fromkeys(own, 7))
    assert len(set(alone.values())) == len(own), "of a single group every recording is held out by itself"


def test_recordings_without_fold_are_test_recordings(world) -> None:
    _, table = world
    assert table.filter(pl.col("fold").is_null())["recording"].unique().sort().to_list() == [
        "rec10", "rec11", "rec12", "rec13",
    ]  # fmt: skip
    assert not {"rec10", "rec11"} & set(learnable_folds(table, seen=(), scored=()))
