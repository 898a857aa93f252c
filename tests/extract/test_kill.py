"""Workers that share one store and one list of work, killed at random until the work is complete."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from talstack.extract.external import load_series, pool_series
from talstack.io.files import TEMPORARY_PREFIX
from talstack.io.grid import SegmentGrid
from talstack.io.shard import EXTERNAL_VIEW, Shard, ShardKey
from talstack.io.store import FeatureStore

NUM_SHARDS, NUM_WORKERS, NUM_KILLS = 300, 3, 60
GRID = SegmentGrid(120.0, 1.0)


def make_keys(folder: Path) -> list[ShardKey]:
    """Write one feature file per recording; return the keys of their shards."""
    keys = []
    for number in range(NUM_SHARDS):
        rng, times_s = np.random.default_rng(number), np.arange(0, GRID.duration_s, 0.05)
        np.savez(folder / f"{number}.npz", values=rng.normal(size=(len(times_s), 40)), times_s=times_s)
        source = {"name": str(folder / f"{number}.npz"), "sha256": str(number)}
        keys.append(ShardKey(f"r{number}", EXTERNAL_VIEW, "imu", {"kind": "external"}, (source,), GRID.duration_s, 1.0))
    return keys


def work(root: Path, keys: list[ShardKey], log: Path, seed: int) -> None:
    """Make what is missing, in an order of one's own: workers meet at the same shard now and then."""
    store = FeatureStore(root)
    for key in random.Random(seed).sample(keys, len(keys)):
        if store.status(key) == "done":
            continue
        values, times_s = load_series(Path(str(key.sources[0]["name"])))
        features, valid = pool_series(values, times_s, GRID)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{key.recording}\n".encode())
        os.close(handle)
        store.write(key, Shard(features.astype(np.float16), valid, GRID.centres_s))


def content(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*.h5") if not path.name.startswith(TEMPORARY_PREFIX)]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_workers_killed_at_random_leave_what_a_serial_run_makes(tmp_path: Path) -> None:
    keys, log, root = make_keys(tmp_path), tmp_path / "log", tmp_path / "shared"
    work(tmp_path / "serial", keys, tmp_path / "serial-log", 0)
    rng, context = random.Random(0), multiprocessing.get_context("fork")
    workers: list[BaseProcess] = []
    started = kills = 0
    store = FeatureStore(root)

    def start() -> None:
        nonlocal started
        started += 1
        workers.append(context.Process(target=work, args=(root, keys, log, started)))
        workers[-1].start()

    try:
        for _ in range(NUM_WORKERS):
            start()
        deadline = time.monotonic() + 300
        while workers and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.0, 0.03))
            victim = rng.choice(workers)
            if kills < NUM_KILLS and victim.is_alive():
                os.kill(victim.pid, signal.SIGKILL)
                kills += 1
            for worker in [worker for worker in workers if not worker.is_alive()]:
                worker.join()
                workers.remove(worker)
                if worker.exitcode != 0:
                    assert worker.exitcode == -signal.SIGKILL, "a worker failed by itself"
                    start()
            for key in rng.sample(keys, 3):  # a reader beside the workers finds a whole shard or none
                if store.status(key) == "done":
                    store.read(key)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    assert not workers, "not complete in time"
    made = log.read_text().split()
    left = list(root.rglob(f"{TEMPORARY_PREFIX}*"))
    valid = sum(store.read(key).features.shape == (len(GRID), 200) for key in keys)
    same = content(root) == content(tmp_path / "serial")
    print(
        f"\n{NUM_WORKERS} workers, {kills} kills -9, {started} starts: {valid} of {len(keys)} valid, "
        f"bit-identical with a serial run: {same}, {len(made) - len(keys)} recomputed, {len(left)} temporary files left"
    )
    assert kills >= 10, "the work was over too soon"
    assert (valid, same) == (len(keys), True)
    assert set(made) == {key.recording for key in keys}
    assert len(made) - len(keys) <= kills + len(keys) // 4, "what was committed is not made again"
