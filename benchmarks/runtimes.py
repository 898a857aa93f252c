"""How fast each runtime computes TSM's network, beside the machine's own matrix product and the plain module.

    .venv/bin/python benchmarks/runtimes.py

Every runtime runs the same segments in turn, with and without the temporal shift, several times over. GFLOP/s count
two operations per multiply-add. "of product" is the share of the float32 matrix product that torch reaches with as many
threads; "to plain" the speed beside the module in torch's default memory format, "plain eager"; "shift" what the
temporal shift adds to the time; "difference" the largest one from plain eager's features, as a share of the largest
feature. Ratios are medians over the rounds, since a round's runs share whatever else the machine does.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import joblib
import numpy as np
import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from talstack.extract.architectures import ARCHS
from talstack.extract.backbone import TSMBackbone, normalise
from talstack.extract.runtimes import Computed, FoldedRuntime, Runtime, build_runtime, is_installed, largest_difference

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from network import FRAMES, make_model  # noqa: E402
from setting import print_machine, show  # noqa: E402

PLAIN, PRODUCT, PRODUCT_SIZE = "plain eager", "matrix product", 4096
NAMES = {
    "eager": "eager, channels_last",
    "folded": "folded (torch alone)",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "compile": "compile",
    "bfloat16": "folded, bfloat16",
}
Run = Callable[[np.ndarray], Computed]
Spent = dict[tuple[str, bool], list[float]]
"""Seconds of every round by (name, with shift)."""


def plain_run(model: TSMBackbone) -> Run:
    """Return the module's own forward pass on contiguous (N, C, H, W) tensors."""

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> Computed:
        frames = normalise(torch.from_numpy(pixels)).flatten(0, 1).contiguous()
        features = model.net(frames).unflatten(0, (-1, model.num_frames)).mean(dim=1)
        return Computed(*(part.numpy() for part in (features, model.action(features), model.scene(features))))

    return run


def build_runs(arch: str, size: int, threads: int, *, names: Sequence[str]) -> dict[tuple[str, bool], Run]:
    """Return what to time by (name, with shift); each has a module of its own, since some change its memory format."""
    runs: dict[tuple[str, bool], Run] = {}
    for shift in (True, False):
        runs[PLAIN, shift] = plain_run(make_model(arch, shift=shift))
        for name in names:
            model = make_model(arch, shift=shift)
            runs[NAMES[name], shift] = build(name, model, size, threads).run
    return runs


def build(name: str, model: TSMBackbone, size: int, threads: int) -> Runtime:
    """Return a runtime of float32, or what `extract.precision = "bfloat16"` gives."""
    if name == "bfloat16":
        return FoldedRuntime(model, precision=name)
    return build_runtime(name, model, frame_size=size, threads=threads)


def count_flop(arch: str, size: int) -> int:
    """Return the operations per segment, two per multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        make_model(arch)(torch.zeros(1, FRAMES, 3, size, size))
    return int(counter.get_total_flops())


def time_rounds(calls: dict[tuple[str, bool], Callable[[], object]], rounds: int, clock: Callable[[], float]) -> Spent:
    """Return the seconds of every call in every round; the order changes from round to round."""
    spent: Spent = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            started_s = clock()
            calls[name]()
            spent[name].append(clock() - started_s)
    return spent


def ratio(one: list[float], other: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def print_table(spent: Spent, differences: dict[str, float], *, segment_flop: int, segments: int, title: str) -> None:
    columns = ("runtime", "segments/s", "GFLOP/s", "of product", "to plain", "GFLOP/s, no shift", "shift", "difference")
    table = Table(*columns, title=title)
    flop, product_flop, product = segments * segment_flop, 2 * PRODUCT_SIZE**3, spent[PRODUCT, False]

    def rate(times: list[float], operations: int) -> str:
        return f"{operations / statistics.median(times) / 1e9:.1f}"

    for name, difference in differences.items():
        shifted, still = spent[name, True], spent[name, False]
        table.add_row(
            name, f"{segments / statistics.median(shifted):.2f}", rate(shifted, flop),
            f"{ratio(product, shifted) * flop / product_flop:.2f}", f"{ratio(spent[PLAIN, True], shifted):.2f}",
            rate(still, flop), f"{100 * (ratio(shifted, still) - 1):+.1f} %", f"{difference:.1e}",
        )  # fmt: skip
    table.add_row(f"{PRODUCT} of {PRODUCT_SIZE}", "", rate(product, product_flop), "1.00")
    show(table)


def measure(
    arch: str, size: int, *, threads: int, segments: int, rounds: int, names: Sequence[str], clock: Callable[[], float]
) -> None:
    """Print the table of one network."""
    torch.set_num_threads(threads)
    runs = build_runs(arch, size, threads, names=names)
    pixels = np.random.default_rng(0).integers(0, 256, (segments, FRAMES, size, size, 3), dtype=np.uint8)
    reference = runs[PLAIN, True](pixels)
    differences = {name: largest_difference(run(pixels), reference) for (name, shift), run in runs.items() if shift}
    matrix = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
    calls: dict[tuple[str, bool], Callable[[], object]] = {(PRODUCT, False): lambda: torch.mm(matrix, matrix)}
    calls |= {name: partial(run, pixels) for name, run in runs.items()}
    time_rounds(calls, 1, clock)  # to warm up
    flop = count_flop(arch, size)
    title = (
        f"TSM {arch}, T = {FRAMES}, {size} px: {flop / 1e9:.1f} GFLOP per segment; {segments} segments, {rounds} rounds"
    )
    spent = time_rounds(calls, rounds, clock)
    print_table(spent, differences, segment_flop=flop, segments=segments, title=title)


@click.command()
@click.option("--arch", type=click.Choice(ARCHS), default="resnet50", show_default=True)
@click.option("--size", default=224, show_default=True, type=click.IntRange(32), help="Width and height of the frames.")
@click.option("--threads", default=joblib.cpu_count(), show_default="all cores", type=click.IntRange(1))
@click.option("--segments", default=2, show_default=True, type=click.IntRange(1), help="Per forward pass.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option(
    "--runtime", "names", multiple=True, type=click.Choice(list(NAMES)), help="[all installed but compile and bfloat16]"
)
@click.option("--cpu", is_flag=True, help="One thread, by processor time: where others use the machine too.")
@click.option("--quick", is_flag=True, help="Three rounds of one segment.")
def main(  # noqa: PLR0913 - one parameter per option
    arch: str, size: int, threads: int, segments: int, rounds: int, names: tuple[str, ...], cpu: bool, quick: bool
) -> None:
    """Print GFLOP/s of each runtime."""
    threads, clock = (1, time.process_time) if cpu else (threads, time.perf_counter)
    if quick:
        segments, rounds = 1, 3
    absent = () if is_installed("openvino") else ("openvino",)
    unasked = ("compile", "bfloat16", *absent)  # compile takes minutes, bfloat16 too where no unit is made for it
    names = names or tuple(name for name in NAMES if name not in unasked)
    print_machine(threads)
    if cpu:
        click.echo("seconds are the processor's")
    measure(arch, size, threads=threads, segments=segments, rounds=rounds, names=names, clock=clock)


if __name__ == "__main__":
    main()
