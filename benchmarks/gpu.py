"""What a GPU makes of TSM's network: precision, form, batch size, and what moving pixels costs.

    make -s links && PYTHONSAFEPATH=1 PYTHONPATH=build/links python benchmarks/gpu.py --json gpu.json

Needs torch, torchvision, numpy, click and rich; talstack need not be installed. Segments/s are of uint8 pixels in the
machine's memory to features there, as an extraction sees it, but in the table "on the GPU", whose pixels lie there
already. "apart" is |features - reference| / |reference|, reference: the module in float32 without TF32. A form that
fails is listed with its error. --cpu runs everything there is on the CPU, to see that the command works.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from talstack.extract.architectures import PIXEL_MEAN, PIXEL_STD
from talstack.extract.backbone import BackboneOutput
from talstack.extract.runtimes import FoldedRuntime

sys.path.insert(0, str(Path(__file__).parent))  # where Python is told not to do that itself
from network import FRAMES, make_model  # noqa: E402

Forward = Callable[[torch.Tensor], BackboneOutput]
"""From (B, T, H, W, 3) uint8 pixels on the device to the outputs there."""
FORMS = ("eager", "folded", "compile", "graph")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all measurements share."""

    device: torch.device
    arch: str
    size: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; `error` says why there is none."""

    form: str
    precision: str
    batch: int
    shift: bool = True
    segments_per_s: float = 0.0
    apart: float = 0.0
    memory_gb: float = 0.0
    error: str = ""


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let convolutions and matrix products round to TF32 in the block, or not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def build(setting: Setting, form: str, precision: str, *, shift: bool = True) -> Forward:
    """Return a form of the network."""
    model, device = make_model(setting.arch, shift=shift), setting.device
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    mean, std = (torch.tensor(values, device=device) * 255 for values in (PIXEL_MEAN, PIXEL_STD))
    if form in ("folded", "graph"):
        made = FoldedRuntime(model, device, precision=str(dtype).removeprefix("torch."))
        network: Callable[[torch.Tensor], BackboneOutput] = made.compute
    else:
        network = model.to(device).to(memory_format=torch.channels_last)
        network = torch.compile(network, dynamic=False) if form == "compile" else network

    @torch.inference_mode()
    def forward(pixels: torch.Tensor) -> BackboneOutput:
        frames = ((pixels.float() - mean) / std).movedim(-1, -3)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32 and form in ("eager", "compile")):
            return network(frames)

    return captured(forward, setting) if form == "graph" else forward


def captured(forward: Forward, setting: Setting) -> Forward:
    """Return the forward pass as one CUDA graph per shape; its outputs are overwritten by the next call."""
    graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, torch.Tensor, BackboneOutput]] = {}

    def run(pixels: torch.Tensor) -> BackboneOutput:
        if pixels.shape not in graphs:
            static, side = pixels.clone(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    forward(static)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = forward(static)
            graphs[pixels.shape] = (graph, static, found)
        graph, static, found = graphs[pixels.shape]
        static.copy_(pixels, non_blocking=True)
        graph.replay()
        return found

    return run


def make_pixels(setting: Setting, batch: int, *, seed: int = 0) -> torch.Tensor:
    """Return (batch, T, size, size, 3) uint8 pixels."""
    shape = (batch, FRAMES, setting.size, setting.size, 3)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def timed(setting: Setting, call: Callable[[], object]) -> float:
    """Return the median seconds of a call, the GPU's work included, after two calls to warm up."""
    spent = []
    for number in range(setting.rounds + 2):
        _wait(setting)
        started_s = time.perf_counter()
        call()
        _wait(setting)
        if number >= 2:
            spent.append(time.perf_counter() - started_s)
    return statistics.median(spent)


def _wait(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.synchronize()


def measure(
    setting: Setting, form: str, precision: str, batch: int, *, reference: np.ndarray | None, shift: bool = True
) -> Row:
    """Return the speed of a form on pixels that lie on the device, and how far its features are from the reference."""
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        forward = build(setting, form, precision, shift=shift)
        with tf32(precision == "tf32"):
            few = forward(make_pixels(setting, 2).to(setting.device)).features.float().cpu().numpy()
            pixels = make_pixels(setting, batch).to(setting.device)
            seconds = timed(setting, lambda: forward(pixels))
    except Exception as error:  # noqa: BLE001 - a form that this machine lacks is a result
        return Row(form, precision, batch, shift, error=f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    apart = 0.0 if reference is None else float(np.linalg.norm(few - reference) / np.linalg.norm(reference))
    memory = torch.cuda.max_memory_allocated() / 1e9 if setting.device.type == "cuda" else 0.0
    return Row(form, precision, batch, shift, batch / seconds, apart, memory)


def measure_forms(setting: Setting, batches: tuple[int, ...], forms: tuple[str, ...]) -> list[Row]:
    """Return every form in every precision, the largest batch; then batch sizes of the fastest in each precision."""
    with tf32(False):
        found = build(setting, "eager", "float32")(make_pixels(setting, 2).to(setting.device))
        reference = found.features.float().cpu().numpy()
    rows = [measure(setting, form, name, max(batches), reference=reference) for name in PRECISIONS for form in forms]
    for name in PRECISIONS:
        best = max((row for row in rows if row.precision == name), key=lambda row: row.segments_per_s)
        if not best.error:
            rows += [measure(setting, best.form, name, n, reference=reference) for n in batches if n != max(batches)]
    print_rows(rows, f"on the GPU: {setting.arch}, {setting.size} px, T = {FRAMES}, {setting.rounds} rounds")
    return rows


def measure_shift(setting: Setting, batch: int, forms: tuple[str, ...]) -> list[Row]:
    """Return float16 with and without the shift."""
    rows = [
        measure(setting, form, "float16", batch, reference=None, shift=shift)
        for form in forms
        for shift in (True, False)
    ]
    table = Table("form", "segments/s", "without shift", "shift", title="the temporal shift's share, float16")
    for with_shift, without in zip(rows[::2], rows[1::2], strict=True):
        if with_shift.error or without.error:
            continue
        share = 1 - with_shift.segments_per_s / without.segments_per_s
        table.add_row(
            with_shift.form, f"{with_shift.segments_per_s:.0f}", f"{without.segments_per_s:.0f}", f"{100 * share:.1f} %"
        )
    Console(width=110).print(table)
    return rows


def measure_transfer(setting: Setting, batch: int, form: str) -> dict[str, float]:
    """Return segments/s from pixels in memory to features in memory, by the way that they travel; eight batches."""
    forward, device = build(setting, form, "float16"), setting.device
    loose = [make_pixels(setting, batch, seed=number) for number in range(2)] * 4
    pinned = [pixels.pin_memory() for pixels in loose] if device.type == "cuda" else loose

    def in_turn(batches: list[torch.Tensor], *, pin: bool = False) -> None:
        for pixels in batches:
            sent = pixels.pin_memory() if pin else pixels
            forward(sent.to(device, non_blocking=True)).features.cpu()

    def overlapped() -> None:
        """The next batch travels while this one is computed."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        kept, ahead = [], pinned[0].to(device, non_blocking=True)
        for following in [*pinned[1:], None]:
            now = ahead
            torch.cuda.current_stream().wait_stream(side)
            if following is not None:
                with torch.cuda.stream(side):
                    ahead = following.to(device, non_blocking=True)
            now.record_stream(torch.cuda.current_stream())
            kept.append(forward(now).features.clone())
        for features in kept:
            features.cpu()

    ways: dict[str, Callable[[], None]] = {
        "pageable": lambda: in_turn(loose),
        "pinned on the way (the engine)": lambda: in_turn(loose, pin=device.type == "cuda"),
        "pinned before": lambda: in_turn(pinned),
    }
    if device.type == "cuda":
        ways["pinned before, overlapped"] = overlapped
    with torch.inference_mode():
        rates = {name: len(loose) * batch / timed(setting, way) for name, way in ways.items()}
    table = Table("pixels travel", "segments/s", title=f"from memory to memory: {form}, float16, batches of {batch}")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.0f}")
    Console(width=110).print(table)
    return rates


def print_rows(rows: list[Row], title: str) -> None:
    """Print measurements as a table."""
    table = Table("precision", "form", "batch", "segments/s", "to eager float32", "apart", "memory GB", title=title)
    base = next((r.segments_per_s for r in rows if (r.form, r.precision) == ("eager", "float32") and not r.error), 0.0)
    for row in rows:
        ratio = f"{row.segments_per_s / base:.2f}" if base else "-"
        figures = (f"{row.segments_per_s:.0f}", ratio, f"{row.apart:.1e}", f"{row.memory_gb:.2f}")
        table.add_row(row.precision, row.form, str(row.batch), *((row.error,) if row.error else figures))
    Console(width=140).print(table)


@click.command()
@click.option("--arch", default="resnet50", show_default=True)
@click.option("--size", default=224, show_default=True, type=click.IntRange(32), help="Width and height of the frames.")
@click.option("--batch", "batches", multiple=True, default=(8, 16, 32, 64), show_default=True, help="Segments at once.")
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), default=FORMS, show_default=True)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--tune", is_flag=True, help="Let cuDNN try its algorithms first (cudnn.benchmark).")
@click.option("--cpu", is_flag=True, help="On the CPU, to see that the command works.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
def main(  # noqa: PLR0913 - one parameter per option
    arch: str, size: int, batches: tuple[int, ...], forms: tuple[str, ...], rounds: int, tune: bool, cpu: bool,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Print the tables."""
    if not cpu and not torch.cuda.is_available():
        raise click.UsageError("torch sees no GPU here; --cpu runs on the CPU")
    device = torch.device("cpu" if cpu else "cuda")
    torch.backends.cudnn.benchmark = tune
    machine = "CPU" if cpu else torch.cuda.get_device_name()
    click.echo(f"{machine}, torch {torch.__version__}, CUDA {torch.version.cuda}, cudnn.benchmark {tune}")
    setting = Setting(device, arch, size, rounds)
    rows = measure_forms(setting, tuple(batches), forms)
    shift = measure_shift(setting, max(batches), tuple(form for form in forms if form != "compile"))
    transfer = measure_transfer(setting, min(32, max(batches)), "folded" if "folded" in forms else forms[0])
    if json_file is not None:
        found = {"machine": machine, "torch": torch.__version__, "tune": tune, "arch": arch, "size": size}
        found |= {"forms": [asdict(row) for row in rows], "shift": [asdict(row) for row in shift], "transfer": transfer}
        json_file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
