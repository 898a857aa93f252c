"""Clusters: dask with two worker processes on this machine, ray by a stand-in."""

import faulthandler
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import pytest
from joblib._parallel_backends import ThreadingBackend

from talstack.extract import watchdog
from talstack.extract.remote import open_pool
from talstack.extract.schedule import run_items
from talstack.extract.status import StatusRow
from talstack.extract.workers import Workers
from talstack.io.errors import ConfigError, InputError, MissingInputError
from talstack.io.shard import EXTERNAL_VIEW, Shard, ShardKey
from talstack.io.store import FeatureStore

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


class Item:
    """A shard, and whether its worker dies: never, the first time, or always."""

    def __init__(self, store_root: Path, recording: str, dies: str = "never") -> None:
        self.store_root, self.dies = store_root, dies
        self.key = ShardKey(recording, EXTERNAL_VIEW, "imu", {"kind": "external"}, ({"name": recording},), 3.0, 1.0)


def do(item: Item) -> StatusRow:
    import numpy as np

    marker = item.store_root / f"{item.key.recording}.began"
    first = not marker.exists()
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    if item.dies == "always" or (item.dies == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    values = np.full((3, 2), int(item.key.recording[1:]), np.float16)
    FeatureStore(item.store_root).write(item.key, Shard(values, np.ones(3, bool), np.arange(3) + 0.5))
    return StatusRow(item.key.recording, EXTERNAL_VIEW, "imu", "done", 3, 3)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("[!.]*.h5")}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="dask and distributed are not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as made:
        yield made.scheduler_address


def test_dask_makes_what_loky_makes_and_outlives_its_workers(cluster: str, tmp_path: Path) -> None:
    run_items([Item(tmp_path / "loky", f"r{n}") for n in range(8) if n != 3], jobs=2, run=do)
    root = tmp_path / "dask"
    items = [Item(root, f"r{n}", {3: "always", 5: "once"}.get(n, "never")) for n in range(8)]
    with open_pool("dask", Workers(1), scheduler=cluster) as (pool, workers):
        assert workers.jobs == 2 and workers.threads >= 1
        rows = run_items(items, jobs=workers, run=do, pool=pool)
    assert [row.recording for row in rows] == [f"r{n}" for n in range(8)]
    assert [row.recording for row in rows if row.outcome == "failed"] == ["r3"]
    assert rows[3].quarantined and "the dask worker ended" in rows[3].reason
    assert rows[5].attempts == 2
    assert content(root) == content(tmp_path / "loky")


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


class ActorError(Exception):
    """What ray raises when an actor is gone."""


class StandIn(ThreadingBackend):
    """A backend in the place of ray's: it loses the first task that it is given."""

    lost = False

    def retrieve_result_callback(self, result: Any) -> Any:
        if not StandIn.lost:
            StandIn.lost = True
            raise ActorError("the actor died")
        return super().retrieve_result_callback(result)


@pytest.fixture
def no_worker_afterwards() -> Iterator[None]:
    """Let this process, which a stand-in makes a worker, be none again."""
    yield
    watchdog.allow(None)
    faulthandler.enable(sys.__stderr__)


@pytest.mark.usefixtures("no_worker_afterwards")
def test_ray_is_asked_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    ray, joblib_of_ray, exceptions = (types.ModuleType(n) for n in ("ray", "ray.util.joblib", "ray.exceptions"))
    ray.init = lambda **options: asked.append(options["address"])  # type: ignore[attr-defined]
    ray.cluster_resources = lambda: {"CPU": 3.0}  # type: ignore[attr-defined]
    joblib_of_ray.register_ray = lambda: joblib.register_parallel_backend("ray", StandIn)  # type: ignore[attr-defined]
    exceptions.RayActorError = ActorError  # type: ignore[attr-defined]
    exceptions.WorkerCrashedError = ActorError  # type: ignore[attr-defined]
    for name, module in {"ray": ray, "ray.util.joblib": joblib_of_ray, "ray.exceptions": exceptions}.items():
        monkeypatch.setitem(sys.modules, name, module)
    with open_pool("ray", Workers(1), scheduler="ray://head:10001") as (pool, workers):
        assert (asked, workers.jobs) == (["ray://head:10001"], 3)
        rows = run_items([Item(tmp_path, f"r{n}") for n in range(4)], jobs=workers, run=do, pool=pool)
    assert [row.outcome for row in rows] == ["done"] * 4
    assert StandIn.lost
