"""Clusters: dask and ray with two worker processes each on this machine."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloudpickle import register_pickle_by_value

from talstack.extract.remote import open_pool
from talstack.extract.schedule import run_items
from talstack.extract.status import StatusRow
from talstack.extract.workers import Workers
from talstack.io.cluster import Backend
from talstack.io.errors import ConfigError, InputError, MissingInputError, WriteError
from talstack.io.shard import EXTERNAL_VIEW, Shard, ShardKey
from talstack.io.store import FeatureStore

register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


class Item:
    """A shard, and whether its worker dies: never, the first time, or always; "raises" ends the run."""

    def __init__(self, store_root: Path, recording: str, dies: str = "never") -> None:
        self.store_root, self.dies = store_root, dies
        self.key = ShardKey(recording, EXTERNAL_VIEW, "imu", {"kind": "external"}, ({"name": recording},), 3.0, 1.0)


def do(item: Item) -> StatusRow:
    import numpy as np

    marker = item.store_root / f"{item.key.recording}.began"
    first = not marker.exists()
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    if item.dies == "raises":
        raise WriteError("the disk is full")
    if item.dies == "always" or (item.dies == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    values = np.full((3, 2), int(item.key.recording[1:]), np.float16)
    FeatureStore(item.store_root).write(item.key, Shard(values, np.ones(3, bool), np.arange(3) + 0.5))
    return StatusRow(item.key.recording, EXTERNAL_VIEW, "imu", "done", 3, 3)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("[!.]*.h5")}


@pytest.mark.parametrize("backend", [pytest.param("dask", marks=pytest.mark.slow), "ray"])
def test_clusters_make_what_lanes_make_and_outlive_their_workers(
    backend: Backend, cluster_address: Callable[[Backend], str], tmp_path: Path
) -> None:
    address = cluster_address(backend)
    run_items([Item(tmp_path / "lanes", f"r{n}") for n in range(8) if n != 3], jobs=2, run=do)
    root = tmp_path / backend
    items = [Item(root, f"r{n}", {3: "always", 5: "once"}.get(n, "never")) for n in range(8)]
    with open_pool(backend, Workers(1), scheduler=address) as (pool, workers):
        assert workers.jobs == 2 and workers.threads >= 1
        rows = run_items(items, jobs=workers, run=do, pool=pool)
    assert [row.recording for row in rows] == [f"r{n}" for n in range(8)]
    assert [row.recording for row in rows if row.outcome == "failed"] == ["r3"]
    assert rows[3].quarantined and f"the {backend} worker ended" in rows[3].reason
    assert rows[5].attempts >= 2  # more where it lost its worker to another task
    assert content(root) == content(tmp_path / "lanes")


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_what_a_task_raises_ends_the_run(
    backend: Backend, cluster_address: Callable[[Backend], str], tmp_path: Path
) -> None:
    address = cluster_address(backend)
    with (
        open_pool(backend, Workers(1), scheduler=address) as (pool, workers),
        pytest.raises(WriteError, match="the disk is full"),
    ):
        run_items([Item(tmp_path, "r1", "raises")], jobs=workers, run=do, pool=pool)


def test_workers_with_several_threads_are_refused() -> None:
    distributed = pytest.importorskip("distributed", reason="dask and distributed are not installed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as made,
        pytest.raises(InputError, match="run 2 tasks in one process.*--nthreads 1"),
        open_pool("dask", Workers(1), scheduler=made.scheduler_address),
    ):
        pass


@pytest.mark.parametrize(("backend", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_a_missing_package_is_named(backend: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(MissingInputError, match=rf"pip install 'talstack\[{backend}\]'"),
        open_pool(backend, Workers(1), scheduler="tcp://127.0.0.1:1"),
    ):
        pass


def test_dask_needs_an_address() -> None:
    pytest.importorskip("distributed", reason="dask and distributed are not installed")
    with pytest.raises(ConfigError, match="needs the address"), open_pool("dask", Workers(1)):
        pass
