from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.io.errors import InputError
from talstack.io.folds import assign_folds, groups_in_several_splits
from talstack.io.manifest import SCHEMAS, Manifest, empty_table


def make_manifest(scenes: list[str | None], groups: list[str | None] | None = None) -> Manifest:
    rows = [(f"r{i:02d}", 10.0, scene, "train") for i, scene in enumerate(scenes)]
    recordings = pl.DataFrame(rows, schema=SCHEMAS["recordings"], orient="row")
    if groups is not None:
        recordings = recordings.with_columns(pl.Series("group", groups, dtype=pl.String))
    return Manifest(
        name="toy", media_root=Path(), actions=("wave",), scenes=("bar", "kitchen", "park"), recordings=recordings,
        clips=empty_table("clips"), instances=empty_table("instances"),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_recordings_without_groups_are_dealt_out_in_turn_scene_by_scene(seed: int) -> None:
    rng = np.random.default_rng(seed)
    manifest = make_manifest([("bar", "kitchen", "park", None)[i] for i in rng.integers(4, size=23)])
    folds = assign_folds(manifest, 5, seed=seed).join(manifest.recordings, on="recording")
    sizes = folds.group_by("scene", "fold").len()
    assert sorted(folds["fold"].value_counts()["count"]) == [4, 4, 5, 5, 5]
    for scene in folds["scene"].unique():
        own = sizes.filter(pl.col("scene").eq_missing(pl.lit(scene, dtype=pl.String)))["len"]
        shares = [*own, *[0] * (5 - len(own))]
        assert max(shares) - min(shares) <= 1


def test_a_group_never_lies_in_two_folds_and_scenes_are_spread_as_far_as_that_goes() -> None:
    groups = [f"p{i // 3}" for i in range(24)]  # eight people, three recordings each
    scenes = [("kitchen", "park")[i // 12] for i in range(24)]
    folds = assign_folds(make_manifest(scenes, groups), 4).with_columns(pl.Series("group", groups))
    assert folds.group_by("group").agg(pl.col("fold").n_unique())["fold"].to_list() == [1] * 8
    joined = folds.with_columns(pl.Series("scene", scenes))
    assert joined.group_by("fold", "scene").len()["len"].to_list() == [3] * 8, "one person of each scene in each fold"


def test_large_groups_come_first_and_a_recording_without_a_group_is_one_of_its_own() -> None:
    groups = [None, None, "big", "big", "big", None, None]
    folds = assign_folds(make_manifest(["bar"] * 7, groups), 2)
    assert sorted(folds["fold"].value_counts()["count"]) == [3, 4]
    assert folds.filter(pl.col("recording").is_in(["r02", "r03", "r04"]))["fold"].n_unique() == 1
    with pytest.raises(InputError, match="6 folds over 7 train and val recordings in 5 groups; need 2 <= folds <= gr"):
        assign_folds(make_manifest(["bar"] * 7, groups), 6)


def test_a_name_of_a_group_and_of_a_recording_are_two_things() -> None:
    numbers = make_manifest(["bar"] * 3, ["r01", None, "r01"]).groups
    assert numbers["r00"] == numbers["r02"] != numbers["r01"]


def test_folds_that_split_a_group_are_refused() -> None:
    manifest = make_manifest(["bar"] * 4, ["a", "a", None, None])
    folds = pl.DataFrame({"recording": ["r00", "r01", "r02"], "fold": [0, 1, 0]}, schema=SCHEMAS["folds"])
    with pytest.raises(InputError, match="recordings of one group must lie in one fold.*'r00', 'group': 'a'"):
        manifest.with_folds(folds)
    assert manifest.with_folds(folds[[0, 2]]).folds.height == 2


def test_groups_survive_saving_and_manifests_without_them_load_as_before(tmp_path: Path) -> None:
    for groups in (None, ["a", "a", None]):
        manifest = make_manifest(["bar"] * 3, groups)
        manifest.save(tmp_path)
        assert Manifest.load(tmp_path).recordings.equals(manifest.recordings)
    assert Manifest.load(tmp_path).groups == {"r00": 0, "r01": 0, "r02": 1}


def test_a_group_in_two_splits_is_named() -> None:
    manifest = make_manifest(["bar"] * 4, ["a", "a", "b", None])
    assert groups_in_several_splits(manifest) == {}
    split = pl.when(pl.col("recording") == "r01").then(pl.lit("test")).otherwise("split").alias("split")
    mixed = replace(manifest, recordings=manifest.recordings.with_columns(split))
    assert groups_in_several_splits(mixed) == {"a": ["test", "train"]}


def test_a_group_goes_where_its_scenes_are_rare_even_if_that_fold_is_larger() -> None:
    groups = ["a"] * 3 + ["b"] * 2 + ["c"] * 2 + ["d", "e"]
    scenes = ["kitchen"] * 5 + ["park"] * 3 + ["kitchen"]
    folds = assign_folds(make_manifest(scenes, groups), 2).with_columns(pl.Series("scene", scenes))
    kitchens = folds.filter(pl.col("scene") == "kitchen")["fold"].value_counts()["count"]
    assert kitchens.to_list() == [3, 3]
