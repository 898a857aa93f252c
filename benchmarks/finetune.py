"""What each part of fine-tuning is worth: shift, background class, scene task, fine-tuning itself; and what it costs.

    make demo-data && .venv/bin/python benchmarks/finetune.py runs/demo/data --config demo/demo.toml

Trains one backbone per variant and seed on the data set's training recordings, extracts its features, and prints for
split test: the segment mAP of the backbone's own logits, the accuracy of its scene, and the interval mAP of the whole
path on these features (best single head, and stack). The last table is the time of an epoch from decoded frames
against a plain PyTorch loop that decodes every segment when it is its turn. What is done is not done again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from talstack.cli.config import Config, load_config
from talstack.evaluate.segments import segment_average_precision
from talstack.extract.backbone import normalise, pick_device
from talstack.extract.layout import ViewLayout, lay_out_view
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.finetune import finetune
from talstack.extract.training.trainer import Watcher
from talstack.extract.weights import build_network
from talstack.io.errors import TalstackError
from talstack.io.extraction import FeatureSet
from talstack.io.manifest import Manifest
from talstack.io.targets import scene_targets, segment_index, segment_targets

Change = Callable[[FinetuneConfig], FinetuneConfig]


def variants(scene_weights: list[float]) -> dict[str, Change]:
    """Return what is changed about the settings, by name."""
    changes: dict[str, Change] = {
        "as configured": lambda config: config,
        "no shift": lambda config: replace(config, shift=False),
        "no background class": lambda config: replace(config, background=False),
        "network frozen": lambda config: replace(config, freeze=True),
    }
    for weight in scene_weights:
        changes[f"scene weight {weight:g}"] = partial(with_scene_weight, weight)
    return changes


def with_scene_weight(weight: float, config: FinetuneConfig) -> FinetuneConfig:
    """Return the settings with another weight of the scene task."""
    return replace(config, scene_weight=weight)


def talstack(*arguments: object, **environment: str) -> str:
    """Run a talstack command and return what it printed; stop where it fails."""
    command = [sys.executable, "-P", "-m", "talstack.cli", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        click.echo(done.stderr[-4000:], err=True)
        sys.exit(done.returncode)
    return done.stdout


def score(data: Path, config: Config, folder: Path, store: Path, *, on_cpu: bool) -> dict[str, float]:
    """Return the figures of one backbone, fractions; trains it where it is not there."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(config, extract=replace(config.extract, modalities=("rgb",)))
    config.save_resolved(folder)
    backbone, settings, run = folder / "backbone", folder / "config.toml", folder / "run"
    manifest = Manifest.load(data)
    started = time.monotonic()
    card = finetune(
        manifest, backbone, config=config.finetune, sampling=config.sampling, panoramas=config.extract.panoramic,
        frames=store.parent / "frames",
        watcher=Watcher(epoch=lambda row, speed: click.echo(f"  epoch {row.epoch}: {row.accuracy:.1%}", err=True)),
    )  # fmt: skip
    seconds = time.monotonic() - started
    name = folder.name
    talstack("extract", data, "--store", store, "--backbone", backbone, "--config", settings, "--name", name, **hidden)
    talstack("heads", data, "--store", store, "--run", run, "--config", settings, "--extraction", name)
    out = talstack(
        "submit", data, "--store", store, "--run", run, "--config", settings, "--format", "csv",
        "--out", run / "detections.csv", "--json",
    )  # fmt: skip
    detections = json.loads(out)["metrics"]["detections"]
    segment_map, scene = own_figures(FeatureSet.open(manifest, store, name), config.finetune.loss)
    return {
        "segment mAP": segment_map, "scene top-1": scene,
        "single": max(row["average_map"] for row in detections["single"].values()),
        **{f"stack {t}": value for t, value in detections["stack"]["map"].items()},
        "stack": detections["stack"]["average_map"],
        "training loss": card.training["history"][-1]["action_loss"], "seconds": seconds,
    }  # fmt: skip


def own_figures(features: FeatureSet, kind: str) -> tuple[float, float]:
    """Return segment mAP and scene accuracy of the backbone's own logits on split test, over all views alike."""
    manifest = features.manifest
    recordings = manifest.recordings_of(["test"])
    index = segment_index(manifest, features.segment_s, recordings)
    labels = segment_targets(manifest, index, features.segment_s)
    scenes = dict(zip(recordings, scene_targets(manifest, recordings), strict=True))
    probs, targets, hits = [], [], []
    for recording, rows in index.slices():
        for view, modality in features.groups:
            shard = features.read(recording, view, modality)
            if shard is None or shard.logits is None or not shard.aligned:
                continue
            logits = torch.from_numpy(shard.logits[shard.valid]).float()
            probs.append((logits.softmax(1) if kind == "softmax" else logits.sigmoid())[:, 1:].numpy())
            targets.append(labels[rows][shard.valid])
            if shard.scene_logits is not None and scenes[recording] >= 0:
                hits.append(shard.scene_logits[shard.valid].mean(axis=0).argmax() == scenes[recording])
    segment_map = segment_average_precision(np.concatenate(probs), np.concatenate(targets))[1]
    return segment_map, float(np.mean(hits)) if hits else float("nan")


def decode_on_the_fly(layouts: list[ViewLayout], config: Config, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield (T, S, S, 3) uint8 of segments drawn at random, each sought and decoded when it is its turn."""
    sampling = config.sampling
    while True:
        layout = layouts[rng.integers(len(layouts))]
        clip = layout.clips[rng.integers(len(layout.clips))]
        if not len(clip.rows):
            continue
        start_s = max(0.0, clip.start_s[rng.integers(len(clip.rows))])
        wanted = start_s + (np.arange(sampling.frames_per_segment) + rng.random(sampling.frames_per_segment)) * (
            sampling.segment_s / sampling.frames_per_segment
        )
        frames: list[np.ndarray] = []
        with av.open(str(clip.path)) as container:
            stream = container.streams.video[0]
            container.seek(int(start_s / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                while len(frames) < len(wanted) and frame.time >= wanted[len(frames)] - 1e-3:
                    size = sampling.frame_size
                    frames.append(frame.to_ndarray(format="rgb24", width=size, height=size))
                if len(frames) == len(wanted):
                    break
        if frames:
            yield np.stack(frames + frames[-1:] * (len(wanted) - len(frames)))


def plain_speed(manifest: Manifest, config: Config, recordings: tuple[str, ...], num_batches: int) -> float:
    """Return the segments per second of a plain PyTorch loop that decodes on the fly."""
    layouts = []
    for recording, view in manifest.clips.select("recording", "view").unique().sort("recording", "view").iter_rows():
        if recording in recordings:
            try:
                layouts.append(lay_out_view(manifest, recording, view, segment_s=config.sampling.segment_s))
            except TalstackError:
                continue
    card = load_card_like(manifest, config)
    device = pick_device()
    model = build_network(card).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    segments = decode_on_the_fly(layouts, config, np.random.default_rng(0))
    size = config.finetune.batch_size
    started = time.monotonic()
    for _ in range(num_batches):
        pixels = torch.from_numpy(np.stack([next(segments) for _ in range(size)])).to(device)
        loss = model(normalise(pixels, model.normalisation)).logits.logsumexp(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return num_batches * size / (time.monotonic() - started)


def load_card_like(manifest: Manifest, config: Config) -> Any:
    """Return the card of a network as the settings describe it."""
    from talstack.extract.card import BackboneCard

    return BackboneCard(
        arch=config.finetune.arch, shift=config.finetune.shift, segment_s=config.sampling.segment_s,
        frames_per_segment=config.sampling.frames_per_segment, frame_size=config.sampling.frame_size,
        actions=manifest.actions, scenes=manifest.scenes,
    )  # fmt: skip


def print_speed(data: Path, config: Config, out: Path) -> None:
    """Train two epochs from decoded frames and print the time of the second against the plain loop's."""
    manifest = Manifest.load(data)
    speeds: list[float] = []
    short = replace(config.finetune, epochs=2, seed=999)
    started = time.monotonic()
    card = finetune(
        manifest, out / "speed", config=short, sampling=config.sampling, panoramas=config.extract.panoramic,
        frames=out / "speed-frames", watcher=Watcher(epoch=lambda row, speed: speeds.append(speed)),
    )  # fmt: skip
    if len(speeds) < 2:
        click.echo("speed: measured already; remove the folder 'speed' to measure again")
        return
    num_segments = card.training["num_segments"]
    decoding_s = time.monotonic() - started - sum(num_segments / speed for speed in speeds)
    plain = plain_speed(manifest, config, card.seen, num_batches=6)
    table = Table("loop", "segments/s", "s per epoch", "once before", title=f"an epoch of {num_segments} segments")
    table.add_row(
        "decoded frames on disk", f"{speeds[1]:.1f}", f"{num_segments / speeds[1]:.1f}", f"{decoding_s:.1f} s"
    )
    table.add_row("plain loop, decoding on the fly", f"{plain:.1f}", f"{num_segments / plain:.1f}", "")
    Console().print(table)
    click.echo(f"ratio {speeds[1] / plain:.1f}")


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--config", "config_file", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default="runs/finetune", show_default=True)
@click.option("--seeds", type=int, default=1, show_default=True, help="Trainings of every variant.")
@click.option("--scene-weights", default="0,0.1,1", show_default=True, help="Weights of the scene task to try.")
@click.option("--only", multiple=True, help="Only this variant (may be given several times).")
@click.option("--extract-on-cpu", is_flag=True, help="Keep the GPU for training: small networks wait for decoding.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="Measure the time of an epoch too.")
def main(  # noqa: PLR0913 - one parameter per option
    data: Path, config_file: Path, out: Path, seeds: int, scene_weights: str, only: tuple[str, ...],
    extract_on_cpu: bool, speed: bool,
) -> None:  # fmt: skip
    """Train and score every variant on DATA, and print the tables."""
    config = load_config(config_file)
    if speed:
        print_speed(data, config, out)
    names = ("segment mAP", "scene top-1", "single", "stack 0.5", "stack 0.75", "stack 0.95", "stack", "seconds")
    table = Table("variant", *names, title=f"{data}, split test, percent; mean of {seeds} seeds (spread)")
    for name, change in variants([float(w) for w in scene_weights.split(",") if w]).items():
        if only and name not in only:
            continue
        rows = []
        for seed in range(seeds):
            click.echo(f"{name}, seed {seed}", err=True)
            settings = replace(config, finetune=replace(change(config.finetune), seed=config.finetune.seed + seed))
            folder = out / f"{name.replace(' ', '-')}-{seed}"
            rows.append(score(data, settings, folder, out / "store", on_cpu=extract_on_cpu))
        cells = []
        for column in names:
            values = np.array([row[column] for row in rows]) * (1 if column == "seconds" else 100)
            cells.append(f"{values.mean():.1f}" + (f" ({np.ptp(values):.1f})" if seeds > 1 else ""))
        table.add_row(name, *cells)
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
