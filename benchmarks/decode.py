"""How fast frames come out of a clip, beside the ffmpeg command line doing the same.

    .venv/bin/python benchmarks/decode.py

Clips with motion, texture, noise and B-frames are made with the ffmpeg command, once, in --folder. Then, in turn and
several times over, ffmpeg (`-vf fps=8,scale=-2:256 -f rawvideo`) and FrameReader read them, with as many threads.
Frames/s are medians, by the clock and by processor time; ratios to ffmpeg are medians over the rounds, since a round's
runs share whatever else the machine does. A second table says what the fast reading costs in likeness.
"""

import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from talstack.io.frame_decoders import PyAVFrames
from talstack.io.media import FrameReader, Frames, decoder_versions
from talstack.io.packet_index import index_clip
from talstack.io.picture_crop import Drawing

FPS, SHORT_SIDE = 30, 256
CLIPS = {
    "720p H.264": (1280, 720, ("libx264", "-preset", "medium", "-b:v", "3M")),
    "3840x1920 H.264": (3840, 1920, ("libx264", "-preset", "veryfast", "-b:v", "20M")),
    "720p HEVC": (1280, 720, ("libx265", "-preset", "fast", "-b:v", "2M", "-x265-params", "log-level=error")),
}
Feature = Callable[[np.ndarray], np.ndarray]
"""(n, H, W, 3) uint8 pictures to (n, D) float features."""


class Clip(NamedTuple):
    """A clip to read, and how."""

    path: Path
    size: tuple[int, int]
    times_s: np.ndarray
    rate: float


class Spent(NamedTuple):
    """Seconds that one reading took."""

    wall_s: float
    cpu_s: float


def make_clip(folder: Path, name: str, *, seconds: int, rate: float) -> Clip:
    width, height, encoder = CLIPS[name]
    path = folder / f"{name.replace(' ', '-')}-{seconds}s.mp4"
    if not path.exists():
        click.echo(f"making {path}", err=True)
        size = f"s={width}x{height}:r={FPS}"
        graph = f"mandelbrot={size}:end_scale=0.02:maxiter=400[m];testsrc2={size}[t];[m][t]blend=all_mode=average"
        graph += ",noise=alls=5:allf=t,format=yuv420p"
        part = path.with_suffix(".part.mp4")
        command = ["ffmpeg", "-v", "error", "-y", "-filter_complex", graph, "-t", str(seconds), "-c:v", *encoder]
        subprocess.run([*command, str(part)], check=True)
        part.replace(path)
    out = (SHORT_SIDE, 2 * round(width * SHORT_SIDE / height / 2))
    return Clip(path, out, np.arange(0, seconds - 0.5 / FPS, 1 / rate), rate)


def run_ffmpeg(clip: Clip, threads: int) -> None:
    command = ["ffmpeg", "-v", "error", "-y", "-threads", str(threads), "-filter_threads", str(threads)]
    command += ["-i", str(clip.path), "-vf", f"fps={clip.rate},scale=-2:{SHORT_SIDE}", "-f", "rawvideo", "/dev/null"]
    subprocess.run(command, check=True)


def run_reader(clip: Clip, threads: int, **options: Any) -> None:
    with FrameReader(clip.path, size=clip.size, num_threads=threads, **options) as reader:
        for part in portions(clip):
            if not reader.frames_at(part).valid.all():
                raise RuntimeError(f"{clip.path}: not every frame was read")


def run_in_order(clip: Clip, threads: int) -> None:
    start, index = index_clip(clip.path)
    drawings = [Drawing(clip.size)]
    reader = PyAVFrames(clip.path, start, drawings=drawings, period_s=index.period_s, strict=True, num_threads=threads)
    for part in portions(clip):
        reader.read(part, np.ones((len(part), 1), dtype=bool))
    reader.close()


def portions(clip: Clip) -> list[np.ndarray]:
    return np.array_split(clip.times_s, max(1, len(clip.times_s) // 64))


READERS: dict[str, Callable[[Clip, int], None]] = {
    "ffmpeg": run_ffmpeg,
    "PyAV, every frame": run_in_order,
    "PyAV, needed frames": run_reader,
    "decord": lambda clip, threads: run_reader(clip, threads, use_decord=True),
    "PyAV, fast": lambda clip, threads: run_reader(clip, threads, fast_within_s=0.5 / clip.rate),
}


def spent(read: Callable[[Clip, int], None], clip: Clip, threads: int) -> Spent:
    def cpu_s() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    wall_s, before_s = time.perf_counter(), cpu_s()
    read(clip, threads)
    return Spent(time.perf_counter() - wall_s, cpu_s() - before_s)


def add_speed_rows(table: Table, name: str, clip: Clip, *, threads: int, rounds: int) -> None:
    runs: dict[str, list[Spent]] = {reader: [] for reader in READERS}
    for _ in range(rounds):
        for reader, read in READERS.items():
            runs[reader].append(spent(read, clip, threads))
    for reader, took in runs.items():
        pairs = list(zip(runs["ffmpeg"], took, strict=True))
        cells = []
        for clock in range(2):
            cells.append(f"{len(clip.times_s) / statistics.median(t[clock] for t in took):.1f}")
            cells.append(f"{statistics.median(theirs[clock] / ours[clock] for theirs, ours in pairs):.2f}")
        table.add_row(name, str(threads), reader, *cells)


def difference(one: Frames, two: Frames, *, power: int = 1) -> np.ndarray:
    """Return (n,) float64, the mean absolute or squared difference of the pixels."""
    pairs = zip(one.pixels, two.pixels, strict=True)
    return np.array([(abs(a.astype(np.float64) - b) ** power).mean() for a, b in pairs])


def add_likeness_row(table: Table, name: str, clip: Clip, feature: Feature | None) -> None:
    """Add what the fast reading does to the pictures, and to the features where a function for them is given."""
    with FrameReader(clip.path, size=clip.size) as exact, FrameReader(
        clip.path, size=clip.size, fast_within_s=0.5 / clip.rate
    ) as fast:  # fmt: skip
        one, two = exact.frames_at(clip.times_s), fast.frames_at(clip.times_s)
        # the same frames, decoded exactly
        same = exact.frames_at(two.times_s)
    moved = two.times_s != one.times_s
    most_ms = 1000 * abs(two.times_s - one.times_s).max()
    cells = [f"{100 * moved.mean():.0f}", f"{most_ms:.0f}", f"{difference(two, same).mean():.2f}"]
    apart = difference(two, one)
    psnr = -10 * np.log10(difference(two, one, power=2)[moved] / 255**2) if moved.any() else np.full(1, np.inf)
    cells += [f"{apart.mean():.2f}", f"{psnr.mean():.1f}", f"{psnr.min():.1f}"]
    if feature is not None:
        before, after = feature(one.pixels), feature(two.pixels)
        norms = np.linalg.norm(before, axis=1)
        cells.append(f"{(np.linalg.norm(after - before, axis=1) / norms).mean():.3f}")
    table.add_row(name, *cells)


def measure(clips: dict[str, Clip], *, threads: tuple[int, ...], rounds: int, feature: Feature | None = None) -> None:
    """Print both tables; `feature` adds the mean relative change of the features to the second."""
    rate = next(iter(clips.values())).rate
    versions = ", ".join(f"{name} {version}" for name, version in decoder_versions(use_decord=True).items())
    title = f"{rate:g} frames per second, short side {SHORT_SIDE}, {rounds} rounds; {versions}"
    speed = Table("clip", "threads", "reader", "frames/s", "to ffmpeg", "frames/CPU s", "to ffmpeg", title=title)
    likeness = Table(
        "clip", "moved, %", "most, ms", "same frame, mean |d|", "shown frame, mean |d|", "moved: PSNR, dB", "least, dB",
        *(["features, relative"] if feature else []),
        title="fast against exact, pixels 0 to 255",
    )  # fmt: skip
    for name, clip in clips.items():
        for count in threads:
            add_speed_rows(speed, name, clip, threads=count, rounds=rounds)
        add_likeness_row(likeness, name, clip, feature)
    console = Console()
    wide = Console(width=max(console.width, 120))
    wide.print(speed, likeness)


@click.command()
@click.option("--clip", "names", multiple=True, type=click.Choice(list(CLIPS)), default=list(CLIPS))
@click.option("--seconds", default=8, show_default=True, type=click.IntRange(2), help="Length of each clip.")
@click.option("--rate", default=8.0, show_default=True, help="Frames per second to read.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "talstack-decode")
def main(
    names: tuple[str, ...], seconds: int, rate: float, rounds: int, threads: tuple[int, ...], folder: Path
) -> None:
    """Print frames/s of each reader on each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = {name: make_clip(folder, name, seconds=seconds, rate=rate) for name in names}
    measure(clips, threads=threads, rounds=rounds)


if __name__ == "__main__":
    main()
