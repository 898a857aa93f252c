"""The backend of clusters, against a cluster of threads that can be told to fail."""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import joblib
import pytest

from talstack.io import cluster
from talstack.io.cluster import Cluster, ClusterBackend, raise_death
from talstack.io.errors import InputError, TalstackError


class DeadWorkerError(Exception):
    """What this cluster raises for a task whose worker died."""


@dataclass
class Threads:
    """A cluster that does as told: item "silent" is never answered, the others raise what they are."""

    workers: int = 2
    given: list[str] = field(default_factory=list)
    cancelled: list[Any] = field(default_factory=list)

    def submit(self, do: Callable[[bytes], Any], packed: bytes) -> Future[Any]:
        future: Future[Any] = Future()
        [word] = pickle.loads(packed)[1]
        self.given.append(word)

        def work() -> None:
            failure = {"dies": DeadWorkerError(), "ends": CancelledError("connection lost")}.get(word)
            if failure is not None:
                future.set_exception(failure)
            elif word != "silent":
                try:
                    future.set_result(do(packed))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=work).start()
        return future

    def call(self, *words: str, died: Callable[[tuple[Any, ...], str], Any] = raise_death) -> Any:
        described = Cluster(
            "toy", 2, 1, self.submit, self.cancelled.extend, lambda: self.workers > 0, deaths=(DeadWorkerError,),
            endings=(CancelledError,),
        )  # fmt: skip
        parallel = joblib.Parallel(
            n_jobs=2, backend=ClusterBackend(described, died), return_as="generator_unordered", batch_size=1,
            pre_dispatch=4,
        )  # fmt: skip
        return parallel(joblib.delayed(shout)(word) for word in words)


def shout(word: str) -> str:
    if word == "raises":
        raise OSError("no space")
    return word.upper()


def test_a_death_is_what_the_caller_makes_of_it_and_the_rest_goes_on() -> None:
    found = Threads().call("a", "dies", *"bcdefg", died=lambda arguments, text: f"{arguments[0]}: {text}")
    assert sorted(found) == [*"ABCDEFG", "dies: the toy worker ended (DeadWorkerError)"]
    with pytest.raises(TalstackError, match=r"the toy worker ended \(DeadWorkerError\); what is done is kept"):
        list(Threads().call("a", "dies", "b"))


def test_what_a_call_raises_reaches_the_caller() -> None:
    with pytest.raises(OSError, match="no space"):
        list(Threads().call("a", "raises", "b"))


def test_a_cluster_that_goes_away_ends_the_run() -> None:
    with pytest.raises(InputError, match=r"the run on the toy cluster ended \(connection lost\); what is done is kept"):
        list(Threads().call("a", "ends", "silent"))


def test_a_cluster_without_workers_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WATCH_S", 0.02)
    monkeypatch.setattr(cluster, "NO_WORKERS_S", 0.1)
    toy = Threads()
    found = toy.call("a", "silent")
    assert next(found) == "A"
    toy.workers = 0
    with pytest.raises(InputError, match=r"the toy cluster has had no workers for 0.1 s"):
        next(found)


@pytest.mark.filterwarnings("ignore:.*tasks have been successfully executed:UserWarning")
def test_what_is_under_way_is_given_up_where_the_caller_stops() -> None:
    toy = Threads()
    found = toy.call("a", "silent", *"bcdefgh")
    next(found)
    found.close()
    assert len(toy.cancelled) >= 1 and all(not future.done() for future in toy.cancelled)


def test_calls_are_handed_out_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WATCH_S", 0.02)
    monkeypatch.setattr(cluster, "NO_WORKERS_S", 0.3)
    toy = Threads(workers=0)
    with pytest.raises(InputError):
        next(toy.call("silent", "silent", "silent", "silent", "never"))
    assert toy.given == ["silent"] * 4
