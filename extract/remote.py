"""Where an extraction's tasks run: in lanes of this machine, or on a cluster.

On either a worker that hangs ends itself, and one that dies is told by a reply.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from talstack.extract.lanes import Reply, replies_through, run_in_lanes
from talstack.extract.schedule import Pool
from talstack.extract.worker import Orders, Task
from talstack.extract.workers import Workers, choose_workers
from talstack.io.cluster import AHEAD, Backend, Cluster, ClusterBackend, open_cluster

MANY = 1 << 20  # items: as many workers as there is room for


@contextmanager
def open_pool(backend: Backend, local: Workers, *, scheduler: str | None = None) -> Iterator[tuple[Pool, Workers]]:
    """Yield where the tasks run, and how many workers there are.

    Args:
        local: the workers of this machine, for loky.
        scheduler: as for `talstack.io.cluster.open_cluster`.

    Raises:
        MissingInputError, InputError: as there.
    """
    if backend == "loky":
        yield run_in_lanes, local
        return
    with open_cluster(backend, scheduler, share=_share) as cluster:
        yield partial(_run_on_cluster, cluster), Workers(cluster.jobs, cluster.threads)


def _share(cores: int, gpus: int) -> tuple[int, int]:
    workers = choose_workers(MANY, num_gpus=gpus, cores=cores)
    return workers.jobs, workers.threads


def _run_on_cluster(cluster: Cluster, tasks: Iterable[Task], orders: Orders, workers: Workers) -> Iterator[Reply]:
    backend = ClusterBackend(cluster, died=_died)
    return replies_through(backend, tasks, orders, jobs=workers.jobs, ahead=AHEAD)


def _died(arguments: tuple[Any, ...], text: str) -> Reply:
    return Reply(arguments[0].name, death=text)
