"""Extraction of real footage: odd and broken files, and 360+x clips."""

import csv
from pathlib import Path

import numpy as np
import polars as pl

from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.plan import plan_extraction
from talstack.extract.schedule import run_items
from talstack.io.extraction import FeatureSet
from talstack.io.import_binego360 import import_binego360
from talstack.io.manifest import SCHEMAS, Manifest, empty_table

SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=4, frame_size=32)
CONFIG = ExtractConfig(init="random", init_arch="resnet18_narrow")


def extract(data: Path, store: Path, *, jobs: int = 1) -> dict[tuple[str, str, str], tuple[str, str]]:
    planned = plan_extraction(data, store, config=CONFIG, sampling=SAMPLING)
    rows = run_items(planned.items(planned.keys, jobs), jobs=jobs)
    planned.extraction.save(store)
    return {(row.recording, row.view, row.modality): (row.outcome, row.reason) for row in rows}


def test_every_odd_or_broken_file_gives_frames_or_a_recorded_failure(shared_data: Path, tmp_path: Path) -> None:
    media = shared_data / "media"
    with open(media / "expected.csv", newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    names = [row["file"] for row in expected]
    durations = [float(row["duration_s"] or 1.0) for row in expected]
    recordings = pl.DataFrame(
        {"recording": names, "duration_s": durations, "scene": None, "split": "train"}, schema=SCHEMAS["recordings"]
    )
    clips = pl.DataFrame(
        [(name, "main", "c", name, 0.0, None, None, None, None, None) for name in names],
        schema=SCHEMAS["clips"],
        orient="row",
    )
    manifest = Manifest("media", media, ("a",), (), recordings, clips, empty_table("instances"))
    manifest.save(tmp_path / "data")
    outcomes = extract(tmp_path / "data", tmp_path / "store")
    features = FeatureSet.open(manifest, tmp_path / "store")
    assert len(expected) >= 40
    for row in expected:
        outcome, reason = outcomes[row["file"], "main", "rgb"]
        readable = int(row["frames_skipping_errors"] or 0) > 0
        if readable:
            assert outcome == "done", f"{row['file']}: {reason}"
            assert features.read(row["file"], "main", "rgb").valid.any()
        else:
            assert outcome == "failed", row["file"]
            assert row["file"].rsplit("/", 1)[-1] in reason
    # what the container claims beyond the last frame is masked, not made up
    truncated = features.read("made/truncated_60pct.mp4", "main", "rgb")
    assert truncated.valid.tolist() == [True, True, True, False, False]  # it holds 2.9 of 5 s
    assert not truncated.features[3:].any()
    # segments that rest on what the decoder made up are masked, and the shard says so
    hole = features.read("made/zeroed_4k_mid.mp4", "main", "rgb")
    assert hole.valid.tolist() == [True, True, False, True, True]


def test_three_real_360x_recordings_with_all_their_views(shared_data: Path, tmp_path: Path) -> None:
    source, root = shared_data / "x360", tmp_path / "x360"
    names = sorted(path.stem for path in (source / "panoramic").glob("*.mp4"))[:3]
    for view in ("panoramic", "third_person"):
        (root / view).mkdir(parents=True)
        for name in names:
            (root / view / f"{name}.mp4").write_bytes((source / view / f"{name}.mp4").read_bytes())
    for name in names:
        (root / "binocular" / name).mkdir(parents=True)
        clip = source / "binocular" / name / "clip0.mp4"
        (root / "binocular" / name / "clip0.mp4").write_bytes(clip.read_bytes())
    manifest = import_binego360(root)
    manifest.save(tmp_path / "data")
    outcomes = extract(tmp_path / "data", tmp_path / "store")
    assert len(outcomes) == 3 * 3 * 2
    assert {outcome for outcome, _ in outcomes.values()} == {"done"}
    features = FeatureSet.open(manifest, tmp_path / "store")
    for name in names:
        panoramic = features.read(name, "panoramic", "rgb")
        assert panoramic.aligned
        assert panoramic.valid.all()
        assert len(panoramic.valid) == len(features.grid(name)) == 10
        assert np.ptp(panoramic.features.astype(np.float32), axis=0).max() > 0
        assert not features.read(name, "binocular", "rgb").aligned  # its offset is unknown
