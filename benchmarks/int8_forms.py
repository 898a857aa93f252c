"""What the ways to write a network in 8 bits give: speed and error beside float32, random weights and pixels.

    .venv/bin/python benchmarks/int8_forms.py

One thread, processor seconds; every round runs all forms in turn. "to float32" is the median ratio of speeds to the
float32 graph that extraction runs, "error" |int8 - float32| / |float32| of the features on other pixels than those that
ranges were found on. Seconds without VNNI instructions and with them differ much; the processor is named.
"""

import statistics
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
from rich.table import Table

from talstack.extract.architectures import ARCHS
from talstack.extract.int8 import TAKEN, Int8Form, quantize
from talstack.extract.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime, build_runtime, is_installed

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from network import FRAMES, make_model  # noqa: E402
from setting import print_machine, show  # noqa: E402

FORMS = {
    "7 bits signed, unsigned, QDQ (taken)": TAKEN,
    "8 bits signed, unsigned, QDQ": Int8Form(reduced=False),
    "7 bits signed, unsigned, QOperator": Int8Form(layout="QOperator"),
    "8 bits signed, signed, QDQ": Int8Form(activations="QInt8", reduced=False),
    "8 bits unsigned, unsigned, QDQ": Int8Form(weights="QUInt8", reduced=False),
}
FLOAT32 = "float32"


def build_forms(arch: str, size: int, pixels: np.ndarray) -> dict[str, Runtime]:
    """Return what to time, float32 first."""
    made: dict[str, Runtime] = {FLOAT32: build_runtime("onnxruntime", make_model(arch), frame_size=size, threads=1)}
    for name, form in FORMS.items():
        graph = quantize(make_model(arch), (pixels[[row]] for row in range(len(pixels))), frame_size=size, form=form)
        made[name] = OnnxRuntime(graph, threads=1)
        if form == TAKEN and is_installed("openvino"):
            made["the taken one, run by OpenVINO"] = OpenVinoRuntime(graph, threads=1)
    return made


@click.command()
@click.option("--arch", type=click.Choice(ARCHS), default="resnet50", show_default=True)
@click.option("--size", default=224, show_default=True, type=click.IntRange(32), help="Width and height of the frames.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
def main(arch: str, size: int, rounds: int) -> None:
    """Print speed and error of each form."""
    torch.set_num_threads(1)
    print_machine(1)
    pixels = np.random.default_rng(0).integers(0, 256, (4, FRAMES, size, size, 3), dtype=np.uint8)
    runtimes = build_forms(arch, size, pixels[:2])
    spent: dict[str, list[float]] = {name: [] for name in runtimes}
    features = {}
    for number in range(rounds + 1):  # the first warms up
        for name, runtime in list(runtimes.items())[:: 1 if number % 2 else -1]:
            started_s = time.process_time()
            features[name] = runtime.run(pixels[2:]).features
            spent[name].append(time.process_time() - started_s)
    table = Table("weights, activations, layout", "segments/s", "to float32", "error", title=f"TSM {arch}, {size} px")
    whole = features[FLOAT32]
    for name, times in spent.items():
        faster = statistics.median(a / b for a, b in zip(spent[FLOAT32][1:], times[1:], strict=True))
        error = np.linalg.norm(features[name] - whole) / np.linalg.norm(whole)
        rate = 2 / statistics.median(times[1:])
        table.add_row(name, f"{rate:.2f}", f"{faster:.2f}", f"{100 * error:.1f} %")
    show(table)


if __name__ == "__main__":
    main()
