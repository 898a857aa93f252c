from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.folds import assign_folds
from talstack.io.manifest import SCHEMAS, Manifest, empty_table, name_of, resolve_inside
from talstack.io.targets import scene_targets, segment_index, segment_targets


def make_manifest(root: Path, *, num_recordings: int = 6, **changes: object) -> Manifest:
    names = [f"r{i}" for i in range(num_recordings)]
    scenes = [("kitchen", "park", None)[i % 3] for i in range(num_recordings)]
    recordings = pl.DataFrame(
        {
            "recording": names,
            "duration_s": [10.0] * num_recordings,
            "scene": scenes,
            "split": ["train"] * num_recordings,
        },
        schema=SCHEMAS["recordings"],
    )
    instances = pl.DataFrame(
        [("r0", 1.0, 3.0, "wave"), ("r0", 2.5, 2.75, "clap"), ("r1", 9.8, 10.0, "wave")],
        schema=SCHEMAS["instances"],
        orient="row",
    )
    values = {
        "name": "toy", "media_root": root, "actions": ("clap", "wave"), "scenes": ("kitchen", "park"),
        "recordings": recordings, "clips": empty_table("clips"), "instances": instances,
    }  # fmt: skip
    return Manifest(**{**values, **changes})


def test_round_trip(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "media")
    manifest.save(tmp_path / "data")
    back = Manifest.load(tmp_path / "data")
    assert back.actions == manifest.actions
    assert back.media_root == (tmp_path / "media").resolve()
    for name in SCHEMAS:
        assert getattr(back, name).equals(getattr(manifest, name))


@pytest.mark.parametrize("name", ["r\U0001f600", "r\x7f", 'a"b\\c', "new\nline", "\u00fc"])
def test_any_name_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    manifest = make_manifest(tmp_path)
    named = replace(manifest, name=name, actions=(*manifest.actions, name), scenes=(*manifest.scenes, name))
    named.save(tmp_path / "data")
    loaded = Manifest.load(tmp_path / "data")
    assert (loaded.name, loaded.actions, loaded.scenes) == (name, named.actions, named.scenes)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written as UTF-8"):
        replace(make_manifest(tmp_path), name="half\ud83d").save(tmp_path / "data")
    make_manifest(tmp_path).save(tmp_path / "data")
    (tmp_path / "data" / "dataset.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(InputError, match=r"dataset\.toml: .*utf-8"):
        Manifest.load(tmp_path / "data")


def test_data_and_media_move_together(tmp_path: Path) -> None:
    make_manifest(tmp_path / "here" / "media").save(tmp_path / "here" / "data")
    (tmp_path / "here").rename(tmp_path / "there")
    assert Manifest.load(tmp_path / "there" / "data").media_root == (tmp_path / "there" / "media").resolve()


def test_a_folder_that_is_no_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="make one with `talstack import`"):
        Manifest.load(tmp_path)
    make_manifest(tmp_path).save(tmp_path / "data")
    (tmp_path / "data" / "clips.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="clips.parquet: not a readable parquet"):
        Manifest.load(tmp_path / "data")


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        ("instances", [("r0", 1.0, 3.0, "jump")], "unknown label"),
        ("instances", [("r9", 1.0, 3.0, "wave")], "unknown recording"),
        ("instances", [("r0", 3.0, 3.0, "wave")], "end_s must be after start_s"),
        ("recordings", [("a", 1.0, None, "train"), ("a", 1.0, None, "test")], "'a' appears more than once"),
        ("recordings", [("a", 0.0, None, "train")], "duration_s must be > 0"),
        ("recordings", [("a", 1.0, None, "dev")], "split must be one of"),
        ("recordings", [("a", 1.0, "moon", "train")], "unknown scene"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, table: str, rows: list[tuple], message: str) -> None:
    changes = {table: pl.DataFrame(rows, schema=SCHEMAS[table], orient="row")}
    if table == "recordings":
        changes["instances"] = empty_table("instances")
    with pytest.raises(InputError, match=message):
        make_manifest(tmp_path, **changes)


@pytest.mark.parametrize("path", ["../x.mp4", "/etc/passwd", "a/../../x.mp4", "link/x.mp4"])
def test_paths_stay_inside_the_media_root(tmp_path: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads out of the data root"):
        resolve_inside(tmp_path / "root", path)
    assert resolve_inside(tmp_path / "root", "a/../b.mp4") == (tmp_path / "root" / "b.mp4").resolve()


def test_segment_targets_follow_coverage_and_lose_no_short_action(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    index = segment_index(manifest, 1.0)
    targets = segment_targets(manifest, index, 1.0)
    rows = dict(index.slices())
    assert np.flatnonzero(targets[rows["r0"]][:, 1]).tolist() == [1, 2]
    assert np.flatnonzero(targets[rows["r0"]][:, 0]).tolist() == [2]  # a quarter second still counts once
    assert np.flatnonzero(targets[rows["r1"]][:, 1]).tolist() == [9]
    assert targets.sum() == 4
    assert scene_targets(manifest, ["r0", "r1", "r2"]).tolist() == [0, 1, -1]


def test_folds_are_balanced_by_scene_and_independent_of_row_order(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, num_recordings=12)
    folds = assign_folds(manifest, 4, seed=1)
    assert folds["fold"].value_counts()["count"].to_list() == [3] * 4
    joined = folds.join(manifest.recordings, on="recording")
    assert joined.filter(pl.col("scene") == "park")["fold"].n_unique() == 4
    shuffled = make_manifest(tmp_path, num_recordings=12, recordings=manifest.recordings.reverse())
    assert assign_folds(shuffled, 4, seed=1).equals(folds)
    with pytest.raises(InputError, match="need 2 <= folds <= groups"):
        assign_folds(manifest, 13)


def test_test_recordings_have_no_fold(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    split = manifest.recordings.with_columns(
        pl.when(pl.col("recording") == "r3").then(pl.lit("test")).otherwise("split").alias("split")
    )
    assert "r3" not in assign_folds(make_manifest(tmp_path, recordings=split), 2)["recording"]


def test_a_data_set_is_named_by_its_folder_also_a_hidden_or_relative_one(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / ".hidden").mkdir()
    monkeypatch.chdir(tmp_path / ".hidden")
    assert name_of(tmp_path / ".hidden") == name_of(Path()) == "hidden"
    assert name_of(Path("/")) == "data"
