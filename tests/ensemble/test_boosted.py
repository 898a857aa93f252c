"""The boosted stacker, alone and in a stack, on a world in which every view sees some actions only."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from talstack.ensemble.boosted import BoostedStacker, pair_columns
from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import Chosen, Training, cross_fit_stacker, fit_stack, fit_weights
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.hierarchical import Penalty
from talstack.ensemble.stack import Stack
from talstack.ensemble.stacker import TrainingRows, sampled_pairs
from talstack.ensemble.weighted import combine, negative_log_loss, segment_ap
from talstack.io.errors import ConfigError, ModelError
from talstack.io.predictions import ModelKey
from talstack.io.targets import scene_targets, segment_index, segment_targets

VIEWS = ("ego", "pano", "third")
PENALTY = Penalty(1.0, 10.0)
CHOSEN = {"gbm": Chosen(PENALTY, 100, 1.0), "both": Chosen(PENALTY, 100, 0.5)}
SLACK = 0.03  # of segment AP, that a stack may lie below the best single view left


def learn(world, splits) -> Training:
    manifest, table = world
    names = manifest.recordings_of(splits)
    index = segment_index(manifest, 1.0, names)
    evidence = Evidence.of(table, index, actions=manifest.actions, scenes=manifest.scenes)
    targets = segment_targets(manifest, index, 1.0)
    return Training(evidence, targets, scene_targets(manifest, names), np.arange(len(names)), 1.0)


def config_of(kind: str) -> EnsembleConfig:
    return EnsembleConfig(stacker=kind)


@pytest.fixture(scope="module")
def training(world) -> Training:
    return learn(world, ["train", "val"])


@pytest.fixture(scope="module")
def scored(world) -> Training:
    return learn(world, ["test"])


@pytest.fixture(scope="module")
def stacks(training) -> dict[str, Stack]:
    return {kind: fit_stack(training, CHOSEN[kind], config=config_of(kind)) for kind in ("gbm", "both")}


@pytest.mark.parametrize("kind", ["gbm", "both"])
def test_mean_and_every_single_model_are_beaten(stacks, scored, kind) -> None:
    curves = stacks[kind].predict(scored.evidence)
    stacked = segment_ap(curves.action, scored.targets)
    assert stacked > segment_ap(combine(scored.evidence).action, scored.targets)
    singles = [segment_ap(np.nan_to_num(probs), scored.targets) for probs in scored.evidence.action_probs]
    assert stacked > max(singles) + 0.2
    assert ((curves.action >= 0) & (curves.action <= 1)).all()


@pytest.mark.parametrize("kind", ["gbm", "both"])
@pytest.mark.parametrize("gone", [*combinations(VIEWS, 1), *combinations(VIEWS, 2)])
def test_missing_views_degrade_but_do_not_fail(stacks, scored, kind, gone) -> None:
    left = scored.evidence.without_views(gone)
    curves = stacks[kind].predict(left)
    score = segment_ap(curves.action, scored.targets)
    singles = [segment_ap(np.nan_to_num(probs), scored.targets) for probs in left.action_probs]
    assert score > max(singles) - SLACK
    frequencies = np.full_like(curves.action, scored.targets.mean())
    assert negative_log_loss(curves.action, scored.targets) > negative_log_loss(frequencies, scored.targets)


def test_no_view_at_all_still_gives_probabilities(stacks, scored) -> None:
    curves = stacks["both"].predict(scored.evidence.without_views(VIEWS))
    assert np.isfinite(curves.action).all()
    assert curves.action.mean() < 0.5


def test_hiding_views_in_training_is_what_makes_it_robust(training, scored) -> None:
    left = scored.evidence.without_views(["third", "pano"])
    loss = {}
    for chance in (0.0, 0.25):
        config = replace(config_of("gbm"), view_dropout=chance)
        curves = fit_stack(training, CHOSEN["gbm"], config=config).predict(left)
        loss[chance] = -negative_log_loss(curves.action, scored.targets)
    assert loss[0.25] < loss[0.0]


def test_scene_moves_the_probabilities(stacks, scored) -> None:
    posterior = np.tile(np.array([0.95, 0.05], dtype=np.float32), (len(scored.scene_ids), 1))
    kitchen = stacks["gbm"].predict(replace(scored.evidence, scene_probs=posterior)).action
    yard = stacks["gbm"].predict(replace(scored.evidence, scene_probs=posterior[:, ::-1])).action
    assert kitchen[:, 0].mean() > yard[:, 0].mean()


def test_both_is_the_mean_of_the_two(stacks, scored) -> None:
    both = replace(stacks["both"], mean=None)
    logistic, boosted = both.logistic.predict(scored.evidence), both.boosted.predict(scored.evidence)
    np.testing.assert_allclose(both.predict(scored.evidence).action, (logistic.action + boosted) / 2, atol=1e-6)
    np.testing.assert_array_equal(both.predict(scored.evidence).activity, logistic.activity)


def test_half_of_the_stack_is_the_mean_weighted_by_class(training, stacks, scored) -> None:
    alone = replace(stacks["both"], mean=None).predict(scored.evidence)
    weights = fit_weights(training, config=config_of("both"), combiner="weighted_by_class")
    mean, found = combine(scored.evidence, weights), stacks["both"].predict(scored.evidence)
    np.testing.assert_allclose(found.action, (alone.action + mean.action) / 2, atol=1e-6)
    np.testing.assert_allclose(found.activity, (alone.activity + mean.activity) / 2, atol=1e-6)
    config = replace(config_of("both"), stack_mean=0.0)
    assert fit_stack(training, CHOSEN["both"], config=config).mean is None


def test_the_better_stacker_gets_the_share(training) -> None:
    one_penalty = replace(config_of("both"), shared_l2=(1.0,), class_l2=(10.0,))
    folded = replace(training, groups=training.groups % 3)
    assert cross_fit_stacker(folded, config=replace(one_penalty, gbm_rounds=(1,)))[1] == Chosen(PENALTY)
    rigid = replace(one_penalty, shared_l2=(1e6,), class_l2=(1e6,), gbm_rounds=(100,))
    assert cross_fit_stacker(folded, config=rigid)[1] == Chosen(Penalty(1e6, 1e6), 100, 1.0)


def test_same_seed_same_trees(training, stacks) -> None:
    assert fit_stack(training, CHOSEN["gbm"], config=config_of("gbm")).boosted.text == stacks["gbm"].boosted.text


def test_fewer_trees_are_the_first_ones(training, scored, stacks) -> None:
    boosted = stacks["gbm"].boosted
    fewer = fit_stack(training, replace(CHOSEN["gbm"], num_rounds=30), config=config_of("gbm")).boosted
    first, same, every = boosted.predict_path(scored.evidence, [30, 30, 100])
    np.testing.assert_allclose(first, fewer.predict(scored.evidence), atol=1e-6)
    np.testing.assert_array_equal(same, first)
    np.testing.assert_allclose(every, boosted.predict(scored.evidence), atol=1e-6)
    np.testing.assert_allclose(boosted.shortened(30).predict(scored.evidence), first, atol=1e-6)
    assert boosted.shortened(30).num_rounds == 30
    assert boosted.shortened(1000) is boosted


def test_order_of_models_does_not_matter(stacks, scored) -> None:
    evidence = scored.evidence
    shuffled = evidence.with_models([evidence.models[2], ModelKey("drone", "rgb", "action-gbm"), *evidence.models[:2]])
    np.testing.assert_array_equal(stacks["gbm"].predict(shuffled).action, stacks["gbm"].predict(evidence).action)


def test_saved_stack_predicts_the_same_and_damage_is_refused(stacks, scored, tmp_path) -> None:
    stacks["both"].save(tmp_path)
    loaded = Stack.load(tmp_path)
    np.testing.assert_array_equal(
        loaded.predict(scored.evidence).action, stacks["both"].predict(scored.evidence).action
    )  # fmt: skip
    replace(stacks["both"], mean=None, mean_share=0.0).save(tmp_path)
    assert Stack.load(tmp_path).mean is None
    assert not (tmp_path / "stack_mean.json").exists()
    with pytest.raises(ModelError, match="fit it again"):
        loaded.boosted.predict(replace(scored.evidence, actions=("a", "b", "c")))
    text = (tmp_path / "boosted.lightgbm.txt").read_text()
    (tmp_path / "boosted.lightgbm.txt").write_text(text.replace("leaf_value", "leaf_valu3", 1))
    with pytest.raises(ModelError, match="does not match the hash"):
        Stack.load(tmp_path)
    (tmp_path / "boosted.json").write_text('{"format_version": 9}')
    with pytest.raises(ModelError, match="format 9, expected 1"):
        BoostedStacker.load(tmp_path)


@pytest.mark.parametrize("damage", [lambda text: text.replace("0.", "1.", 1), lambda text: "[]", None])
def test_a_changed_mean_is_refused(stacks, tmp_path, damage) -> None:
    stacks["both"].save(tmp_path)
    path = tmp_path / "stack_mean.json"
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()))
    with pytest.raises(ModelError, match=r"stack_mean\.json: (has changed|not what talstack writes)"):
        Stack.load(tmp_path)


def test_columns_say_the_same_of_every_action() -> None:
    rng = np.random.default_rng(0)
    models = [ModelKey(view, "rgb", f"action-{h}") for view in "ab" for h in ("gbm", "linear")]
    features = rng.normal(size=(5, 4, 6, 3)).astype(np.float32)
    features[:, 1, 2] = np.nan
    ratio = rng.normal(size=(6, 3)).astype(np.float32)
    columns = pair_columns(features, models, ratio).reshape(6, 3, -1)
    turned = pair_columns(features[..., ::-1], models, ratio[:, ::-1]).reshape(6, 3, -1)
    np.testing.assert_array_equal(turned[:, ::-1], columns)
    np.testing.assert_allclose(columns[2, :, 0], features[0, 0, 2])  # view a has one model left
    np.testing.assert_allclose(columns[0, :, 0], features[0, :2, 0].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(columns[..., -1], ratio)
    assert columns[2, 0, -2] == 0.75


def test_easy_pairs_are_thinned_and_weigh_more(training) -> None:
    config = config_of("gbm")
    rows = TrainingRows.of(training.evidence, training.targets, training.scene_ids, neighbours=(1, 2), config=config)
    easy = np.full_like(rows.action, -5.0)
    easy[:, 1] = np.nan
    easy[0, 0, :50] = 0.0
    taken, weight = sampled_pairs(replace(rows, action=easy))
    num_pairs, hard = rows.targets.size, rows.targets.copy()
    hard[:50] = True
    assert set(np.flatnonzero(hard)) <= set(taken)
    assert (weight[hard.ravel()[taken]] == 1.0).all()
    assert len(taken) < hard.sum() + 0.2 * (num_pairs - hard.sum())
    assert weight.sum() == pytest.approx(num_pairs, rel=0.15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gbm_rounds": ()}, "gbm_rounds: expected at least one"),
        ({"combiners": ("median",)}, "combiners: expected some of .*got 'median'"),
        ({"weighted_pull": -1.0}, "weighted_pull: expected >= 0"),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        EnsembleConfig(**settings)
