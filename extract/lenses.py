"""Binocular pictures: the two halves, and the fisheye circles that they may hold.

The lenses lie side by side, the left one's picture on the left. Each half may be a plain picture, or a fisheye circle
on a dark border. The circle is an ellipse in pixels where the video was squeezed (360+x: 0.93 times as wide as high),
and need not be in the middle of its half; both are round again once a crop of it is scaled to a square.

Everything is in fractions of the half picture, so that what was found on small frames holds at any size. A crop is a
`PictureCrop` of the whole picture: given to `FrameReader`, only that part of each frame is scaled.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from talstack.io.errors import InputError
from talstack.io.picture_crop import PictureCrop

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")

DARK = 20  # levels above black that compression leaves in a black border, with a margin
TOLERANCE = 0.015  # of the picture's height or width: how far a point of the rim may lie from the ellipse
MIN_RADIUS, MAX_RADIUS, MAX_SQUEEZE = 0.25, 0.75, 1.5
MIN_RIM = 0.5  # of the rim's points within reach: this many must lie on the ellipse
MIN_DARK_CORNERS = 0.97  # of what lies outside the ellipse must be dark
NUM_TRIES = 400


@dataclass(frozen=True, slots=True)
class FisheyeCircle:
    """Where the lens's picture lies in its half.

    Attributes:
        x, y: its centre, fractions of the half's width and height.
        radius_x, radius_y: fractions of the half's width and height.
    """

    x: float
    y: float
    radius_x: float
    radius_y: float

    def __post_init__(self) -> None:
        if not (0 < self.x < 1 and 0 < self.y < 1 and self.radius_x > 0 and self.radius_y > 0):
            raise InputError(f"fisheye circle: centre inside the picture and radii above 0, got {self}")


def half_crop(side: Side, width: int) -> PictureCrop:
    """Return the half of a picture `width` pixels wide; of an odd width the middle column is in neither.

    Raises:
        InputError: no such side, or a picture less than two pixels wide.
    """
    if side not in SIDES:
        raise InputError(f"side must be one of {', '.join(SIDES)}, got {side!r}")
    if width < 2:
        raise InputError(f"a picture of two halves is at least 2 pixels wide, got {width}")
    share = (width // 2) / width
    return PictureCrop(0.0 if side == "left" else 1.0 - share, 0.0, share, 1.0)


def inscribed_crop(circle: FisheyeCircle) -> PictureCrop:
    """Return the largest square inside the circle (as it was before squeezing), a crop of the half."""
    across, down = circle.radius_x * np.sqrt(0.5), circle.radius_y * np.sqrt(0.5)
    left, top = max(0.0, circle.x - across), max(0.0, circle.y - down)
    right, bottom = min(1.0, circle.x + across), min(1.0, circle.y + down)
    return PictureCrop(float(left), float(top), float(right - left), float(bottom - top))


def outside_circle(circle: FisheyeCircle, crop: PictureCrop, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool: the pixels outside the circle, of a crop of the half scaled to (height, width)."""
    height, width = size
    x = crop.x + (np.arange(width) + 0.5) / width * crop.width
    y = crop.y + (np.arange(height) + 0.5) / height * crop.height
    across, down = (x - circle.x) / circle.radius_x, (y - circle.y) / circle.radius_y
    return np.asarray(across[None, :] ** 2 + down[:, None] ** 2 > 1.0)


def find_circle(pixels: np.ndarray) -> FisheyeCircle | None:
    """Return the fisheye circle of one half, or None where there is none.

    A point is lit if it is above the dark in two of the frames: one frame that a flash or a transition fills does not
    count. Where that shows no circle, a third of the frames is asked for, then half of them, as some clips have several
    such frames; scenes that are dark in places are found the more easily the fewer are. Ten frames spread over a
    clip are enough.

    Args:
        pixels: (n, H, W, 3) uint8, frames of one half.

    Raises:
        InputError: no frames, or another shape.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels) or min(pixels.shape[1:3]) < 16:
        raise InputError(f"pixels must be (n, H, W, 3) with n >= 1 and H, W >= 16, got {pixels.shape}")
    num_lit = (pixels.max(axis=-1) > DARK).sum(axis=0)
    for wanted in sorted({min(2, len(pixels)), -(-len(pixels) // 3), -(-len(pixels) // 2)}):
        circle = _circle_of(num_lit >= wanted)
        if circle is not None:
            return circle
    return None


def _circle_of(lit: np.ndarray) -> FisheyeCircle | None:
    """Return the circle that fits the rim of the lit area and has darkness around it, or None.

    Ellipses through four points of the rim are tried, and the one with most of the rim on it is taken.
    """
    points = _rim(lit)
    ellipse = _best_ellipse(points) if len(points) >= 16 else None
    if ellipse is None:
        return None
    circle = FisheyeCircle(*(float(value) for value in ellipse))
    outside = outside_circle(_grown(circle), PictureCrop(0, 0, 1, 1), (lit.shape[0], lit.shape[1]))
    # 0.05 is far below the 0.21 of a circle that fills a square
    return circle if outside.mean() >= 0.05 and 1 - lit[outside].mean() >= MIN_DARK_CORNERS else None


def _grown(circle: FisheyeCircle) -> FisheyeCircle:
    return FisheyeCircle(circle.x, circle.y, circle.radius_x + TOLERANCE, circle.radius_y + TOLERANCE)


def _rim(lit: np.ndarray) -> np.ndarray:
    """Return (k, 2) x, y of the lit area's outermost points in each row and column, fractions of the picture.

    Points on the picture's own edge are left out: there the picture ends, not the circle.
    """
    found = []
    for area, swap in ((lit, False), (lit.T, True)):
        rows = np.flatnonzero(area.sum(axis=1) >= 2)
        length = area.shape[1]
        for positions, edge, shift in (
            (area[rows].argmax(axis=1), 0, 0.0),
            (length - 1 - area[rows][:, ::-1].argmax(axis=1), length - 1, 1.0),
        ):
            free = positions != edge
            along = (positions[free] + shift) / length
            across = (rows[free] + 0.5) / area.shape[0]
            found.append(np.stack([across, along] if swap else [along, across], axis=1))
    return np.concatenate(found)


def _best_ellipse(points: np.ndarray) -> np.ndarray | None:
    """Return x, y, radius_x, radius_y of the upright ellipse that most of the points lie on, or None."""
    rng = np.random.default_rng(0)
    tries = points[rng.integers(len(points), size=(NUM_TRIES, 4))]
    candidates = [e for four in tries if (e := _ellipse_through(four)) is not None]
    if not candidates:
        return None
    distances = np.stack([_distances(points, ellipse) for ellipse in candidates])
    best = candidates[int((distances < TOLERANCE).sum(axis=1).argmax())]
    for _ in range(3):  # least squares on the points that agree
        near = _distances(points, best) < TOLERANCE
        refined = _ellipse_through(points[near]) if near.sum() >= 8 else None
        best = best if refined is None else refined
    return best if (_distances(points, best) < TOLERANCE).mean() >= MIN_RIM else None


def _ellipse_through(points: np.ndarray) -> np.ndarray | None:
    """Return the upright ellipse through four points (least squares through more), or None if it is no lens."""
    x, y = points.T - 0.5
    terms = np.stack([x * x, y * y, x, y], axis=1)
    (a, b, c, d), _, rank, _ = np.linalg.lstsq(terms, np.ones(len(x)), rcond=None)
    if rank < 4 or a <= 0 or b <= 0:
        return None
    middle_x, middle_y = -c / (2 * a), -d / (2 * b)
    scale = 1 + a * middle_x**2 + b * middle_y**2
    radii = np.sqrt([scale / a, scale / b])
    inside = abs(middle_x) < 0.25 and abs(middle_y) < 0.25
    fits = radii.min() >= MIN_RADIUS and radii.max() <= MAX_RADIUS and radii.max() <= MAX_SQUEEZE * radii.min()
    return np.array([middle_x + 0.5, middle_y + 0.5, *radii]) if inside and fits else None


def _distances(points: np.ndarray, ellipse: np.ndarray) -> np.ndarray:
    """Return (k,) how far the points lie from the ellipse along their rays from its centre, fractions."""
    scaled = (points - ellipse[:2]) / ellipse[2:]
    return np.abs(np.hypot(*scaled.T) - 1) * ellipse[2:].mean()
