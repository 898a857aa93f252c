"""A deep detector beside stage two, on the very same cached features.

    .venv/bin/python benchmarks/peer.py DATA STORE CHECKOUT benchmarks/peers/actionformer.toml --out OUT \
        --modality inertial --modality skeleton --config benchmarks/mhad.toml

CHECKOUT is a clone of happyharrycn/actionformer_release or dingfengshi/TriDet, whose suppression is built with
`cd CHECKOUT/libs/utils && python setup.py build_ext --inplace`; it needs pandas and PyYAML beside what talstack needs
(another interpreter: --python). It gets the features of all (view, modality) side by side, standardised on the
recordings of split train, and is trained on the CPU twice. First on split train: the epoch, and whether weights are
averaged, are those with the best average mAP on split val. Then on train and val for as many epochs, since stage two
learns from both as well. Stage two (`talstack heads`, `talstack submit`) runs once per --config. All are scored on
split test by the same evaluator. Seconds are those of two threads or processes: of training, the detector's without its
evaluations, ours with reading, writing and the start of Python, on the wall and of the processor; and of predicting
split test, on the wall. What is in OUT is not made again.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from talstack.ensemble.tune import TARGET_TIOU, average_map
from talstack.evaluate.bootstrap import compare_detections
from talstack.evaluate.map import PRESETS
from talstack.io.errors import MissingInputError
from talstack.io.extraction import FeatureSet
from talstack.io.feature_export import export_features
from talstack.io.files import write_json
from talstack.io.ground_truth import SPLIT_NAMES
from talstack.io.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parent))
from peer_ours import Ours, run_ours  # noqa: E402

TRAIN, VAL, TEST = (SPLIT_NAMES[split] for split in ("train", "val", "test"))
THREADS = 2


def make_inputs(features: FeatureSet, modalities: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Write one file of (S, D) float32 per recording under OUT/input, and annotations; return what describes them."""
    groups = [group for group in features.groups if not modalities or group[1] in modalities]
    if not groups:
        raise MissingInputError(f"no features of {', '.join(modalities)} in the store")
    summaries = [
        export_features(features, view, modality, out=out / "features", invalid="zero", annotations=True)
        for view, modality in groups
    ]
    database = json.loads((summaries[0].folder / "annotations.json").read_text())["database"]
    groups_of = [standardised(summary.folder, list(database), database) for summary in summaries]
    parts = [np.concatenate([group[name] for group in groups_of], axis=1) for name in database]
    (out / "input").mkdir(exist_ok=True)
    for name, values in zip(database, parts, strict=True):
        np.save(out / "input" / f"{name}.npy", values)
    first = summaries[0]
    labels = json.loads((first.folder / "meta.json").read_text())["labels"]
    dataset = {
        "json_file": str(first.folder / "annotations.json"), "feat_folder": str(out / "input"), "file_prefix": None,
        "file_ext": ".npy", "num_classes": len(labels), "input_dim": parts[0].shape[1],
        "feat_stride": first.stride_frames, "num_frames": first.stride_frames, "default_fps": first.fps,
    }  # fmt: skip
    return {"dataset": dataset, "labels": labels}


def standardised(folder: Path, names: list[str], database: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the features of every recording by the mean and deviation of valid training rows; 0 where not valid."""
    values = {name: np.load(folder / f"{name}.npy") for name in names}
    valid = {name: np.load(folder / "valid" / f"{name}.npy") for name in names}
    learned = np.concatenate([values[n][valid[n]] for n in names if database[n]["subset"] == TRAIN])
    mean, deviation = learned.mean(axis=0), learned.std(axis=0) + 1e-6
    return {n: np.where(valid[n][:, None], (values[n] - mean) / deviation, 0).astype(np.float32) for n in names}


def train_peer(
    name: str, checkout: Path, config: dict[str, Any], splits: tuple[list[str], list[str]], out: Path, python: str
) -> dict[str, Any]:
    """Train in a process of its own; return its times. `splits` are those that it learns from and those to predict."""
    folder = out / name
    done = folder / "times.json"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)  # JSON is YAML
        job = {
            "config": str(folder / "config.json"), "train": splits[0], "predict": splits[1], "out": str(folder),
            "seed": 0, "threads": THREADS, "every": 5, "average_decay": 0.999,
        }  # fmt: skip
        write_json(folder / "job.json", job)
        paths = os.pathsep.join(str(path.resolve()) for path in (checkout, checkout / "libs" / "utils"))
        command = [python, str(Path(__file__).with_name("peer_train.py").resolve()), str(folder / "job.json")]
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths})
    times: dict[str, Any] = json.loads(done.read_text())
    return times


def read_peer(path: Path, labels: list[str]) -> pl.DataFrame:
    """Return the detections in a file that benchmarks/peer_train.py wrote."""
    found = np.load(path)
    intervals = found["interval"].astype(np.float64)
    table = pl.DataFrame({
        "recording": found["recording"].astype(str), "start_s": intervals[:, 0], "end_s": intervals[:, 1],
        "label": [labels[i] for i in found["label"]], "score": found["score"].astype(np.float64),
    })  # fmt: skip
    return table.filter(pl.col("end_s") > pl.col("start_s"))


def best_on_val(folder: Path, labels: list[str], truth: pl.DataFrame) -> tuple[str, float]:
    """Return the weights and epoch ("average-040") with the best average mAP on split val, and that mAP."""
    found = {
        path.stem.removeprefix(f"{VAL}-"): average_map(read_peer(path, labels), truth, tiou=TARGET_TIOU)[0]
        for path in sorted(folder.glob(f"{VAL}-*.npz"))
    }
    best = max(found, key=found.__getitem__)
    return best, found[best]


def scores(detections: pl.DataFrame, truth: pl.DataFrame) -> list[str]:
    average, by_tiou = average_map(detections, truth, tiou=TARGET_TIOU)
    dense, _ = average_map(detections, truth, tiou=PRESETS["anet"])
    return [f"{100 * value:.1f}" for value in (*by_tiou.values(), average, dense)]


def table_of(peers: dict[str, tuple[pl.DataFrame, dict[str, Any]]], ours: list[Ours], truth: pl.DataFrame) -> Table:
    """Return a row per system: scores, seconds, and the difference to the last peer row with its 95 % interval."""
    columns = (*map(str, TARGET_TIOU), "average", "0.5:0.95", "training s", "CPU s", "test s", "average - peer's")
    table = Table("system", *columns, title=f"split test, {truth['recording'].n_unique()} recordings, percent")
    reference = [detections for detections, _ in peers.values()][-1]
    for name, (detections, times) in peers.items():
        seconds = (f"{times['train_s']:.0f}", f"{times['train_cpu_s']:.0f}", f"{times['predict_s']:.2f}")
        table.add_row(name, *scores(detections, truth), *seconds)
    for run in ours:
        for system, detections in run.detections.items():
            gap = compare_detections(detections, reference, truth, tiou_thresholds=TARGET_TIOU).average_difference
            difference = f"{100 * gap.estimate:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            seconds = (f"{run.train_s:.0f}", f"{run.train_cpu_s:.0f}", f"{run.predict_s:.2f}")
            seconds = seconds if system == "stack" else ("", "", "")
            table.add_row(f"{run.name}: {system}", *scores(detections, truth), *seconds, difference)
    return table


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("store", type=click.Path(path_type=Path, exists=True))
@click.argument("checkout", type=click.Path(path_type=Path, exists=True))
@click.argument("settings", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--modality", "modalities", multiple=True, help="Features to take [all].")
@click.option("--config", "configs", type=click.Path(path_type=Path, exists=True), multiple=True)
@click.option("--python", default=sys.executable, help="Interpreter for the detector.")
def main(
    data: Path, store: Path, checkout: Path, settings: Path, out: Path, modalities: tuple[str, ...],
    configs: tuple[Path, ...], python: str,
) -> None:  # fmt: skip
    """Train a detector and stage two on the features of DATA in STORE, and print their scores."""
    manifest = Manifest.load(data)
    out = out.resolve()
    inputs = make_inputs(FeatureSet.open(manifest, store), modalities, out)
    config = {"dataset_name": "anet", "train_split": [TRAIN], "val_split": [VAL]} | tomllib.loads(settings.read_text())
    config["dataset"] = {**config["dataset"], **inputs["dataset"]}
    truths = {
        split: manifest.instances.filter(pl.col("recording").is_in(manifest.recordings_of([split])))
        for split in ("val", "test")
    }
    name, peers = settings.stem, {}
    first = train_peer(f"{name}-train", checkout, config, ([TRAIN], [VAL, TEST]), out, python)
    best, on_val = best_on_val(out / f"{name}-train", inputs["labels"], truths["val"])
    both = train_peer(f"{name}-train-val", checkout, config, ([TRAIN, VAL], [TEST]), out, python)
    click.echo(
        f"{name}: {first['parameters'] / 1e6:.1f} million parameters, {first['epochs']} epochs of "
        f"{first['iterations'] // first['epochs']} batches; best on val: {best} ({100 * on_val:.1f})"
    )
    for title, run, times in (
        (f"{name}, train", "train", first), (f"{name}, train and val", "train-val", both)
    ):  # fmt: skip
        found = read_peer(out / f"{name}-{run}" / f"{TEST}-{best}.npz", inputs["labels"])
        peers[title] = (found, times)
    ours = [run_ours(data, store, path, out / f"ours-{path.stem}", jobs=THREADS) for path in configs]
    Console(width=140).print(table_of(peers, ours, truths["test"]))


if __name__ == "__main__":
    main()
