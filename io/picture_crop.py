"""A rectangle of a picture, as fractions, so that it fits the picture at any size; and what to draw of it."""

from dataclasses import dataclass
from typing import Self

from talstack.io.errors import InputError

SLACK = 1e-9  # what adding fractions may lose


@dataclass(frozen=True, slots=True)
class PictureCrop:
    """A rectangle of the picture as displayed.

    Attributes:
        x, y: left and upper edge, fractions of the picture's width and height.
        width, height: its size, fractions likewise.
    """

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        for start, length in ((self.x, self.width), (self.y, self.height)):
            if not (start >= -SLACK and length > 0 and start + length <= 1 + SLACK):
                raise InputError(
                    f"crop: x, y >= 0, width, height > 0, and both sums at most 1 (fractions of the picture); got "
                    f"x {self.x}, y {self.y}, width {self.width}, height {self.height}"
                )

    def within(self, outer: "PictureCrop") -> Self:
        """Return the crop of the whole picture that is this crop of `outer`."""
        return type(self)(
            outer.x + self.x * outer.width, outer.y + self.y * outer.height,
            self.width * outer.width, self.height * outer.height,
        )  # fmt: skip

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return (x, y, width, height) in whole pixels of a picture of that size; at least one pixel each."""
        left, columns = _whole(self.x, self.width, width)
        top, rows = _whole(self.y, self.height, height)
        return left, top, columns, rows


WHOLE = PictureCrop(0.0, 0.0, 1.0, 1.0)


def _whole(start: float, length: float, total: int) -> tuple[int, int]:
    first = min(max(round(start * total), 0), total - 1)
    return first, max(1, min(round((start + length) * total), total) - first)


@dataclass(frozen=True, slots=True)
class Drawing:
    """What to draw of a decoded frame.

    Attributes:
        size: (height, width) to scale to, pixels.
        crop: the part of the picture that is drawn; None: all of it.
    """

    size: tuple[int, int]
    crop: PictureCrop | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"size must be (height, width), both at least 1, got {self.size}")
