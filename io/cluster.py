"""Work for processes of a cluster, dask's or ray's, through joblib; all files must be reachable from all machines.

    with open_cluster("dask", "tcp://HOST:8786") as cluster:
        joblib.Parallel(n_jobs=cluster.jobs, backend=ClusterBackend(cluster), batch_size=1)(...)

Every call is a future of its own, and a worker's death is its result. The backends that joblib has for dask and ray
would not do. That of dask scatters the arguments among the workers, where they are lost with the worker that holds
them, and calls back after results only; that of ray is a pool that ends as a whole, and cannot yield results as they
come. dask tries a task of a dead worker again by itself (`distributed.scheduler.allowed-failures`), ray does not. See
docs/decisions/0012-workers.md.
"""

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol
from uuid import uuid4

import joblib
from joblib.externals.loky.backend.reduction import dumps
from joblib.parallel import ParallelBackendBase

from talstack.io.errors import ConfigError, InputError, MissingInputError, TalstackError

Backend = Literal["loky", "dask", "ray"]
CONNECT_S = 30
NO_WORKERS_S = 600.0  # a cluster that grows and shrinks by itself may have none for a while
WATCH_S = 5.0
AHEAD = 2  # calls handed out per worker, so that none waits for its next


class Promise(Protocol):
    """What a cluster gives for a call, as `concurrent.futures.Future` and dask's have it."""

    def add_done_callback(self, function: Callable[[Any], Any], /) -> Any:
        """Have the function called with this promise once it is kept or broken."""

    def result(self) -> Any:
        """Return what the call returned, or raise."""


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """What is special about a kind of cluster.

    Attributes:
        name: "dask", "ray".
        jobs, threads: how many workers, and threads of each.
        submit: has a function called with bytes somewhere.
        cancel: gives up promises that are not kept yet.
        has_workers: whether the cluster answers and has any.
        deaths: what a promise raises whose worker died.
        endings: what it raises where the cluster itself is gone.
    """

    name: str
    jobs: int
    threads: int
    submit: Callable[[Callable[[bytes], Any], bytes], Promise]
    cancel: Callable[[list[Promise]], None]
    has_workers: Callable[[], bool]
    deaths: tuple[type[BaseException], ...]
    endings: tuple[type[BaseException], ...]


def call(packed: bytes) -> Any:
    """Do a packed call in this process.

    Calls travel as bytes: what cannot be unpacked is then the call's error, where a dask worker would fall silent.
    """
    function, arguments, options = pickle.loads(packed)  # noqa: S301 - from the command that this worker works for
    return function(*arguments, **options)


def raise_death(arguments: tuple[Any, ...], text: str) -> Any:
    """Let a worker's death end everything."""
    raise TalstackError(f"{text}; what is done is kept")


class ClusterBackend(ParallelBackendBase):  # type: ignore[misc]
    """joblib's view of a cluster; for batches of one call."""

    supports_retrieve_callback = True

    def __init__(self, cluster: Cluster, died: Callable[[tuple[Any, ...], str], Any] = raise_death) -> None:
        """Take what a call gives whose worker died: from its arguments, and a text that says so."""
        super().__init__(nesting_level=0)
        self._cluster, self._died = cluster, died
        self._lock = threading.Lock()
        self._waiting: dict[Promise, Callable[[Any], None]] = {}
        self._ended = threading.Event()

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Return the number of workers, but two where it is one: with one joblib would not ask for a worker."""
        return max(2, self._cluster.jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Begin to look whether there are workers."""
        self.parallel = parallel
        threading.Thread(target=self._watch, daemon=True, name=f"{self._cluster.name} workers").start()
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Promise:
        """Hand out a batch of one call."""
        [packed] = func.items
        promise = self._cluster.submit(call, bytes(dumps(packed)))
        if callback is not None:
            with self._lock:
                self._waiting[promise] = callback
            promise.add_done_callback(partial(self._kept, packed[1]))
        return promise

    def retrieve_result_callback(self, out: Callable[[], Any]) -> Any:
        """Return the batch's results, or raise what ends everything."""
        return [out()]

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Give up what is under way."""
        self._ended.set()
        self._cluster.cancel(list(self._take_all()))

    def terminate(self) -> None:
        """Stop looking for workers."""
        self._ended.set()

    def _kept(self, arguments: tuple[Any, ...], promise: Promise) -> None:
        with self._lock:
            callback = self._waiting.pop(promise, None)
        if callback is None:  # given up before
            return
        try:
            callback(partial(_give, self._outcome(arguments, promise)))
        except BaseException as error:  # noqa: BLE001 - what a call raises belongs to the caller
            callback(partial(_raise, error))

    def _outcome(self, arguments: tuple[Any, ...], promise: Promise) -> Any:
        try:
            return promise.result()
        except self._cluster.deaths as error:
            return self._died(arguments, f"the {self._cluster.name} worker ended ({type(error).__name__})")
        except self._cluster.endings as error:
            text = f"the run on the {self._cluster.name} cluster ended ({error}); what is done is kept"
            raise InputError(text) from error

    def _watch(self) -> None:
        """End the call where no worker is left and none comes."""
        seen_s = time.monotonic()
        while not self._ended.wait(WATCH_S):
            if self._cluster.has_workers():
                seen_s = time.monotonic()
            elif time.monotonic() - seen_s > NO_WORKERS_S:
                text = (
                    f"the {self._cluster.name} cluster has had no workers for {NO_WORKERS_S:g} s; what is done is kept"
                )
                for callback in self._take_all().values():
                    callback(partial(_raise, InputError(text)))

    def _take_all(self) -> dict[Promise, Callable[[Any], None]]:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return waiting


def _give(result: Any) -> Any:
    return result


def _raise(error: BaseException) -> Any:
    raise error


@contextmanager
def open_cluster(
    backend: Backend, scheduler: str | None, *, share: Callable[[int, int], tuple[int, int]] | None = None
) -> Iterator[Cluster]:
    """Yield the cluster at an address.

    Args:
        backend: dask or ray.
        scheduler: address of dask's scheduler, or of a ray cluster (None: ray finds or starts one).
        share: (workers, threads of each) for so many cores and GPUs, where ray lets one choose; each worker then has
            its share of the GPUs. None: one worker per core, no GPU.

    Raises:
        MissingInputError: the package that the backend needs is not installed.
        InputError: nothing answers at the address, or its workers are not as they must be.
    """
    if backend == "dask":
        distributed = _package("distributed", backend)
        if scheduler is None:
            raise ConfigError("backend dask needs the address of its scheduler, such as tcp://HOST:8786")
        try:
            client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler} ({error})") from error
        with client:
            yield _dask_cluster(client, *_dask_workers(client, scheduler))
    else:
        ray = _package("ray", backend)
        ray.init(address=scheduler, ignore_reinit_error=True, log_to_driver=False)
        there = ray.cluster_resources()
        cores, gpus = max(1, int(there.get("CPU", 1))), int(there.get("GPU", 0)) if share else 0
        jobs, threads = share(cores, gpus) if share else (cores, 1)
        yield _ray_cluster(ray, jobs, threads, gpus / jobs)


def _package(name: str, backend: Backend) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingInputError(
            f"backend {backend} needs a package that is not installed ({error}); pip install 'talstack[{backend}]'"
        ) from error


def _dask_workers(client: Any, scheduler: str) -> tuple[int, int]:
    """Return how many workers there are, and threads of each: a machine's cores are shared out among its workers."""
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
    return len(threads), max(1, min(shares))


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _dask_cluster(client: Any, jobs: int, threads: int) -> Cluster:
    def submit(do: Callable[[bytes], Any], packed: bytes) -> Any:
        return client.submit(do, packed, key=f"talstack-{uuid4().hex}", pure=False)

    def cancel(promises: list[Promise]) -> None:
        with suppress(OSError, RuntimeError):
            client.cancel(promises, force=True)

    def has_workers() -> bool:
        try:
            return bool(client.nthreads())
        except (OSError, TimeoutError, RuntimeError):
            return False

    killed = import_module("distributed.scheduler").KilledWorker
    return Cluster("dask", jobs, threads, submit, cancel, has_workers, deaths=(killed,), endings=(CancelledError,))


def _ray_cluster(ray: Any, jobs: int, threads: int, num_gpus: float) -> Cluster:
    """Return a cluster whose calls each reserve a share of the GPUs; to one that asks for none, ray shows none."""
    options = {"num_cpus": threads, "num_gpus": num_gpus, "max_retries": 0}
    references: dict[Any, Any] = {}  # of each promise; a task that nothing refers to is given up

    def submit(do: Callable[[bytes], Any], packed: bytes) -> Any:
        reference = ray.remote(do).options(name="talstack", **options).remote(packed)
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
    return Cluster("ray", jobs, threads, submit, cancel, has_workers, deaths=deaths, endings=endings)
