"""What a batch costs before the network sees it: augmentation, and drawing which segments it has.

    .venv/bin/python benchmarks/augment.py

Beside the planned gather stands the plain way: one segment after the other padded, cut out and sent through a table
of contrast, then the batch normalised. Medians; the ratio is within one run.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from talstack.extract.backbone import normalise, pick_device
from talstack.extract.training.augment import AugmentPlan, apply_augmentation, plan_augmentation
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.sampler import BatchSampler


def median_ms(call: Callable[[int], object], repeats: int) -> float:
    seconds = []
    for i in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        call(i)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds[1:]))


def plain(pixels: np.ndarray, rng: np.random.Generator, *, strength: float) -> torch.Tensor:
    """Return the batch moved and changed in contrast, normalised, a segment at a time."""
    out, size = np.empty_like(pixels), pixels.shape[2]
    reach = int(strength * size)
    for i, segment in enumerate(pixels):
        down, across = rng.integers(0, 2 * reach + 1, size=2)
        padded = np.pad(segment, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        gain, bias = rng.uniform(1 - strength, 1 + strength), 128 * strength * rng.uniform(-1, 1)
        table = np.clip((np.arange(256) - 128) * gain + 128 + bias, 0, 255).astype(np.uint8)
        out[i] = table[padded[:, down : down + size, across : across + size]]
    return normalise(torch.from_numpy(out).to(pick_device()))


def draw(num_segments: int, num_units: int) -> Callable[[int], object]:
    rng = np.random.default_rng(0)
    targets = np.eye(35, dtype=np.float32)[np.minimum(rng.geometric(0.2, num_segments) - 1, 34)]
    units = rng.integers(0, num_units, num_segments)
    sampler = BatchSampler(targets, units, batch_size=32, segments_per_recording=4, balance=0.5, seed=0)
    return lambda step: sampler.batch(0, step)


@click.command()
@click.option("--frames", default=8, show_default=True, help="Frames of a segment.")
@click.option("--size", default=224, show_default=True, help="Pixels of a side.")
@click.option("--repeats", default=9, show_default=True)
def main(frames: int, size: int, repeats: int) -> None:
    """Print milliseconds per batch of 32 segments."""
    rng, config = np.random.default_rng(0), FinetuneConfig()
    flags = {"panoramic": np.arange(32) % 2 == 0, "mirrorable": np.ones(32, dtype=bool)}
    pixels = rng.integers(0, 256, (32, frames, size, size, 3), dtype=np.uint8)
    on_device = torch.from_numpy(pixels).to(pick_device())

    def plan(config: FinetuneConfig) -> AugmentPlan:
        return plan_augmentation(config, rng, size=size, groups=np.repeat(np.arange(8), 4), **flags)

    mixed = replace(config, flip="always", mixup=0.2, cutmix=1.0)
    rows = {
        "plain, normalised": median_ms(lambda _: plain(pixels, rng, strength=config.jitter), repeats),
        "planned": median_ms(lambda _: apply_augmentation(on_device, plan(config)), repeats),
        "planned, mirrored and mixed": median_ms(lambda _: apply_augmentation(on_device, plan(mixed)), repeats),
        "the plan alone": median_ms(lambda _: plan(mixed), 100),
        "which segments, of 250,000 in 1,000 units": median_ms(draw(250_000, 1000), 100),
    }
    table = Table("step", "ms per batch", "times plain", title=f"32 segments of {frames} x {size} x {size}")
    for name, ms in rows.items():
        table.add_row(name, f"{ms:.2f}", f"{ms / rows['plain, normalised']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
