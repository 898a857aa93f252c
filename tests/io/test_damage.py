"""Damaged clips: as many frames as ffmpeg recovers, and those told that the decoder had to make up."""

import csv
import shutil
import subprocess

import av
import numpy as np
import pytest

from talstack.io.damage import suspect_stamps
from talstack.io.frame_decoders import PyAVFrames
from talstack.io.media import FrameReader
from talstack.io.packet_index import index_clip
from talstack.io.picture_crop import Drawing


def damaged_files(shared_data):
    folder = shared_data / "media"
    rows = csv.DictReader((folder / "expected.csv").open(encoding="utf-8"))
    return {folder / r["file"]: int(r["frames_skipping_errors"]) for r in rows if r["last_pts_s"] and r["error"]}


def recovered(path):
    start, index = index_clip(path)
    reader = PyAVFrames(path, start, drawings=[Drawing((36, 36))], period_s=index.period_s)
    times_s = np.arange(-0.01, index.end_s, 0.002)
    _, shown_s = reader.read(times_s, np.ones((len(times_s), 1), dtype=bool))
    return len(np.unique(shown_s[np.isfinite(shown_s)]))


def test_every_frame_is_recovered_that_can_be(shared_data):
    files = damaged_files(shared_data)
    assert len(files) == 4
    assert {path: recovered(path) for path in files} == files


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is not installed")
def test_as_many_frames_as_the_ffmpeg_command_recovers(shared_data):
    for path in damaged_files(shared_data):
        command = ["ffmpeg", "-v", "quiet", "-threads", "1", "-i", path, "-map", "0:v:0"]
        command += ["-fps_mode", "passthrough", "-f", "framemd5", "-"]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        assert recovered(path) == sum(not line.startswith("#") for line in lines), path


def test_frames_that_differ_from_the_original_are_told(shared_data):
    made = shared_data / "media" / "made"
    stamps_s = index_clip(made / "good_faststart.mp4")[1].stamps_s
    with FrameReader(made / "good_faststart.mp4", size=(64, 85)) as reader:
        good = reader.frames_at(stamps_s)
        assert reader.note is None and not good.concealed.any()
    # before damage is noticed, flipped bits may have decoded to something else: three frames in this file
    for name, unnoticed in (("bitflips_mid", 3), ("zeroed_4k_mid", 0), ("truncated_60pct", 0)):
        with FrameReader(made / f"{name}.mp4", size=(64, 85)) as reader:
            frames = reader.frames_at(stamps_s)
            assert reader.note and "damaged" in reader.note or "no whole frame" in reader.note
        own = frames.valid & np.isclose(frames.times_s, stamps_s, atol=1e-4)
        far = abs(frames.pixels.astype(int) - good.pixels).mean(axis=(1, 2, 3)) > 0.5
        assert (own & far & ~frames.concealed).sum() == unnoticed, name
        assert not (own & frames.concealed & ~far).any(), name


def flipped(path, places, seed=0):
    """Flip bits inside the pictures of the packets at these places in the file's order of decoding."""
    with av.open(str(path)) as container:
        found = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for pos, size in (found[i] for i in places):
        for at in rng.integers(pos + size // 3, pos + size, 40):
            data[at] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("num_threads", [1, 3])
def test_damage_ends_at_the_next_key_frame(tmp_path, write_clip, num_threads):
    path = write_clip(tmp_path / "a.mp4", num_frames=90, options={"g": "30", "bf": "0", "crf": "1"})
    flipped(path, [40])
    times_s = np.arange(90) / 30 + 0.01
    with FrameReader(path, num_threads=num_threads) as reader:
        frames = reader.frames_at(times_s)
    assert np.flatnonzero(frames.concealed | ~frames.valid).tolist() == list(range(40, 60))
    with FrameReader(path, num_threads=num_threads) as reader:
        again = [reader.frames_at(part) for part in np.array_split(times_s, 9)]
    assert np.array_equal(np.concatenate([f.pixels for f in again]), frames.pixels)
    assert np.array_equal(np.concatenate([f.concealed for f in again]), frames.concealed)


def test_damage_in_a_frame_that_no_other_needs_stays_there(tmp_path, write_clip):
    options = {"g": "30", "crf": "1", "x264-params": "bframes=1:b-adapt=0:scenecut=0"}
    path = write_clip(tmp_path / "a.mp4", num_frames=60, options=options)
    start, index = index_clip(path)
    place = int(np.flatnonzero(index.spare)[8])
    flipped(path, [place])
    assert suspect_stamps(path, start, index).tolist() == [index.order_s[place]]
    at_s = index.stamps_s[~np.isin(index.stamps_s, index.order_s[place])]
    with FrameReader(path) as reader:
        # left out where it is not asked for, so its damage is never met
        assert reader.frames_at(at_s).valid.all() and reader.note is None
