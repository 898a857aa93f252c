"""Stage two as users run it, timed: `talstack heads`, `talstack submit`, and the finished run on test recordings."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from talstack.ensemble.predict import predict
from talstack.heads.apply import apply_heads
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.extraction import FeatureSet
from talstack.io.files import write_json
from talstack.io.manifest import Manifest

SYSTEMS = ("mean", "weighted", "stack")
TABLES = ("recordings", "clips", "instances", "features", "folds")
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Ours:
    """What stage two gave under one configuration.

    Attributes:
        name: of the configuration.
        detections: of the test recordings, by system.
        train_s, train_cpu_s: of heads and ensemble, single models not scored; on the wall, and of the processor.
        predict_s: of the finished run on the test recordings, models read and features read, on the wall.
    """

    name: str
    detections: dict[str, pl.DataFrame]
    train_s: float
    train_cpu_s: float
    predict_s: float


def run_ours(data: Path, store: Path, config: Path, out: Path, *, jobs: int) -> Ours:
    """Return what there is in OUT, or make it."""
    done = out / "times.json"
    if not done.is_file():
        command = [sys.executable, "-m", "talstack.cli"]
        options = [str(data), "--config", str(config), "--store", str(store), "--run", str(out), "--jobs", str(jobs)]
        spent = [
            timed([*command, "heads", *options]),
            timed([*command, "submit", *options, "--format", "csv", "--out", str(out / "detections.csv")]),
        ]
        write_json(done, {"wall": sum(wall for wall, _ in spent), "cpu": sum(cpu for _, cpu in spent)})
    times = json.loads(done.read_text())
    table = pl.read_parquet(out / "detections.parquet")
    found = {name: table.filter(pl.col("system") == name).select(DETECTION_SCHEMA.keys()) for name in SYSTEMS}
    return Ours(config.stem, found, times["wall"], times["cpu"], predict_seconds(data, store, out, found["stack"]))


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Return the seconds that a command took, on the wall and of the processor, its own processes included."""
    started, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - started, cpu


def predict_seconds(data: Path, store: Path, run: Path, expected: pl.DataFrame) -> float:
    """Return the median seconds of predicting split test with what the run has learned; check that it is the same."""
    manifest = Manifest.load(data)
    names = pl.col("recording").is_in(manifest.recordings_of(["test"]))
    test = replace(manifest, **{name: getattr(manifest, name).filter(names) for name in TABLES})
    features, seconds = FeatureSet.open(test, store, manifest.name), []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = predict(run, apply_heads(run, features), test).detections
        seconds.append(time.perf_counter() - started)
    if found.height != expected.height:
        raise RuntimeError(f"{run}: {found.height} detections, but {expected.height} when it was made")
    return statistics.median(seconds)
