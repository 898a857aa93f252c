"""Workers on other machines, by dask or ray; store and media must be reachable from all.

dask tries a task of a dead worker again by itself (`distributed.scheduler.allowed-failures`), ray does not. On either a
worker that hangs is found out in the same way as in a lane: it ends itself.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal
from uuid import uuid4

import joblib

from talstack.extract.cluster import Cluster, Promise, run_on_cluster
from talstack.extract.lanes import Reply, run_in_lanes
from talstack.extract.schedule import Pool
from talstack.extract.workers import Workers, choose_workers
from talstack.io.errors import ConfigError, InputError, MissingInputError

Backend = Literal["loky", "dask", "ray"]
BACKENDS: tuple[Backend, ...] = ("loky", "dask", "ray")
CONNECT_S = 30


@contextmanager
def open_pool(backend: Backend, local: Workers, *, scheduler: str | None = None) -> Iterator[tuple[Pool, Workers]]:
    """Yield where the tasks run, and how many workers there are.

    Args:
        local: the workers of this machine, for loky.
        scheduler: address of dask's scheduler, or of a ray cluster (None: ray finds or starts one).

    Raises:
        MissingInputError: the package that the backend needs is not installed.
        InputError: nothing answers at the address, or its workers are not as they must be.
    """
    if backend == "loky":
        yield run_in_lanes, local
    elif backend == "dask":
        distributed = _package("distributed", backend)
        if scheduler is None:
            raise ConfigError("backend dask needs the address of its scheduler, such as tcp://HOST:8786")
        try:
            client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler} ({error})") from error
        with client:
            yield partial(run_on_cluster, _dask_cluster(client)), _dask_workers(client, scheduler)
    else:
        ray = _package("ray", backend)
        ray.init(address=scheduler, ignore_reinit_error=True, log_to_driver=False)
        there = ray.cluster_resources()
        num_cores, num_gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0))
        workers = choose_workers(sys.maxsize, num_gpus=num_gpus, cores=num_cores)
        yield partial(run_on_cluster, _ray_cluster(ray, workers, num_gpus)), replace(workers, devices=())


def _package(name: str, backend: Backend) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingInputError(
            f"backend {backend} needs a package that is not installed ({error}); pip install 'talstack[{backend}]'"
        ) from error


def _dask_workers(client: Any, scheduler: str) -> Workers:
    """Return the cluster's workers; every machine's cores are shared out among those that run on it."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise InputError(f"the dask scheduler at {scheduler} has no workers after {CONNECT_S} s") from error
    threads = client.nthreads()
    if max(threads.values()) > 1:
        raise InputError(
            f"the dask workers at {scheduler} run {max(threads.values())} tasks in one process, where one that dies or "
            "hangs takes the others down; start them with `dask worker --nthreads 1 --nworkers N`"
        )
    try:
        versions = set(client.run(version, "talstack").values())
    except PackageNotFoundError as error:
        raise InputError(f"the dask workers at {scheduler} do not have talstack installed") from error
    if versions != {version("talstack")}:
        found = ", ".join(sorted(versions))
        raise InputError(f"the dask workers at {scheduler} have talstack {found}, here is {version('talstack')}")
    per_host = Counter(_host(address) for address in threads)
    cores = client.run(joblib.cpu_count)
    shares = [int(num_cores) // per_host[_host(address)] for address, num_cores in cores.items()]
    return Workers(len(threads), max(1, min(shares)))


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _dask_cluster(client: Any) -> Cluster:
    def submit(do: Callable[[bytes], Reply], packed: bytes, task: str) -> Any:
        return client.submit(do, packed, key=f"talstack-{task}-{uuid4().hex}", pure=False)

    def cancel(promises: list[Promise]) -> None:
        with suppress(OSError, RuntimeError):
            client.cancel(promises, force=True)

    def has_workers() -> bool:
        try:
            return bool(client.nthreads())
        except (OSError, TimeoutError, RuntimeError):
            return False

    killed = import_module("distributed.scheduler").KilledWorker
    return Cluster("dask", submit, cancel, has_workers, deaths=(killed,), endings=(CancelledError,))


def _ray_cluster(ray: Any, workers: Workers, num_gpus: int) -> Cluster:
    """Return a cluster whose tasks each reserve a share of the GPUs; to one that asks for none, ray shows none."""
    options = {"num_cpus": workers.threads, "num_gpus": num_gpus / workers.jobs, "max_retries": 0}
    references: dict[Any, Any] = {}  # of each promise; a task that nothing refers to is given up

    def submit(do: Callable[[bytes], Reply], packed: bytes, task: str) -> Any:
        reference = ray.remote(do).options(name=f"talstack-{task}", **options).remote(packed)
        promise = reference.future()
        references[promise] = reference
        promise.add_done_callback(references.pop)
        return promise

    def cancel(promises: list[Promise]) -> None:
        for promise in promises:
            if reference := references.get(promise):
                ray.cancel(reference, force=True)

    def has_workers() -> bool:
        try:
            return bool(ray.cluster_resources().get("CPU"))
        except errors.RayError:
            return False

    errors = import_module("ray.exceptions")
    deaths = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.LocalRayletDiedError)
    endings = (errors.RaySystemError, errors.TaskCancelledError)
    return Cluster("ray", submit, cancel, has_workers, deaths=deaths, endings=endings)
