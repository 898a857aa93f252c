"""`talstack extract` as a user runs it, with workers that are told what to do."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.extract_progress import by_group, figures, summary_line
from talstack.cli.main import main
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.plan import plan_extraction
from talstack.extract.schedule import run_items
from talstack.extract.status import StatusRow
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return three recordings, each with a sensor."""
    names = ("good", "killer", "other")
    for name in names:
        (tmp_path / f"{name}.npz").write_bytes(name.encode())
    tables: dict[str, list[Any]] = {name: [] for name in SCHEMAS}
    tables["recordings"] = [(name, 3.0, None, "train") for name in names]
    tables["features"] = [(name, "sensor", f"{name}.npz") for name in names]
    frames = {
        name: pl.DataFrame(tables[name], schema=SCHEMAS[name], orient="row")
        for name in ("recordings", "clips", "instances", "features")
    }
    Manifest(name="toy", media_root=tmp_path, actions=("x",), scenes=(), **frames).save(tmp_path / "data")
    return tmp_path / "data"


class Item:
    """The work of one shard."""

    def __init__(self, store_root: Path, key: ShardKey) -> None:
        self.store_root, self.key = store_root, key


def fill(store: FeatureStore, key: ShardKey) -> None:
    num_rows = round(3.0 / key.segment_s)
    times_s = (np.arange(num_rows) + 0.5) * key.segment_s
    store.write(key, Shard(np.ones((num_rows, 2), np.float16), np.ones(num_rows, bool), times_s))


def do(item: Item) -> StatusRow:
    if item.key.recording == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    fill(FeatureStore(item.store_root), item.key)
    return StatusRow(item.key.recording, item.key.view, item.key.modality, "done", 3, 2, decode_s=3.0, compute_s=1.0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers do what this module says."""
    monkeypatch.setattr("talstack.extract.schedule.run_items", partial(run_items, run=do))
    monkeypatch.setattr(
        "talstack.extract.plan.ExtractionPlan.items",
        lambda plan, keys, workers, **_: [Item(plan.store.root, key) for key in keys],
    )


def invoke(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["extract", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.usefixtures("told")
def test_a_killer_is_listed_and_the_rest_is_done(data: Path, tmp_path: Path) -> None:
    result = invoke(data, "--store", tmp_path / "store", "--jobs", 2, code=1)
    assert ", 3 shards, 1 failed, 1 retried after a worker died, 1 quarantined, 6 segments in " in result.stdout
    assert "worker died at killer external/sensor: SIGKILL, out of memory?; it will be tried again" in result.stderr
    assert "failed: killer external/sensor: killed its worker twice (SIGKILL, out of memory?)" in result.stderr
    again = json.loads(invoke(data, "--store", tmp_path / "store", "--json", code=1).stdout)
    assert [row["outcome"] for row in again["shards"]] == ["cached", "failed", "cached"]
    assert (again["retried"], again["quarantined"]) == (0, [])


@pytest.mark.usefixtures("told")
def test_json_holds_the_figures_and_nothing_else_is_on_stdout(data: Path, tmp_path: Path) -> None:
    found = json.loads(invoke(data, "--store", tmp_path / "store", "--jobs", 1, "--json", code=1).stdout)
    assert (found["extraction"], found["retried"]) == ("toy", 1)
    assert [made["recording"] for made in found["quarantined"]] == ["killer"]
    (group,) = found["groups"]
    assert (group["new"], group["failed"], group["segments"], group["masked"]) == (2, 1, 6, 2)
    assert (group["decode"], group["compute"], group["store"]) == (0.75, 0.25, 0.0)
    assert group["segments_per_s"] > 0 and found["segments_per_s"] > 0 and found["seconds"] > 0


@pytest.mark.usefixtures("told")
def test_parts_of_array_jobs_meet_in_one_store(data: Path, tmp_path: Path) -> None:
    counts = []
    for number, code in ((1, 0), (2, 1), (3, 0)):
        part = f"{number}/3"
        found = json.loads(invoke(data, "--store", tmp_path / "s", "--shard", part, "--json", code=code).stdout)
        counts.append(len(found["shards"]))
    assert counts == [1, 1, 1]
    assert len(list((tmp_path / "s").rglob("[!.]*.h5"))) == 2


@pytest.mark.usefixtures("told")
def test_retrying_a_part_leaves_the_failures_of_the_others_recorded(data: Path, tmp_path: Path) -> None:
    invoke(data, "--store", tmp_path / "s", code=1)
    (record,) = (tmp_path / "s").rglob("*.failed.json")
    for number, code in ((2, 1), (1, 0)):  # the second is the killer's
        invoke(data, "--store", tmp_path / "s", "--shard", f"{number}/3", "--retry-failed", code=code)
    assert record.is_file()


def test_a_finished_store_needs_neither_torch_nor_workers(data: Path, tmp_path: Path) -> None:
    plan = plan_extraction(data, tmp_path / "store", config=ExtractConfig(), sampling=SamplingConfig())
    for key in plan.keys:
        fill(plan.store, key)
    code = (
        "import sys\nfrom talstack.cli.main import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "loaded = {'torch', 'joblib.externals.loky.process_executor', 'talstack.extract.schedule'} & set(sys.modules)\n"
        "import joblib.externals.loky.process_executor as loky\n"
        "assert not loaded - {loky.__name__}, loaded\n"
        "assert loky.process_pool_executor_at_exit is None, 'a pool was started'"
    )
    arguments = ["extract", str(data), "--store", str(tmp_path / "store"), "--json"]
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {row["outcome"] for row in json.loads(done.stdout)["shards"]} == {"cached"}


def test_a_scheduler_and_its_backend_belong_together(data: Path, tmp_path: Path) -> None:
    base = (data, "--store", tmp_path / "store")
    assert "needs --scheduler ADDRESS" in invoke(*base, "--backend", "dask", code=2).stderr
    assert "--scheduler is for" in invoke(*base, "--scheduler", "tcp://x:1", code=2).stderr


def test_figures_of_shards_that_were_not_timed_are_not_known() -> None:
    rows = [StatusRow("a", "v", "m", "cached"), StatusRow("b", "v", "m", "failed")]
    made = figures(rows)
    assert (made.new, made.cached, made.failed) == (0, 1, 1)
    assert (made.segments_per_s, made.decode, made.compute, made.store) == (None,) * 4
    assert summary_line(rows, seconds=1) == "2 shards, 1 failed"


def test_rates_are_of_one_worker_and_shares_of_what_was_timed() -> None:
    rows = [
        StatusRow("a", "v", "rgb", "done", 10, 10, decode_s=1, compute_s=2, store_s=1, wall_s=2),
        StatusRow("b", "v", "rgb", "done", 30, 30, decode_s=3, compute_s=0, store_s=1, wall_s=6),
        StatusRow("a", "v", "audio", "cached"),
    ]
    groups = by_group(rows)
    assert list(groups) == [("v", "audio"), ("v", "rgb")]
    made = groups["v", "rgb"]
    assert (made.segments_per_s, made.decode, made.compute, made.store) == (5.0, 0.5, 0.25, 0.25)
