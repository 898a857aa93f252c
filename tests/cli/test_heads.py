"""`talstack heads` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.main import main
from talstack.io.extraction import Extraction, shard_keys
from talstack.io.folds import assign_folds
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard
from talstack.io.store import ClipHashes, FeatureStore

CONFIG = '[heads]\nlearners = ["linear"]\ncontext = [1]\nlinear_l2 = [0.01]\n'


@pytest.fixture
def dataset(tmp_path: Path) -> list[str]:
    """Return the arguments of `heads` for six recordings of one view, in whose features the action shows."""
    names = [f"r{i}" for i in range(6)]
    manifest = Manifest(
        name="toy",
        media_root=tmp_path,
        actions=("wave",),
        scenes=("in", "out"),
        recordings=pl.DataFrame(
            [(name, 10.0, ("in", "out")[i % 2], "test" if i == 5 else "train") for i, name in enumerate(names)],
            schema=SCHEMAS["recordings"], orient="row",
        ),
        clips=pl.DataFrame(
            [(name, "front", "c", f"{name}.mp4", 0.0, 10.0, 30.0, 8, 8, False) for name in names],
            schema=SCHEMAS["clips"], orient="row",
        ),
        instances=pl.DataFrame(
            [(name, 2.0, 5.0, "wave") for name in names], schema=SCHEMAS["instances"], orient="row"
        ),
    )  # fmt: skip
    manifest = manifest.with_folds(assign_folds(manifest, 2))
    manifest.save(tmp_path / "data")
    store = FeatureStore(tmp_path / "store")
    extraction = Extraction("toy", 1.0, {"rgb": {"kind": "rgb"}}, ("front",))
    extraction.save(store.root)
    rng = np.random.default_rng(0)
    grid = SegmentGrid(10.0, 1.0)
    for key in shard_keys(manifest, extraction, ClipHashes(store.root)):
        features = rng.normal(0, 0.3, (10, 4))
        features[2:5, 0] += 3
        store.write(key, Shard(features.astype(np.float16), np.ones(10, dtype=bool), grid.centres_s))
    (tmp_path / "c.toml").write_text(CONFIG)
    options = {"--store": "store", "--run": "run", "--config": "c.toml"}
    return [
        str(tmp_path / "data"),
        *(text for name, value in options.items() for text in (name, str(tmp_path / value))),
    ]


def invoke(arguments: list[str], code: int = 0):
    result = CliRunner().invoke(main, ["heads", "--jobs", "1", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_table_files_and_settings_are_written(dataset: list[str], tmp_path: Path) -> None:
    result = invoke(dataset)
    assert result.stdout == f"{tmp_path / 'run'}: 4 heads trained, 0 up to date; wrote oof.parquet and heads.json\n"
    assert "action-linear" in result.stderr and "top-1" in result.stderr
    assert pl.read_parquet(tmp_path / "run" / "oof.parquet").height == 6 * (10 + 10 + 10 * 6 + 2)
    assert "context = [1]" in (tmp_path / "run" / "config.toml").read_text()
    assert "nothing to do, 4 heads are up to date" in invoke(dataset).stdout


def test_a_scheduler_and_its_backend_belong_together(dataset: list[str]) -> None:
    assert "needs --scheduler ADDRESS" in invoke([*dataset, "--backend", "dask"], code=2).stderr
    assert "--scheduler is for" in invoke([*dataset, "--scheduler", "tcp://x:1"], code=2).stderr


def test_a_cluster_finds_folders_that_are_given_relative_to_the_command(
    dataset: list[str], cluster_address: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = cluster_address("dask")  # its workers have the working directory of before
    invoke(dataset)
    here = pl.read_parquet(tmp_path / "run" / "oof.parquet")
    monkeypatch.chdir(tmp_path)
    relative = [text.replace(f"{tmp_path}/", "").replace("run", "run2") for text in dataset]
    relative[relative.index("--run2")] = "--run"
    printed = invoke([*relative, "--backend", "dask", "--scheduler", address]).stdout
    assert printed.startswith("run2: 4 heads trained")
    assert pl.read_parquet(tmp_path / "run2" / "oof.parquet").equals(here)


def test_json_is_one_object(dataset: list[str]) -> None:
    summary = json.loads(invoke([*dataset, "--json"]).stdout)
    assert summary["fitted"] == 4 and summary["written"] and summary["missing"] == []
    heads = {f"{task}-linear" for task in ("action", "activity", "boundary", "scene")}
    assert {row["head"] for row in summary["heads"]} == heads


def test_features_still_to_be_extracted_are_listed(dataset: list[str], tmp_path: Path) -> None:
    next((tmp_path / "store").glob("*/r2/*.h5")).unlink()
    result = invoke(dataset, code=1)
    assert "missing: r2 front/rgb: not extracted yet" in result.stderr
    assert "r2" not in set(pl.read_parquet(tmp_path / "run" / "oof.parquet")["recording"])


def test_unknown_extractions_and_settings_are_refused(dataset: list[str], tmp_path: Path) -> None:
    assert "no extraction named 'other' (there: toy)" in invoke([*dataset, "--extraction", "other"], code=2).stderr
    (tmp_path / "c.toml").write_text("[heads]\nlearner = 1\n")
    assert "unknown key 'learner'" in invoke(dataset, code=2).stderr
