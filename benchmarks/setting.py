"""What the benchmarks of the extraction share: the machine in words, made clips and networks, peak memory."""

import csv
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import joblib
import torch
from rich.console import Console
from rich.table import Table

from talstack.extract.card import BackboneCard
from talstack.extract.weights import save_backbone
from talstack.io.import_csv import import_csv

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from network import FRAMES, make_model  # noqa: E402

PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "av")
FPS = 30
# moving, noisy pictures, and ones that are cheap to decode
BUSY = "mandelbrot={size}:end_scale=0.02:maxiter=400[m];testsrc2={size}[t];[m][t]blend=all_mode=average"
BUSY += ",noise=alls=5:allf=t"
CALM = "testsrc2={size},noise=alls=2:allf=t"


def print_machine(threads: int) -> None:
    """Print the processor, the threads, the versions and how busy the machine is with other work."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    cores, level = joblib.cpu_count(), torch.backends.cpu.get_cpu_capability()
    click.echo(f"{name}, {level}, {cores} cores, {threads} threads; load before: {os.getloadavg()[0]:.1f}")
    click.echo(
        f"Python {platform.python_version()}, {', '.join(f'{package} {_version(package)}' for package in PACKAGES)}"
    )


def show(table: Table) -> None:
    """Print a table wide enough for its columns."""
    Console(width=max(Console().width, 120)).print(table)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def make_backbone(folder: Path, arch: str, size: int) -> Path:
    """Return the folder of a backbone of `make_model`, for `talstack extract --backbone`."""
    card = BackboneCard(arch, True, 1.0, FRAMES, size, ("wave", "clap"), ("park",))
    save_backbone(folder, make_model(arch), card)
    return folder


def make_clip(path: Path, seconds: float, *, graph: str = BUSY, size: str = "1280x720", bitrate: str = "3M") -> Path:
    """Encode a clip of H.264 with B-frames by the ffmpeg command, once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        click.echo(f"making {path}", err=True)
        part = path.with_suffix(".part.mp4")
        command = ["ffmpeg", "-v", "error", "-y", "-filter_complex", graph.format(size=f"s={size}:r={FPS}")]
        command += ["-t", str(seconds), "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "medium", "-b:v", bitrate]
        subprocess.run([*command, str(part)], check=True)
        part.replace(path)
    return path


def make_data(folder: Path, clips: Sequence[Sequence[Path]]) -> Path:
    """Return a data folder with one recording per entry, whose views are copies of the entry's clips."""
    folder.mkdir(parents=True, exist_ok=True)
    recordings, rows = [(f"r{number}", "", "train") for number in range(len(clips))], []
    for (name, _, _), views in zip(recordings, clips, strict=True):
        for view, clip in enumerate(views):
            shutil.copyfile(clip, folder / f"{name}-{view}.mp4")
            rows.append((name, f"view{view}", "c0", f"{name}-{view}.mp4", 0))
    _write(folder / "recordings.csv", ("recording", "scene", "split"), recordings)
    _write(folder / "clips.csv", ("recording", "view", "clip", "path", "offset_s"), rows)
    _write(folder / "instances.csv", ("recording", "start_s", "end_s", "label"), [])
    (folder / "classes.txt").write_text("wave\nclap\n")
    (folder / "scenes.txt").write_text("park\n")
    import_csv(folder, num_folds=1).save(folder / "data")
    return folder / "data"


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@dataclass(slots=True)
class PeakMemory:
    """The most memory that each process of a tree has held, bytes by process id."""

    by_process: dict[int, int] = field(default_factory=dict)

    @property
    def megabytes(self) -> float:
        """The sum of the processes' peaks; what they share is counted in each."""
        return sum(self.by_process.values()) / 1e6

    def look(self, root: int) -> None:
        """Note the peaks of a process and its descendants."""
        for pid in (root, *_descendants(root)):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
            self.by_process[pid] = max(self.by_process.get(pid, 0), kilobytes * 1024)


def _descendants(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = [], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


@contextmanager
def peak_memory_of(pid: int) -> Iterator[PeakMemory]:
    """Watch a process and its descendants (Linux only) while the block runs."""
    peak, done = PeakMemory(), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak.look(pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
