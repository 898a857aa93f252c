"""The stacker on a world in which every view sees some actions only."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import Chosen, Training, fit_stack
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.hierarchical import Penalty
from talstack.ensemble.stacker import ScenePrior, Stacker, hidden_views, sampled_rows
from talstack.ensemble.weighted import combine, negative_log_loss, segment_ap
from talstack.io.errors import MissingInputError, ModelError
from talstack.io.predictions import ModelKey
from talstack.io.targets import scene_targets, segment_index, segment_targets

PENALTY = Penalty(1.0, 10.0)


def fit_stacker(training: Training, penalty: Penalty, *, config: EnsembleConfig) -> Stacker:
    return fit_stack(training, Chosen(penalty), config=config).logistic


def learn(world, splits=("train", "val")) -> Training:
    manifest, table = world
    names = manifest.recordings_of(splits)
    index = segment_index(manifest, 1.0, names)
    return Training(
        Evidence.of(table, index, actions=manifest.actions, scenes=manifest.scenes),
        segment_targets(manifest, index, 1.0),
        scene_targets(manifest, names),
        np.arange(len(names)),
        1.0,
    )


@pytest.fixture(scope="module")
def training(world) -> Training:
    return learn(world)


@pytest.fixture(scope="module")
def scored(world) -> Training:
    return learn(world, ["test"])


@pytest.fixture(scope="module")
def stacker(training) -> Stacker:
    return fit_stacker(training, PENALTY, config=EnsembleConfig())


def test_class_that_one_model_sees_is_found_and_the_mean_beaten(stacker, scored) -> None:
    stacked = stacker.predict(scored.evidence)
    mean = combine(scored.evidence)
    filmed = scored.evidence.present.all(axis=0)
    jump = scored.targets[filmed][:, 2:]
    assert segment_ap(stacked.action[filmed][:, 2:], jump) > segment_ap(mean.action[filmed][:, 2:], jump) + 0.02
    assert segment_ap(stacked.action, scored.targets) > segment_ap(mean.action, scored.targets) + 0.02
    singles = [segment_ap(np.nan_to_num(probs), scored.targets) for probs in scored.evidence.action_probs]
    assert segment_ap(stacked.action, scored.targets) > max(singles) + 0.2


def test_activity_is_predicted(stacker, scored) -> None:
    any_action = scored.targets.any(axis=1, keepdims=True)
    stacked = stacker.predict(scored.evidence).activity[:, None]
    assert segment_ap(stacked, any_action) > 0.9
    assert stacked.shape == (scored.evidence.index.num_rows, 1)


VIEWS = ("ego", "pano", "third")


@pytest.mark.parametrize("gone", [*combinations(VIEWS, 1), *combinations(VIEWS, 2)])
def test_missing_views_degrade_but_do_not_fail(stacker, scored, gone) -> None:
    left = scored.evidence.without_views(gone)
    curves = stacker.predict(left)
    assert np.isfinite(curves.action).all()
    assert np.isfinite(curves.activity).all()
    score = segment_ap(curves.action, scored.targets)
    # within noise of what the mean of the remaining views still knows, and far above guessing
    assert score > segment_ap(combine(left).action, scored.targets) - 0.02
    assert score > 2 * scored.targets.mean()
    assert negative_log_loss(curves.action, scored.targets) > negative_log_loss(
        np.full_like(curves.action, scored.targets.mean()), scored.targets
    )


def test_no_view_at_all_leaves_the_frequencies(stacker, scored, training) -> None:
    curves = stacker.predict(scored.evidence.without_views(VIEWS))
    assert np.isfinite(curves.action).all()
    assert np.isfinite(curves.activity).all()
    # pouring is commoner in kitchens (even recordings), and the scene head still speaks
    kitchen = scored.scene_ids[scored.evidence.segment_recordings()] == 0
    assert curves.action[kitchen, 0].mean() > curves.action[~kitchen, 0].mean()


def test_hiding_views_in_training_is_what_makes_it_robust(training, scored) -> None:
    left = scored.evidence.without_views(["third"])
    scores = {}
    for chance in (0.0, 0.3):
        fitted = fit_stacker(training, PENALTY, config=EnsembleConfig(view_dropout=chance))
        scores[chance] = negative_log_loss(fitted.predict(left).action, scored.targets)
    assert scores[0.3] > scores[0.0]


def test_new_model_is_ignored_and_order_does_not_matter(stacker, scored) -> None:
    evidence = scored.evidence
    shuffled = evidence.with_models(
        [evidence.models[2], ModelKey("drone", "rgb", "action-linear"), *evidence.models[:2]]
    )
    np.testing.assert_array_equal(stacker.predict(shuffled).action, stacker.predict(evidence).action)


def test_scene_moves_the_probabilities(stacker, scored) -> None:
    posterior = np.tile(np.array([0.95, 0.05], dtype=np.float32), (len(scored.scene_ids), 1))
    kitchen = stacker.predict(replace(scored.evidence, scene_probs=posterior)).action
    yard = stacker.predict(replace(scored.evidence, scene_probs=posterior[:, ::-1])).action
    assert kitchen[:, 0].mean() > yard[:, 0].mean()
    assert kitchen[:, 1].mean() < yard[:, 1].mean()


def test_same_seed_same_stacker(training, stacker) -> None:
    again = fit_stacker(training, PENALTY, config=EnsembleConfig())
    np.testing.assert_array_equal(again.action_weights.weights, stacker.action_weights.weights)


def test_saved_stacker_predicts_the_same(stacker, scored, tmp_path) -> None:
    stacker.save(tmp_path)
    loaded = Stacker.load(tmp_path)
    np.testing.assert_array_equal(
        loaded.predict(scored.evidence).action, stacker.predict(scored.evidence).action
    )  # fmt: skip
    assert (loaded.penalty, loaded.models) == (stacker.penalty, stacker.models)


def test_damaged_missing_and_foreign_stackers_are_refused(stacker, scored, tmp_path) -> None:
    with pytest.raises(MissingInputError, match=r"stacker\.json"):
        Stacker.load(tmp_path / "nowhere")
    stacker.save(tmp_path)
    other = replace(scored.evidence, actions=("a", "b", "c"))
    with pytest.raises(ModelError, match="fit it again"):
        stacker.predict(other)
    arrays = (tmp_path / "stacker.safetensors").read_bytes()
    for broken in (b"not tensors", arrays[:-1] + bytes([arrays[-1] ^ 1])):
        (tmp_path / "stacker.safetensors").write_bytes(broken)
        with pytest.raises(ModelError, match="not a stacker that talstack wrote"):
            Stacker.load(tmp_path)
    (tmp_path / "stacker.json").write_text("[]")
    with pytest.raises(ModelError, match="format None"):
        Stacker.load(tmp_path)
    (tmp_path / "stacker.json").write_text('{"format_version": 99}')
    with pytest.raises(ModelError, match="format 99, expected 2"):
        Stacker.load(tmp_path)


def test_scene_prior_is_the_smoothed_share(training) -> None:
    evidence, targets = training.evidence, training.targets
    of_row = training.scene_ids[evidence.segment_recordings()]
    prior = ScenePrior.of(evidence, targets, training.scene_ids, smoothing=0.0)
    np.testing.assert_allclose(prior.by_scene[1], targets[of_row == 1].mean(axis=0), rtol=1e-5)
    rigid = ScenePrior.of(evidence, targets, training.scene_ids, smoothing=1e9)
    np.testing.assert_allclose(rigid.by_scene[1], rigid.overall, rtol=1e-3)
    posterior = np.array([[1.0, 0.0], [np.nan, np.nan]], dtype=np.float32)
    ratio = prior.log_ratio(posterior)
    np.testing.assert_allclose(ratio[0], np.log(prior.by_scene[0] / prior.overall), atol=1e-4)
    assert not ratio[1].any()


def test_data_set_without_scenes_stacks_too(training, scored) -> None:
    def bare(part: Training) -> Training:
        none = np.zeros((len(part.scene_ids), 0), dtype=np.float32)
        return replace(
            part,
            evidence=replace(part.evidence, scenes=(), scene_probs=none),
            scene_ids=np.full_like(part.scene_ids, -1),
        )

    curves = fit_stacker(bare(training), PENALTY, config=EnsembleConfig()).predict(bare(scored).evidence)
    assert segment_ap(curves.action, scored.targets) > 0.7


def test_hidden_views_go_together_and_never_all() -> None:
    models = [ModelKey(v, m, f"action-{h}") for v in ("a", "b") for m in ("rgb", "audio") for h in ("linear", "gbm")]
    present = np.ones((8, 4000), dtype=bool)
    present[:4, :1000] = False
    hidden = hidden_views(models, present, chance=0.5, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(hidden[::2], hidden[1::2])  # the learners of one (view, modality)
    assert (present & ~hidden).any(axis=0).all()
    one_view, across_views = (hidden[0] & hidden[2])[1000:].mean(), (hidden[0] & hidden[4])[1000:].mean()
    assert one_view > 1.2 * across_views  # a view goes with both of its modalities
    assert not hidden_views(models, present, chance=0.0, rng=np.random.default_rng(0)).any()


def test_pieces_are_hidden_with_the_view_they_are_cut_from() -> None:
    models = [ModelKey(view, "rgb", "action-linear") for view in ("a", "a@left", "a@right", "b")]
    hidden = hidden_views(models, np.ones((4, 4000), dtype=bool), chance=0.2, rng=np.random.default_rng(0))
    assert 0.1 < hidden[:3].all(axis=0).mean() < 0.2  # of three cameras this would be 0.03


def test_row_sample_is_bounded_sorted_and_seeded() -> None:
    assert sampled_rows(5, 10, np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]
    some = sampled_rows(1000, 10, np.random.default_rng(0))
    assert len(set(some.tolist())) == 10
    assert (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, sampled_rows(1000, 10, np.random.default_rng(0)))


def test_sampled_training_still_learns(training, scored) -> None:
    small = fit_stacker(training, PENALTY, config=EnsembleConfig(max_rows=150))
    assert segment_ap(small.predict(scored.evidence).action, scored.targets) > 0.7
