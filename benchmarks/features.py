"""How far features move with settings that should not matter much: fast decoding, batches, processes, runtimes.

    .venv/bin/python benchmarks/features.py                       # made clips, a random network
    .venv/bin/python benchmarks/features.py --clips FOLDER --backbone BACKBONE

The first table decodes the frames of every segment exactly and with `extract.fast_decoding`, in turn. Distances are
those between a segment's two features; so that they have a measure, the distance between a segment and the next one
stands beside them. The second table extracts the same clips with other batches and numbers of processes; differences
are shares of the largest feature, of what the shards hold (float16).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import joblib
import numpy as np
from rich.table import Table

from talstack.extract.card import load_card
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.plan import plan_extraction
from talstack.extract.runtimes import build_runtime
from talstack.extract.schedule import run_items
from talstack.extract.weights import load_backbone
from talstack.io.media import FrameReader, probe

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from setting import make_backbone, make_clip, make_data, print_machine, show  # noqa: E402

BATCHES = (1, 4, 8)


def segment_times_s(clip: Path, segment_s: float, num_frames: int) -> np.ndarray:
    """Return (n, T) seconds."""
    info = probe(clip)
    starts_s = np.arange(max(1, int(info.duration_s / segment_s))) * segment_s
    parts_s = (np.arange(num_frames) + 0.5) / num_frames * segment_s
    return np.minimum(starts_s[:, None] + parts_s, info.duration_s - 1 / info.fps)


def decode(clip: Path, times_s: np.ndarray, size: int, fast_within_s: float | None) -> tuple[np.ndarray, float]:
    """Return (n, T, S, S, 3) pixels, and the seconds of this thread's processor time that they took."""
    started_s = time.thread_time()
    with FrameReader(clip, size=(size, size), fast_within_s=fast_within_s) as reader:
        pixels = reader.frames_at(times_s.ravel()).pixels
    return pixels.reshape(*times_s.shape, size, size, 3), time.thread_time() - started_s


def distances(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) relative and (n,) cosine distances of the rows."""
    lengths, others = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    cosine = 1 - (one * other).sum(axis=1) / np.maximum(lengths * others, 1e-12)
    return np.linalg.norm(other - one, axis=1) / np.maximum(lengths, 1e-12), cosine


def add_fast_row(table: Table, name: str, clips: Sequence[Path], backbone: Path, *, rounds: int) -> None:
    model, card = load_backbone(backbone)
    threads, size, num_frames = joblib.cpu_count(), card.frame_size, card.frames_per_segment
    runtime = build_runtime("onnxruntime", model, frame_size=size, threads=threads)
    gains, moved, steps = [], [], []
    for clip in clips:
        times_s = segment_times_s(clip, card.segment_s, num_frames)
        limits_s = (None, card.segment_s / num_frames / 2)
        spent_s: list[list[float]] = [[], []]
        features: list[np.ndarray] = []
        for number in range(rounds):
            for way, limit_s in enumerate(limits_s):
                pixels, seconds = decode(clip, times_s, size, limit_s)
                spent_s[way].append(seconds)
                if number == 0:
                    features.append(np.concatenate([runtime.run(row[None]).features for row in pixels]))
        gains.append(statistics.median(exact / fast for exact, fast in zip(*spent_s, strict=True)))
        moved.append(distances(*features))
        steps.append(distances(features[0][:-1], features[0][1:]))
    relative, cosine = (np.concatenate(parts) for parts in zip(*moved, strict=True))
    neighbours = [np.concatenate(parts) for parts in zip(*steps, strict=True)]
    table.add_row(
        name, str(len(relative)), f"{statistics.median(gains):.2f}", spread(relative),
        f"{np.median(neighbours[0]):.3f}",
        spread(cosine), f"{np.median(neighbours[1]):.1e}",
    )  # fmt: skip


def spread(values: np.ndarray) -> str:
    """Return median, 95th percentile and largest value."""
    return " / ".join(f"{value:.2g}" for value in (np.median(values), np.percentile(values, 95), values.max()))


def shard_features(data: Path, store: Path, backbone: Path, *, batch: int, jobs: int) -> np.ndarray:
    """Return all features of an extraction, float32, in the order of the plan."""
    card = load_card(backbone)
    sampling = SamplingConfig(card.segment_s, card.frames_per_segment, card.frame_size)
    config = ExtractConfig(modalities=("rgb",), batch_segments=batch, runtime="onnxruntime")
    plan = plan_extraction(data, store, config=config, sampling=sampling, backbone=backbone)
    workers = plan.workers(plan.keys, jobs)
    run_items(plan.items(plan.keys, workers), jobs=workers)
    return np.concatenate([plan.store.read(key).features.astype(np.float32) for key in plan.keys])


def print_ways(data: Path, scratch: Path, backbone: Path) -> None:
    table = Table(
        "segments per batch", "processes", "largest difference", "values that differ", title="batches, processes"
    )
    first: np.ndarray | None = None
    for jobs in (1, 2):
        for batch in BATCHES:
            found = shard_features(data, scratch / f"store{jobs}-{batch}", backbone, batch=batch, jobs=jobs)
            first = found if first is None else first
            apart = abs(found - first)
            share = f"{100 * (apart > 0).mean():.2f} %"
            table.add_row(str(batch), str(jobs), f"{apart.max() / abs(first).max():.1e}", share)
    show(table)


@click.command()
@click.option(
    "--clips", "real", type=click.Path(path_type=Path, exists=True), help="Folder of videos to decode as well."
)
@click.option("--most", default=20, show_default=True, help="So many of them, spread over the folder.")
@click.option(
    "--backbone", type=click.Path(path_type=Path), help="Folder made by `talstack finetune` [random weights]."
)
@click.option("--arch", default="resnet50", show_default=True, help="Of the random weights.")
@click.option("--seconds", default=12, show_default=True, type=click.IntRange(2), help="Length of the made clip.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--quick", is_flag=True, help="resnet18, one round, six real clips.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "talstack-extract")
def main(
    real: Path | None, most: int, backbone: Path | None, arch: str, seconds: int, rounds: int, quick: bool, folder: Path
) -> None:  # fmt: skip
    """Print both tables."""
    if quick:
        arch, seconds, rounds, most = "resnet18", min(seconds, 8), 1, min(most, 6)
    print_machine(joblib.cpu_count())
    made = make_clip(folder / f"busy-{seconds}s.mp4", seconds)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        backbone = backbone or make_backbone(scratch / "backbone", arch, 224)
        columns = ("clips", "segments", "decoding faster by", "relative distance: median / 95 % / most", "to the next")
        table = Table(*columns, "cosine distance", "to the next", title="fast decoding against exact")
        add_fast_row(table, "made", [made], backbone, rounds=rounds)
        if real is not None:
            found = sorted(path for path in real.rglob("*") if path.suffix in (".mp4", ".mov", ".mkv"))
            chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, most).astype(int))] if found else []
            add_fast_row(table, real.name, chosen, backbone, rounds=rounds)
        show(table)
        print_ways(make_data(scratch / "set", [[made]] * 2), scratch, backbone)


if __name__ == "__main__":
    main()
