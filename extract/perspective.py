"""Perspective views of a panorama: what a pinhole camera in its middle would see (gnomonic projection).

Conventions. The panorama is equirectangular, twice as wide as high, and shows the whole sphere: longitude 0 is its
middle column, +90 degrees three quarters to the right; latitude +90 is its upper edge. Pixel i covers [i, i + 1), so
its centre lies at i + 0.5. A camera is turned by yaw to the right, then by pitch upwards, then by roll clockwise as
seen from behind it. The rays are those of every textbook on map projections (J. P. Snyder, Map Projections: A Working
Manual, USGS 1987, chapter 22).

There is no filter beyond bilinear interpolation: a panorama read at `source_size` has about one pixel for each of the
crop's, and the decoder's scaling has taken away what is finer. See docs/decisions/0011-views.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from talstack.io.errors import InputError
from talstack.io.view_names import derived_view

# Three channels side by side in 64 bits: 21 bits hold 8 of the pixel and 13 of the weight.
LANE_BITS, WEIGHT_BITS = 21, 13
HALF = sum(1 << (WEIGHT_BITS - 1 + LANE_BITS * channel) for channel in range(3))


@dataclass(frozen=True, slots=True)
class Camera:
    """One pinhole camera in the middle of a panorama, with a square picture.

    Attributes:
        yaw_deg: to the right of the panorama's middle column; any angle, 450 is 90.
        pitch_deg: upwards, -90 to 90.
        roll_deg: clockwise as seen from behind the camera; what it sees turns the other way.
        fov_deg: angle between the left and the right edge of the picture, above 0 and below 180.
        size: width and height of the picture, pixels.
    """

    yaw_deg: float
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    fov_deg: float = 90.0
    size: int = 224

    def __post_init__(self) -> None:
        if not (math.isfinite(self.yaw_deg) and math.isfinite(self.roll_deg)):
            raise InputError(f"camera: yaw and roll must be finite degrees, got {self.yaw_deg} and {self.roll_deg}")
        if not -90 <= self.pitch_deg <= 90:
            raise InputError(f"camera: pitch must lie in [-90, 90] degrees, got {self.pitch_deg}")
        if not 0 < self.fov_deg < 180:
            raise InputError(f"camera: field of view must be above 0 and below 180 degrees, got {self.fov_deg}")
        if self.size < 1:
            raise InputError(f"camera: the picture's size must be at least 1 pixel, got {self.size}")

    @property
    def name(self) -> str:
        """The directions in letters and digits, e.g. yaw090, yaw051p43up30; field of view and size are not in it."""
        name = f"yaw{_angle_text(self.yaw_deg % 360, wrap=True)}"
        if self.pitch_deg:
            name += f"{'up' if self.pitch_deg > 0 else 'down'}{_angle_text(abs(self.pitch_deg)).lstrip('0') or '0'}"
        if self.roll_deg % 360:
            name += f"roll{_angle_text(self.roll_deg % 360, wrap=True)}"
        return name

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) float64: unit vectors right, up and ahead as rows, in x (at +90 degrees), y (upwards), z (at 0)."""
        yaw, pitch, roll = np.radians([self.yaw_deg, self.pitch_deg, self.roll_deg])
        right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
        ahead = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        up = np.cross(ahead, right)
        turned = np.array([np.cos(roll) * right - np.sin(roll) * up, np.sin(roll) * right + np.cos(roll) * up])
        return np.concatenate([turned, ahead[None]])


def _angle_text(degrees: float, *, wrap: bool = False) -> str:
    """Return 90 as 090 and 51.4286 as 051p43."""
    hundredths = round(degrees * 100) % (36000 if wrap else 36001)
    whole, rest = divmod(hundredths, 100)
    return f"{whole:03d}" + (f"p{rest:02d}".rstrip("0") if rest else "")


def camera_ring(num_cameras: int, *, pitch_deg: float = 0.0, fov_deg: float = 90.0, size: int = 224) -> list[Camera]:
    """Return cameras at yaw 0, 360 / N, 2 * 360 / N ... with a common pitch and field of view.

    Four of 90 degrees see the whole horizon and nothing twice.
    """
    if num_cameras < 1:
        raise InputError(f"a ring needs at least one camera, got {num_cameras}")
    yaws = [k * 360.0 / num_cameras for k in range(num_cameras)]
    return [Camera(yaw, pitch_deg, fov_deg=fov_deg, size=size) for yaw in yaws]


def camera_views(view: str, cameras: Sequence[Camera]) -> dict[str, Camera]:
    """Return {name of the derived view: camera} in the cameras' order.

    Raises:
        InputError: two cameras look in the same direction, to a hundredth of a degree.
    """
    named = {derived_view(view, camera.name): camera for camera in cameras}
    if len(named) < len(cameras):
        names = [camera.name for camera in cameras]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{view}: two cameras are named {twice}; give each another yaw, pitch or roll")
    return named


def source_size(fov_deg: float, size: int) -> tuple[int, int]:
    """Return (height, width) to read a panorama at, so that the crop's centre is sampled about one to one.

    The crop has size / (2 tan(fov / 2)) pixels per radian there, the panorama width / (2 pi). Both sides are even
    and never smaller than that. A file that is smaller is best read at its own size.
    """
    camera = Camera(0.0, fov_deg=fov_deg, size=size)
    width = math.pi * camera.size / math.tan(math.radians(camera.fov_deg) / 2)
    height = 2 * math.ceil(round(width / 4, 6))
    return height, 2 * height


def sample_points(camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column in the panorama of each of the crop's pixels, 2 x (S, S) float64.

    In units of pixel centres: 0.0 is the centre of the first row or column. Columns lie in [-0.5, width - 0.5], rows
    in [-0.5, height - 0.5].
    """
    focal = camera.size / 2 / math.tan(math.radians(camera.fov_deg) / 2)
    steps = np.arange(camera.size) + 0.5 - camera.size / 2
    right, down = np.meshgrid(steps, steps)
    x, y, z = np.moveaxis(np.stack([right, -down, np.full_like(right, focal)], axis=-1) @ camera.axes, -1, 0)
    longitude = np.arctan2(x, z)
    latitude = np.arctan2(y, np.hypot(x, z))
    return (0.5 - latitude / np.pi) * height - 0.5, (0.5 + longitude / (2 * np.pi)) * width - 0.5


class PerspectiveCrop:
    """The resampling of panoramas of one size to one camera's pictures: made once, used for every frame.

    Reads only the box of the panorama that the camera sees. The three channels of a pixel are gathered, weighted and
    summed together, as lanes of one 64-bit integer with 13-bit weights: the fastest of the forms in
    benchmarks/perspective.py on one core, and the same bits on every machine. Safe to share between threads.
    """

    def __init__(self, camera: Camera, source: tuple[int, int]) -> None:
        """Compute the grid.

        Args:
            camera: what to see.
            source: (height, width) of the panoramas.

        Raises:
            InputError: the panorama is not twice as wide as high.
        """
        height, width = source
        if height < 2 or width != 2 * height:
            raise InputError(f"a panorama must be twice as wide as high, at least (2, 4) pixels; got {source}")
        self.camera, self.source = camera, (height, width)
        rows, columns = sample_points(camera, height, width)
        top, left = np.floor(rows).astype(np.int64).ravel(), np.floor(columns).astype(np.int64).ravel()
        corners = [_on_sphere(top + i, left + j, height, width) for i in (0, 1) for j in (0, 1)]
        corner_rows, corner_columns = np.stack([c[0] for c in corners]), np.stack([c[1] for c in corners])
        first_row = int(corner_rows.min())
        self._rows = slice(first_row, int(corner_rows.max()) + 1)
        first_column, box_width = _narrowest_arc(corner_columns, width)
        end = first_column + box_width
        self._parts = [slice(first_column, min(end, width)), slice(0, max(0, end - width))]
        self._places = (corner_rows - first_row) * box_width + (corner_columns - first_column) % width
        self._weights = _fixed_point(rows.ravel() - top, columns.ravel() - left)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return (n, S, S, 3) uint8, what the camera sees of each panorama.

        Args:
            pixels: (n, H, W, 3) uint8, H and W the source's.

        Raises:
            InputError: another shape or type.
        """
        if pixels.ndim != 4 or pixels.shape[1:] != (*self.source, 3) or pixels.dtype != np.uint8:
            expected = f"(n, {self.source[0]}, {self.source[1]}, 3) uint8"
            raise InputError(f"{self.camera.name}: pixels must be {expected}, got {pixels.shape} {pixels.dtype}")
        size = self.camera.size
        seen = np.empty((len(pixels), size * size, 3), dtype=np.uint8)
        total = np.empty(size * size, dtype=np.uint64)
        tap = np.empty_like(total)
        for panorama, out in zip(pixels, seen, strict=True):
            box = self._packed_box(panorama)
            total.fill(HALF)  # so that cutting the fraction off rounds to the nearest
            for places, weights in zip(self._places, self._weights, strict=True):
                np.take(box, places, out=tap, mode="clip")  # the places are inside: "clip" only skips the check
                tap *= weights
                total += tap
            for channel in range(3):
                out[:, channel] = total >> np.uint64(WEIGHT_BITS + LANE_BITS * channel)
        return seen.reshape(len(pixels), size, size, 3)

    def _packed_box(self, panorama: np.ndarray) -> np.ndarray:
        """Return the pixels of the box in one row, (h * w,) uint64 with the channels in lanes."""
        parts = []
        for columns in self._parts:
            part = panorama[self._rows, columns]
            packed = part[..., 2].astype(np.uint64)
            for channel in (1, 0):
                packed <<= np.uint64(LANE_BITS)
                packed |= part[..., channel]
            parts.append(packed)
        return (np.concatenate(parts, axis=1) if parts[1].size else parts[0]).ravel()


def _on_sphere(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns within the panorama: across a pole the picture goes on half a turn further."""
    beyond = (rows < 0) | (rows >= height)
    inside = np.where(rows < 0, -1 - rows, np.where(rows >= height, 2 * height - 1 - rows, rows))
    return inside, np.where(beyond, columns + width // 2, columns) % width


def _narrowest_arc(columns: np.ndarray, width: int) -> tuple[int, int]:
    """Return (first, count) of the shortest run of columns, around the seam if need be, that holds all of them."""
    used = np.unique(columns)
    gaps = np.diff(np.append(used, used[0] + width))
    widest = int(gaps.argmax())
    return int(used[(widest + 1) % len(used)]), width - int(gaps[widest]) + 1


def _fixed_point(down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Return the (4, n) uint64 bilinear weights of the corners; each column sums to 2 ** WEIGHT_BITS exactly."""
    shares = np.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across])
    weights = np.rint(shares * (1 << WEIGHT_BITS)).astype(np.int64)
    largest = shares.argmax(axis=0)[None]
    rest = (1 << WEIGHT_BITS) - weights.sum(axis=0)[None]
    np.put_along_axis(weights, largest, np.take_along_axis(weights, largest, axis=0) + rest, axis=0)
    return weights.astype(np.uint64)
