"""What the way workers are run costs: per task, per killed worker, per process in memory; and what the index saves.

    python benchmarks/workers.py

Prints one table per question. The tasks do nothing or wait, so that only the scheduling is seen.
"""

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import cloudpickle
import joblib
import numpy as np

from talstack.extract.schedule import run_items
from talstack.extract.status import StatusRow
from talstack.extract.workers import Workers
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore
from talstack.io.store_contents import scan_store
from talstack.io.store_index import indexed_entries, update_index
from talstack.io.store_summary import summarise

cloudpickle.register_pickle_by_value(sys.modules[__name__])
JOBS, NUM_TASKS, NUM_SHARDS, WAIT_S = 2, 300, 800, 0.5


@dataclass(frozen=True)
class Item:
    """A task that waits, or kills its worker the first time."""

    store_root: Path
    key: ShardKey
    wait_s: float = 0.0
    kills: bool = False


def do(item: Item) -> StatusRow:
    marker = item.store_root / item.key.recording
    if item.kills and not marker.exists():
        marker.touch()
        time.sleep(item.wait_s / 2)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(item.wait_s)
    return StatusRow(item.key.recording, item.key.view, item.key.modality, "done")


def make_key(number: int) -> ShardKey:
    return ShardKey(f"r{number}", "front", "rgb", {"kind": "rgb"}, ({"name": "c", "sha256": "0" * 64},), 300.0, 1.0)


def seconds(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def time_tasks(root: Path) -> None:
    items = [Item(root, make_key(number)) for number in range(NUM_TASKS)]
    run_items(items[:JOBS], jobs=Workers(JOBS), run=do)  # the processes start
    lanes_s = seconds(lambda: run_items(items, jobs=Workers(JOBS), run=do))
    pool = joblib.Parallel(n_jobs=JOBS, batch_size=1)
    pool(joblib.delayed(do)(item) for item in items[:JOBS])
    pool_s = seconds(lambda: pool(joblib.delayed(do)(item) for item in items))
    print(f"\n{NUM_TASKS} tasks that do nothing, {JOBS} processes | ms per task")
    print(f"one pool of joblib's, no journal                | {1e3 * pool_s / NUM_TASKS:.2f}")
    print(f"lanes with journals                             | {1e3 * lanes_s / NUM_TASKS:.2f}")


def time_kills(root: Path) -> None:
    print(f"\n12 tasks of {WAIT_S} s, {JOBS} processes | s")
    for num_killers in (0, 1, 3):
        folder = root / f"killers{num_killers}"
        folder.mkdir()
        items = [Item(folder, make_key(n), WAIT_S, kills=n in range(2, 2 + num_killers)) for n in range(12)]
        took_s = seconds(partial(run_items, items, jobs=Workers(JOBS), run=do))
        print(f"{num_killers} workers killed once each | {took_s:.1f}")


def time_index(root: Path) -> None:
    store = FeatureStore(root)
    shard = Shard(np.ones((300, 64), np.float16), np.ones(300, bool), np.arange(300) + 0.5)
    for number in range(NUM_SHARDS):
        store.write(make_key(number), shard)
    without_s = seconds(lambda: summarise(scan_store(root)))
    build_s = seconds(lambda: update_index(scan_store(root)))
    contents = scan_store(root)
    with_s = seconds(lambda: summarise(contents, read=indexed_entries(contents)))
    print(f"\nwhat is in a store of {NUM_SHARDS} shards | s")
    print(f"every header read          | {without_s:.2f}")
    print(f"index written              | {build_s:.2f}")
    print(f"index used                 | {with_s:.2f}")


def peak_bytes(num_frames: int, results: "multiprocessing.SimpleQueue[tuple[int, int]]") -> None:
    import torch

    import talstack.extract.engine  # noqa: F401 - what a worker has loaded

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torchvision

    torch.set_num_threads(1)
    network = torchvision.models.resnet50().eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        network(torch.zeros((num_frames, 3, 224, 224)).to(memory_format=torch.channels_last))
    results.put((before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure_memory() -> None:
    print("\nResNet-50 at 224 pixels, frames per batch | peak GB | bytes per pixel above the libraries")
    for num_frames in (16, 64):
        context = multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        process = context.Process(target=peak_bytes, args=(num_frames, results))
        process.start()
        before, peak = results.get()
        process.join()
        print(f"{num_frames} | {peak / 1e9:.2f} | {(peak - before) / (num_frames * 224 * 224):.0f}")
    print(f"libraries alone | {before / 1e9:.2f}")


@click.command()
def main() -> None:
    """Print the three tables."""
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in {"tasks": time_tasks, "kills": time_kills, "index": time_index}.items():
            (Path(folder) / name).mkdir()
            measure(Path(folder) / name)
    measure_memory()


if __name__ == "__main__":
    main()
