"""Lanes: joblib on one machine with loky, where a worker that dies takes nothing down but its own task.

One shared pool of loky breaks as a whole when a process dies: the tasks of all others die with it, and nobody knows
which of them was to blame. Here every worker is a pool of one. So a death is a result like another, it is certain
whose it is, and one job runs in a process of its own as well, where joblib would run it in the command's.
"""

import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import joblib
from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError
from joblib.parallel import ParallelBackendBase

from talstack.extract.status import StatusRow
from talstack.extract.worker import Orders, Task, become_worker, work
from talstack.extract.workers import Workers

IDLE_S = 60.0  # an idle process stays this long: a second round, and the next call, need not load torch again


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker sent, or that it died.

    Attributes:
        task: the task's name.
        rows: what became of its shards.
        death: how the worker died ("SIGKILL", "exit code 1", ...); None where it did not.
    """

    task: str
    rows: tuple[StatusRow, ...] = ()
    death: str | None = None


def reply(task: Task, orders: Orders) -> Reply:
    """Do the task in this process."""
    return Reply(task.name, tuple(work(task, orders)))


def run_in_lanes(tasks: Iterable[Task], orders: Orders, workers: Workers) -> Iterator[Reply]:
    """Do the tasks in processes of this machine; yield what comes back, in the order in which it comes."""
    return replies_through(LanesBackend(workers), tasks, orders, jobs=workers.jobs, ahead=1)


def replies_through(
    backend: ParallelBackendBase, tasks: Iterable[Task], orders: Orders, *, jobs: int, ahead: int
) -> Iterator[Reply]:
    """Do the tasks by a backend of joblib's, `ahead` of them handed out per worker; yield replies as they come."""
    parallel = joblib.Parallel(
        n_jobs=jobs, backend=backend, return_as="generator_unordered", batch_size=1, pre_dispatch=ahead * jobs
    )
    replies = parallel(joblib.delayed(reply)(task, orders) for task in tasks)
    try:
        for came in replies:  # noqa: UP028 - `yield from` would hand an early end down before the warning is silenced
            yield came
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that tasks are given up is what stopping early means
            replies.close()


class LanesBackend(ParallelBackendBase):  # type: ignore[misc]
    """joblib's view of the lanes."""

    supports_retrieve_callback = True

    def __init__(self, workers: Workers) -> None:
        super().__init__(nesting_level=0)
        self._workers = workers
        self._lock = threading.Lock()
        self._free: list[_Lane] = []
        self._busy: dict[Future[Any], tuple[_Lane, str]] = {}

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Return the number of lanes, but two where it is one: with one joblib would not ask for a process."""
        return max(2, self._workers.jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Open the lanes."""
        self.parallel = parallel
        self._free = [_take_lane(self._environment(number)) for number in reversed(range(self._workers.jobs))]
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[Future[Any]], None] | None = None) -> "Future[Any]":
        """Start a batch of one call in a free lane; joblib never has more under way than there are lanes."""
        with self._lock:
            lane = self._free.pop()
            try:
                future: Future[Any] = lane.pool.submit(func)
            except BrokenProcessPool:  # it died idle, which is no task's fault
                lane = _new_lane(lane.environment)
                future = lane.pool.submit(func)
            self._busy[future] = (lane, func.items[0][1][0].name)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: "Future[Any]") -> Any:
        """Return the batch's results; a death is one, and its lane is replaced by a new one."""
        with self._lock:
            lane, task = self._busy.pop(future)
        try:
            result = future.result()
        except TerminatedWorkerError as error:
            lane, result = _new_lane(lane.environment), [Reply(task, death=exit_text(str(error)))]
        with self._lock:
            self._free.append(lane)
        return result

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End all processes at once."""
        with self._lock:
            lanes = [*self._free, *(lane for lane, _ in self._busy.values())]
            self._free, self._busy = [], {}
        for lane in lanes:
            with suppress(OSError, RuntimeError):
                lane.pool.shutdown(wait=False, kill_workers=True)

    def terminate(self) -> None:
        """Keep the idle processes for the next call."""
        with self._lock:
            _rest(self._free)
            self._free = []

    def _environment(self, number: int) -> dict[str, str]:
        threads = str(self._workers.threads)
        made = {name: os.environ.get(name, threads) for name in self.MAX_NUM_THREADS_VARS}
        device = self._workers.device(number)
        return made if device is None else {**made, "CUDA_VISIBLE_DEVICES": device}


@dataclass(frozen=True, slots=True, eq=False)
class _Lane:
    """A pool of one process, and the environment that it was started with."""

    pool: Any
    environment: dict[str, str]


_IDLE: list[tuple[float, _Lane]] = []  # since when (time.monotonic), oldest first
_IDLE_LOCK = threading.Lock()


def _rest(lanes: list[_Lane]) -> None:
    """Keep the lanes for the next call, for a while."""
    with _IDLE_LOCK:
        _IDLE.extend((time.monotonic(), lane) for lane in lanes)
    timer = threading.Timer(IDLE_S + 1, _end_idle)
    timer.daemon = True
    timer.start()


def _end_idle() -> None:
    """End the processes that have waited long enough."""
    with _IDLE_LOCK:
        old = [lane for since_s, lane in _IDLE if time.monotonic() - since_s > IDLE_S]
        _IDLE[:] = [(since_s, lane) for since_s, lane in _IDLE if lane not in old]
    for lane in old:
        lane.pool.shutdown(wait=False, kill_workers=True)


def _take_lane(environment: dict[str, str]) -> _Lane:
    with _IDLE_LOCK:
        for place, (_, lane) in enumerate(_IDLE):
            if lane.environment == environment:
                return _IDLE.pop(place)[1]
    return _new_lane(environment)


def _new_lane(environment: dict[str, str]) -> _Lane:
    # No timeout of loky's own: it replaces a process that has timed out after it has told the thread that watches the
    # processes about the new task, so that this thread may never hear of the new process, nor of its death.
    pool = ProcessPoolExecutor(1, timeout=None, initializer=become_worker, initargs=(os.getpid(),), env=environment)
    return _Lane(pool, environment)


def exit_text(message: str) -> str:
    """Return how a process ended from loky's message, which holds codes such as {SIGKILL(-9)} or {EXIT(1)}."""
    codes = re.search(r"exit codes of the workers are \{([^}]*)\}", message)
    name = codes[1].split(",")[0].strip() if codes else ""
    if name.startswith("EXIT("):
        return f"exit code {name[5:-1]}"
    return name.partition("(")[0] or "died"
