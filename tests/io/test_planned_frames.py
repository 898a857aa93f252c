"""Leaving out what is not needed changes no pixel; the fast reading stays within what it was allowed."""

import av
import numpy as np
import pytest

from talstack.io.frame_decoders import PyAVFrames
from talstack.io.media import FrameReader
from talstack.io.packet_index import index_clip
from talstack.io.picture_crop import Drawing
from talstack.io.planned_frames import PlannedFrames

PYRAMID = {"g": "30", "x264-params": "bframes=3:b-adapt=0:b-pyramid=normal:scenecut=0"}
HEVC = {"x265-params": "log-level=none:keyint=30:min-keyint=30:bframes=3:b-adapt=0:scenecut=0:open-gop=0"}
LAYERS = {"x265-params": HEVC["x265-params"] + ":temporal-layers=2"}
CODECS = {
    "a.mp4": ("libx264", PYRAMID),
    "b.mkv": ("libx264", PYRAMID),
    "c.ts": ("libx264", PYRAMID),
    "d.mp4": ("libx265", HEVC),
    "e.mp4": ("libx265", LAYERS),
    "f.mp4": ("libx265", {"x265-params": HEVC["x265-params"].replace("open-gop=0", "open-gop=1")}),
    "g.mp4": ("mpeg4", {"bf": "2", "g": "30"}),
}
SPARE = set(CODECS) - {"g.mp4"}
GROUPS = {"a.mp4", "b.mkv", "d.mp4", "e.mp4"}  # entered anew at a key frame


def read(reader, times_s):
    pixels, shown_s = reader.read(times_s, np.ones((len(times_s), 1), dtype=bool))
    return pixels[0], shown_s


def planned(path, **options):
    start, index = index_clip(path)
    return PlannedFrames(path, start, drawings=[Drawing((48, 80))], index=index, **options)


def everything(path, times_s):
    start, index = index_clip(path)
    return read(PyAVFrames(path, start, drawings=[Drawing((48, 80))], period_s=index.period_s), times_s)


@pytest.mark.parametrize("name", CODECS)
def test_what_is_left_out_changes_no_pixel(tmp_path, write_clip, numbers_of, name):
    codec, options = CODECS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    path = write_clip(tmp_path / name, num_frames=150, codec=codec, options=options)
    times_s = np.arange(0, 5, 0.125) + 0.005
    pixels, stamps_s = everything(path, times_s)
    assert numbers_of(pixels) == (times_s * 30 + 0.01).astype(int).tolist()
    for parts in (1, 7, len(times_s)):
        reader = planned(path)
        for i, part in enumerate(np.array_split(times_s, parts)):
            found, found_s = read(reader, part)
            rows = np.array_split(np.arange(len(times_s)), parts)[i]
            assert np.array_equal(found, pixels[rows]) and np.array_equal(found_s, stamps_s[rows])
        assert (reader._needed.mean() < 0.9) == (name in SPARE)
    sparse, sparse_s = planned(path), np.array([0.1, 3.05, 3.1, 4.5])
    assert np.array_equal(read(sparse, sparse_s)[0], everything(path, sparse_s)[0])
    # groups 1 and 2 hold nothing that is asked for
    assert (not sparse._needed[30:90].any()) == (name in GROUPS)


@pytest.mark.parametrize("seed", range(4))
def test_any_times_in_any_portions(tmp_path, write_clip, seed):
    path = write_clip(tmp_path / "a.mp4", num_frames=90, options=PYRAMID)
    rng = np.random.default_rng(seed)
    reader, fast = planned(path), planned(path, fast_within_s=0.05)
    for _ in range(12):
        times_s = np.sort(rng.uniform(0, 3, rng.integers(1, 6)))
        found, expected = read(reader, times_s), everything(path, times_s)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        assert abs(read(fast, times_s)[1] - expected[1]).max() <= 0.05 + 1e-6


def test_threads_change_nothing(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4", num_frames=90, options=PYRAMID)
    one, many = (FrameReader(path, num_threads=n).frames_at(np.arange(0, 3, 0.1)) for n in (1, 4))
    assert np.array_equal(one.pixels, many.pixels) and np.array_equal(one.times_s, many.times_s)


def test_the_fast_reading_takes_frames_nearby_and_says_which(tmp_path, write_clip, numbers_of):
    path = write_clip(tmp_path / "a.mp4", num_frames=90, options=PYRAMID)
    times_s = np.arange(0, 3, 0.125) + 0.005
    _, index = index_clip(path)
    spare_s = index.order_s[index.spare]
    with FrameReader(path) as exact, FrameReader(path, fast_within_s=0.0625) as fast:
        one = exact.frames_at(times_s)
        parts = [fast.frames_at(part) for part in np.array_split(times_s, 5)]
    times, pixels = np.concatenate([p.times_s for p in parts]), np.concatenate([p.pixels for p in parts])
    assert np.isin(one.times_s, spare_s).any() and not np.isin(times, spare_s).any()
    assert 0 < abs(times - one.times_s).max() <= 0.0625
    assert numbers_of(pixels) == np.rint(times * 30).astype(int).tolist()
    with FrameReader(path, fast_within_s=0.01) as reader:
        assert np.array_equal(reader.frames_at(times_s).times_s, one.times_s)
