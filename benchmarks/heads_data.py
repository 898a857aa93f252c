"""A made-up feature store of any size for benchmarks/heads.py: several views, overlapping actions, one of them rare."""

from pathlib import Path

import numpy as np
import polars as pl

from talstack.io.extraction import Extraction, FeatureSet, shard_keys
from talstack.io.folds import assign_folds
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard
from talstack.io.store import ClipHashes, FeatureStore
from talstack.io.targets import segment_index, segment_targets

SEGMENT_S = 1.0
NUM_SCENES, NUM_RARE = 8, 3
_DRIFT, _NUISANCE = 48, 16  # slow directions within a recording, and constant ones of its own


def make_manifest(root: Path, *, recordings: int, segments: int, views: int, classes: int) -> Manifest:
    """Return recordings of `segments` seconds on average, an eighth of them of split test.

    The last class has three instances in all.
    """
    rng = np.random.default_rng(0)
    names = [f"r{number:03d}" for number in range(recordings)]
    durations = dict(zip(names, np.round(segments * rng.uniform(0.6, 1.4, recordings)), strict=True))
    rate = 1.0 / (np.arange(classes - 1) + 3.0)
    rows = []
    for name, duration in durations.items():
        count = rng.poisson(duration / 14)
        label = rng.choice(classes - 1, count, p=rate / rate.sum())
        start = rng.uniform(0, duration - 2, count)
        end = np.minimum(start + rng.gamma(3.0, 2.5, count) + 1.0, duration)
        rows += [(name, s, e, f"action{c:02d}") for s, e, c in zip(start, end, label, strict=True) if e > s + 0.5]
    for name in names[:NUM_RARE]:
        rows.append((name, 2.0, 7.0, f"action{classes - 1:02d}"))
    clips = [
        (name, f"view{v}", f"{name}-{v}", f"{name}-{v}.mp4", 0.0, duration, 30.0, 64, 64, False)
        for name, duration in durations.items() for v in range(views)
    ]  # fmt: skip
    table = [
        (name, d, f"scene{i % NUM_SCENES}", "test" if i % 8 == 7 else "train")
        for i, (name, d) in enumerate(durations.items())
    ]
    made = Manifest(
        "made", root, tuple(f"action{c:02d}" for c in range(classes)), tuple(f"scene{s}" for s in range(NUM_SCENES)),
        pl.DataFrame(table, schema=SCHEMAS["recordings"], orient="row"),
        pl.DataFrame(clips, schema=SCHEMAS["clips"], orient="row"),
        pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row"),
    )  # fmt: skip
    return made.with_folds(assign_folds(made, 5))


def make_features(manifest: Manifest, recording: str, view: int, width: int) -> np.ndarray:
    """Return (S, width) float16: actions, scene, drift and noise, mixed and rectified as pooled activations are."""
    number = int(recording[1:])
    rng = np.random.default_rng([view, number])
    labels = segment_targets(manifest, segment_index(manifest, SEGMENT_S, [recording]), SEGMENT_S)
    size, num_classes = labels.shape
    mixing = np.random.default_rng([7, view])
    sources = num_classes + NUM_SCENES + _DRIFT + _NUISANCE
    matrix = mixing.normal(size=(sources, width)).astype(np.float32) * (mixing.random((sources, width)) < 0.15)
    drift = rng.normal(size=(size, _DRIFT))
    for row in range(1, size):
        drift[row] = 0.85 * drift[row - 1] + 0.53 * drift[row]
    scene = np.tile(np.arange(NUM_SCENES) == number % NUM_SCENES, (size, 1))
    nuisance = np.tile(rng.normal(size=_NUISANCE), (size, 1))
    latent = np.hstack([labels * rng.gamma(4.0, 0.25, labels.shape), scene, drift, nuisance]).astype(np.float32)
    mixed = latent @ matrix + 0.8 * rng.normal(size=(size, width)).astype(np.float32) + 0.3
    return np.maximum(mixed, 0.0).astype(np.float16)


def make_store(root: Path, manifest: Manifest, *, views: int, width: int) -> FeatureSet:
    """Return the features, written where they are missing."""
    store = FeatureStore(root)
    extraction = Extraction("made", SEGMENT_S, {"rgb": {"kind": "rgb"}}, tuple(f"view{v}" for v in range(views)), ())
    extraction.save(root)
    for key in shard_keys(manifest, extraction, ClipHashes(root)):
        if store.status(key) != "done":
            features = make_features(manifest, key.recording, int(key.view[4:]), width)
            times_s = SegmentGrid(manifest.duration_s(key.recording), SEGMENT_S).centres_s
            store.write(key, Shard(features, np.ones(len(features), dtype=bool), times_s))
    return FeatureSet.open(manifest, root, "made")
