"""How a piece of a view is got from one clip: what to let the reader draw, and what to do with the pictures."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from talstack.extract.derived_views import Piece
from talstack.extract.lenses import find_circle, half_crop, inscribed_crop
from talstack.extract.perspective import Camera, PerspectiveCrop, source_size
from talstack.extract.watchdog import beat
from talstack.io.media import FrameReader
from talstack.io.picture_crop import Drawing

MAX_SQUEEZE = 0.02  # of a panorama's width: encoders round sizes
CIRCLE_FRAMES, CIRCLE_SIZE = 10, (160, 160)  # what looking for a fisheye circle takes


@dataclass(frozen=True, slots=True, eq=False)
class ClipPiece:
    """A piece of one clip's pictures.

    Attributes:
        drawing: what the reader draws.
        crops: what is cut from it; none: the drawing itself.
        note: what was found out about the clip, or None.
    """

    drawing: Drawing
    crops: tuple[PerspectiveCrop, ...] = ()
    note: str | None = None

    def views(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the pictures of each camera, (n, S, S, 3) uint8, of (n, H, W, 3) uint8 drawings."""
        return [crop.apply(pixels) for crop in self.crops] or [pixels]


def open_piece(piece: Piece, path: Path, *, frame_size: int, picture: tuple[int, int], end_s: float) -> ClipPiece:
    """Return how the piece is got from this clip.

    Args:
        frame_size: width and height of the pictures that the backbone takes.
        picture: height and width of the clip's own pictures, pixels.
        end_s: the last time on the clip's clock with a frame of its own.

    Raises:
        MediaError: the clip cannot be read (only where it has to be looked at first).
    """
    if piece.cameras:
        cameras = [replace(camera, size=frame_size) for camera in piece.cameras]
        height = min(source_size(cameras[0].fov_deg, frame_size)[0], max(2, picture[0]))
        source = (height, 2 * height)  # no larger than the file: enlarged pixels say nothing more
        squeezed = abs(picture[1] - 2 * picture[0]) > MAX_SQUEEZE * picture[1]
        note = f"{path.name}: {picture[1]}x{picture[0]}, not 2:1 as a panorama is; scaled to that" if squeezed else None
        return ClipPiece(Drawing(source), tuple(_crop(camera, source) for camera in cameras), note)
    size = (frame_size, frame_size)
    if piece.side is None:
        return ClipPiece(Drawing(size))
    half = half_crop(piece.side, picture[1])
    with FrameReader(path, size=CIRCLE_SIZE, crop=half, progress=beat) as reader:
        looked = reader.frames_at((np.arange(CIRCLE_FRAMES) + 0.5) / CIRCLE_FRAMES * end_s)
    circle = find_circle(looked.pixels[looked.valid]) if looked.valid.any() else None
    if circle is None:
        return ClipPiece(Drawing(size, half), note=f"{piece.side} lens: no fisheye circle, the half as it is")
    note = f"{piece.side} lens: circle at {circle.x:.3f}, {circle.y:.3f}, radii {circle.radius_x:.3f}, "
    return ClipPiece(Drawing(size, inscribed_crop(circle).within(half)), note=f"{note}{circle.radius_y:.3f}")


@lru_cache(maxsize=64)
def _crop(camera: Camera, source: tuple[int, int]) -> PerspectiveCrop:
    """Return the resampling grid; one serves every clip of its size."""
    return PerspectiveCrop(camera, source)
