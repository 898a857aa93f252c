"""How fast `talstack extract` is: beside what its two stages allow, and beside a plain loop over the same clips.

    .venv/bin/python benchmarks/extract.py

The first table extracts made 720p clips through the scheduler, by warm worker processes, and does each stage alone in
the same processes: the FrameReader on the frames of the same segments, the runtime on ready pixels. All cores are busy
in each, so the bound on the whole is 1 / (1/decode + 1/compute). "CPU" is the same ratio in processor seconds: where
others use the machine too, the whole gets a larger part of it than a stage, since it has more threads.

The second table runs the whole in fresh processes, beside a loop of the shape that public extractors have: a reader
that gives every frame, torchvision's transforms, the module on batches. Rates are without the start of processes;
memory is the sum of the peaks of all of them (Linux only). Figures are medians of several rounds, ratios those of the
rounds' ratios.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import click
import cloudpickle
import joblib
import numpy as np
import polars as pl
import torch
from rich.table import Table
from torchvision import transforms

from talstack.extract.architectures import PIXEL_MEAN, PIXEL_STD
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.item import ExtractionItem
from talstack.extract.networks import runtime_of
from talstack.extract.plan import plan_extraction
from talstack.extract.schedule import run_items
from talstack.extract.status import StatusRow
from talstack.extract.weights import load_backbone
from talstack.extract.worker import extract_item
from talstack.extract.workers import Workers
from talstack.io.manifest import Manifest
from talstack.io.media import FrameReader

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from network import FRAMES  # noqa: E402
from setting import make_backbone, make_clip, make_data, peak_memory_of, print_machine, show  # noqa: E402

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a script


@dataclass(frozen=True, slots=True)
class Job:
    """What to extract.

    Attributes:
        data, backbone: folders.
        clips: the media files, one per recording.
        seconds: of each, and so its segments.
        size: of the frames, pixels.
    """

    data: Path
    backbone: Path
    clips: tuple[Path, ...]
    seconds: int
    size: int

    @property
    def num_segments(self) -> int:
        """Number of segments of all clips."""
        return self.seconds * len(self.clips)

    def items(self, store: Path, jobs: int) -> tuple[list[ExtractionItem], Workers]:
        """Return what `talstack extract` would do, and in which processes."""
        plan = plan_extraction(
            self.data, store, config=ExtractConfig(modalities=("rgb",)), backbone=self.backbone,
            sampling=SamplingConfig(frame_size=self.size),
        )  # fmt: skip
        workers = plan.workers(plan.keys, jobs)
        return plan.items(plan.keys, workers), workers


def decode_alone(item: ExtractionItem) -> StatusRow:
    """Read the frames of the item's segments."""
    key, manifest = item.keys[0], Manifest.load(item.manifest_folder)
    path = manifest.media_path(manifest.clips.filter(pl.col("recording") == key.recording)["path"][0])
    card = item.networks[0].source.card
    starts_s = np.arange(round(key.duration_s / key.segment_s)) * key.segment_s
    parts_s = (np.arange(card.frames_per_segment) + 0.5) / card.frames_per_segment * key.segment_s
    with FrameReader(path, size=(card.frame_size, card.frame_size)) as reader:
        for first in range(0, len(starts_s), item.batch_segments):
            times_s = starts_s[first : first + item.batch_segments, None] + parts_s
            if not reader.frames_at(times_s.ravel()).valid.all():
                raise RuntimeError(f"{path}: not every frame was read")
    return StatusRow(key.recording, key.view, key.modality, "done")


def compute_alone(item: ExtractionItem) -> StatusRow:
    """Compute as many segments as the item has, on pixels that are there."""
    key, card, runtime = item.keys[0], item.networks[0].source.card, runtime_of(item.networks[0], "rgb")
    shape = (item.batch_segments, card.frames_per_segment, card.frame_size, card.frame_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    torch.set_num_threads(item.threads)
    left = round(key.duration_s / key.segment_s)
    while left > 0:
        runtime.run(pixels[:left])
        left -= item.batch_segments
    return StatusRow(key.recording, key.view, key.modality, "done")


def load_alone(item: ExtractionItem) -> StatusRow:
    """Load the network; long enough that every process gets one of these."""
    runtime_of(item.networks[0], "rgb")
    time.sleep(1.0)
    return StatusRow(item.keys[0].recording, "", "", "done")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started_s = time.perf_counter()
    result = call()
    return time.perf_counter() - started_s, result


def counted(run: Callable[[ExtractionItem], Any], item: ExtractionItem) -> list[StatusRow]:
    """Do the item; the rows' `compute_s` are the processor seconds of the process, shared out among them."""
    started_s = time.process_time()
    made = run(item)
    rows = [made] if isinstance(made, StatusRow) else list(made)
    return [replace(row, compute_s=(time.process_time() - started_s) / len(rows)) for row in rows]


def add_bound_row(table: Table, name: str, job: Job, scratch: Path, *, jobs: int, rounds: int) -> None:
    stores = (scratch / f"store{number}" for number in count())
    items, workers = job.items(next(stores), jobs)
    run_items(items[: workers.jobs], jobs=workers, run=load_alone)
    walls_s: list[list[float]] = []
    cpus_s: list[list[float]] = []
    for _ in range(rounds):
        store = next(stores)
        fresh = [replace(item, store_root=store) for item in items]
        walls_s.append([])
        cpus_s.append([])
        for stage in (decode_alone, compute_alone, extract_item):
            seconds, rows = timed(lambda: run_items(fresh, jobs=workers, run=partial(counted, stage)))  # noqa: B023
            if {row.outcome for row in rows} != {"done"}:
                raise RuntimeError(str(rows))
            walls_s[-1].append(seconds)
            cpus_s[-1].append(sum(row.compute_s for row in rows))
    rates = [f"{job.num_segments / statistics.median(column):.2f}" for column in zip(*walls_s, strict=True)]
    bounds = [f"{statistics.median((d + c) / whole for d, c, whole in runs):.2f}" for runs in (walls_s, cpus_s)]
    store_share = sum(row.store_s for row in rows) / sum(row.wall_s for row in rows)
    runtime = items[0].networks[0].runtime if items[0].networks else ""
    setup = f"{workers.jobs} x {workers.threads}"
    table.add_row(name, runtime, setup, *rates, *bounds, f"{100 * store_share:.2f} %")


def extract_all(job: Job, scratch: str, jobs: int) -> float:
    """Return the seconds that an extraction took once its workers had loaded the network."""
    items, workers = job.items(Path(scratch), jobs)
    run_items(items[: workers.jobs], jobs=workers, run=load_alone)
    return timed(lambda: run_items(items, jobs=workers))[0]


def plain_loop(job: Job, scratch: str, whole: bool) -> float:
    """Return the seconds that the plain loop took once the network was loaded; `whole` reads each clip into memory."""
    model = load_backbone(job.backbone)[0]
    steps = [transforms.ToPILImage(), transforms.Resize((job.size, job.size)), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(PIXEL_MEAN, PIXEL_STD)])
    batch_frames = ExtractConfig().batch_segments * FRAMES

    def run() -> None:
        for number, clip in enumerate(job.clips):
            frames = every_frame(clip)
            wanted = wanted_frames(iter(list(frames)) if whole else frames, job.seconds)
            features = []
            while batch := [transform(frame) for frame in islice(wanted, batch_frames)]:
                with torch.no_grad():
                    features.append(model.net(torch.stack(batch)).unflatten(0, (-1, FRAMES)).mean(dim=1).numpy())
            np.save(f"{scratch}-{number}.npy", np.concatenate(features))

    return timed(run)[0]


def every_frame(clip: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Yield time and pixels of all frames, as a plain reader does."""
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.time, frame.to_ndarray(format="rgb24")


def wanted_frames(frames: Iterator[tuple[float, np.ndarray]], seconds: int) -> Iterator[np.ndarray]:
    """Yield the frame shown at each of the moments that `talstack extract` takes."""
    moments_s = (np.arange(seconds * FRAMES) + 0.5) / FRAMES
    shown: np.ndarray | None = None
    place = 0
    for at_s, frame in frames:
        while place < len(moments_s) and shown is not None and at_s > moments_s[place] + 1e-3:
            yield shown
            place += 1
        shown = frame
    if shown is not None:
        yield from (shown for _ in moments_s[place:])


def apart(call: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """Return what a function returns in a fresh process, and the megabytes that it and its children held."""
    context = get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_put, args=(results, cloudpickle.dumps((call, arguments))))
    process.start()
    with peak_memory_of(process.pid or 0) as peak:
        seconds = results.get()
    process.join()
    if isinstance(seconds, str):
        raise RuntimeError(seconds)
    return seconds, peak.megabytes


def _put(results: Any, pickled: bytes) -> None:
    call, arguments = cloudpickle.loads(pickled)
    try:
        results.put(call(*arguments))
    except Exception as error:  # noqa: BLE001 - the parent waits for something
        results.put(f"{type(error).__name__}: {error}")
        raise


def print_side_by_side(name: str, job: Job, scratch: Path, *, jobs: int, rounds: int) -> None:
    contenders: dict[str, tuple[Callable[..., float], int | bool]] = {
        "plain loop, whole clip in memory": (plain_loop, True),
        "plain loop, frame by frame": (plain_loop, False),
        "talstack extract": (extract_all, jobs),
        "talstack extract, one process": (extract_all, 1),
    }
    runs: dict[str, list[tuple[float, float]]] = {contender: [] for contender in contenders}
    for number in range(rounds):
        for place, (contender, (call, how)) in enumerate(contenders.items()):
            runs[contender].append(apart(call, job, str(scratch / f"side{number}-{place}"), how))
    columns = ("on the same clips", "segments/s", "to frame by frame", "peak MB")
    table = Table(
        *columns, title=f"{name}: {len(job.clips)} clips of 720p, {job.num_segments} segments, {rounds} rounds"
    )
    for contender, took in runs.items():
        pairs = zip(runs["plain loop, frame by frame"], took, strict=True)
        rate = job.num_segments / statistics.median(seconds for seconds, _ in took)
        faster = statistics.median(theirs / ours for (theirs, _), (ours, _) in pairs)
        table.add_row(contender, f"{rate:.2f}", f"{faster:.2f}", f"{statistics.median(mb for _, mb in took):.0f}")
    show(table)


@click.command()
@click.option("--arch", "archs", multiple=True, default=("resnet18", "resnet50"), show_default=True)
@click.option("--size", default=224, show_default=True, type=click.IntRange(32), help="Width and height of the frames.")
@click.option("--seconds", default=12, show_default=True, type=click.IntRange(2), help="Length of each clip.")
@click.option("--clips", "num_clips", default=2, show_default=True, type=click.IntRange(1), help="Per core.")
@click.option("--jobs", default=0, show_default="as talstack extract", type=click.IntRange(0))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--bound-only", is_flag=True, help="Only the first table.")
@click.option("--quick", is_flag=True, help="resnet18 and few segments.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "talstack-extract")
def main(  # noqa: PLR0913 - one parameter per option
    archs: tuple[str, ...], size: int, seconds: int, num_clips: int, jobs: int, rounds: int, bound_only: bool,
    quick: bool, folder: Path,
) -> None:  # fmt: skip
    """Print both tables; the last network is the one of the second table."""
    if quick:
        archs, seconds, num_clips, rounds = archs[:1], min(seconds, 8), 1, min(rounds, 2)
    print_machine(joblib.cpu_count())
    clips = (make_clip(folder / f"busy-{seconds}s.mp4", seconds),) * num_clips * joblib.cpu_count()
    columns = ("network", "runtime", "processes x threads", "decode/s", "compute/s", "whole/s")
    title = f"{len(clips)} clips of 720p, {seconds * len(clips)} segments, {rounds} rounds"
    table = Table(*columns, "of bound", "CPU", "store", title=title)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        data = make_data(scratch / "set", [[clip] for clip in clips])
        for arch in archs:
            job = Job(data, make_backbone(scratch / arch, arch, size), clips, seconds, size)
            add_bound_row(table, arch, job, scratch / f"{arch}-stores", jobs=jobs, rounds=rounds)
        show(table)
        if not bound_only:
            print_side_by_side(archs[-1], job, scratch, jobs=jobs, rounds=1 if quick else rounds)


if __name__ == "__main__":
    main()
