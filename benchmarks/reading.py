"""How much memory and time it takes to read one view of a large store into one matrix.

    .venv/bin/python benchmarks/reading.py

A store of random features is made, and read in fresh processes (Linux only): as `talstack heads` does, block by block
into the finished matrix, and as a list of whole shards that is then concatenated. "over imports" is the process's peak
without what it held before it read; the matrix itself is given for comparison. Seconds are the processor's.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from talstack.heads.features import read_group
from talstack.io.extraction import Extraction, FeatureSet, shard_keys
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.shard import Shard
from talstack.io.store import ClipHashes, FeatureStore

FORMS = {"block": "block by block into one matrix", "list": "whole shards, then concatenated"}


def make_store(root: Path, recordings: int, segments: int, width: int) -> None:
    names = [f"r{number:04d}" for number in range(recordings)]
    rows = [(name, float(segments), None, "train") for name in names]
    clips = [(name, "front", "c", f"{name}.mp4", 0.0, float(segments), 30.0, 64, 64, False) for name in names]
    manifest = Manifest(
        "made", root, ("a",), (), pl.DataFrame(rows, schema=SCHEMAS["recordings"], orient="row"),
        pl.DataFrame(clips, schema=SCHEMAS["clips"], orient="row"), empty_table("instances"),
    )  # fmt: skip
    manifest.save(root / "data")
    extraction = Extraction("made", 1.0, {"rgb": {"kind": "rgb"}}, ("front",))
    extraction.save(root / "store")
    store, rng = FeatureStore(root / "store"), np.random.default_rng(0)
    features = rng.standard_normal((segments, width), dtype=np.float32).astype(np.float16)
    times_s = np.arange(segments) + 0.5
    for number, key in enumerate(shard_keys(manifest, extraction, ClipHashes(store.root))):
        store.write(key, Shard(np.roll(features, number, axis=0), np.ones(segments, bool), times_s))


def read(root: Path, form: str) -> dict[str, float]:
    """Read the store in this process; return seconds and megabytes."""
    features = FeatureSet.open(Manifest.load(root / "data"), root / "store")
    before, started_s = _peak_mb(), time.process_time()
    if form == "block":
        matrix = read_group(features, "front", "rgb").features
    else:
        names = sorted(features.manifest.recordings["recording"])
        shards = [shard for name in names if (shard := features.read(name, "front", "rgb")) is not None]
        matrix = np.concatenate([shard.features for shard in shards])
    seconds = time.process_time() - started_s
    return {"seconds": seconds, "added_mb": _peak_mb() - before, "matrix_mb": matrix.nbytes / 1e6}


def _peak_mb() -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1e3


@click.command()
@click.option("--recordings", default=232, show_default=True, type=click.IntRange(1))
@click.option("--segments", default=300, show_default=True, type=click.IntRange(1), help="Of each recording.")
@click.option("--width", default=2048, show_default=True, type=click.IntRange(1), help="Of the features.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--one", nargs=2, hidden=True, help="Read a store that is there, in one form; prints JSON.")
def main(recordings: int, segments: int, width: int, rounds: int, one: tuple[str, str] | None) -> None:
    """Print the table."""
    if one:
        click.echo(json.dumps(read(Path(one[0]), one[1])))
        return
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), recordings, segments, width)
        for form in list(FORMS) * rounds:
            command = [sys.executable, "-P", __file__, "--one", folder, form]
            runs[form].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    table = Table(
        "read", "CPU s", "matrix MB", "over imports MB", title=f"{recordings} x {segments} x {width}, {rounds} rounds"
    )
    for form, name in FORMS.items():
        figures = [statistics.median(run[key] for run in runs[form]) for key in ("seconds", "matrix_mb", "added_mb")]
        table.add_row(name, f"{figures[0]:.1f}", *(f"{value:.0f}" for value in figures[1:]))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
