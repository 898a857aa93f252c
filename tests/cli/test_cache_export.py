"""`talstack cache export`, and back again by `talstack cache import`."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from talstack.cli import cache_export, cache_import
from talstack.io.errors import InputError
from talstack.io.extraction import Extraction, FeatureSet, shard_keys
from talstack.io.folds import assign_folds
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard
from talstack.io.store import ClipHashes, FeatureStore

SEGMENT_S, DIM = 1.6, 5
DURATIONS = {"r0": 20.0, "r1": 17.3, "r2": 9.0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return three recordings with stored features; one row of r0 is masked, r2 has no shard."""
    tables = {
        "recordings": [(r, d, None, ("train", "train", "val")[i]) for i, (r, d) in enumerate(DURATIONS.items())],
        "clips": [(r, "front", "c", f"{r}.mp4", 0.0, d, 30.0, 8, 8, False) for r, d in DURATIONS.items()],
        "instances": [("r0", 2.0, 5.0, "wave"), ("r0", 6.0, 7.0, "sit")],
    }
    manifest = Manifest(
        name="toy", media_root=tmp_path, actions=("jump", "wave", "sit"), scenes=(),
        **{name: pl.DataFrame(rows, schema=SCHEMAS[name], orient="row") for name, rows in tables.items()},
    )  # fmt: skip
    manifest = manifest.with_folds(assign_folds(manifest, 2))
    manifest.save(tmp_path / "data")
    store = FeatureStore(tmp_path / "store")
    extraction = Extraction("toy", SEGMENT_S, {"rgb": {"kind": "rgb"}}, ("front",))
    extraction.save(store.root)
    rng = np.random.default_rng(0)
    features = FeatureSet(manifest, store, extraction)
    for key in shard_keys(manifest, extraction, ClipHashes(store.root)):
        if key.recording != "r2":
            grid = features.grid(key.recording)
            values, valid = rng.normal(size=(len(grid), DIM)).astype(np.float16), np.ones(len(grid), dtype=bool)
            if key.recording == "r0":
                values[3], valid[3] = 0, False
            store.write(key, Shard(values, valid, grid.centres_s))
    return tmp_path / "data"


def invoke(command: object, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def export(data: Path, *options: object) -> Result:
    return invoke(cache_export.command, data.parent / "store", data, data.parent / "out", "--modality", "rgb", *options)


@pytest.mark.parametrize("file_format", ["npy", "npz", "h5"])
@pytest.mark.parametrize("invalid", ["nan", "zero", "nearest"])
def test_what_is_exported_comes_back_the_same(data: Path, file_format: str, invalid: str) -> None:
    export(data, "--format", file_format, "--invalid", invalid)
    folder = data.parent / "out" / "front-rgb"
    meta = json.loads((folder / "meta.json").read_text())
    source = folder / "features.hdf5" if file_format == "h5" else folder
    result = invoke(
        cache_import.command, data.parent / "other", data, source, "--modality", "back", "--view", "front",
        "--segment-s", SEGMENT_S, *meta["talstack_cache_import"].split(),
    )  # fmt: skip
    assert "2 shards imported, 0 there already, 0 failed" in result.output
    assert "files without" not in result.output
    manifest = Manifest.load(data)
    before = FeatureSet.open(manifest, data.parent / "store")
    after = FeatureSet.open(manifest, data.parent / "other")
    for recording in ("r0", "r1"):
        old, new = before.read(recording, "front", "rgb"), after.read(recording, "front", "back")
        assert old is not None
        assert new is not None
        assert np.array_equal(old.valid, new.valid)
        assert np.array_equal(old.features, new.features)
        assert np.array_equal(old.times_s, new.times_s)
    print(f"{file_format}, {invalid}: 2 of 2 recordings identical, {meta['rows_without_features']} rows masked")


def test_files_are_as_actionformer_and_opentad_read_them(data: Path) -> None:
    result = export(data, "--annotations")
    assert result.exit_code == 1
    assert "missing: r2 front/rgb" in result.output
    folder = data.parent / "out" / "front-rgb"
    assert sorted(path.name for path in folder.glob("*.npy")) == ["r0.npy", "r1.npy"]
    values, valid = np.load(folder / "r0.npy"), np.load(folder / "valid" / "r0.npy")
    assert values.dtype == np.float32
    assert values.shape == (13, DIM)
    assert np.flatnonzero(~valid).tolist() == [3]
    assert np.array_equal(values[3], values[2])
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["feature_dim"] == DIM
    assert meta["rows_without_features"] == {"r0": 1, "r1": 0}
    stride, fps = meta["stride_frames"], meta["fps"]
    # ActionFormer: (t * fps - 0.5 * num_frames) / feat_stride; OpenTAD: (t * fps - offset_frames) / snippet_stride
    middles = (np.arange(13) + 0.5) * SEGMENT_S
    assert (middles * fps - 0.5 * stride) / stride == pytest.approx(np.arange(13))
    for line in (f"  feat_stride: {stride},", f"  num_frames: {stride},", f"  input_dim: {DIM},", "  num_classes: 2,"):
        assert line in meta["actionformer"]
    assert f"offset_frames={stride // 2}," in meta["opentad"]


def test_annotations_have_ids_without_gaps_and_no_empty_training_recording(data: Path) -> None:
    export(data, "--annotations")
    database = json.loads((data.parent / "out" / "front-rgb" / "annotations.json").read_text())["database"]
    assert set(database) == {"r0"}  # r1 is of train and has no instance, r2 has no features
    entry = database["r0"]
    assert [(a["label"], a["label_id"], a["segment"]) for a in entry["annotations"]] == [
        ("wave", 0, [2.0, 5.0]),
        ("sit", 1, [6.0, 7.0]),
    ]
    assert entry["subset"] == "training"
    assert entry["frame"] == round(20.0 * entry["fps"])


def test_annotations_of_a_data_set_with_groups_are_the_same(data: Path) -> None:
    export(data, "--annotations")
    path = data.parent / "out" / "front-rgb" / "annotations.json"
    before = json.loads(path.read_text())
    manifest = Manifest.load(data)
    grouped = manifest.recordings.with_columns(pl.Series("group", ["ann", "ann", "bob"]))
    folds = manifest.folds.with_columns(fold=pl.lit(0, dtype=manifest.folds.schema["fold"]))
    replace(manifest, recordings=grouped, folds=folds).save(data)
    export(data, "--annotations")
    assert json.loads(path.read_text()) == before


def test_the_hdf5_file_has_a_data_set_per_recording(data: Path) -> None:
    export(data, "--format", "h5")
    with h5py.File(data.parent / "out" / "front-rgb" / "features.hdf5") as file:
        assert {name: file[name].shape for name in file} == {"r0": (13, DIM), "r1": (11, DIM)}


def test_rows_that_are_no_segments_of_the_recording_are_left_out_and_named(data: Path) -> None:
    store, manifest = FeatureStore(data.parent / "store"), Manifest.load(data)
    for key in shard_keys(manifest, Extraction.load(store.root, "toy"), ClipHashes(store.root)):
        if key.recording == "r1":
            store.write(key, replace(store.read(key), aligned=False))
    result = export(data)
    assert "1 recordings at an unknown offset, left out: r1" in result.output
    assert not (data.parent / "out" / "front-rgb" / "r1.npy").exists()


def test_what_is_not_there_is_named(data: Path) -> None:
    with pytest.raises(InputError, match="no modality 'audio'; there: front/rgb"):
        export(data, "--modality", "audio")
    with pytest.raises(InputError, match="no features back/rgb; there: front/rgb"):
        export(data, "--view", "back")
