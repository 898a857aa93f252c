from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax

from talstack.io.members import Member, choose_members, log_probs, mean_shard, members_of_view
from talstack.io.shard import Shard

FOLDS = (Member("a", folds=(0, 2)), Member("b", folds=(1,)))


def test_a_recording_gets_the_members_that_were_trained_without_its_fold() -> None:
    assert [[m.name for m in choose_members(FOLDS, "front", fold)] for fold in (0, 1, 2)] == [["a"], ["b"], ["a"]]
    assert [m.name for m in choose_members(FOLDS, "front", None)] == ["a", "b"]
    assert [m.name for m in choose_members(FOLDS[::-1], "front", 7)] == ["a", "b"], "a fold that nobody left out"


def test_a_view_and_its_pieces_go_to_the_member_that_names_it_and_others_to_that_for_all() -> None:
    members = (Member("own", views=("pano",)), Member("rest"), Member("side", views=("pano@yaw090",)))
    assert [m.name for m in members_of_view(members, "ego")] == ["rest"]
    assert [m.name for m in members_of_view(members, "pano@yaw180")] == ["own"]
    assert [m.name for m in members_of_view(members, "pano@yaw090")] == ["side"]
    assert members_of_view(members[::2], "ego") == ()


def make_shard(seed: int, valid: list[bool]) -> Shard:
    rng = np.random.default_rng(seed)
    shape = (len(valid), 3)
    return Shard(
        rng.normal(size=(len(valid), 5)).astype(np.float16), np.array(valid), np.arange(len(valid)) + 0.5,
        logits=rng.normal(0, 5, shape).astype(np.float32), scene_logits=rng.normal(0, 5, shape).astype(np.float32),
        notes=("odd", f"seed {seed}"),
    )  # fmt: skip


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_the_mean_is_of_log_probabilities_and_has_no_feature_columns(link: str) -> None:
    shards = [make_shard(0, [True, True, False]), make_shard(1, [True, True, True])]
    mean = mean_shard(shards, link=link)
    assert mean.features.shape == (3, 0)
    assert mean.valid.tolist() == [True, True, False]
    assert mean.notes == ("odd", "seed 0", "seed 1")
    logs = np.mean(
        [(log_expit if link == "sigmoid" else lambda x: log_softmax(x, axis=1))(s.logits) for s in shards], 0
    )
    logs = logs if link == "sigmoid" else log_softmax(logs, axis=1)
    np.testing.assert_allclose(log_probs(mean.logits, link)[:2], logs[:2], atol=1e-4)
    scenes = log_softmax(np.mean([log_softmax(s.scene_logits, axis=1) for s in shards], 0), axis=1)
    np.testing.assert_allclose(log_softmax(mean.scene_logits, axis=1)[:2], scenes[:2], atol=1e-4)
    assert not mean.logits[2].any() and not mean.scene_logits[2].any()


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_one_member_alone_keeps_its_probabilities(link: str) -> None:
    shard = make_shard(0, [True] * 3)
    mean = mean_shard([shard], link=link)
    np.testing.assert_allclose(log_probs(mean.logits, link), log_probs(shard.logits, link), atol=1e-5)
    assert mean_shard([replace(shard, scene_logits=None)], link=link).scene_logits is None


def test_certainty_under_sigmoid_stays_finite() -> None:
    sure = replace(make_shard(0, [True]), logits=np.array([[80.0, -80.0, 0.0]], np.float32))
    mean = mean_shard([sure, sure], link="sigmoid")
    np.testing.assert_allclose(expit(mean.logits), [[1.0, 0.0, 0.5]], atol=1e-6)
