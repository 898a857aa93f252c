"""The backend of clusters, against a cluster of threads that can be told to fail."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from talstack.extract import cluster
from talstack.extract.cluster import Cluster, run_on_cluster
from talstack.extract.lanes import Reply
from talstack.extract.status import StatusRow
from talstack.extract.worker import Orders, Task
from talstack.extract.workers import Workers
from talstack.io.errors import InputError


class DeadWorkerError(Exception):
    """What this cluster raises for a task whose worker died."""


@dataclass
class Threads:
    """A cluster that does as told: item "silent" is never answered, the others raise what they are."""

    workers: int = 2
    given: list[str] = field(default_factory=list)
    cancelled: list[Any] = field(default_factory=list)

    def submit(self, do: Callable[[bytes], Reply], packed: bytes, task: str) -> Future[Reply]:
        future: Future[Reply] = Future()
        self.given.append(task)

        def work() -> None:
            failure = {"dies": DeadWorkerError(), "ends": CancelledError("connection lost")}.get(task)
            if failure is not None:
                future.set_exception(failure)
            elif task != "silent":
                try:
                    future.set_result(do(packed))
                except BaseException as error:  # noqa: BLE001 - as a cluster does
                    future.set_exception(error)

        threading.Thread(target=work).start()
        return future

    def described(self) -> Cluster:
        return Cluster(
            "toy", self.submit, self.cancelled.extend, lambda: self.workers > 0, deaths=(DeadWorkerError,),
            endings=(CancelledError,),
        )  # fmt: skip

    def replies(self, tmp_path: Path, *names: str) -> Any:
        tasks = [Task(name, (), name) for name in names]
        return run_on_cluster(self.described(), tasks, Orders(do, tmp_path, "run", 0.0), Workers(2))


def do(item: str) -> StatusRow:
    if item == "raises":
        raise OSError("no space")
    return StatusRow(item, "v", "rgb", "done")


@pytest.fixture(autouse=True)
def _no_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this process, whose threads are the workers, from becoming one that may be ended."""
    monkeypatch.setattr(cluster, "reply", lambda task, orders: Reply(task.name, (orders.run(task.item),)))


def test_a_death_is_a_reply_and_the_rest_goes_on(tmp_path: Path) -> None:
    replies = {r.task: r for r in Threads().replies(tmp_path, "a", "dies", *"bcdefg")}
    assert sorted(replies) == sorted(["a", "dies", *"bcdefg"])
    assert replies["dies"].death == "the toy worker ended (DeadWorkerError)"
    assert [row.recording for row in replies["g"].rows] == ["g"]


def test_what_a_task_raises_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        list(Threads().replies(tmp_path, "a", "raises", "b"))


def test_a_cluster_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the run on the toy cluster ended \(connection lost\); what is done is kept"):
        list(Threads().replies(tmp_path, "a", "ends", "silent"))


def test_a_cluster_without_workers_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WATCH_S", 0.02)
    monkeypatch.setattr(cluster, "NO_WORKERS_S", 0.1)
    toy = Threads()
    replies = toy.replies(tmp_path, "a", "silent")
    assert next(replies).task == "a"
    toy.workers = 0
    with pytest.raises(InputError, match="the toy cluster has had no workers for 0.1 s"):
        next(replies)


def test_what_is_under_way_is_given_up_where_the_caller_stops(tmp_path: Path) -> None:
    toy = Threads()
    replies = toy.replies(tmp_path, "a", "silent", *"bcdefgh")
    next(replies)
    replies.close()
    assert len(toy.cancelled) >= 1 and all(not future.done() for future in toy.cancelled)


def test_tasks_are_handed_out_as_they_are_needed(tmp_path: Path) -> None:
    toy = Threads()
    replies = toy.replies(tmp_path, "silent", "silent", "silent", "silent", "never")
    assert toy.given == []
    threading.Timer(0.2, lambda: setattr(toy, "workers", 0)).start()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError):
        patch.setattr(cluster, "WATCH_S", 0.02)
        patch.setattr(cluster, "NO_WORKERS_S", 0.3)
        next(replies)
    assert toy.given == ["silent"] * 4
