"""`talstack sync`."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli import sync
from talstack.cli.main import main
from talstack.extract.layout import lay_out_view
from talstack.extract.sync import MIN_CONFIDENCE, RATE
from talstack.io.import_csv import import_csv
from talstack.io.manifest import Manifest


def bursts(seed: int, seconds: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0, 1, round(seconds * 8)) ** 3, RATE // 8)
    return (0.1 * loudness * rng.normal(size=len(loudness))).astype(np.float32)


@pytest.fixture(scope="module")
def media(tmp_path_factory, write_clip) -> Path:
    """Return a data set: r's ego clip is 2.5 s in, its sound half a second later; s's ego clip is of something else."""
    root = tmp_path_factory.mktemp("sync") / "media"
    world, other = bursts(0, 10), bursts(1, 10)
    sounds = {"front": world[: 8 * RATE], "side": world[RATE : 9 * RATE], "ego": 0.2 * world[3 * RATE : 8 * RATE]}
    for name, sound in sounds.items():
        starts_s = (0.5,) if name == "ego" else (0.0,)
        write_clip(
            root / f"{name}.mp4", num_frames=8, fps=1, sound=sound[None], sound_rate=RATE, sound_starts_s=starts_s
        )
    write_clip(root / "other.mp4", num_frames=6, fps=1, sound=other[None, : 6 * RATE], sound_rate=RATE)
    (root / "recordings.csv").write_text("recording,scene,split\nr,,train\ns,,train\n")
    clips = ["r,front,a,front.mp4,0", "r,side,a,side.mp4,0", "r,ego,a,ego.mp4,", "s,front,a,front.mp4,0"]
    table = ["recording,view,clip,path,offset_s", *clips, "s,ego,a,other.mp4,"]
    (root / "clips.csv").write_text("\n".join(table) + "\n")
    (root / "instances.csv").write_text("recording,start_s,end_s,label\nr,1,2,wave\ns,1,2,clap\n")
    return root


@pytest.fixture
def data(media, tmp_path) -> Path:
    """Return its manifest, r's side view moved to where it belongs."""
    manifest = import_csv(media)
    manifest.save(tmp_path / "data")
    return with_side_at(tmp_path / "data", 1.0)


def with_side_at(folder: Path, offset_s: float) -> Path:
    clips = pl.read_parquet(folder / "clips.parquet")
    moved = pl.when(pl.col("view") == "side").then(offset_s).otherwise("offset_s").alias("offset_s")
    clips.with_columns(moved).write_parquet(folder / "clips.parquet")
    return folder


def run(*arguments: object):
    return CliRunner().invoke(main, ["sync", *map(str, arguments), "--jobs", "1"])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_clip_is_placed_and_used_and_a_stranger_stays_unknown(data) -> None:
    manifest = Manifest.load(data)
    assert not lay_out_view(manifest, "r", "ego", segment_s=1.0).aligned
    result = run(data)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{data}: 2 clips: 1 placed, 1 unsure\n"
    assert "placed" in result.stderr
    assert "2.5" in result.stderr
    manifest = Manifest.load(data)
    offsets = {(r, view): offset for r, view, offset in manifest.clips.select("recording", "view", "offset_s").rows()}
    assert offsets.pop(("r", "ego")) == pytest.approx(2.5, abs=0.005)
    assert offsets == {("r", "front"): 0.0, ("r", "side"): 1.0, ("s", "front"): 0.0, ("s", "ego"): None}
    assert lay_out_view(manifest, "r", "ego", segment_s=1.0).aligned
    record = pl.read_parquet(data / "sync.parquet")
    assert record.select("recording", "view", "outcome").rows() == [("r", "ego", "placed"), ("s", "ego", "unsure")]
    assert record["confidence"][0] > MIN_CONFIDENCE > record["confidence"][1]
    assert run(data, "--view", "side").stdout == f"{data}: 0 clips: every offset is known\n"


def test_json_is_all_there_is_on_stdout(data) -> None:
    result = run(data, "--json", "--view", "ego")
    found = json.loads(result.stdout)
    assert (found["data"], found["written"]) == (str(data), True)
    assert found["counts"] == {"placed": 1, "unsure": 1}
    assert [(clip["recording"], clip["outcome"]) for clip in found["clips"]] == [("r", "placed"), ("s", "unsure")]


def test_a_dry_run_and_a_check_write_nothing(data) -> None:
    before = files(data)
    assert run(data, "--dry-run").stdout == f"{data}: 2 clips: 1 placed, 1 unsure; nothing was written\n"
    result = run(data, "--check")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{data}: 3 clips: 2 agrees, 1 no reference; nothing was written\n"
    assert "warning" not in result.stderr
    assert files(data) == before


def test_a_check_warns_where_the_sound_says_otherwise(data) -> None:
    result = run(with_side_at(data, 3.0), "--check", "--view", "side")
    assert result.exit_code == 0
    assert "1 differs" in result.stdout
    assert "warning: r side/a: at 3.000 s in the data set, but the sound of front/a says 1.0" in result.stderr


def test_overwriting_corrects_a_known_offset(data) -> None:
    result = run(with_side_at(data, 3.0), "--overwrite", "--view", "side")
    assert result.stdout == f"{data}: 1 clips: 1 placed\n"
    side = Manifest.load(data).clips.filter(pl.col("view") == "side")
    assert side["offset_s"].item() == pytest.approx(1.0, abs=0.004)


def test_contradicting_references_are_named(data) -> None:
    result = run(with_side_at(data, 3.0), "--view", "ego", "--dry-run")
    assert "1 contradictory" in result.stdout
    assert "warning: r ego/a: the sound of " in result.stderr


def test_how_sure_and_where_can_be_set(data) -> None:
    assert "2 unsure" in run(data, "--dry-run", "--min-confidence", 10_000).stdout
    assert "2 unsure" in run(data, "--dry-run", "--max-lag", 1).stdout
    assert "1 placed" in run(data, "--dry-run", "--max-lag", 3).stdout


def test_a_clip_that_cannot_be_read_is_listed_and_the_rest_goes_on(data, media) -> None:
    clips = pl.read_parquet(data / "clips.parquet")
    gone = pl.when(pl.col("path") == "other.mp4").then(pl.lit("gone.mp4")).otherwise("path").alias("path")
    clips.with_columns(gone).write_parquet(data / "clips.parquet")
    result = run(data)
    assert result.exit_code == 1
    assert f"failed: s ego/a: {media / 'gone.mp4'}" in result.stderr
    assert "1 failed, 1 placed" in result.stdout
    assert Manifest.load(data).clips["offset_s"].null_count() == 1


def test_wrong_usage_ends_with_two(data, tmp_path) -> None:
    for arguments in (
        [data, "--check", "--overwrite"], [data, "--view", "top"], [data, "--min-confidence", 0], [tmp_path / "gone"],
    ):  # fmt: skip
        assert run(*arguments).exit_code == 2, arguments
    assert "the views are ego, front, side" in run(data, "--view", "top").stderr


def test_the_default_shown_is_the_one_that_was_measured() -> None:
    assert sync.DEFAULT_CONFIDENCE == MIN_CONFIDENCE
