"""Halves of binocular pictures and the fisheye circles in them."""

import csv

import numpy as np
import pytest

from talstack.extract.lenses import (
    FisheyeCircle,
    find_circle,
    half_crop,
    inscribed_crop,
    outside_circle,
)
from talstack.io.errors import InputError
from talstack.io.media import FrameReader
from talstack.io.picture_crop import PictureCrop

WHOLE = PictureCrop(0, 0, 1, 1)
SQUEEZED = FisheyeCircle(0.47, 0.505, 0.465, 0.5)


def scenes(circle: FisheyeCircle | None, *, num_frames: int = 6, size: tuple[int, int] = (96, 100)) -> np.ndarray:
    """Return (n, H, W, 3) frames of bright noise, dark (a codec's 0 to 6) outside the circle."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(40, 256, (num_frames, *size, 3), dtype=np.uint8)
    if circle is not None:
        outside = outside_circle(circle, WHOLE, size)
        pixels[:, outside] = rng.integers(0, 7, (num_frames, int(outside.sum()), 3), dtype=np.uint8)
    return pixels


def halves_of(pixels: np.ndarray) -> dict[str, np.ndarray]:
    width = pixels.shape[2]
    return {"left": pixels[:, :, : width // 2], "right": pixels[:, :, width - width // 2 :]}


def assert_close(found: FisheyeCircle | None, expected: FisheyeCircle, abs_: float = 0.015) -> None:
    assert found is not None
    for name in ("x", "y", "radius_x", "radius_y"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=abs_), name


@pytest.mark.parametrize("width", [640, 641, 7, 2, 3])
def test_halves_share_no_column_and_leave_out_the_middle_of_an_odd_width(width: int) -> None:
    left, right = half_crop("left", width).pixels(width, 10), half_crop("right", width).pixels(width, 10)
    assert left == (0, 0, width // 2, 10)
    assert right == (width - width // 2, 0, width // 2, 10)


def test_the_reader_gives_either_half(tmp_path, write_clip) -> None:
    path = write_clip(tmp_path / "a.mp4", num_frames=8)
    with FrameReader(path) as reader:
        whole = reader.frames_at(np.array([0.1])).pixels
    for side in ("left", "right"):
        with FrameReader(path, crop=half_crop(side, whole.shape[2])) as reader:
            half = reader.frames_at(np.array([0.1])).pixels
        assert np.abs(half.astype(int) - halves_of(whole)[side]).max() <= 2


@pytest.mark.parametrize(
    "circle",
    [
        SQUEEZED,
        FisheyeCircle(0.53, 0.505, 0.465, 0.5),
        FisheyeCircle(0.5, 0.5, 0.5, 0.5),
        FisheyeCircle(0.5, 0.55, 0.35, 0.4),
    ],
)
def test_a_circle_is_found_where_it_is(circle: FisheyeCircle) -> None:
    assert_close(find_circle(scenes(circle)), circle)
    assert_close(find_circle(scenes(circle, num_frames=1)), circle)


def test_a_scene_that_is_dark_in_places() -> None:
    pixels = scenes(SQUEEZED, num_frames=8)
    pixels[:, :40] = 3  # a night sky
    pixels[::2, :, 70:] = 9
    assert_close(find_circle(pixels), SQUEEZED, 0.02)


@pytest.mark.parametrize("num_filled", [1, 3])
def test_frames_that_a_transition_fills(num_filled: int) -> None:
    pixels = scenes(SQUEEZED, num_frames=10)
    pixels[:num_filled] = 200
    assert_close(find_circle(pixels), SQUEEZED)


def test_what_is_no_circle() -> None:
    bar = scenes(None)
    bar[:, :, 92:] = 0  # plain pictures side by side with a black bar between them
    letterbox = scenes(None)
    letterbox[:, :12] = letterbox[:, -12:] = 0
    diamond = scenes(None)
    rows, columns = np.mgrid[-1:1:96j, -1:1:100j]
    diamond[:, np.abs(rows) + np.abs(columns) > 1] = 0
    spot = scenes(FisheyeCircle(0.5, 0.5, 0.1, 0.1))
    for name, pixels in {
        "plain": scenes(None), "bar": bar, "letterbox": letterbox, "diamond": diamond, "spot": spot,
        "black": np.zeros((4, 96, 100, 3), np.uint8),
    }.items():  # fmt: skip
        assert find_circle(pixels) is None, name


def test_inscribed_square_holds_nothing_of_the_border() -> None:
    crop = inscribed_crop(SQUEEZED)
    assert not outside_circle(SQUEEZED, crop, (50, 50)).any()
    assert crop.width / crop.height == pytest.approx(0.93)
    larger = PictureCrop(crop.x - 0.02, crop.y - 0.02, crop.width + 0.04, crop.height + 0.04)
    assert outside_circle(SQUEEZED, larger, (50, 50))[0, 0]


def test_a_circle_that_its_half_cuts_off_gives_what_is_there() -> None:
    crop = inscribed_crop(FisheyeCircle(0.2, 0.5, 0.4, 0.4))
    assert (crop.x, crop.width) == pytest.approx((0.0, 0.2 + 0.4 * np.sqrt(0.5)))


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="side must be one of left, right, got 'up'"):
        half_crop("up", 640)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 2 pixels wide, got 1"):
        half_crop("left", 1)
    with pytest.raises(InputError, match="radii above 0"):
        FisheyeCircle(0.5, 0.5, 0, 0.5)
    for shape in ((0, 96, 96, 3), (96, 96, 3), (1, 8, 96, 3)):
        with pytest.raises(InputError, match=r"pixels must be \(n, H, W, 3\)"):
            find_circle(np.zeros(shape, np.uint8))


def test_real_binocular_clips(shared_data) -> None:
    folder = shared_data / "x360"
    if not folder.is_dir():
        pytest.skip("no x360 clips")
    rows = [row for row in csv.DictReader((folder / "clips.csv").open(encoding="utf-8")) if row["view"] == "binocular"]
    without = []
    for row in rows[:4] + [row for row in rows if "99a2b0e2" in row["recording"]]:
        with FrameReader(folder / row["path"], size=(160, 320)) as reader:
            pixels = reader.frames_at(np.linspace(0.2, 9, 8)).pixels
        halves = halves_of(pixels)
        for side, x in (("left", 0.468), ("right", 0.532)):
            circle = find_circle(halves[side])
            if circle is None:
                without.append(row["recording"])
            else:
                assert_close(circle, FisheyeCircle(x, 0.505, 0.466, 0.503), 0.015)
    # this one holds plain pictures
    assert set(without) == {row["recording"] for row in rows if "99a2b0e2" in row["recording"]}
