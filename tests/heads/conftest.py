"""A small synthetic world: two cameras with their own features, one of them missing somewhere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_limits

from talstack.heads.config import HeadsConfig
from talstack.heads.features import GroupFeatures, group_of
from talstack.io.extraction import Extraction, FeatureSet, shard_keys
from talstack.io.folds import assign_folds
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import ClipHashes, FeatureStore
from talstack.io.targets import segment_index, segment_targets

SEGMENT_S = 0.5
DURATION_S = 20.0
WIDTH = 12
ACTIONS = ("wave", "jump", "never")
SCENES = ("kitchen", "yard")
QUICK = HeadsConfig(
    context=(1, 3),
    linear_components=8,
    gbm_components=8,
    gbm_context_components=8,
    gbm_rounds=15,
    linear_l2=(0.1, 0.01),
    linear_context_gain=(0.5,),
    inner_folds=2,
)

MakeManifest = Callable[..., Manifest]
Shape = Callable[[ShardKey, Shard], Shard | None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products on several threads cost more than they save, and other tests may be running beside."""
    with threadpool_limits(limits=1):
        yield


@pytest.fixture
def quick() -> HeadsConfig:
    return QUICK


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Return ten recordings (two of test) with two actions that happen and one that never does."""
    rng = np.random.default_rng(0)
    names = [f"r{i}" for i in range(10)]
    instances = []
    for name in names:
        start = 1.0
        while start < DURATION_S - 4:
            end = start + rng.uniform(1.5, 3.0)
            instances.append((name, start, end, ACTIONS[rng.integers(2)]))
            start = end + rng.uniform(1.0, 3.0)
    clips = [
        (name, view, f"{name}_{view}", f"{name}_{view}.mp4", 0.0, DURATION_S, 30.0, 64, 64, False)
        for name in names
        for view in ("front", "ego")
        if (name, view) != ("r3", "ego")
    ]
    recordings = [
        (name, DURATION_S, SCENES[i % 2], "test" if i >= 8 else "val" if i == 7 else "train")
        for i, name in enumerate(names)
    ]
    made = Manifest(
        name="toy",
        media_root=tmp_path,
        actions=ACTIONS,
        scenes=SCENES,
        recordings=pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"),
        clips=pl.DataFrame(clips, schema=SCHEMAS["clips"], orient="row"),
        instances=pl.DataFrame(instances, schema=SCHEMAS["instances"], orient="row"),
    )
    return made.with_folds(assign_folds(made, 4))


def toy_shard(manifest: Manifest, recording: str, seed: int) -> Shard:
    """Return features in which every action and the scene show, under noise."""
    rng = np.random.default_rng([seed, int(recording[1:])])
    index = segment_index(manifest, SEGMENT_S, [recording])
    labels = segment_targets(manifest, index, SEGMENT_S).astype(np.float32)
    scene = dict(manifest.recordings.select("recording", "scene").iter_rows())[recording]
    features = rng.normal(0, 0.5, (index.num_rows, WIDTH))
    features[:, :3] += 2 * labels
    features[:, 3] += 2 * SCENES.index(scene)
    times = SegmentGrid(DURATION_S, SEGMENT_S).centres_s
    return Shard(features.astype(np.float16), np.ones(len(times), dtype=bool), times)


@pytest.fixture
def make_features(manifest: Manifest, tmp_path: Path) -> Callable[..., FeatureSet]:
    """Return make(manifest=..., seen=(), shape=...) -> FeatureSet; `shape` may change or leave out a shard."""

    def make(
        used: Manifest = manifest, *, seen: Sequence[str] = (), shape: Shape = lambda key, shard: shard
    ) -> FeatureSet:
        store = FeatureStore(tmp_path / "store")
        extraction = Extraction("toy", SEGMENT_S, {"rgb": {"kind": "rgb"}}, ("ego", "front"), tuple(seen))
        extraction.save(store.root)
        for key in shard_keys(used, extraction, ClipHashes(store.root)):
            # the features are those of the fixture's labels, whatever `used` says the labels are
            shard = shape(key, toy_shard(manifest, key.recording, seed=len(key.view)))
            if shard is not None:
                store.write(key, shard)
        return FeatureSet.open(used, store.root, "toy")

    return make


@pytest.fixture
def group(manifest: Manifest) -> GroupFeatures:
    """Return one view of all recordings."""
    return group_of({name: toy_shard(manifest, name, 0) for name in sorted(manifest.recordings["recording"])})


@pytest.fixture
def relabel() -> Callable[[Manifest, Sequence[str]], Manifest]:
    """Return relabel(manifest, recordings): the same data set with other labels and scenes in these recordings."""

    def change(used: Manifest, recordings: Sequence[str]) -> Manifest:
        inside = pl.col("recording").is_in(list(recordings))
        wrong = pl.when(inside).then(pl.col("start_s") / 3).otherwise(pl.col("start_s")).alias("start_s")
        other = pl.when(inside).then(pl.lit("never")).otherwise(pl.col("label")).alias("label")
        scene = pl.when(inside).then(pl.lit(SCENES[0])).otherwise(pl.col("scene")).alias("scene")
        return replace(
            used, instances=used.instances.with_columns(wrong, other), recordings=used.recordings.with_columns(scene)
        )

    return change
