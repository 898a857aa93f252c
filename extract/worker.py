"""What runs inside a worker process: one task, written down before and after, and ended where it hangs.

Importing it loads no torch.
"""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from joblib.externals.loky import process_executor

from talstack.extract import watchdog
from talstack.extract.status import StatusRow
from talstack.io.journal import JournalWriter

PARENT_CHECK_S = 0.2
MAX_GROWTH_BYTES = 4_000_000_000  # loky replaces a process that grows by more than this, and by default by 0.3 GB


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes:
        name: unique within a run.
        shards: what it makes, as journals write it.
        item: what `Orders.run` is called with.
    """

    name: str
    shards: tuple[tuple[str, str, str, str], ...]
    item: Any


@dataclass(frozen=True, slots=True)
class Orders:
    """What holds for every task of a run.

    Attributes:
        run: makes the shards of an item and returns what became of them.
        store_root: where journals go.
        run_id: names this run's journals.
        hang_s: how long a task may go without a beat, seconds; 0 = for ever.
    """

    run: Callable[[Any], StatusRow | Sequence[StatusRow]]
    store_root: Path
    run_id: str
    hang_s: float


_JOURNALS: dict[tuple[Path, str], JournalWriter] = {}  # at most one: that of the run this process works for


def work(task: Task, orders: Orders) -> list[StatusRow]:
    """Do the task; return one status row per shard, with the seconds that it took shared out among them."""
    journal = _journal(orders)
    journal.start(task.name, task.shards)
    began_s = time.perf_counter()
    try:
        with watchdog.watched(orders.hang_s):
            made = orders.run(task.item)
    except BaseException as error:
        journal.end(task.name, [], error=f"{type(error).__name__}: {error}")
        raise
    rows = [made] if isinstance(made, StatusRow) else list(made)
    wall_s = (time.perf_counter() - began_s) / max(1, len(rows))
    rows = [replace(row, wall_s=wall_s) for row in rows]
    journal.end(task.name, [asdict(row) for row in rows])
    return rows


def extract_item(item: Any) -> Any:
    """Do an item of an extraction; the engine and torch are loaded only where that happens."""
    from talstack.extract.engine import extract_clip_group

    return extract_clip_group(item)


def probe_machine(item: Any) -> Any:
    """Compute random pixels by an item's network; nothing of its files is read."""
    from talstack.extract.engine import probe_network

    return probe_network(item)


def _journal(orders: Orders) -> JournalWriter:
    name = (orders.store_root, orders.run_id)
    if name not in _JOURNALS:
        faulthandler.disable()
        watchdog.allow(None)
        while _JOURNALS:
            _JOURNALS.popitem()[1].close()
        journal = _JOURNALS[name] = JournalWriter(*name)
        faulthandler.enable(file=journal.fileno())  # a crash is reported where the scheduler finds it
        watchdog.allow(journal.fileno())
    return _JOURNALS[name]


def become_worker(parent: int) -> None:
    """Prepare a process started on this machine: it outlives neither its parent nor hears Ctrl-C by itself."""
    # a network that is loaded after the first task is no leak; loky looks only where psutil is installed
    process_executor._MAX_MEMORY_LEAK_SIZE = MAX_GROWTH_BYTES
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True, name="parent").start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
