"""What a smaller precision gives and costs: speed, features and mAP beside float32, on a data set with labels.

    .venv/bin/python benchmarks/precision.py runs/demo/data --config demo/demo.toml --backbone runs/demo/backbone
    .venv/bin/python benchmarks/precision.py ... --precision bfloat16     # int8 by default

`make demo-data finetune` makes these. First the speed of the same network on pictures of the data set, in turn, one
thread: ratios are medians over the rounds.
Then the whole path twice, `talstack extract`, `heads` and `submit`, once per precision: how far apart the features are
(|smaller - float32| / |float32| over all valid segments, and the same with each feature's mean taken out, which no
learner sees), both mAPs, and their difference with its interval over recordings (`talstack compare`).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
from talstack.extract.runtimes import FoldedRuntime, Runtime, build_runtime, is_installed
from talstack.extract.weights import load_source
from talstack.io.extraction import PICTURES, FeatureSet
from talstack.io.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from setting import print_machine, show  # noqa: E402

Precision = Literal["float32", "bfloat16", "int8"]
SMALLER: tuple[Precision, ...] = ("int8", "bfloat16")


def talstack(*arguments: object) -> str:
    """Run a command of talstack; return what it printed."""
    main = "import sys; from talstack.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", main, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def build_int8(
    name: Literal["onnxruntime", "openvino"], manifest: Manifest, config: Config, source: BackboneSource, store: Path
) -> Runtime:
    setting = replace(config.extract, precision="int8", runtime=name)
    (network,) = quantized_networks(manifest, setting, store_root=store, source=source, modalities=("rgb",))
    return build_quantized(network, threads=1)


def build_runtimes(
    precision: Precision, manifest: Manifest, config: Config, source: BackboneSource, store: Path
) -> dict[tuple[str, str], Runtime]:
    """Return by (name, precision) what is timed, float32 of every name first."""
    size, model = source.card.frame_size, load_source(source)
    runtimes: dict[tuple[str, str], Runtime] = {}
    names: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime", "openvino")
    for name in filter(is_installed, names):
        runtimes[name, "float32"] = build_runtime(name, model, frame_size=size, threads=1)
        if precision == "int8":
            runtimes[name, "int8"] = build_int8(name, manifest, config, source, store)
    if precision == "bfloat16":
        runtimes["folded", "float32"] = build_runtime("folded", model, frame_size=size, threads=1)
        runtimes["folded", "bfloat16"] = FoldedRuntime(load_source(source), precision="bfloat16")
    return runtimes


def print_speed(
    precision: Precision, manifest: Manifest, config: Config, source: BackboneSource, store: Path, *, rounds: int
) -> None:
    torch.set_num_threads(1)
    pixels = np.concatenate(list(islice(calibration_batches(manifest, source, "rgb"), 4)))
    runtimes = build_runtimes(precision, manifest, config, source, store)
    spent: dict[tuple[str, str], list[float]] = {name: [] for name in runtimes}
    for number in range(rounds + 1):  # the first warms up
        for which, runtime in list(runtimes.items())[:: 1 if number % 2 else -1]:
            started_s = time.process_time()
            runtime.run(pixels)
            spent[which].append(time.process_time() - started_s)
    title = f"{source.card.arch}, {source.card.frame_size} px, {rounds} rounds"
    table = Table("runtime", "precision", "segments/s", "to float32", title=title)
    for (of, what), times in spent.items():
        faster = statistics.median(a / b for a, b in zip(spent[of, "float32"][1:], times[1:], strict=True))
        table.add_row(of, what, f"{len(pixels) / statistics.median(times[1:]):.2f}", f"{faster:.2f}")
    show(table)


def run_path(
    precisions: Sequence[Precision], data: Path, config: Config, backbone: Path, folder: Path, jobs: int
) -> dict[str, float]:
    """Extract, train and submit once per precision, in `folder`; return the network's segments/s."""
    rates: dict[str, float] = {}
    for precision in precisions:
        setting, run, store = folder / f"{precision}.toml", folder / precision, folder / f"store-{precision}"
        runtime: Literal["auto", "onnxruntime"] = "auto" if precision == "bfloat16" else "onnxruntime"
        made = replace(config, extract=replace(config.extract, precision=precision, runtime=runtime))
        setting.write_text(made.to_toml())
        common = ("--config", setting, "--jobs", jobs)
        printed = talstack("extract", data, "--store", store, "--backbone", backbone, *common, "--json")
        rows = [row for row in json.loads(printed)["shards"] if row["modality"] in PICTURES]
        spent_s = sum(row["compute_s"] for row in rows)  # 0 where all was there already
        rates[precision] = sum(row["num_segments"] for row in rows) / spent_s if spent_s else float("nan")
        talstack("heads", data, "--store", store, "--run", run, *common)
        talstack("submit", data, "--store", store, "--run", run, "--format", "csv", "--out", run / "out.csv", *common)
    return rates


def feature_errors(manifest: Manifest, folder: Path, smaller: str) -> dict[tuple[str, str], tuple[int, float, float]]:
    """Return (segments, relative error, the same without the means) of every (view, modality) of pictures."""
    one, other = (FeatureSet.open(manifest, folder / f"store-{precision}") for precision in ("float32", smaller))
    found = {}
    for view, modality in (group for group in one.groups if group[1] in PICTURES):
        pairs = [
            (a.features[a.valid].astype(np.float32), b.features[b.valid].astype(np.float32))
            for recording in manifest.recordings["recording"]
            if (a := one.read(recording, view, modality)) and (b := other.read(recording, view, modality))
        ]
        whole, moved = (np.concatenate(column) for column in zip(*pairs, strict=True))
        error = float(np.linalg.norm(moved - whole))
        moving = float(np.linalg.norm(whole - whole.mean(axis=0)))
        found[view, modality] = (len(whole), error / float(np.linalg.norm(whole)), error / moving)
    return found


def print_path(manifest: Manifest, data: Path, folder: Path, rates: dict[str, float]) -> None:
    (smaller,) = set(rates) - {"float32"}
    columns = ("view", "modality", "segments", "features apart", "without means")
    table = Table(*columns, title=f"features, {smaller} to float32")
    for (view, modality), (number, error, moving) in feature_errors(manifest, folder, smaller).items():
        table.add_row(view, modality, str(number), f"{100 * error:.2f} %", f"{100 * moving:.2f} %")
    show(table)
    compared = talstack("compare", folder / smaller, folder / "float32", "--data", data, "--json")
    found = json.loads(compared)
    click.echo(f"network within talstack extract: {rates[smaller] / rates['float32']:.2f} times float32's segments/s")
    gap = found["average_difference"]
    averages = (100 * found[which]["average_map"]["estimate"] for which in ("a", "b"))
    click.echo("average mAP in percent: {} {:.1f}, float32 {:.1f}".format(smaller, *averages), nl=False)
    click.echo("; difference {estimate:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{k: 100 * v for k, v in gap.items()}))


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--config", "config_file", type=click.Path(path_type=Path), required=True)
@click.option("--backbone", type=click.Path(path_type=Path), required=True, help="Folder made by `talstack finetune`.")
@click.option("--precision", type=click.Choice(SMALLER), default="int8", show_default=True)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--jobs", default=0, show_default="as the commands choose", type=click.IntRange(0))
@click.option("--folder", type=click.Path(path_type=Path), help="Keep stores and runs there; a second call goes on.")
@click.option("--speed-only", is_flag=True, help="Only the first table.")
def main(  # noqa: PLR0913 - one parameter per option
    data: Path,
    config_file: Path,
    backbone: Path,
    precision: Precision,
    rounds: int,
    jobs: int,
    folder: Path | None,
    speed_only: bool,
) -> None:
    """Print speed, features and mAP of a precision beside float32 on DATA."""
    print_machine(1)
    manifest, config = Manifest.load(data), load_config(config_file)
    with tempfile.TemporaryDirectory() as scratch:
        source, place = BackboneSource(load_card(backbone), backbone), folder or Path(scratch)
        print_speed(precision, manifest, config, source, place / "store-int8", rounds=rounds)
        if not speed_only:
            rates = run_path(("float32", precision), data, config, backbone, place, jobs)
            print_path(manifest, data, place, rates)


if __name__ == "__main__":
    main()
