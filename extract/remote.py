"""Workers on other machines, through joblib's backends of dask and ray; store and media must be reachable from all.

dask tries a task of a dead worker again by itself (`distributed.scheduler.allowed-failures`) and names the task when it
gives up. ray ends the whole call: the schedule learns from the journals whose worker died. Either finds out that a
worker hangs in the same way as lanes do: the worker ends itself.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Literal

import joblib

from talstack.extract.lanes import Reply, reply, run_in_lanes
from talstack.extract.schedule import Pool, PoolBrokenError
from talstack.extract.worker import Orders, Task
from talstack.extract.workers import Workers
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
            yield partial(_run_on_dask, client), _dask_workers(client, scheduler)
    else:
        ray, register = _package("ray", backend), _package("ray.util.joblib", backend).register_ray
        ray.init(address=scheduler, ignore_reinit_error=True, log_to_driver=False)
        register()
        yield _run_on_ray, Workers(max(1, int(ray.cluster_resources().get("CPU", 1))))


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
    per_host = Counter(_host(address) for address in threads)
    cores = client.run(joblib.cpu_count)
    shares = [int(num_cores) // per_host[_host(address)] for address, num_cores in cores.items()]
    return Workers(len(threads), max(1, min(shares)))


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _run_on_dask(client: Any, tasks: Iterable[Task], orders: Orders, workers: Workers) -> Iterator[Reply]:
    parallel = joblib.Parallel(
        n_jobs=workers.jobs, backend=_dask_backend(client), return_as="generator_unordered", batch_size=1,
        pre_dispatch=2 * workers.jobs,
    )  # fmt: skip
    yield from parallel(joblib.delayed(reply)(task, orders) for task in tasks)


def _dask_backend(client: Any) -> Any:
    """Return joblib's backend for dask, taught that a task may fail without having returned."""
    from distributed.scheduler import KilledWorker
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, int(super().effective_n_jobs(n_jobs)))  # with one joblib would not ask for a worker

        def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Any:
            future = super().submit(func, callback)
            if callback is not None:
                # joblib calls back after results only and would wait for ever for a task that has none
                future.add_done_callback(partial(_tell_of_error, callback, func.items[0][1][0].name, KilledWorker))
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            return [out] if isinstance(out, Reply) else super().retrieve_result_callback(out)

    return Backend(client=client)


def _tell_of_error(callback: Callable[[Any], None], task: str, death: type[Exception], future: Any) -> None:
    error = future.exception()
    if isinstance(error, death):
        callback(Reply(task, death="the dask worker ended"))
    elif error is not None:
        callback(error)


def _run_on_ray(tasks: Iterable[Task], orders: Orders, workers: Workers) -> Iterator[Reply]:
    exceptions = import_module("ray.exceptions")
    try:
        with joblib.parallel_config(backend="ray"):
            parallel = joblib.Parallel(
                n_jobs=max(2, workers.jobs), return_as="generator_unordered", batch_size=1,
                pre_dispatch=2 * workers.jobs,
            )  # fmt: skip
            yield from parallel(joblib.delayed(reply)(task, orders) for task in tasks)
    except (exceptions.RayActorError, exceptions.WorkerCrashedError) as error:
        raise PoolBrokenError(f"a ray worker ended: {type(error).__name__}") from error
