"""Workers that die, hang or fail, and what becomes of their items and of all others."""

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from talstack.extract import watchdog
from talstack.extract.lanes import Reply, exit_text
from talstack.extract.schedule import run_items
from talstack.extract.status import StatusRow
from talstack.extract.worker import Orders, Task, work
from talstack.extract.workers import Workers
from talstack.io.errors import InputError, TalstackError
from talstack.io.journal import journal_paths, read_journals
from talstack.io.shard import EXTERNAL_VIEW, Shard, ShardKey
from talstack.io.store import FeatureStore

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


@pytest.fixture(autouse=True)
def this_process_is_no_worker() -> Iterator[None]:
    """Take back what `work` allows where a test calls it in this process: the watchdog may end a worker."""
    yield
    watchdog.allow(None)


TIMES_S = np.arange(3) + 0.5


@dataclass(frozen=True)
class Item:
    """One or two shards, and what happens to the worker on the way."""

    store_root: Path
    keys: tuple[ShardKey, ...]
    does: str


def make_key(recording: str, view: str = EXTERNAL_VIEW) -> ShardKey:
    return ShardKey(recording, view, "imu", {"kind": "external"}, ({"name": recording},), 3.0, 1.0)


def item(root: Path, recording: str, does: str = "work") -> Item:
    return Item(root, (make_key(recording),), does)


def do(item: Item) -> list[StatusRow]:
    key, store = item.keys[0], FeatureStore(item.store_root)
    marker = item.store_root / f"{key.recording}.began"
    first = not marker.exists()
    marker.parent.mkdir(parents=True, exist_ok=True)
    with open(marker, "a") as file:
        file.write(f"{os.getpid()}\n")
    if item.does == "kill" or (item.does == "kill once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if item.does == "crash":
        ctypes.string_at(0)
    if item.does == "exit":
        os._exit(3)
    if item.does == "slow":
        time.sleep(0.05)
    if item.does == "grow":
        sys.modules["grown"] = np.ones(45_000_000)  # 0.36 GB that stay
        time.sleep(1.1)  # loky looks once a second
    if item.does == "hang":
        time.sleep(60)
    if item.does == "hang in C":
        sum(range(10**12))  # one call that never lets go of Python's lock
    if item.does == "refuse":
        raise InputError(f"{key}: no")
    rows = []
    for key in item.keys:
        if item.does == "kill at bad" and key.view == "bad":
            os.kill(os.getpid(), signal.SIGKILL)
        values = np.full((3, 2), len(key.recording), np.float16)
        store.write(key, Shard(values, np.ones(3, bool), TIMES_S))
        rows.append(StatusRow(key.recording, key.view, key.modality, "done", 3, 3))
        if item.does == "kill between":
            os.kill(os.getpid(), signal.SIGKILL)
    return rows


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("[!.]*.h5")}


def begun(root: Path, recording: str) -> list[str]:
    return (root / f"{recording}.began").read_text().split()


def test_a_worker_that_dies_once_is_replaced_and_its_item_done(tmp_path: Path) -> None:
    seen, warnings = [], []
    items = [item(tmp_path, "a"), item(tmp_path, "b", "kill once"), item(tmp_path, "c")]
    rows = run_items(items, jobs=2, run=do, report=seen.append, warn=warnings.append)
    assert [(row.recording, row.outcome, row.attempts) for row in rows] == [
        ("a", "done", 1), ("b", "done", 2), ("c", "done", 1),
    ]  # fmt: skip
    assert sorted(row.recording for row in seen) == ["a", "b", "c"]
    assert len(set(begun(tmp_path, "b"))) == 2, "another process"
    assert len(begun(tmp_path, "a")) == len(begun(tmp_path, "c")) == 1, "no other item suffers"
    assert warnings == ["worker died at b external/imu: SIGKILL, out of memory?; it will be tried again"]
    assert not any(row.quarantined for row in rows)


def test_killers_are_quarantined_and_the_rest_is_as_without_them(tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(10)]
    killers = {"r1": "kill", "r2": "crash", "r6": "exit"}
    run_items([item(tmp_path / "calm", name) for name in names if name not in killers], jobs=1, run=do)
    root = tmp_path / "store"
    rows = run_items([item(root, name, killers.get(name, "work")) for name in names], jobs=3, run=do)
    assert [row.recording for row in rows] == names
    failed = {row.recording: row.reason for row in rows if row.outcome == "failed"}
    assert failed.keys() == killers.keys() == {row.recording for row in rows if row.quarantined}
    assert "killed its worker twice (SIGKILL, out of memory?); quarantined" in failed["r1"]
    assert "(Segmentation fault, in do (test_schedule.py line" in failed["r2"]
    assert "(exit code 3)" in failed["r6"] and "--retry-failed" in failed["r6"]
    assert content(root) == content(tmp_path / "calm")
    assert FeatureStore(root).failure(make_key("r1")) == failed["r1"]
    assert all(len(begun(root, name)) == (2 if name in killers else 1) for name in names)


@pytest.mark.parametrize("does", ["hang", "hang in C"])
def test_what_hangs_is_ended_after_the_limit(tmp_path: Path, does: str) -> None:
    started_s = time.monotonic()
    rows = run_items([item(tmp_path, "a", does), item(tmp_path, "b")], jobs=2, run=do, hang_s=0.5)
    assert time.monotonic() - started_s < 30
    assert [row.outcome for row in rows] == ["failed", "done"]
    assert "(no progress for 0.5 s, in do (test_schedule.py line" in rows[0].reason


def test_one_job_has_a_process_of_its_own(tmp_path: Path) -> None:
    rows = run_items([item(tmp_path, "a"), item(tmp_path, "b", "crash"), item(tmp_path, "c")], jobs=1, run=do)
    assert [row.outcome for row in rows] == ["done", "failed", "done"]
    assert str(os.getpid()) not in begun(tmp_path, "a")


def test_an_error_of_another_kind_stops_the_run_and_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="b external/imu: no"):
        run_items([item(tmp_path, "b", "refuse")], jobs=1, run=do)
    assert FeatureStore(tmp_path).status(make_key("b")) == "missing"


def test_workers_that_all_die_blame_no_recording(tmp_path: Path) -> None:
    items = [item(tmp_path, f"r{number}", "kill") for number in range(20)]
    with pytest.raises(TalstackError, match=r"the first 8 workers all died \(SIGKILL, out of memory\?\)"):
        run_items(items, jobs=2, run=do)
    assert {FeatureStore(tmp_path).status(made.keys[0]) for made in items} == {"missing"}


def live(item: Item) -> list[StatusRow]:
    return []


def die(item: Item) -> list[StatusRow]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_many_broken_files_on_a_sound_machine_are_quarantined(tmp_path: Path) -> None:
    """As `--retry-failed` meets them: every item is a killer."""
    items, warnings = [item(tmp_path, f"r{number}", "kill") for number in range(9)], []
    rows = run_items(items, jobs=2, run=do, probe=live, warn=warnings.append)
    assert all(row.quarantined for row in rows) and len(rows) == 9
    assert sum("it is the clips" in text for text in warnings) == 1
    with pytest.raises(TalstackError, match="no recording's fault"):
        run_items([item(tmp_path / "b", f"r{number}", "kill") for number in range(9)], jobs=2, run=do, probe=die)


def test_only_the_shard_that_kills_is_quarantined(tmp_path: Path) -> None:
    keys = tuple(make_key("a", view) for view in ("front", "bad", "left", "right"))
    (rows,) = [run_items([Item(tmp_path, keys, "kill at bad")], jobs=1, run=do)]
    assert [(row.view, row.outcome, row.quarantined) for row in rows] == [
        ("front", "done", False), ("bad", "failed", True), ("left", "done", False), ("right", "done", False),
    ]  # fmt: skip


def test_a_clip_of_which_every_shard_kills_is_given_up_soon(tmp_path: Path) -> None:
    keys = tuple(make_key("a", view) for view in ("front", "left", "right", "ego"))
    rows = run_items([Item(tmp_path, keys, "kill")], jobs=1, run=do)
    assert [row.outcome for row in rows] == ["failed"] * 4
    assert len(begun(tmp_path, "a")) == 4, "twice together, and two shards alone"


def test_a_worker_that_died_idle_costs_no_try(tmp_path: Path) -> None:
    """Its death is noticed only when it is given the next item, which it never begins."""
    calls = []

    def pool(tasks: Any, orders: Orders, workers: Workers) -> Any:
        calls.append(len(tasks))
        for task in tasks:
            if len(calls) == 1:
                yield Reply(task.name, death="SIGKILL")
            else:
                yield Reply(task.name, tuple(work(task, orders)))

    rows = run_items([item(tmp_path, "a"), item(tmp_path, "b")], jobs=2, run=do, pool=pool)
    assert calls == [2, 2], "both were tried again together, and none alone"
    assert [(row.outcome, row.attempts) for row in rows] == [("done", 1), ("done", 1)]


def test_of_several_shards_those_that_were_made_stay(tmp_path: Path) -> None:
    both = Item(tmp_path, (make_key("a", "front"), make_key("a", "ego")), "kill between")
    rows = run_items([both], jobs=1, run=do)
    assert [(row.view, row.outcome) for row in rows] == [("front", "done"), ("ego", "failed")]
    assert FeatureStore(tmp_path).status(both.keys[0]) == "done"


def test_journals_tell_what_was_begun_and_what_became_of_it(tmp_path: Path) -> None:
    run_items([item(tmp_path, "a"), item(tmp_path, "b", "kill once")], jobs=1, run=do)
    first, killed, again = read_journals(tmp_path)
    assert first.shards == (("a", EXTERNAL_VIEW, "imu", make_key("a").fingerprint[:16]),)
    assert first.rows[0]["outcome"] == "done" and first.rows[0]["wall_s"] > 0
    assert killed.is_open and killed.task == again.task and not again.is_open
    assert killed.worker != again.worker


HANGING = (
    "import sys, importlib.util as u; spec = u.spec_from_file_location('items', sys.argv[1]);"
    "m = u.module_from_spec(spec); sys.modules['items'] = m; spec.loader.exec_module(m);"
    "from pathlib import Path; root = Path(sys.argv[2]);"
    "m.run_items([m.item(root, n, 'hang') for n in 'abc'], jobs=2, run=m.do)"
)


@pytest.mark.parametrize("how", ["ctrl-c", "kill -9"])
def test_stopping_the_command_stops_its_workers_at_once(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-P", "-c", HANGING, __file__, str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline_s = time.monotonic() + 60
    while len(list(tmp_path.glob("*.began"))) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers hear it as well
    else:
        process.kill()
    stopped_s = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - stopped_s < 10
    if how == "ctrl-c":
        assert errors.rstrip().endswith("KeyboardInterrupt") and errors.count("Traceback") == 1
    pids = [int(begun(tmp_path, name)[0]) for name in "ab"]
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() - stopped_s < 15, "a worker is left"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_killed_at_random_cost_their_own_item_only(tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(40)]
    run_items([item(tmp_path / "calm", name) for name in names], jobs=1, run=do)
    root, rng, killed = tmp_path / "store", random.Random(0), []

    def kill(row: StatusRow) -> None:
        """Kill what is running now and then, but never the same item twice."""
        running = [a for a in read_journals(root) if a.is_open and a.task not in killed]
        if running and len(killed) < 6 and rng.random() < 0.3:
            killed.append(rng.choice(running).task)
            pid = int(next(a for a in running if a.task == killed[-1]).worker.rpartition("-")[2])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    rows = run_items([item(root, name, "slow") for name in names], jobs=3, run=do, report=kill)
    begins = sum(len(begun(root, name)) for name in names)
    print(f"{len(killed)} kills -9, {begins - len(names)} of {len(names)} items begun again")
    assert len(killed) >= 3
    assert [row.outcome for row in rows] == ["done"] * len(names)
    assert content(root) == content(tmp_path / "calm")
    assert begins - len(names) <= len(killed)


def test_a_worker_that_loads_a_network_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="loky looks at memory only with psutil")
    run_items([item(tmp_path, "a"), item(tmp_path, "b", "grow"), item(tmp_path, "c")], jobs=1, run=do)
    assert len({begun(tmp_path, name)[0] for name in "abc"}) == 1


def test_every_task_has_a_name_of_its_own_and_no_work_starts_no_process(tmp_path: Path) -> None:
    assert run_items([], run=do) == []
    run_items([item(tmp_path, "a"), item(tmp_path, "b")], jobs=1, run=do)
    assert len({attempt.task for attempt in read_journals(tmp_path)}) == 2
    assert len(journal_paths(tmp_path)) == 1


def test_how_loky_says_that_a_process_ended() -> None:
    text = "A worker ...\n\nThe exit codes of the workers are {SIGKILL(-9)}\nDetailed"
    assert exit_text(text) == "SIGKILL"
    assert exit_text(text.replace("SIGKILL(-9)", "EXIT(3), SIGKILL(-9)")) == "exit code 3"
    assert exit_text("something else") == "died"


def test_a_task_is_small_enough_to_travel(tmp_path: Path) -> None:
    shards = (("a", "b", "c", "d"),)
    assert len(cloudpickle.dumps(Task("x", shards, None))) < 1000
