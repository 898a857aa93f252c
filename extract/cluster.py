"""A joblib backend for processes of a cluster: every task is a future of its own, and a worker's death is its result.

The backends that joblib has for dask and ray would not do. That of dask scatters the arguments among the workers, where
they are lost with the worker that holds them, and calls back after results only; that of ray is a pool that ends as a
whole, and cannot yield results as they come. See docs/decisions/0012-workers.md.
"""

import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from joblib.externals.loky.backend.reduction import dumps
from joblib.parallel import ParallelBackendBase

from talstack.extract.lanes import Reply, replies_through, reply
from talstack.extract.worker import Orders, Task
from talstack.extract.workers import Workers
from talstack.io.errors import InputError

NO_WORKERS_S = 600.0  # a cluster that grows and shrinks by itself may have none for a while
WATCH_S = 5.0
AHEAD = 2  # tasks handed out per worker, so that none waits for its next


class Promise(Protocol):
    """What a cluster gives for a task, as `concurrent.futures.Future` and dask's have it."""

    def add_done_callback(self, function: Callable[[Any], Any], /) -> Any:
        """Have the function called with this promise once it is kept or broken."""

    def result(self) -> Any:
        """Return what the task returned, or raise."""


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """What is special about a kind of cluster.

    Attributes:
        name: "dask", "ray".
        submit: has a function called with bytes somewhere; the task's name is for those who watch the cluster.
        cancel: gives up promises that are not kept yet.
        has_workers: whether the cluster answers and has any.
        deaths: what a promise raises whose worker died.
        endings: what it raises where the cluster itself is gone.
    """

    name: str
    submit: Callable[[Callable[[bytes], Reply], bytes, str], Promise]
    cancel: Callable[[list[Promise]], None]
    has_workers: Callable[[], bool]
    deaths: tuple[type[BaseException], ...]
    endings: tuple[type[BaseException], ...]


def run_on_cluster(cluster: Cluster, tasks: Iterable[Task], orders: Orders, workers: Workers) -> Iterator[Reply]:
    """Do the tasks on the cluster; yield what comes back, in the order in which it comes.

    Raises:
        InputError: the cluster went away, or has had no workers for `NO_WORKERS_S`.
    """
    return replies_through(ClusterBackend(cluster, workers.jobs), tasks, orders, jobs=workers.jobs, ahead=AHEAD)


def reply_to(packed: bytes) -> Reply:
    """Do a task in this process.

    Tasks travel as bytes: what cannot be unpacked is then the task's error, where a dask worker would fall silent.
    """
    return reply(*pickle.loads(packed))  # noqa: S301 - from the command that this worker works for


class ClusterBackend(ParallelBackendBase):  # type: ignore[misc]
    """joblib's view of a cluster."""

    supports_retrieve_callback = True

    def __init__(self, cluster: Cluster, jobs: int) -> None:
        super().__init__(nesting_level=0)
        self._cluster, self._jobs = cluster, jobs
        self._lock = threading.Lock()
        self._waiting: dict[Promise, Callable[[Any], None]] = {}
        self._ended = threading.Event()

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Return the number of workers, but two where it is one: with one joblib would not ask for a worker."""
        return max(2, self._jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Begin to look whether there are workers."""
        self.parallel = parallel
        threading.Thread(target=self._watch, daemon=True, name=f"{self._cluster.name} workers").start()
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Promise:
        """Hand out a batch of one call."""
        [(_, (task, orders), _)] = func.items
        promise = self._cluster.submit(reply_to, bytes(dumps((task, orders))), task.name)
        if callback is not None:
            with self._lock:
                self._waiting[promise] = callback
            promise.add_done_callback(partial(self._kept, task.name))
        return promise

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the batch's results, or raise what ends the call."""
        if isinstance(out, BaseException):
            raise out
        return [out]

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Give up what is under way."""
        self._ended.set()
        self._cluster.cancel(list(self._take_all()))

    def terminate(self) -> None:
        """Stop looking for workers."""
        self._ended.set()

    def _kept(self, task: str, promise: Promise) -> None:
        with self._lock:
            callback = self._waiting.pop(promise, None)
        if callback is None:  # given up before
            return
        try:
            out: Reply | BaseException = promise.result()
        except self._cluster.deaths as error:
            out = Reply(task, death=f"the {self._cluster.name} worker ended ({type(error).__name__})")
        except self._cluster.endings as error:
            out = InputError(f"the run on the {self._cluster.name} cluster ended ({error}); what is done is kept")
        except BaseException as error:  # noqa: BLE001 - what the task raised is the caller's
            out = error
        callback(out)

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
                    callback(InputError(text))

    def _take_all(self) -> dict[Promise, Callable[[Any], None]]:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return waiting
