"""Frames at given times, from whole, odd and broken files."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from talstack.io import decord_frames, frame_decoders
from talstack.io.errors import InputError, MediaError
from talstack.io.media import FrameReader, decoder_versions, probe

BOTH = pytest.mark.parametrize("use_decord", [True, False])


def packet_places(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size]


def test_probe_says_what_the_file_holds(tmp_path, write_clip):
    tone = np.zeros((1, 16000))
    info = probe(write_clip(tmp_path / "a.mp4", sound=tone))
    assert info.duration_s == pytest.approx(2.0, abs=0.01)
    assert (info.fps, info.width, info.height) == (30.0, 160, 96)
    assert info.has_audio and info.has_video
    assert not probe(write_clip(tmp_path / "b.mp4")).has_audio


def test_probe_of_sound_alone(tmp_path, write_clip):
    info = probe(write_clip(tmp_path / "a.mp4", stamps_s=[], sound=np.zeros((1, 16000))))
    assert info.has_audio and not info.has_video
    assert (info.fps, info.width, info.height) == (0.0, 0, 0)
    with pytest.raises(MediaError, match=r"a\.mp4: no video stream"):
        FrameReader(tmp_path / "a.mp4")


def test_files_that_are_no_media_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<html><body>404 not found</body></html>" * 20)
    (tmp_path / "folder.mp4").mkdir()
    reasons = {"empty": "the file is empty", "page": "Invalid data", "folder": "director", "gone": "No such file"}
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=rf"{name}\.mp4: cannot be opened: .*{reason}"):
            probe(tmp_path / f"{name}.mp4")
        with pytest.raises(MediaError, match=rf"{name}\.mp4: cannot be opened: .*{reason}"):
            FrameReader(tmp_path / f"{name}.mp4")


@BOTH
def test_the_frame_shown_at_each_time(tmp_path, write_clip, numbers_of, use_decord):
    path = write_clip(tmp_path / "a.mp4")
    with FrameReader(path, use_decord=use_decord) as reader:
        frames = reader.frames_at(np.array([-0.01, 0.0, 0.034, 0.06, 1.0, 1.0, 1.9999, 2.01, 2.2]))
        assert reader.name == ("decord" if use_decord else "pyav")
    assert frames.valid.tolist() == [True] * 8 + [False]
    assert numbers_of(frames.pixels[:8]) == [0, 0, 1, 1, 30, 30, 59, 59]
    assert frames.times_s[:8] == pytest.approx(np.array([0, 0, 1, 1, 30, 30, 59, 59]) / 30, abs=1e-4)
    assert np.isnan(frames.times_s[8]) and not frames.pixels[8].any()
    assert frames.pixels.dtype == np.uint8 and frames.pixels.shape == (9, 96, 160, 3)


@BOTH
def test_a_clock_that_starts_late_and_gaps_in_it(tmp_path, write_clip, numbers_of, use_decord):
    stamps_s = [3.5, 3.6, 3.7, 5.7, 5.8]
    path = write_clip(tmp_path / "a.mp4", stamps_s=stamps_s, fps=10)
    with FrameReader(path, use_decord=use_decord) as reader:
        frames = reader.frames_at(np.array([0.0, 0.15, 0.25, 1.5, 2.15, 2.2, 2.3]))
    # in the gap the frame before it stays on the screen
    assert frames.valid.all()
    assert numbers_of(frames.pixels) == [0, 1, 2, 2, 2, 3, 4]


def test_both_decoders_give_the_same_pixels_at_any_size(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4")
    times_s = np.arange(0, 2, 0.07)
    for size in (None, (48, 80), (33, 51)):
        with FrameReader(path, size=size, use_decord=True) as first, FrameReader(path, size=size) as second:
            one, two = first.frames_at(times_s), second.frames_at(times_s)
            assert (first.name, second.name) == ("decord", "pyav")
            assert one.pixels.shape[1:3] == (size or (96, 160)) == first.size
        assert np.array_equal(one.pixels, two.pixels) and np.array_equal(one.times_s, two.times_s)


def test_a_width_that_decord_cannot_copy(tmp_path, write_clip, numbers_of):
    # rows of 96 pixels are padded to 128: decord takes them for four channels and refuses
    path = write_clip(tmp_path / "a.mp4")
    with FrameReader(path, size=(64, 96), use_decord=True) as reader:
        frames = reader.frames_at(np.array([0.5, 1.5]))
    assert frames.valid.all() and numbers_of(frames.pixels) == [15, 45]


@pytest.mark.parametrize(
    ("name", "codec", "options", "note"),
    [
        ("a.mp4", "mpeg4", {"bf": "2", "g": "30"}, "open groups of pictures"),
        ("a.mkv", "libx264", {"x264-params": "open-gop=1:bframes=5:keyint=30"}, "open groups of pictures"),
        ("a.ts", "libx264", {"g": "30"}, "container mpegts"),
        ("a.avi", "mpeg4", {"bf": "2", "g": "30"}, "container avi"),
    ],
)
def test_clips_where_counting_frames_goes_wrong(tmp_path, write_clip, numbers_of, name, codec, options, note):
    # decord alone returns frames up to a group of pictures away here, without an error
    path = write_clip(tmp_path / name, num_frames=100, codec=codec, options=options)
    wanted = np.arange(0, 100, 7)
    for use_decord in (True, False):
        with FrameReader(path, use_decord=use_decord) as reader:
            frames = reader.frames_at(wanted / 30 + 0.01)
            assert note in reader.note if use_decord else reader.note is None
        assert frames.valid.all() and numbers_of(frames.pixels) == wanted.tolist()


@BOTH
def test_a_hole_in_the_file_is_invalid_and_the_rest_is_right(tmp_path, write_clip, numbers_of, use_decord):
    path = write_clip(tmp_path / "a.mp4", num_frames=90, options={"g": "15", "bf": "0"})
    data = bytearray(path.read_bytes())
    for position, size in packet_places(path)[32:45]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    times_s = np.arange(90) / 30 + 0.01
    with FrameReader(path, use_decord=use_decord) as reader:
        # the switch to the reading that tolerates damage happens while reading
        parts = [reader.frames_at(chunk) for chunk in np.split(times_s, 9)]
        assert reader.name == "pyav" and reader.note and ":" not in reader.note.split(" ")[-1]
    valid = np.concatenate([part.valid for part in parts])
    pixels = np.concatenate([part.pixels for part in parts])
    assert valid[:32].all() and valid[45:].all()
    # the frame before a hole may stand in for one period, no longer
    assert not valid[33:45].any() and not pixels[33:45].any()
    assert numbers_of(pixels[:32]) == list(range(32)) and numbers_of(pixels[45:]) == list(range(45, 90))


def test_a_damaged_start_does_not_move_the_clock(tmp_path, write_clip, numbers_of):
    path = write_clip(tmp_path / "a.mp4", options={"g": "15", "bf": "0"})
    data = bytearray(path.read_bytes())
    for position, size in packet_places(path)[:15]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    with FrameReader(path) as reader:
        frames = reader.frames_at(np.array([0.1, 0.3, 0.51, 1.01]))
    assert frames.valid.tolist() == [False, False, True, True]
    assert numbers_of(frames.pixels[2:]) == [15, 30]


def test_a_file_cut_short_ends_where_its_data_end(tmp_path, write_clip, numbers_of):
    path = write_clip(tmp_path / "a.mp4", options={"g": "15", "bf": "0"})
    position, _ = packet_places(path)[40]
    path.write_bytes(path.read_bytes()[:position])
    assert probe(path).duration_s == pytest.approx(2.0, abs=0.01)
    with FrameReader(path) as reader:
        frames = reader.frames_at(np.arange(60) / 30 + 0.01)
    assert frames.valid[:40].all() and not frames.valid[42:].any()
    assert numbers_of(frames.pixels[:40]) == list(range(40))


def test_reading_on_does_not_start_again(tmp_path, write_clip, numbers_of, monkeypatch):
    path = write_clip(tmp_path / "a.mp4")
    opened = []
    original = frame_decoders.open_media
    monkeypatch.setattr(frame_decoders, "open_media", lambda p: opened.append(p) or original(p))
    with FrameReader(path, use_decord=False) as reader:
        for second in (0.2, 0.6, 1.0, 1.4):
            reader.frames_at(second + np.arange(4) / 30)
        assert len(opened) == 1
        assert numbers_of(reader.frames_at(np.array([0.21])).pixels) == [6]
    assert len(opened) == 2


def test_times_must_ascend_and_the_reader_must_be_open(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4", num_frames=5)
    with FrameReader(path) as reader:
        assert reader.frames_at(np.zeros(0)).pixels.shape == (0, 96, 160, 3)
        for times_s in ([0.1, 0.0], [np.nan], [[0.0]]):
            with pytest.raises(InputError, match="ascending"):
                reader.frames_at(np.array(times_s))
    with pytest.raises(MediaError, match="closed"):
        reader.frames_at(np.array([0.0]))
    with pytest.raises(InputError, match="size"):
        FrameReader(path, size=(0, 10))


def test_without_decord_pyav_serves(tmp_path, write_clip, numbers_of, monkeypatch):
    path = write_clip(tmp_path / "a.mp4")
    assert decoder_versions(use_decord=True)["decord"][0].isdigit()
    assert "decord" not in decoder_versions() and decoder_versions()["pyav"] == av.__version__

    def fail():
        raise decord_frames.DecordUnusableError("decord does not load: gone")

    monkeypatch.setattr(decord_frames, "load_decord", fail)
    monkeypatch.setattr("talstack.io.media.load_decord", fail)
    with FrameReader(path, use_decord=True) as reader:
        assert (reader.name, reader.note) == ("pyav", "decord does not load: gone")
        assert numbers_of(reader.frames_at(np.array([1.0])).pixels) == [30]
    assert decoder_versions(use_decord=True)["decord"] == "absent"


def test_every_odd_file_gives_its_frames_or_its_reason(shared_data):
    for row in csv.DictReader((shared_data / "media" / "expected.csv").open(encoding="utf-8")):
        path = shared_data / "media" / row["file"]
        if not row["last_pts_s"]:
            with pytest.raises(MediaError, match="cannot be opened|no video stream"):
                FrameReader(path)
            continue
        info = probe(path)
        turned = abs(int(row["rotation"])) == 90
        expected = (int(row["height"]), int(row["width"])) if turned else (int(row["width"]), int(row["height"]))
        assert (info.width, info.height) == expected, row["file"]
        frames = int(row["frames_skipping_errors"])
        # steps finer than the frame period, so that every frame is asked for
        steps_s = np.arange(0, float(row["duration_s"]), 0.01)
        with FrameReader(path, size=(36, 36)) as reader:
            found = reader.frames_at(steps_s)
        seen = len(np.unique(found.times_s[found.valid]))
        damaged = row["error"] != ""
        assert abs(seen - frames) <= (8 if damaged else 0), (row["file"], seen, frames)
        inside = steps_s <= float(row["last_pts_s"]) - float(row["first_pts_s"])
        assert damaged or found.valid[inside].all(), row["file"]


def test_rotation_and_depth_read_alike_by_both_decoders(shared_data):
    folder = shared_data / "media"
    names = ("video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov")
    files = [folder / "decord" / name for name in names]
    files += [folder / "torchcodec" / name for name in ("nasa_13013_rotated.mp4", "h264_10bits.mp4")]
    files += [folder / "torchcodec" / "testsrc2_odd_height_and_width_444.mp4"]
    for path in files:
        for size in (None, (40, 70)):
            with FrameReader(path, size=size, use_decord=True) as first, FrameReader(path, size=size) as second:
                times_s = np.array([0.0, 0.05])
                one, two = first.frames_at(times_s).pixels, second.frames_at(times_s).pixels
                assert first.name == "decord"
            assert np.array_equal(one, two), path
