"""Stored features laid end to end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from talstack.heads.config import HeadsConfig
from talstack.heads.crossfit import FoldPlan, cross_fit
from talstack.heads.features import group_of, read_group
from talstack.heads.targets import task_targets
from talstack.io.errors import InputError, StoreError
from talstack.io.extraction import Extraction, FeatureSet, shard_keys
from talstack.io.feature_export import export_features
from talstack.io.manifest import Manifest
from talstack.io.members import Member
from talstack.io.predictions import ModelKey
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import ClipHashes, FeatureStore

MakeFeatures = Callable[..., FeatureSet]


def test_a_group_holds_the_recordings_that_have_the_view(make_features: MakeFeatures) -> None:
    features = make_features()
    group = read_group(features, "ego", "rgb")
    assert "r3" not in group.recordings and len(group.recordings) == 9
    shard = features.read("r4", "ego", "rgb")
    np.testing.assert_array_equal(group.features[group.rows_of(["r4"])], shard.features)
    part = group.subset(np.array([name in ("r4", "r7") for name in group.recordings]))
    assert part.recordings == ("r4", "r7")
    np.testing.assert_array_equal(part.features[:40], shard.features)


def test_rows_that_are_not_the_grid_are_refused(make_features: MakeFeatures) -> None:
    def cut(key: ShardKey, shard: Shard) -> Shard:
        return shard if key.recording != "r5" else Shard(shard.features[:-3], shard.valid[:-3], shard.times_s[:-3])

    with pytest.raises(StoreError, match="r5 front/rgb: the shard has 37 rows, the recording 40"):
        read_group(make_features(shape=cut), "front", "rgb")


def test_features_of_different_width_are_refused(make_features: MakeFeatures) -> None:
    def narrow(key: ShardKey, shard: Shard) -> Shard:
        return shard if key.recording != "r5" else replace(shard, features=shard.features[:, :4])

    with pytest.raises(InputError, match="r5 has .4, 0, 0. columns"):
        read_group(make_features(shape=narrow), "front", "rgb")


def test_logits_become_log_probabilities() -> None:
    shard = Shard(
        np.zeros((2, 3), np.float16),
        np.ones(2, bool),
        np.zeros(2),
        logits=np.array([[0.0, 0.0], [1000.0, 0.0]], np.float32),
    )
    group = group_of({"a": shard})
    np.testing.assert_allclose(np.exp(group.log_probs), [[0.5, 0.5], [1.0, 0.0]], atol=1e-6)
    assert group.scene_log_probs.shape == (2, 0)


def test_sigmoid_logits_become_log_probabilities_of_their_own() -> None:
    shard = Shard(np.zeros((1, 3), np.float16), np.ones(1, bool), np.zeros(1), logits=np.array([[0.0, 50]], np.float32))
    np.testing.assert_allclose(np.exp(group_of({"a": shard}, link="sigmoid").log_probs), [[0.5, 1.0]], atol=1e-6)


def cross_fitted(manifest: Manifest, root: Path, *, seed: int) -> FeatureSet:
    """Return features of one network per fold; the seed draws their feature columns and not their logits."""
    folds = sorted(manifest.folds["fold"].unique())
    members = tuple(Member(f"fold{fold}", {"number": fold}, folds=(fold,)) for fold in folds)
    store = FeatureStore(root)
    extraction = Extraction("toy", 0.5, {"rgb": {"kind": "rgb"}}, ("front",), members=members)
    extraction.save(root)
    for key in shard_keys(manifest, extraction, ClipHashes(root)):
        rng, fixed = (
            np.random.default_rng([seed, int(key.recording[1:])]),
            np.random.default_rng(int(key.recording[1:])),
        )
        shard = Shard(
            rng.normal(size=(40, 6)).astype(np.float16), np.ones(40, bool), np.arange(40) / 2 + 0.25,
            logits=fixed.normal(size=(40, 4)).astype(np.float32),
            scene_logits=fixed.normal(size=(40, 2)).astype(np.float32),
        )  # fmt: skip
        store.write(key, shard)
    return FeatureSet.open(manifest, root, "toy")


def test_columns_of_several_networks_are_never_used(manifest: Manifest, quick: HeadsConfig, tmp_path: Path) -> None:
    tables = []
    for seed in (0, 1):
        features = cross_fitted(manifest, tmp_path / str(seed), seed=seed)
        group = read_group(features, "front", "rgb")
        assert group.features.shape[1] == 4 + 2
        assert group.log_probs.shape[1] == 0
        key = ModelKey("front", "rgb", "action-linear")
        targets = task_targets("action", manifest, group, 0.5)
        plan = FoldPlan.of(manifest, features.seen, quick)
        tables.append(cross_fit(key, group, targets, plan=plan, config=quick).table)
    assert tables[0].equals(tables[1])
    assert tables[0]["valid"].all()


def test_features_of_several_networks_are_not_exported(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="front/rgb: the features come from several networks"):
        export_features(cross_fitted(manifest, tmp_path / "s", seed=0), "front", "rgb", out=tmp_path / "out")


def test_a_long_recording_is_read_in_blocks(make_features: MakeFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    features, asked = make_features(), []
    whole = read_group(features, "front", "rgb")
    real = FeatureSet.rows
    monkeypatch.setattr("talstack.heads.features.BLOCK_ROWS", 15)
    monkeypatch.setattr(FeatureSet, "rows", lambda self, *what: asked.append(what[-2:]) or real(self, *what))
    found = read_group(features, "front", "rgb")
    assert asked[:3] == [(0, 15), (15, 30), (30, 40)]
    for name in ("features", "valid", "log_probs", "aligned"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert whole.subset(np.ones(len(whole.recordings), bool)) is whole, "no copy of all of it"
