"""`talstack cache import` as a user runs it."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner, Result

from talstack.cli.cache_import import command
from talstack.heads.features import read_group
from talstack.io.errors import InputError
from talstack.io.extraction import Extraction, FeatureSet
from talstack.io.folds import assign_folds
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard

DURATION_S, CHANNELS = 20.0, 6
STRIDE, FPS = 4, 16.0  # four rows a second, 80 rows
ROWS = np.arange(80 * CHANNELS, dtype=np.float32).reshape(80, CHANNELS)
CLOCK = ("--stride", STRIDE, "--fps", FPS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return three recordings; the camera "side" starts 5 s late, in r2 at an unknown offset."""
    names = ["r0", "r1", "r2"]
    clips = [(r, "front", "c", f"{r}.mp4", 0.0, DURATION_S, FPS, 8, 8, False) for r in names]
    side = {"r0": 5.0, "r1": 5.0, "r2": None}
    clips += [(r, "side", "s", f"{r}s.mp4", offset, 15.0, FPS, 8, 8, False) for r, offset in side.items()]
    tables = {
        "recordings": [(r, DURATION_S, None, "train") for r in names],
        "clips": clips,
        "instances": [(r, 2.0, 5.0, "wave") for r in names],
    }
    manifest = Manifest(
        name="toy", media_root=tmp_path, actions=("wave",), scenes=(),
        **{name: pl.DataFrame(rows, schema=SCHEMAS[name], orient="row") for name, rows in tables.items()},
    )  # fmt: skip
    manifest.with_folds(assign_folds(manifest, 2)).save(tmp_path / "data")
    return tmp_path / "data"


def run(data: Path, *options: object, folder: str = "in") -> Result:
    arguments = [data.parent / "store", data, data.parent / folder, "--modality", "i3d", *options]
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def put(data: Path, name: str, values: np.ndarray = ROWS) -> Path:
    path = data.parent / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


def shard_of(data: Path, recording: str = "r0", view: str = "external") -> Shard:
    features = FeatureSet.open(Manifest.load(data), data.parent / "store")
    assert features.missing == []
    shard = features.read(recording, view, "i3d")
    assert shard is not None
    return shard


def test_a_segment_is_the_mean_of_its_rows_and_heads_can_read_it(data: Path) -> None:
    for name in ("r0", "r1", "r2"):
        put(data, f"{name}.npy")
    result = run(data, *CLOCK)
    assert result.exit_code == 0, result.output
    assert "3 shards imported" in result.output
    shard = shard_of(data)
    assert np.allclose(shard.features, ROWS.reshape(20, 4, CHANNELS).mean(axis=1))
    assert shard.valid.all()
    group = read_group(FeatureSet.open(Manifest.load(data), data.parent / "store"), "external", "i3d")
    assert group.recordings == ("r0", "r1", "r2")
    assert "0 shards imported, 3 there already" in run(data, *CLOCK).output


@pytest.mark.parametrize("suffix", ["npz", "csv", "h5", "pt", "pth"])
def test_every_format_gives_the_same_shard(data: Path, suffix: str) -> None:
    path = put(data, "x.npy").with_name(f"r0.{suffix}")
    if suffix == "npz":
        np.savez(path, features=ROWS)
    elif suffix == "csv":
        np.savetxt(path, ROWS, delimiter=",")
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            file["feats"] = ROWS
    else:
        torch.save(torch.from_numpy(ROWS) if suffix == "pt" else {"feats": torch.from_numpy(ROWS)[None]}, path)
    assert run(data, *CLOCK).exit_code == 0
    assert np.allclose(shard_of(data).features, ROWS.reshape(20, 4, CHANNELS).mean(axis=1))


def test_what_does_not_meet_is_listed_and_counted(data: Path) -> None:
    put(data, "r0.npy")
    put(data, "stranger.npy")
    result = run(data, *CLOCK)
    assert "2 recordings without a file: r1, r2" in result.output
    assert "1 files without a recording: stranger.npy" in result.output
    found = json.loads(run(data, *CLOCK, "--json").stdout)
    assert found["recordings_without_file"] == ["r1", "r2"]
    assert found["files_without_recording"] == ["stranger.npy"]


def test_rows_with_nan_are_masked_and_not_zero(data: Path) -> None:
    values = ROWS.copy()
    values[8:12, 2] = np.nan  # all of segment 2
    values[16, 0] = np.nan  # a quarter of segment 4
    put(data, "r0.npy", values)
    result = run(data, *CLOCK)
    shard = shard_of(data)
    assert np.flatnonzero(~shard.valid).tolist() == [2]
    assert np.allclose(shard.features[4], ROWS[17:20].mean(axis=0))
    assert "5 of 80 rows are missing or NaN" in result.output
    print(f"{int((~shard.valid).sum())} of {len(shard.valid)} segments masked")


def test_a_wrong_rate_is_refused_with_the_one_that_fits(data: Path) -> None:
    put(data, "r0.npy")
    with pytest.raises(
        InputError, match=r"r0.npy: 80 rows at a stride of 8 .* would fit at 32.00 fps, or a stride of 4"
    ):
        run(data, "--stride", 8, "--fps", FPS)
    with pytest.raises(InputError, match="give --stride and --fps"):
        run(data)
    assert not (data.parent / "store" / "extractions").exists()


def test_a_rate_that_is_too_high_is_mentioned(data: Path) -> None:
    put(data, "r0.npy")
    result = run(data, "--stride", STRIDE, "--fps", 2 * FPS)
    assert "ends at 10.0 s of 20.0 s" in result.output
    assert np.flatnonzero(shard_of(data).valid).tolist() == list(range(10))


def test_a_transposed_file_is_told_by_the_duration(data: Path) -> None:
    put(data, "r0.npy", ROWS.T)
    with pytest.raises(InputError, match=r"shape \(6, 80\) read as TxC .* give --layout CxT"):
        run(data, *CLOCK)
    assert run(data, *CLOCK, "--layout", "CxT").exit_code == 0
    assert np.allclose(shard_of(data).features, ROWS.reshape(20, 4, CHANNELS).mean(axis=1))


def test_widths_must_agree(data: Path) -> None:
    put(data, "r0.npy")
    put(data, "r1.npy", ROWS[:, :4])
    with pytest.raises(InputError, match="r1.npy: 4 channels, but r0 has 6"):
        run(data, *CLOCK)


def test_a_pickle_is_a_recorded_failure_and_the_rest_goes_on(data: Path) -> None:
    put(data, "r0.npy")
    np.save(data.parent / "in" / "r1.npy", np.array([{}], dtype=object), allow_pickle=True)
    result = run(data, *CLOCK)
    assert result.exit_code == 1
    assert "1 shards imported, 0 there already, 1 failed" in result.output
    assert "failed: r1: r1.npy: not a readable .npy file of plain numbers" in result.output
    features = FeatureSet.open(Manifest.load(data), data.parent / "store")
    assert [key.recording for key in features.failed] == ["r1"]
    torch.save({"feats": Path("code")}, data.parent / "in" / "r2.pt")
    assert "pickles are never loaded" in run(data, *CLOCK, "--pattern", "{recording}.pt").output


def test_rows_further_apart_than_segments_are_interpolated_or_not(data: Path) -> None:
    ramp = np.linspace(0, 19, 10, dtype=np.float32)[:, None] * np.ones((1, CHANNELS), np.float32)
    put(data, "r0.npy", ramp)  # a row every 2 s, at 1, 3, 5, ... s
    seen = {}
    for between in ("linear", "nearest", "mask"):
        assert run(data, "--stride", 32, "--fps", FPS, "--between", between).exit_code == 0
        seen[between] = shard_of(data)
    step = float(ramp[1, 0])
    assert seen["linear"].features[1:4, 0] == pytest.approx([0.25 * step, 0.75 * step, 1.25 * step], abs=1e-2)
    assert seen["nearest"].features[:4, 0] == pytest.approx([0, 0, step, step], abs=1e-2)
    assert seen["mask"].valid.sum() == 10
    with pytest.raises(InputError, match="statistics need a row in every segment"):
        run(data, "--stride", 32, "--fps", FPS, "--pool", "statistics")


def test_statistics_are_those_of_a_series(data: Path) -> None:
    put(data, "r0.npy")
    run(data, *CLOCK, "--pool", "statistics")
    features = shard_of(data).features.astype(np.float32)
    assert features.shape == (20, 5 * CHANNELS)
    assert np.allclose(features[3, 3 * CHANNELS : 4 * CHANNELS], ROWS[12:16].max(axis=0))


def test_features_of_a_view_lie_at_its_offset(data: Path) -> None:
    for name in ("r0", "r1", "r2"):
        put(data, f"{name}.npy", ROWS[:60])
    result = run(data, *CLOCK, "--view", "side")
    assert "1 clips at an unknown offset, left out: r2 side/s" in result.output
    shard = shard_of(data, view="side")
    assert np.flatnonzero(shard.valid).tolist() == list(range(5, 20))
    assert np.allclose(shard.features[5:], ROWS[:60].reshape(15, 4, CHANNELS).mean(axis=1))


def test_clips_of_a_view_are_laid_end_to_end(data: Path) -> None:
    manifest = Manifest.load(data)
    late = [("r0", "ego", name, f"{name}.mp4", at, 8.0, FPS, 8, 8, False) for name, at in (("a", 0.0), ("b", 10.0))]
    clips = pl.concat([manifest.clips, pl.DataFrame(late, schema=SCHEMAS["clips"], orient="row")])
    replace(manifest, clips=clips).save(data)
    put(data, "a.npy", ROWS[:32])
    put(data, "b.npy", ROWS[32:64])
    with pytest.raises(InputError, match="several clips per recording"):
        run(data, *CLOCK, "--view", "ego", "--pattern", "{recording}.npy")
    assert run(data, *CLOCK, "--view", "ego").exit_code == 0
    shard = shard_of(data, view="ego")
    assert np.flatnonzero(shard.valid).tolist() == [*range(8), *range(10, 18)]
    assert np.allclose(shard.features[10], ROWS[32:36].mean(axis=0))


def test_ends_take_the_row_whose_window_covers_them_but_missing_rows_are_not_filled(data: Path) -> None:
    values = ROWS.copy()
    values[40] = np.nan
    put(data, "r0.npy", values[:77])  # windows of 16 frames every 4: the first middle is at 0.5 s, the last at 19.5 s
    run(data, *CLOCK, "--window", 16, "--segment-s", 0.25)
    valid = shard_of(data).valid
    assert np.flatnonzero(~valid).tolist() == [42]  # rows 40's middle is at 10.5 s
    assert np.array_equal(shard_of(data).features[0], ROWS[0])


def test_timestamps_of_video_features_count(data: Path) -> None:
    put(data, "r0_clip.npy", ROWS[::4])
    put(data, "r0_timestamps_ms.npy", np.arange(20) * 1000.0)
    put(data, "r0_fps.npy", np.array(FPS))
    assert run(data).exit_code == 0
    assert np.array_equal(shard_of(data).features, ROWS[::4])


def test_an_extraction_keeps_its_imports_and_its_name(data: Path) -> None:
    store = data.parent / "store"
    put(data, "r0.npy")
    run(data, *CLOCK)
    Extraction("toy", 1.0, {"rgb": {"kind": "rgb"}}, ("front",)).save(store)
    record = Extraction.load(store, "toy")
    assert set(record.recipes) == {"rgb", "i3d"}
    assert set(record.imported["i3d"]["external"]) == {"r0"}
    put(data, "r1.npy")
    (data.parent / "in" / "r0.npy").unlink()
    run(data, *CLOCK)
    assert set(Extraction.load(store, "toy").imported["i3d"]["external"]) == {"r0", "r1"}
    with pytest.raises(InputError, match=r"segments of 1.0 s, got 0.5 s"):
        run(data, *CLOCK, "--segment-s", 0.5)
    with pytest.raises(InputError, match="choose another --modality"):
        run(data, *CLOCK, "--modality", "rgb")


def test_a_file_that_changes_makes_another_shard(data: Path) -> None:
    put(data, "r0.npy")
    run(data, *CLOCK)
    put(data, "r0.npy", ROWS + 1000)
    assert "1 shards imported" in run(data, *CLOCK).output
    assert shard_of(data).features.min() >= 1000
