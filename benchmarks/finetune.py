"""What each part of fine-tuning is worth: shift, background class, scene task, fine-tuning itself; and what it costs.

    make demo-data && .venv/bin/python benchmarks/finetune.py runs/demo/data --config demo/demo.toml
    .venv/bin/python benchmarks/finetune.py runs/mhad/data --config benchmarks/mhad.toml --epochs 10 --jobs 2

Trains one backbone per variant and seed on the data set's training recordings, extracts its features, and prints for
split test: the segment mAP of the backbone's own logits, the accuracy of its scene, and the interval mAP of the whole
path on these features (best single head, and stack; few and fast heads, the same for all). Before that comes the time
of an epoch from decoded frames against a plain PyTorch loop that decodes every segment when it is its turn. What is
done is not done again; with `--time-limit` the table shows what was done in time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
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
from talstack.extract.training.finetune import RecordingSplit, finetune, split_recordings
from talstack.extract.training.trainer import Watcher
from talstack.extract.weights import build_network
from talstack.io.errors import TalstackError
from talstack.io.extraction import FeatureSet
from talstack.io.files import canonical_json, sha256_text, write_json
from talstack.io.manifest import Manifest
from talstack.io.targets import scene_targets, segment_index, segment_targets

COLUMNS = ("segment mAP", "scene top-1", "single", "stack 0.5", "stack 0.75", "stack 0.95", "stack", "seconds")
FRAMES = "frames"  # folder under --out, shared by all trainings
# stage two is the same for all backbones, so it may be cheap: without trees, boundary heads and the search of a decoder
FAST_HEADS: dict[str, Any] = {
    "tasks": ("activity", "action", "scene"), "learners": ("linear",), "linear_components": 128,
    "linear_context_components": 32, "linear_context_gain": (0.6,), "linear_l2": (0.3, 0.1, 0.03, 0.01),
}  # fmt: skip
FAST_ENSEMBLE: dict[str, Any] = {
    "stacker": "logistic", "combiners": (), "hmm": (False,), "proposals": ("both",), "smoothing_s": (0.0,),
    "gap_s": (0.0,), "contrast_weight": (1.0,), "nms_sigma": (0.5,),
}  # fmt: skip
FEW = 4  # one of so many training recordings makes "few recordings"


@dataclass(frozen=True, slots=True)
class Variant:
    """What is changed about a training: settings, and which of the recordings that it may learn from are taken."""

    changes: dict[str, Any] = field(default_factory=dict)
    every: int = 1

    def config(self, config: FinetuneConfig, seed: int) -> FinetuneConfig:
        """Return the settings of one training."""
        return replace(config, seed=config.seed + seed, **self.changes)

    def split(self, manifest: Manifest, config: FinetuneConfig) -> RecordingSplit:
        """Return the recordings of one training."""
        split = split_recordings(manifest, config)
        return replace(split, train=split.train[:: self.every])


def variants(scene_weights: list[float]) -> dict[str, Variant]:
    """Return the trainings by name."""
    scenes = {f"scene weight {weight:g}": {"scene_weight": weight} for weight in scene_weights}
    few = {f"few recordings, {name}": Variant(changes, FEW) for name, changes in scenes.items()}
    return {
        "as configured": Variant(),
        "no shift": Variant({"shift": False}),
        "no background class": Variant({"background": False}),
        "network frozen": Variant({"freeze": True}),
        **{name: Variant(changes) for name, changes in scenes.items()},
        "few recordings": Variant(every=FEW),
        **few,
    }


def talstack(*arguments: object, **environment: str) -> str:
    """Run a talstack command and return what it printed; stop where it fails."""
    command = [sys.executable, "-P", "-m", "talstack.cli", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        click.echo(done.stderr[-4000:], err=True)
        sys.exit(done.returncode)
    return done.stdout


def settings_of(config: Config, variant: Variant, seed: int) -> Config:
    """Return all settings of one training and of what is run on its features."""
    return replace(
        config, extract=replace(config.extract, modalities=("rgb",)), heads=replace(config.heads, **FAST_HEADS),
        ensemble=replace(config.ensemble, **FAST_ENSEMBLE), finetune=variant.config(config.finetune, seed),
    )  # fmt: skip


def score_file(out: Path, data: Path, config: Config, name: str, variant: Variant, seed: int) -> Path:
    """Return where the figures of one training are kept, under these settings and no others."""
    made_from = {
        "data": str(data.resolve()),
        "config": settings_of(config, variant, seed).to_toml(),
        "every": variant.every,
    }
    folder = f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    return out / folder / f"score-{sha256_text(canonical_json(made_from))[:12]}.json"


def score(data: Path, config: Config, file: Path, every: int, *, on_cpu: bool) -> None:
    """Train one backbone, run the whole path on its features, and write its figures, fractions, into the file."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    config.save_resolved(folder)
    backbone, settings, run, store = folder / "backbone", folder / "config.toml", folder / "run", folder / "store"
    manifest = Manifest.load(data)
    started = time.monotonic()
    card = finetune(
        manifest, backbone, config=config.finetune, sampling=config.sampling, panoramas=config.extract.panoramic,
        split=Variant(every=every).split(manifest, config.finetune), frames=folder.parent / FRAMES,
        watcher=Watcher(epoch=lambda row, speed: click.echo(f"  epoch {row.epoch}: {row.accuracy:.1%}", err=True)),
    )  # fmt: skip
    seconds = time.monotonic() - started
    talstack("extract", data, "--store", store, "--backbone", backbone, "--config", settings, **hidden)
    talstack("heads", data, "--store", store, "--run", run, "--config", settings)
    out = talstack(
        "submit", data, "--store", store, "--run", run, "--config", settings, "--format", "csv",
        "--out", run / "detections.csv", "--json",
    )  # fmt: skip
    detections = json.loads(out)["metrics"]["detections"]
    segment_map, scene = own_figures(FeatureSet.open(manifest, store), config.finetune.loss)
    figures = {
        "segment mAP": segment_map, "scene top-1": scene,
        "single": max(row["average_map"] for row in detections["single"].values()),
        **{f"stack {t}": value for t, value in detections["stack"]["map"].items()},
        "stack": detections["stack"]["average_map"],
        "training loss": card.training["history"][-1]["action_loss"], "seconds": seconds,
    }  # fmt: skip
    write_json(file, figures)


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
    undecoded = not (out / FRAMES).exists()
    short = replace(config.finetune, epochs=2, seed=999)
    started = time.monotonic()
    card = finetune(
        manifest, out / "speed", config=short, sampling=config.sampling, panoramas=config.extract.panoramic,
        frames=out / FRAMES, watcher=Watcher(epoch=lambda row, speed: speeds.append(speed)),
    )  # fmt: skip
    if len(speeds) < 2:
        click.echo("speed: measured already; remove the folders 'speed' and 'frames' to measure again")
        return
    num_segments = card.training["num_segments"]
    decoding_s = time.monotonic() - started - sum(num_segments / speed for speed in speeds)
    plain = plain_speed(manifest, config, card.seen, num_batches=6)
    table = Table("loop", "segments/s", "s per epoch", "once before", title=f"an epoch of {num_segments} segments")
    once = f"{decoding_s:.1f} s" if undecoded else "done before"
    table.add_row("decoded frames on disk", f"{speeds[1]:.1f}", f"{num_segments / speeds[1]:.1f}", once)
    table.add_row("plain loop, decoding on the fly", f"{plain:.1f}", f"{num_segments / plain:.1f}", "")
    Console().print(table)
    click.echo(f"ratio {speeds[1] / plain:.1f}")


def show_table(title: str, files: dict[str, list[Path]]) -> None:
    """Print the figures that there are of each variant."""
    table = Table("variant", *COLUMNS, "seeds", title=f"{title}, split test, percent; mean over seeds (spread)")
    for name, places in files.items():
        rows = [json.loads(file.read_text()) for file in places if file.is_file()]
        cells = []
        for column in COLUMNS if rows else ():
            values = np.array([row[column] for row in rows]) * (1 if column == "seconds" else 100)
            cells.append(f"{values.mean():.1f}" + (f" ({np.ptp(values):.1f})" if len(rows) > 1 else ""))
        table.add_row(name, *(cells or [""] * len(COLUMNS)), str(len(rows)))
    Console(width=160).print(table)


def run_children(arguments: list[str], todo: list[tuple[str, int]], jobs: int, limit_s: float) -> int:
    """Train and score each (variant, seed) in a process of its own, several at once, each on its share of the cores.

    What is not done after `limit_s` is ended. Returns how many failed.
    """
    end = time.monotonic() + limit_s
    cores = sorted(os.sched_getaffinity(0))
    free: SimpleQueue[set[int]] = SimpleQueue()
    for slot in range(jobs):
        free.put({*cores[slot::jobs]} or {*cores})
    groups: set[int] = set()

    def run(name: str, seed: int) -> bool:
        share = free.get()
        click.echo(f"{name}, seed {seed}", err=True)
        command = [sys.executable, "-P", __file__, *arguments, "--child", name, str(seed)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        ) as process:
            groups.add(process.pid)
            with contextlib.suppress(ProcessLookupError):  # it may have failed by now
                os.sched_setaffinity(process.pid, share)
            try:
                text, late = process.communicate(timeout=max(0.1, end - time.monotonic()))[0], False
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                text, late = "no time left", True
        groups.discard(process.pid)
        free.put(share)
        if process.returncode:
            click.echo(f"{name}, seed {seed} {'ended' if late else 'failed'}:\n{text[-3000:]}", err=True)
        return bool(process.returncode) and not late

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, *pair) for pair in todo]
        try:
            return sum(future.result() for future in futures)
        except BaseException:  # Ctrl-C, say: nothing goes on in the background
            pool.shutdown(wait=False, cancel_futures=True)
            for group in tuple(groups):
                os.killpg(group, signal.SIGKILL)
            raise


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--config", "config_file", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default="runs/finetune", show_default=True)
@click.option("--seeds", type=int, default=1, show_default=True, help="Trainings of every variant.")
@click.option("--scene-weights", default="0,0.1,1", show_default=True, help="Weights of the scene task to try.")
@click.option("--epochs", type=int, help="Epochs instead of those of the settings.")
@click.option("--only", multiple=True, help="Only this variant (may be given several times).")
@click.option("--extract-on-cpu", is_flag=True, help="Keep the GPU for training: small networks wait for decoding.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="Measure the time of an epoch too.")
@click.option("--jobs", default=1, show_default=True, help="Trainings at once.")
@click.option("--time-limit", default=1e6, help="Seconds after which trainings are ended.")
@click.option("--child", type=(str, int), hidden=True)
def main(  # noqa: PLR0913 - one parameter per option
    data: Path, config_file: Path, out: Path, seeds: int, scene_weights: str, only: tuple[str, ...],
    epochs: int | None, extract_on_cpu: bool, speed: bool, jobs: int, time_limit: float, child: tuple[str, int] | None,
) -> None:  # fmt: skip
    """Train and score every variant on DATA, and print the tables."""
    config = load_config(config_file)
    if epochs is not None:
        config = replace(config, finetune=replace(config.finetune, epochs=epochs))
    known = variants([float(w) for w in scene_weights.split(",") if w])
    if child is not None:
        name, seed = child
        variant = known[name]
        file = score_file(out, data, config, name, variant, seed)
        return score(data, settings_of(config, variant, seed), file, variant.every, on_cpu=extract_on_cpu)
    if unknown := sorted(set(only) - set(known)):
        raise click.UsageError(f"unknown variants {', '.join(unknown)}; there are {', '.join(known)}")
    started = time.monotonic()
    if speed:
        print_speed(data, config, out)
    names = [name for name in known if not only or name in only]
    files = {name: [score_file(out, data, config, name, known[name], seed) for seed in range(seeds)] for name in names}
    todo = [(name, seed) for seed in range(seeds) for name in names if not files[name][seed].is_file()]
    arguments = [str(data), "--config", str(config_file), "--out", str(out), "--scene-weights", scene_weights]
    arguments += ["--epochs", str(config.finetune.epochs), *["--extract-on-cpu"] * extract_on_cpu]
    failed = run_children(arguments, todo, jobs, time_limit - (time.monotonic() - started))
    show_table(str(data), files)
    if failed:
        sys.exit(1)
    return None


if __name__ == "__main__":
    main()
