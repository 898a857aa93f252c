"""The dense arrays behind the ensemble."""

import numpy as np
import polars as pl
import pytest

from talstack.ensemble.evidence import Evidence
from talstack.io.errors import InputError
from talstack.io.predictions import ModelKey
from talstack.io.targets import segment_index


def evidence_of(world, recordings=None) -> Evidence:
    manifest, table = world
    index = segment_index(manifest, 1.0, recordings)
    return Evidence.of(table, index, actions=manifest.actions, scenes=manifest.scenes)


def test_probabilities_land_in_their_cell(world) -> None:
    _, table = world
    evidence = evidence_of(world, ["rec05", "rec01"])
    row = table.filter(
        (pl.col("recording") == "rec01")
        & (pl.col("segment") == 3)
        & (pl.col("view") == "third")
        & (pl.col("head") == "action-linear")
        & (pl.col("class") == "jump")
    )
    model = evidence.models.index(ModelKey("third", "rgb", "action-linear"))
    assert evidence.action_probs[model, 40 + 3, 2] == row["prob"][0]
    assert evidence.action_probs.shape == (3, 80, 3)


def test_missing_view_is_nan_and_only_there(world) -> None:
    evidence = evidence_of(world, ["rec02", "rec03"])
    ego = [key.view for key in evidence.models].index("ego")
    assert evidence.present[ego].tolist() == [True] * 40 + [False] * 40
    assert np.delete(evidence.present, ego, axis=0).all()


def test_learner_without_activity_head_uses_its_likeliest_action(world) -> None:
    manifest, table = world
    bare = table.filter(pl.col("head") != "activity-linear")
    index = segment_index(manifest, 1.0, ["rec01"])
    evidence = Evidence.of(bare, index, actions=manifest.actions, scenes=manifest.scenes)
    np.testing.assert_array_equal(evidence.activity_probs, evidence.action_probs.max(axis=2))


def test_scene_posterior_is_the_mean_of_the_heads_that_spoke(world) -> None:
    manifest, table = world
    second = table.filter((pl.col("head") == "scene-linear") & (pl.col("recording") != "rec01")).with_columns(
        pl.lit("ego").alias("view"), pl.lit(0.5, dtype=pl.Float32).alias("prob")
    )
    index = segment_index(manifest, 1.0, ["rec00", "rec01"])
    evidence = Evidence.of(pl.concat([table, second]), index, actions=manifest.actions, scenes=manifest.scenes)
    np.testing.assert_allclose(evidence.scene_probs, [[0.65, 0.35], [0.2, 0.8]], atol=1e-6)
    without = table.filter(pl.col("head") != "scene-linear")
    silent = Evidence.of(without, index, actions=manifest.actions, scenes=manifest.scenes)
    assert np.isnan(silent.scene_probs).all()


def test_subset_and_models_keep_rows_together(world) -> None:
    whole = evidence_of(world)
    part = whole.subset(["rec09", "rec02"])
    np.testing.assert_array_equal(part.action_probs, evidence_of(world, ["rec09", "rec02"]).action_probs)
    np.testing.assert_array_equal(part.scene_probs, evidence_of(world, ["rec09", "rec02"]).scene_probs)
    unknown = ModelKey("drone", "rgb", "action-linear")
    chosen = part.with_models([unknown, part.models[1]])
    assert np.isnan(chosen.action_probs[0]).all()
    np.testing.assert_array_equal(chosen.action_probs[1], part.action_probs[1])
    assert chosen.segment_recordings().tolist() == [0] * 40 + [1] * 40


def test_table_without_action_heads_is_refused(world) -> None:
    manifest, table = world
    index = segment_index(manifest, 1.0, ["rec01"])
    with pytest.raises(InputError, match="no action head"):
        Evidence.of(
            table.filter(pl.col("head") != "action-linear"), index, actions=manifest.actions, scenes=manifest.scenes
        )
