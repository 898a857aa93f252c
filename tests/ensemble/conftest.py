"""A synthetic world for the ensemble: three views, of which each sees some classes only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.ensemble.evidence import Evidence
from talstack.io.files import write_json
from talstack.io.folds import assign_folds
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.predictions import SCHEMA, ModelKey, SegmentIndex, segment_rows
from talstack.io.targets import scene_targets, segment_index

SEGMENT_S = 1.0
DURATION_S = 40.0
ACTIONS = ("pour", "wave", "jump")
SCENES = ("kitchen", "yard")
# view: how well it sees each action, from 0 to 1; nothing but `ego` sees a jump
VISIBLE = {"pano": (0.9, 0.2, 0.0), "third": (0.3, 0.9, 0.0), "ego": (0.2, 0.2, 1.0)}


def _manifest(rng: np.random.Generator, media_root: Path) -> Manifest:
    recordings, instances = [], []
    for number in range(14):
        name = f"rec{number:02d}"
        split = "train" if number < 8 else "val" if number < 10 else "test"
        scene = SCENES[number % 2]
        recordings.append((name, DURATION_S, scene, split))
        for column, action in enumerate(ACTIONS):
            start = rng.uniform(0.0, 8.0)
            while start < DURATION_S - 5.0:
                length = rng.uniform(2.5, 4.5)
                if rng.random() < (0.9 if column == number % 2 else 0.6):
                    instances.append((name, start, start + length, action))
                start += length + rng.uniform(2.0, 6.0)
    manifest = Manifest(
        name="synthetic",
        media_root=media_root,
        actions=ACTIONS,
        scenes=SCENES,
        recordings=pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"),
        clips=pl.DataFrame(schema=SCHEMAS["clips"]),
        instances=pl.DataFrame(instances, schema=SCHEMAS["instances"], orient="row"),
    )
    return manifest.with_folds(assign_folds(manifest, 4))


def _coverage(manifest: Manifest, index: SegmentIndex) -> np.ndarray:
    coverage = np.zeros((index.num_rows, len(manifest.actions)))
    for recording, rows in index.slices():
        grid = SegmentGrid(manifest.duration_s(recording), SEGMENT_S)
        for start, end, label in (
            manifest.instances.filter(pl.col("recording") == recording).select("start_s", "end_s", "label").iter_rows()
        ):
            coverage[rows, manifest.actions.index(label)] += grid.coverage(np.array([[start, end]]))[0]
    return np.clip(coverage, 0.0, 1.0)


def _table(manifest: Manifest, rng: np.random.Generator) -> pl.DataFrame:
    index = segment_index(manifest, SEGMENT_S)
    coverage = _coverage(manifest, index)
    fold_of = dict(manifest.folds.iter_rows())
    fold = np.repeat([fold_of.get(name, -1) for name in index.recordings], index.num_segments)
    parts = []
    for view, seen in VISIBLE.items():
        # `ego` was not filmed in two recordings
        missing = [name in ("rec03", "rec11") and view == "ego" for name in index.recordings]
        valid = ~np.repeat(missing, index.num_segments)
        share = np.array(seen)
        logit = 3.0 * (2.0 * coverage - 1.0) * share - 2.0 * (1.0 - share) + rng.normal(0.0, 1.4, coverage.shape)
        any_logit = 3.0 * (2.0 * (coverage * share).max(axis=1) - 1.0) + rng.normal(0.0, 1.0, len(coverage))
        for head, values, classes in (
            ("action-linear", logit, ACTIONS),
            ("activity-linear", any_logit[:, None], ["activity"]),
        ):
            probs = 1.0 / (1.0 + np.exp(-values))
            key = ModelKey(view, "rgb", head)
            parts.append(segment_rows(key, index, probs, valid=valid, fold=fold, classes=classes))
    scene_ids = scene_targets(manifest, list(index.recordings))
    rows = [
        (name, None, fold_of.get(name), "pano", "rgb", "scene-linear", scene, 0.8 if k == scene_id else 0.2, True)
        for name, scene_id in zip(index.recordings, scene_ids, strict=True)
        for k, scene in enumerate(SCENES)
    ]
    return pl.concat([*parts, pl.DataFrame(rows, schema=SCHEMA, orient="row")])


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, pl.DataFrame]:
    """Return the manifest and the out-of-fold table."""
    rng = np.random.default_rng(7)
    manifest = _manifest(rng, tmp_path_factory.mktemp("media"))
    return manifest, _table(manifest, rng)


@pytest.fixture
def write_run(world: tuple[Manifest, pl.DataFrame], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes what `talstack heads` would leave in a run's folder."""

    def write(*, seen: tuple[str, ...] = (), name: str = "run", table: pl.DataFrame | None = None) -> Path:
        manifest, whole = world
        run = tmp_path / name
        run.mkdir()
        (whole if table is None else table).write_parquet(run / "oof.parquet")
        write_json(
            run / "heads.json",
            {
                "format_version": 1,
                "dataset": manifest.name,
                "segment_s": SEGMENT_S,
                "seen": list(seen),
                "extraction": manifest.name,
                "actions": list(manifest.actions),
                "scenes": list(manifest.scenes),
                "config": {},
                "models": {},
                "fingerprint": "0",
            },
        )
        return run

    return write


@pytest.fixture
def evidence_of() -> Callable[[np.ndarray], Evidence]:
    """Return what makes evidence of action probabilities (models, segments, classes) of one recording."""

    def made(action: np.ndarray) -> Evidence:
        num_models, num_rows, num_classes = action.shape
        return Evidence(
            index=SegmentIndex(("r",), (num_rows,)),
            models=tuple(ModelKey(f"v{i}", "rgb", "action-linear") for i in range(num_models)),
            actions=tuple(f"a{i}" for i in range(num_classes)),
            scenes=(),
            action_probs=action.astype(np.float32),
            activity_probs=action.max(axis=2).astype(np.float32),
            scene_probs=np.zeros((1, 0), dtype=np.float32),
        )

    return made
