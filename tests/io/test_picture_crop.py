"""Rectangles of pictures, and clips of which only a part is read."""

import numpy as np
import pytest

from talstack.io.errors import InputError
from talstack.io.media import FrameReader
from talstack.io.picture_crop import Drawing, PictureCrop


def test_whole_pixels_of_any_size():
    assert PictureCrop(0, 0, 1, 1).pixels(7, 5) == (0, 0, 7, 5)
    assert PictureCrop(0.5, 0, 0.5, 1).pixels(640, 320) == (320, 0, 320, 320)
    assert PictureCrop(0.25, 0.5, 0.5, 0.25).pixels(9, 9) == (2, 4, 5, 3)
    assert PictureCrop(0.999, 0, 0.001, 0.001).pixels(4, 4) == (3, 0, 1, 1)


def test_a_crop_of_a_crop():
    inner = PictureCrop(0.5, 0.5, 0.5, 0.5).within(PictureCrop(0.5, 0, 0.5, 1))
    assert inner == PictureCrop(0.75, 0.5, 0.25, 0.5)


@pytest.mark.parametrize(
    "bad", [(-0.1, 0, 1, 1), (0, 0, 0, 1), (0.6, 0, 0.5, 1), (0, 0, 1, 1.01), (float("nan"), 0, 1, 1)]
)
def test_rectangles_outside_the_picture(bad):
    with pytest.raises(InputError, match=rf"fractions of the picture.*got x {bad[0]}"):
        PictureCrop(*bad)


def test_the_part_is_what_the_whole_shows_there(tmp_path, write_clip, numbers_of):
    path = write_clip(tmp_path / "a.mp4")
    times_s = np.array([0.1, 0.5, 1.7])
    with FrameReader(path) as whole, FrameReader(path, crop=PictureCrop(0.25, 0.25, 0.5, 0.5)) as part:
        assert (part.name, part.note, part.size) == ("pyav", None, (48, 80))
        one, two = whole.frames_at(times_s), part.frames_at(times_s)
    assert np.abs(one.pixels[:, 24:72, 40:120].astype(int) - two.pixels).max() <= 2
    assert np.array_equal(one.times_s, two.times_s)
    everything = FrameReader(path, crop=PictureCrop(0, 0, 1, 1), size=(33, 51))
    with everything, FrameReader(path, size=(33, 51), use_decord=False) as plain:
        assert np.array_equal(everything.frames_at(times_s).pixels, plain.frames_at(times_s).pixels)


def test_the_part_is_scaled_after_it_is_cut(tmp_path, write_clip):
    # bars of 16 pixels: number 1 lights the first bar alone; nothing of it may bleed into the second
    path = write_clip(tmp_path / "a.mkv", num_frames=2, codec="ffv1", options={})
    with FrameReader(path, crop=PictureCrop(0.1, 0.25, 0.1, 0.25), size=(64, 64)) as reader:
        picture = reader.frames_at(np.array([1 / 30])).pixels[0]
    assert picture.shape == (64, 64, 3) and picture[:, :8].max() < 10


def test_a_part_of_a_turned_picture(shared_data):
    for name in ("video_90.mov", "video_180.mov"):
        path = shared_data / "media" / "decord" / name
        with (
            FrameReader(path, use_decord=False) as whole,
            FrameReader(path, crop=PictureCrop(0.5, 0, 0.5, 0.5)) as part,
        ):
            one, two = whole.frames_at(np.array([0.0])).pixels[0], part.frames_at(np.array([0.0])).pixels[0]
        expected = one[: two.shape[0], -two.shape[1] :].astype(int)
        # the colour planes are half as large, so pixels beside the cut may differ
        assert np.abs(expected - two)[2:-2, 2:-2].mean() < 1.5, name


def test_one_pass_draws_several_sizes_and_parts_each_where_it_is_wanted(tmp_path, write_clip, numbers_of):
    path = write_clip(tmp_path / "a.mp4")
    times_s = np.array([0.0, 0.5, 1.0, 1.5, 9.0])
    half = PictureCrop(0.5, 0, 0.5, 1)
    wanted = np.array([[1, 0], [1, 1], [0, 1], [1, 0], [1, 1]], dtype=bool)
    with FrameReader(path, drawings=[Drawing((96, 160)), Drawing((40, 40), half)]) as reader:
        found = reader.pictures_at(times_s, wanted)
    assert [len(pixels) for pixels in found.pixels] == [4, 3]
    assert found.valid.tolist() == [True] * 4 + [False]
    assert numbers_of(found.pixels[0][:3]) == [0, 15, 45]
    assert not found.pixels[0][3].any() and not found.pixels[1][2].any()  # beyond the clip's end
    with FrameReader(path, size=(40, 40), crop=half) as alone:
        assert np.array_equal(alone.frames_at(times_s[1:3]).pixels, found.pixels[1][:2])
