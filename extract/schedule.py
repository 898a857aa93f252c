"""The schedule of an extraction: every item to a worker, a dead worker's item to another, a killer into quarantine.

Whatever a decoder or a driver does to its process, the command lives on and the other items are done. Each item has
one try beside the others and, should its worker die, a second one alone; if that worker dies as well, its shards are
recorded as failed; of several, each is tried once more by itself first. See docs/decisions/0012-workers.md.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import joblib

from talstack.extract.lanes import Reply, run_in_lanes
from talstack.extract.status import StatusRow
from talstack.extract.watchdog import places
from talstack.extract.worker import Orders, Task, extract_item
from talstack.extract.workers import Workers
from talstack.io.errors import TalstackError
from talstack.io.files import sha256_text
from talstack.io.journal import Attempt, read_journals, shard_names
from talstack.io.shard import ShardKey
from talstack.io.store import FeatureStore

MAX_DEATHS = 2  # workers that one item may kill
MANY_DEATHS = 8  # items whose workers died before anything was done: then the machine is asked whether it is at fault
MAX_UNBEGUN = 2  # workers that may die before they begin an item; one that died idle is not the item's fault

Run = Callable[[Any], StatusRow | Sequence[StatusRow]]
Pool = Callable[[Iterable[Task], Orders, Workers], Iterator[Reply]]


class Item(Protocol):
    """What the schedule needs of an item; it also has `key` (one shard) or `keys` (several)."""

    @property
    def store_root(self) -> Path:
        """The store that its shards go to."""


def run_items(
    items: Sequence[Item], *, jobs: int | Workers = 1, run: Run = extract_item, hang_s: float = 0.0,
    pool: Pool = run_in_lanes, probe: Run | None = None, report: Callable[[StatusRow], None] = lambda row: None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[StatusRow]:  # fmt: skip
    """Do every item in worker processes; return their status rows in the items' order.

    Args:
        jobs: how many processes, or which.
        run: does one item.
        hang_s: a worker that makes no progress for so many seconds is ended; 0 = never.
        pool: where the processes are.
        probe: does what an item needs of the machine without its files; if a worker lives through that where all others
            died, the items are to blame. None: many deaths and nothing done end the run.
        report: called with every row as it comes.
        warn: called with what happens to workers.

    Raises:
        TalstackError: what `run` raises, at once; or that every worker dies, whatever it is given.
    """
    if not items:
        return []
    workers = jobs if isinstance(jobs, Workers) else Workers(jobs, max(1, int(joblib.cpu_count()) // jobs))
    tasks = {task.name: task for task in map(_task, items)}
    store_root = items[0].store_root
    orders = Orders(run, store_root, secrets.token_hex(4), hang_s)
    schedule = _Schedule(tasks, orders, pool, report, warn, probe)
    schedule.run_together(workers)
    schedule.run_alone(workers)
    attempts = schedule.count_attempts()
    return [
        replace(row, attempts=max(row.attempts, attempts[name])) if attempts[name] > 1 else row
        for name in tasks
        for row in schedule.rows[name]
    ]


def shard_keys_of(item: Any) -> tuple[ShardKey, ...]:
    """Return the keys of the shards that an item makes."""
    keys = getattr(item, "keys", None)
    return (item.key,) if keys is None else tuple(keys)


def _task(item: Item) -> Task:
    shards = shard_names(shard_keys_of(item))
    return Task(sha256_text(repr(shards))[:16], shards, item)


@dataclass(slots=True)
class _Schedule:
    """The state of one call of `run_items`.

    Attributes:
        rows: status rows by task.
        deaths: how its workers died, by task.
        unbegun: how many workers died before they began, by task.
        is_sound: whether the machine has passed the probe.
    """

    tasks: dict[str, Task]
    orders: Orders
    pool: Pool
    report: Callable[[StatusRow], None]
    warn: Callable[[str], None]
    probe: Run | None = None
    unbegun: Counter[str] = field(default_factory=Counter)
    is_sound: bool = False
    rows: dict[str, list[StatusRow]] = field(default_factory=dict)
    deaths: dict[str, list[str]] = field(default_factory=dict)

    def run_together(self, workers: Workers) -> None:
        """Give every task one try, several at a time."""
        while todo := [task for name, task in self.tasks.items() if name not in self.rows | self.deaths]:
            self._receive(todo, workers)

    def run_alone(self, workers: Workers) -> None:
        """Try again what workers died of, one task at a time so that no other is to blame."""
        alone = replace(workers, jobs=1)
        for name in list(self.deaths):
            while name not in self.rows and not self._is_killer(name):
                self._receive([self.tasks[name]], alone)
            if name not in self.rows:
                self._narrow_down(self.tasks[name], alone)
                self._quarantine(self.tasks[name])

    def _narrow_down(self, task: Task, alone: Workers) -> None:
        """Make what can be made of a killer's shards, one at a time, until two in a row kill as well."""
        missing = self._missing(task)
        deaths_in_a_row = 0
        for key in missing if len(missing) > 1 else ():
            part = _task(replace(task.item, keys=(key,)))
            with closing(self.pool([part], self.orders, alone)) as replies:  # type: ignore[type-var]
                died = any(reply.death is not None for reply in replies)
            deaths_in_a_row = deaths_in_a_row + 1 if died else 0
            if deaths_in_a_row == MAX_DEATHS:
                return

    def _missing(self, task: Task) -> list[ShardKey]:
        store = FeatureStore(self.orders.store_root)
        return [key for key in shard_keys_of(task.item) if store.status(key) == "missing"]

    def count_attempts(self) -> Counter[str]:
        """Return how many workers began each task; a cluster may try again without saying so."""
        return Counter(attempt.task for attempt in self._attempts())

    def _receive(self, tasks: Sequence[Task], workers: Workers) -> None:
        with closing(self.pool(tasks, self.orders, workers)) as replies:  # type: ignore[type-var]
            for reply in replies:
                if reply.death is None:
                    self._done(reply.task, list(reply.rows))
                else:
                    self._died(reply.task, reply.death)
                    self._check_that_some_live(workers)

    def _done(self, name: str, rows: list[StatusRow]) -> None:
        attempts = 1 + len(self.deaths.get(name, ()))
        self.rows[name] = [replace(row, attempts=attempts) for row in rows] if attempts > 1 else rows
        for row in self.rows[name]:
            self.report(row)

    def _died(self, name: str, death: str) -> None:
        """Note a death; a pool that tried again by itself had several, which the journals tell."""
        left_open = [attempt for attempt in self._attempts() if attempt.task == name and attempt.is_open]
        if len(left_open) <= len(self.deaths.get(name, ())) and self.unbegun[name] < MAX_UNBEGUN:
            self.unbegun[name] += 1
            self.warn(f"a worker died before it began {_names(self.tasks[name])}: {death}")
            return
        reason = death_text(left_open[-1] if left_open else None, death, hang_s=self.orders.hang_s)
        known = self.deaths.setdefault(name, [])
        known += [reason] * max(1, len(left_open) - len(known))
        if not self._is_killer(name):
            self.warn(f"worker died at {_names(self.tasks[name])}: {reason}; it will be tried again")

    def _is_killer(self, name: str) -> bool:
        return len(self.deaths[name]) >= MAX_DEATHS

    def _attempts(self) -> list[Attempt]:
        return read_journals(self.orders.store_root, self.orders.run_id)

    def _check_that_some_live(self, workers: Workers) -> None:
        num_dead, many = len(self.deaths) + self.unbegun.total(), max(MANY_DEATHS, 2 * workers.jobs)
        if self.rows or self.is_sound or num_dead < many:
            return
        self.is_sound = self._passes_probe(workers)
        if self.is_sound:
            self.warn(f"the first {num_dead} workers died, but one without a clip lives: it is the clips; going on")
        else:
            reasons = "; ".join(dict.fromkeys(reason for found in self.deaths.values() for reason in found))
            reasons = reasons or "before they began"
            raise TalstackError(
                f"the first {num_dead} workers all died ({reasons}): that is no recording's fault, and none is "
                "recorded as failed; try fewer --jobs, a smaller extract.batch_segments, or `talstack extract` of one "
                "--view and --modality"
            )

    def _passes_probe(self, workers: Workers) -> bool:
        if self.probe is None:
            return False
        task = Task(f"probe-{self.orders.run_id}", (), next(iter(self.tasks.values())).item)
        pool = self.pool([task], replace(self.orders, run=self.probe), replace(workers, jobs=1))
        with closing(pool) as replies:  # type: ignore[type-var]
            return all(reply.death is None for reply in replies)

    def _quarantine(self, task: Task) -> None:
        times = "twice" if len(self.deaths[task.name]) == MAX_DEATHS else f"{len(self.deaths[task.name])} times"
        reason = (
            f"killed its worker {times} ({self.deaths[task.name][-1]}); quarantined: `talstack extract --retry-failed` "
            "tries it again"
        )
        store, attempts = FeatureStore(self.orders.store_root), len(self.deaths[task.name])
        rows = []
        for key in shard_keys_of(task.item):
            row, status = StatusRow(key.recording, key.view, key.modality, "done", attempts=attempts), store.status(key)
            if status == "missing":  # a worker may have finished some of several shards
                store.record_failure(key, reason)
                row = replace(row, outcome="failed", reason=reason, quarantined=True)
            elif status == "failed":
                row = replace(row, outcome="failed", reason=store.failure(key) or "")
            rows.append(row)
            self.report(row)
        self.rows[task.name] = rows


def death_text(attempt: Attempt | None, death: str, *, hang_s: float) -> str:
    """Return why a worker died, from its last words where it had any."""
    words = attempt.last_words if attempt is not None else ""
    where = f", in {' and '.join(places(words))}" if places(words) else ""
    if words.startswith("Timeout ("):
        return f"no progress for {hang_s:g} s{where}"
    if words.startswith("Fatal Python error: "):
        return f"{words.splitlines()[0].removeprefix('Fatal Python error: ')}{where}"
    return f"{death}, out of memory?" if death == "SIGKILL" else death


def _names(task: Task) -> str:
    return ", ".join(f"{recording} {view}/{modality}" for recording, view, modality, _ in task.shards)
