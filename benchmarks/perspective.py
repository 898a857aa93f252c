"""Cutting perspective crops out of panoramas: forms of the resampling, and the size to read the panorama at.

    .venv/bin/python benchmarks/perspective.py

First table: frames per second of one crop on one core, panoramas of `source_size`, and the largest difference from
bilinear interpolation in float64 (0.5 is what rounding to whole levels costs). All forms read only the box that the
camera sees, except ffmpeg's v360 filter, which takes whole frames. Second table: a random texture on the sphere,
painted at four times the size that `source_size` gives, reduced as the decoder does (bicubic) to several sizes and
cropped there; the error against the mean of the texture over each pixel of the crop, and the time per frame. Nothing
but this file and `talstack.extract.perspective` decides the figures; the texture comes from a seed.
"""

import os
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial

import av
import av.filter
import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import sparse

from talstack.extract.perspective import Camera, PerspectiveCrop, sample_points, source_size

Form = Callable[[np.ndarray], np.ndarray]


class Taps:
    """The four corners and weights of each of a crop's pixels, over the box of a panorama that holds them.

    Only for cameras whose crop touches neither the seam nor a pole.
    """

    def __init__(self, camera: Camera, height: int, width: int) -> None:
        self.rows, self.columns = sample_points(camera, height, width)
        top, left = np.floor(self.rows).astype(int), np.floor(self.columns).astype(int)
        self.top, self.left = int(top.min()), int(left.min())
        self.height, self.width = int(top.max()) + 2 - self.top, int(left.max()) + 2 - self.left
        down, across = self.rows - top, self.columns - left
        first = (top - self.top) * self.width + left - self.left
        self.places = np.stack([first, first + 1, first + self.width, first + self.width + 1]).reshape(4, -1)
        weights = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
        self.weights = np.stack(weights).reshape(4, -1)
        self.size = camera.size

    def box(self, panorama: np.ndarray) -> np.ndarray:
        """Return the (h, w, 3) pixels that are needed."""
        return panorama[self.top : self.top + self.height, self.left : self.left + self.width]


def reference(taps: Taps, pixels: np.ndarray) -> np.ndarray:
    """Return (n, S * S, 3) float64."""
    boxes = [taps.box(panorama).reshape(-1, 3).astype(np.float64) for panorama in pixels]
    return np.stack([(box[taps.places] * taps.weights[..., None]).sum(axis=0) for box in boxes])


def numpy_float(taps: Taps) -> Form:
    weights = taps.weights.astype(np.float32)[..., None]

    def run(panorama: np.ndarray) -> np.ndarray:
        box = taps.box(panorama).reshape(-1, 3).astype(np.float32)
        return sum(box[place] * weight for place, weight in zip(taps.places, weights, strict=True)) + np.float32(0.5)

    return run


def torch_planes(taps: Taps) -> Form:
    places = [torch.from_numpy(place) for place in taps.places]
    weights = [torch.from_numpy(weight.astype(np.float32)) for weight in taps.weights]

    def run(panorama: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(taps.box(panorama)).permute(2, 0, 1).float().reshape(3, -1)
        total = planes.index_select(1, places[0]) * weights[0]
        for place, weight in zip(places[1:], weights[1:], strict=True):
            total.addcmul_(planes.index_select(1, place), weight)
        return total.add_(0.5).t().numpy()

    return run


def torch_embedding_bag(taps: Taps) -> Form:
    places = torch.from_numpy(np.ascontiguousarray(taps.places.T)).int()
    weights = torch.from_numpy(np.ascontiguousarray(taps.weights.T.astype(np.float32)))

    def run(panorama: np.ndarray) -> np.ndarray:
        table = torch.from_numpy(taps.box(panorama)).float().reshape(-1, 3)
        bag = torch.nn.functional.embedding_bag(places, table, per_sample_weights=weights, mode="sum")
        return bag.add_(0.5).numpy()

    return run


def torch_grid_sample(taps: Taps) -> Form:
    across = (taps.columns - taps.left + 0.5) / taps.width * 2 - 1
    down = (taps.rows - taps.top + 0.5) / taps.height * 2 - 1
    grid = torch.from_numpy(np.stack([across, down], axis=-1).astype(np.float32))[None]

    def run(panorama: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(taps.box(panorama)).permute(2, 0, 1)[None].float()
        sampled = torch.nn.functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
        return sampled[0].add_(0.5).permute(1, 2, 0).reshape(-1, 3).numpy()

    return run


def sparse_matrix(taps: Taps) -> Form:
    count = taps.places.shape[1]
    matrix = sparse.csr_matrix(
        (taps.weights.T.astype(np.float32).ravel(), taps.places.T.astype(np.int32).ravel(), 4 * np.arange(count + 1)),
        shape=(count, taps.height * taps.width),
    )

    def run(panorama: np.ndarray) -> np.ndarray:
        return matrix @ taps.box(panorama).astype(np.float32).reshape(-1, 3) + np.float32(0.5)

    return run


def ffmpeg_v360(camera: Camera, height: int, width: int) -> Form:
    graph = av.filter.Graph()
    graph.threads = 1
    fov = f"h_fov={camera.fov_deg}:v_fov={camera.fov_deg}:yaw={camera.yaw_deg}:pitch={camera.pitch_deg}"
    steps = [
        ("format", "gbrp"),
        ("v360", f"input=e:output=flat:interp=linear:w={camera.size}:h={camera.size}:{fov}"),
        ("format", "rgb24"),
    ]
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 25))
    graph.link_nodes(source, *(graph.add(*step) for step in steps), graph.add("buffersink"))
    graph.configure()

    def run(panorama: np.ndarray) -> np.ndarray:
        graph.push(av.VideoFrame.from_ndarray(np.ascontiguousarray(panorama), format="rgb24"))
        return graph.pull().to_ndarray().reshape(-1, 3)

    return run


def crops_of(form: Form, pixels: np.ndarray, size: int) -> np.ndarray:
    """Return (n, S * S, 3) uint8; what a form returns is cut to whole levels here."""
    out = np.empty((len(pixels), size * size, 3), dtype=np.uint8)
    for panorama, crop in zip(pixels, out, strict=True):
        crop[:] = form(panorama)
    return out


def seconds_per_call(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the shortest time of each call; they take turns, so that a busy machine slows all of them."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in spent.items()}


def compare_forms(camera: Camera, num_frames: int, repeats: int) -> Table:
    height, width = source_size(camera.fov_deg, camera.size)
    pixels = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    taps, crop = Taps(camera, height, width), PerspectiveCrop(camera, (height, width))
    forms = {
        "numpy, float32": numpy_float(taps),
        "torch, index_select of planes": torch_planes(taps),
        "torch, embedding_bag": torch_embedding_bag(taps),
        "torch, grid_sample": torch_grid_sample(taps),
        "scipy, sparse matrix": sparse_matrix(taps),
        "ffmpeg, v360": ffmpeg_v360(camera, height, width),
    }
    calls: dict[str, Callable[[], np.ndarray]] = {"numpy, 64-bit lanes (talstack)": lambda: crop.apply(pixels)}
    calls |= {name: partial(crops_of, form, pixels, camera.size) for name, form in forms.items()}
    expected = reference(taps, pixels)
    differences = {
        name: np.abs(call().reshape(expected.shape) - expected).max() for name, call in calls.items()
    }  # also warms up
    spent = seconds_per_call(calls, repeats)
    title = f"{width}x{height} to {camera.size}x{camera.size}, {camera.fov_deg:g} degrees, one core"
    table = Table("form", "frames/s", "largest difference", title=title)
    for name in sorted(calls, key=spent.__getitem__):
        table.add_row(name, f"{num_frames / spent[name]:,.0f}", f"{differences[name]:.3f}")
    return table


def texture(directions: np.ndarray, waves: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """Return the brightness in [0, 255] that the unit vectors (..., 3) show: a sum of plane waves.

    The waves' lengths are drawn evenly, so power by length falls as in pictures of the world (D. J. Field, Relations
    between the statistics of natural images and the response properties of cortical cells, 1987).
    """
    strengths = np.linalg.norm(waves, axis=1) ** -0.5
    total = np.zeros(directions.shape[:-1])
    for wave, phase, strength in zip(waves, phases, strengths, strict=True):
        total += strength * np.sin(directions @ wave + phase)
    return np.clip(127.5 + 127.5 * total / (3 * np.sqrt((strengths**2).sum() / 2)), 0, 255)


def painted_panorama(height: int, paint: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return (H, 2 H, 3) uint8."""
    latitude = (0.5 - (np.arange(height) + 0.5) / height)[:, None] * np.pi
    longitude = ((np.arange(2 * height) + 0.5) / (2 * height) - 0.5)[None] * 2 * np.pi
    x, z = np.cos(latitude) * np.sin(longitude), np.cos(latitude) * np.cos(longitude)
    directions = np.stack([x, np.broadcast_to(np.sin(latitude), x.shape), z], axis=-1)
    return np.repeat(np.rint(paint(directions)).astype(np.uint8)[..., None], 3, axis=-1)


def exact_crop(camera: Camera, paint: Callable[[np.ndarray], np.ndarray], fine: int = 6) -> np.ndarray:
    """Return (S, S) float64, the texture averaged over fine x fine points of each pixel."""
    count = camera.size * fine
    steps = ((np.arange(count) + 0.5) / count * 2 - 1) * np.tan(np.radians(camera.fov_deg) / 2)
    right, down = np.meshgrid(steps, steps)
    rays = np.stack([right, -down, np.ones_like(right)], axis=-1) @ camera.axes
    values = paint(rays / np.linalg.norm(rays, axis=-1, keepdims=True))
    return values.reshape(camera.size, fine, camera.size, fine).mean(axis=(1, 3))


def compare_sizes(cameras: dict[str, Camera], factors: list[float], repeats: int) -> Table:
    camera = next(iter(cameras.values()))
    best_height, _ = source_size(camera.fov_deg, camera.size)
    rng = np.random.default_rng(0)
    focal = camera.size / 2 / np.tan(np.radians(camera.fov_deg) / 2)
    # up to the crop's Nyquist frequency and half as far again, which no pixel can show
    directions = rng.normal(size=(60, 3))
    waves = (
        directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(0.01, 1.5, (60, 1)) * np.pi * focal
    )
    phases = rng.uniform(0, 2 * np.pi, 60)

    def paint(points: np.ndarray) -> np.ndarray:
        return texture(points, waves, phases)

    original = av.VideoFrame.from_ndarray(painted_panorama(4 * best_height, paint), format="rgb24")
    exact = {name: exact_crop(camera, paint) for name, camera in cameras.items()}
    table = Table(
        "read at", "of source_size", *(f"error, {name}" for name in cameras), "ms per crop",
        title=f"root mean square error in levels, crop of {camera.size}x{camera.size}, {camera.fov_deg:g} degrees",
    )  # fmt: skip
    for factor in factors:
        height = 2 * round(best_height * factor / 2)
        reduced = original.reformat(width=2 * height, height=height, interpolation="BICUBIC").to_ndarray()[None]
        crops = {name: PerspectiveCrop(camera, (height, 2 * height)) for name, camera in cameras.items()}
        errors = [np.sqrt(np.mean((crop.apply(reduced)[0, ..., 0] - exact[name]) ** 2)) for name, crop in crops.items()]
        call = partial(next(iter(crops.values())).apply, reduced)
        spent = seconds_per_call({"crop": call}, 10 * repeats)
        milliseconds = f"{1000 * spent['crop']:.2f}"
        table.add_row(f"{2 * height}x{height}", f"{factor:g}", *(f"{error:.1f}" for error in errors), milliseconds)
    return table


@click.command()
@click.option("--size", default=224, show_default=True, help="Width and height of the crop.")
@click.option("--fov", default=90.0, show_default=True, help="Field of view, degrees.")
@click.option("--frames", default=16, show_default=True, help="Frames per call.")
@click.option("--repeats", default=15, show_default=True, help="Calls of each form; the fastest counts.")
def main(size: int, fov: float, frames: int, repeats: int) -> None:
    """Measure and print both tables."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    Console(width=120).print(compare_forms(Camera(0, fov_deg=fov, size=size), frames, repeats))
    cameras = {"level": Camera(0, fov_deg=fov, size=size), "up 45": Camera(0, 45, fov_deg=fov, size=size)}
    Console(width=120).print(compare_sizes(cameras, [0.5, 0.71, 1, 1.41, 2, 3], repeats))


if __name__ == "__main__":
    main()
