"""A toy data set of real encoded clips: two recordings, two views, sound, a sensor series."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.demo.encode import write_video
from talstack.io.folds import assign_folds
from talstack.io.manifest import SCHEMAS, Manifest

RATE = 16000


def write_clip(path: Path, *, seconds: float, seed: int, fps: int = 10) -> None:
    """Write a clip of a bright square that moves, with noise for sound."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(round(seconds * fps)):
        frame = np.full((48, 64, 3), 40 + 10 * seed % 60, np.uint8)
        x = (4 * i) % 48
        frame[8:28, x : x + 16] = (220, 160, 60)
        frames.append(frame)
    sound = 0.1 * rng.normal(size=int(seconds * RATE)).astype(np.float32)
    write_video(path, frames, fps=fps, audio=sound, audio_rate=RATE)


@pytest.fixture(scope="session")
def toy_media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "media"
    for i in range(4):
        write_clip(root / f"front{i}.mp4", seconds=4.0, seed=i)
        write_clip(root / f"ego{i}.mp4", seconds=2.6, seed=10 + i)
        times = np.arange(0, 4, 0.05)
        np.savez(root / f"sensor{i}.npz", values=np.sin(times)[:, None] * (i + 1), times_s=times)
    return root


@pytest.fixture
def toy_data(toy_media: Path, tmp_path: Path) -> Path:
    """Return a saved manifest; recording r3 has egocentric clips at an unknown offset."""
    rows = range(4)
    recordings = [(f"r{i}", 4.0, ("kitchen", "park")[i % 2], "test" if i == 3 else "train") for i in rows]
    front = [(f"r{i}", "front", "c0", f"front{i}.mp4", 0.0, 4.0, 10.0, 64, 48, True) for i in rows]
    ego = [(f"r{i}", "ego", "c0", f"ego{i}.mp4", 1.2 if i < 3 else None, 2.6, 10.0, 64, 48, True) for i in rows]
    instances = [(f"r{i}", 1.0, 3.0, ("wave", "clap")[i % 2]) for i in rows]
    features = [(f"r{i}", "sensor", f"sensor{i}.npz") for i in rows]
    tables = {
        name: pl.DataFrame(values, schema=SCHEMAS[name], orient="row")
        for name, values in {
            "recordings": recordings, "clips": front + ego, "instances": instances, "features": features,
        }.items()
    }  # fmt: skip
    manifest = Manifest(
        name="toy", media_root=toy_media, actions=("clap", "wave"), scenes=("kitchen", "park"), **tables
    )
    manifest = replace(manifest, folds=assign_folds(manifest, 3))
    manifest.save(tmp_path / "data")
    return tmp_path / "data"
