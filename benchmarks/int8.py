"""What int8 gives and costs: speed, features and mAP beside float32, on a data set with labels.

    .venv/bin/python benchmarks/int8.py runs/demo/data --config demo/demo.toml --backbone runs/demo/backbone

`make demo-data finetune` makes these. First the speed of the same network on pictures of the data set, in turn, one
thread: ratios are medians over the rounds.
Then the whole path twice, `talstack extract`, `heads` and `submit`, once per precision: how far apart the features are
(|int8 - float32| / |float32| over all valid segments, and the same with each feature's mean taken out, which no
learner sees), both mAPs, and their difference with its interval over recordings (`talstack compare`).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

import click
import numpy as np
import torch
from rich.table import Table

from talstack.cli.config import Config, load_config
from talstack.extract.calibration import calibration_batches, quantized_networks
from talstack.extract.card import BackboneSource, load_card
from talstack.extract.int8 import build_quantized
from talstack.extract.runtimes import Runtime, build_runtime, is_installed
from talstack.extract.weights import load_source
from talstack.io.extraction import PICTURES, FeatureSet
from talstack.io.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from setting import print_machine, show  # noqa: E402

PRECISIONS: tuple[Literal["float32", "int8"], ...] = ("float32", "int8")


def talstack(*arguments: object) -> str:
    """Run a command of talstack; return what it printed."""
    main = "import sys; from talstack.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", main, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def print_speed(manifest: Manifest, config: Config, source: BackboneSource, store: Path, *, rounds: int) -> None:
    torch.set_num_threads(1)
    pixels = np.concatenate(list(islice(calibration_batches(manifest, source, "rgb"), 4)))
    size, model = source.card.frame_size, load_source(source)
    runtimes: dict[tuple[str, str], Runtime] = {}
    names: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime", "openvino")
    for name in filter(is_installed, names):
        runtimes[name, "float32"] = build_runtime(name, model, frame_size=size, threads=1)
        setting = replace(config.extract, precision="int8", runtime=name)
        (network,) = quantized_networks(manifest, setting, store_root=store, source=source, modalities=("rgb",))
        runtimes[name, "int8"] = build_quantized(network, threads=1)
    spent: dict[tuple[str, str], list[float]] = {name: [] for name in runtimes}
    for number in range(rounds + 1):  # the first warms up
        for which, runtime in list(runtimes.items())[:: 1 if number % 2 else -1]:
            started_s = time.process_time()
            runtime.run(pixels)
            spent[which].append(time.process_time() - started_s)
    table = Table(
        "runtime", "precision", "segments/s", "to float32", title=f"{source.card.arch}, {size} px, {rounds} rounds"
    )
    for (of, precision), times in spent.items():
        faster = statistics.median(a / b for a, b in zip(spent[of, "float32"][1:], times[1:], strict=True))
        table.add_row(of, precision, f"{len(pixels) / statistics.median(times[1:]):.2f}", f"{faster:.2f}")
    show(table)


def run_path(data: Path, config: Config, backbone: Path, folder: Path, jobs: int) -> dict[str, float]:
    """Extract, train and submit once per precision, in `folder`; return the network's segments/s."""
    rates: dict[str, float] = {}
    for precision in PRECISIONS:
        setting, run, store = folder / f"{precision}.toml", folder / precision, folder / f"store-{precision}"
        made = replace(config, extract=replace(config.extract, precision=precision, runtime="onnxruntime"))
        setting.write_text(made.to_toml())
        common = ("--config", setting, "--jobs", jobs)
        printed = talstack("extract", data, "--store", store, "--backbone", backbone, *common, "--json")
        rows = [row for row in json.loads(printed)["shards"] if row["modality"] in PICTURES]
        spent_s = sum(row["compute_s"] for row in rows)  # 0 where all was there already
        rates[precision] = sum(row["num_segments"] for row in rows) / spent_s if spent_s else float("nan")
        talstack("heads", data, "--store", store, "--run", run, *common)
        talstack("submit", data, "--store", store, "--run", run, "--format", "csv", "--out", run / "out.csv", *common)
    return rates


def feature_errors(manifest: Manifest, folder: Path) -> dict[tuple[str, str], tuple[int, float, float]]:
    """Return (segments, relative error, the same without the means) of every (view, modality) of pictures."""
    one, other = (FeatureSet.open(manifest, folder / f"store-{precision}") for precision in PRECISIONS)
    found = {}
    for view, modality in (group for group in one.groups if group[1] in PICTURES):
        pairs = [
            (a.features[a.valid].astype(np.float32), b.features[b.valid].astype(np.float32))
            for recording in manifest.recordings["recording"]
            if (a := one.read(recording, view, modality)) and (b := other.read(recording, view, modality))
        ]
        whole, small = (np.concatenate(column) for column in zip(*pairs, strict=True))
        error = float(np.linalg.norm(small - whole))
        moving = float(np.linalg.norm(whole - whole.mean(axis=0)))
        found[view, modality] = (len(whole), error / float(np.linalg.norm(whole)), error / moving)
    return found


def print_path(manifest: Manifest, data: Path, folder: Path, rates: dict[str, float]) -> None:
    table = Table("view", "modality", "segments", "features apart", "without means", title="features, int8 to float32")
    for (view, modality), (number, error, moving) in feature_errors(manifest, folder).items():
        table.add_row(view, modality, str(number), f"{100 * error:.2f} %", f"{100 * moving:.2f} %")
    show(table)
    compared = talstack("compare", folder / "int8", folder / "float32", "--data", data, "--json")
    found = json.loads(compared)
    click.echo(f"network within talstack extract: {rates['int8'] / rates['float32']:.2f} times float32's segments/s")
    gap = found["average_difference"]
    averages = (100 * found[which]["average_map"]["estimate"] for which in ("a", "b"))
    click.echo("average mAP in percent: int8 {:.1f}, float32 {:.1f}".format(*averages), nl=False)
    click.echo("; difference {estimate:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{k: 100 * v for k, v in gap.items()}))


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--config", "config_file", type=click.Path(path_type=Path), required=True)
@click.option("--backbone", type=click.Path(path_type=Path), required=True, help="Folder made by `talstack finetune`.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--jobs", default=0, show_default="as the commands choose", type=click.IntRange(0))
@click.option("--folder", type=click.Path(path_type=Path), help="Keep stores and runs there; a second call goes on.")
@click.option("--speed-only", is_flag=True, help="Only the first table.")
def main(
    data: Path, config_file: Path, backbone: Path, rounds: int, jobs: int, folder: Path | None, speed_only: bool
) -> None:
    """Print speed, features and mAP of int8 beside float32 on DATA."""
    print_machine(1)
    manifest, config = Manifest.load(data), load_config(config_file)
    with tempfile.TemporaryDirectory() as scratch:
        source, place = BackboneSource(load_card(backbone), backbone), folder or Path(scratch)
        print_speed(manifest, config, source, place / "store-int8", rounds=rounds)
        if not speed_only:
            print_path(manifest, data, place, run_path(data, config, backbone, place, jobs))


if __name__ == "__main__":
    main()
