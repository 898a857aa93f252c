"""What the command `talstack extract` needs: memory for long videos, seconds for a set that is finished.

    .venv/bin/python benchmarks/extract_command.py

Memory: a 720p video is extracted whose length is 1 minute, then --minutes; the sum of the peaks of all processes of the
command (Linux only). Resume: the command runs over a set of which every shard is there. Whether it opened a video is
told by a counter around `av.open` in every process, and by the clips themselves: their bytes are set to zero, size and
time of change kept, so that whatever opened one would fail. To see the counter count, a run with one shard missing
follows, whose clip is whole.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import joblib
import numpy as np
from rich.table import Table

from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.plan import ExtractionPlan, plan_extraction
from talstack.io.grid import SegmentGrid
from talstack.io.shard import Shard

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from setting import CALM, make_clip, make_data, peak_memory_of, print_machine, show  # noqa: E402

SIZE, LOOP_S = 64, 20
CONFIG = ExtractConfig(init="random", init_arch="resnet18_narrow", modalities=("rgb",))
SETTINGS = f"""[sampling]
frame_size = {SIZE}
[extract]
init = "{CONFIG.init}"
init_arch = "{CONFIG.init_arch}"
modalities = ["rgb"]
"""
COUNTER = """import os, av
real_open = av.open
def counted(file, *arguments, **settings):
    with open(os.environ["OPENED"], "a") as log:
        log.write(f"{file}\\n")
    return real_open(file, *arguments, **settings)
av.open = counted
"""


def run_command(data: Path, store: Path, environment: dict[str, str] | None = None) -> tuple[float, float, float]:
    """Run `talstack extract`; return seconds, seconds of processor time and megabytes."""
    config = store.parent / "settings.toml"
    config.write_text(SETTINGS)
    main = "import sys; from talstack.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", main, "extract", str(data), "--store", str(store), "--config", str(config)]
    started_s, before = time.perf_counter(), os.times()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    with peak_memory_of(process.pid) as peak:
        errors = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(errors.decode())
    seconds, after = time.perf_counter() - started_s, os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu_s, peak.megabytes


def make_long_clip(folder: Path, minutes: int) -> Path:
    """Return a clip that shows the same seconds again and again."""
    once, path = make_clip(folder / "calm.mp4", LOOP_S, graph=CALM, bitrate="500k"), folder / f"calm-{minutes}min.mp4"
    if not path.exists():
        loops = ["-stream_loop", str(60 * minutes // LOOP_S - 1), "-i", str(once), "-c", "copy"]
        subprocess.run(["ffmpeg", "-v", "error", "-y", *loops, str(path)], check=True)
    return path


def measure_memory(folder: Path, scratch: Path, *, minutes: int, rounds: int) -> None:
    table = Table("720p video", "s", "peak MB", "more than the first", title=f"memory, {CONFIG.init_arch} at {SIZE} px")
    runs: dict[int, list[tuple[float, float, float]]] = {1: [], minutes: []}
    for number in range(rounds):
        for length, took in runs.items():
            place = scratch / f"memory{number}-{length}"
            data = make_data(place / "set", [[make_long_clip(folder, length)]])
            took.append(run_command(data, place / "store"))
    first = statistics.median(megabytes for _, _, megabytes in runs[1])
    for length, took in runs.items():
        seconds, _, megabytes = (statistics.median(column) for column in zip(*took, strict=True))
        table.add_row(f"{length} min", f"{seconds:.1f}", f"{megabytes:.0f}", f"{megabytes - first:+.0f}")
    show(table)


def fill_store(plan: ExtractionPlan) -> None:
    for key in plan.keys:
        times_s = SegmentGrid(key.duration_s, key.segment_s).centres_s
        shard = Shard(np.ones((len(times_s), 64), np.float16), np.ones(len(times_s), bool), times_s)
        plan.store.write(key, shard)


def blank(clip: Path) -> None:
    """Set the clip's bytes to zero; size and times stay."""
    stat = clip.stat()
    clip.write_bytes(bytes(stat.st_size))
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def count_opened(data: Path, store: Path, scratch: Path) -> int:
    """Run the command with a counter in every process; return how often a video was opened."""
    hook, log = scratch / "hook", scratch / "opened.txt"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(COUNTER)
    log.write_text("")
    paths = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    run_command(data, store, {"PYTHONPATH": paths, "OPENED": str(log)})
    return len(log.read_text().splitlines())


def measure_resume(folder: Path, scratch: Path, *, num_shards: int, rounds: int) -> None:
    clip, place = make_clip(folder / "tiny.mp4", 2, graph=CALM, size="160x96", bitrate="50k"), scratch / "resume"
    data, store = make_data(place / "set", [[clip, clip]] * (num_shards // 2)), place / "store"
    plan = plan_extraction(data, store, config=CONFIG, sampling=SamplingConfig(frame_size=SIZE))
    fill_store(plan)
    clips = sorted((place / "set").glob("*.mp4"))
    for path in clips[1:]:
        blank(path)
    runs = [run_command(data, store) for _ in range(rounds)]
    seconds, cpu_s, _ = (f"{statistics.median(column):.2f}" for column in zip(*runs, strict=True))
    table = Table("shards", "missing", "s", "CPU s", "videos opened", title="the command over a finished set")
    table.add_row(str(len(plan.keys)), "0", seconds, cpu_s, str(count_opened(data, store, scratch)))
    whole = next(key for key in plan.keys if f"{key.recording}-{key.view[4:]}.mp4" == clips[0].name)
    plan.store.path_of(whole).unlink()
    table.add_row(str(len(plan.keys)), "1", "", "", str(count_opened(data, store, scratch)))
    show(table)


@click.command()
@click.option("--minutes", default=20, show_default=True, type=click.IntRange(2), help="Length of the long video.")
@click.option("--shards", "num_shards", default=800, show_default=True, type=click.IntRange(2))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--quick", is_flag=True, help="One round, and a long video of 5 minutes.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "talstack-extract")
def main(minutes: int, num_shards: int, rounds: int, quick: bool, folder: Path) -> None:
    """Print both tables."""
    if quick:
        minutes, rounds = min(minutes, 5), 1
    print_machine(joblib.cpu_count())
    scratch = Path(tempfile.mkdtemp())
    try:
        measure_resume(folder, scratch, num_shards=num_shards, rounds=max(rounds, 3))
        measure_memory(folder, scratch, minutes=minutes, rounds=rounds)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
