from fractions import Fraction

import av
import numpy as np
import pytest

from talstack.demo.encode import write_video
from talstack.io.errors import InputError


def ramp(num_frames, height=32, width=48):
    """Return grey frames, each brighter than the one before."""
    return [np.full((height, width, 3), 40 + 4 * i, dtype=np.uint8) for i in range(num_frames)]


def decode(path):
    with av.open(str(path)) as container:
        frames = [(float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return [time for time, _ in frames], np.array([pixels for _, pixels in frames])


def test_frames_come_back_at_their_times(tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    assert write_video(path, iter(ramp(20)), fps=Fraction(25, 2)) == 20
    times_s, pixels = decode(path)
    np.testing.assert_allclose(times_s, np.arange(20) / 12.5, atol=1e-6)
    assert pixels.shape == (20, 32, 48, 3)
    np.testing.assert_allclose(pixels.mean(axis=(1, 2, 3)), 40 + 4 * np.arange(20), atol=3)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert not container.streams.audio


@pytest.mark.parametrize("length_s", [1.5, 2.0, 3.0])
def test_sound_stays_on_the_clock_of_the_picture(tmp_path, length_s):
    audio = np.zeros(round(length_s * 16000), dtype=np.float32)
    audio[16000:16400] = 0.8 * np.sin(np.arange(400) * 0.5)
    write_video(tmp_path / "clip.mp4", ramp(32), fps=16, audio=audio, audio_rate=16000)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.channels) == ("aac", 16000, 1)
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert abs(np.flatnonzero(np.abs(heard) > 0.3)[0] - 16000) < 8
    assert len(heard) >= len(audio)


def test_same_frames_give_the_same_bytes(tmp_path):
    audio = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, ramp(32), fps=16, audio=audio)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frames"),
        (ramp(2, height=31), r"frame 0 has shape \(31, 48, 3\)"),
        (ramp(2) + ramp(1, width=64), r"frame 2 is uint8 \(32, 64, 3\); expected uint8 \(32, 48, 3\)"),
        ([ramp(1)[0].astype(np.float32)], "frame 0 is float32"),
    ],
)
def test_frames_that_do_not_fit_are_refused_and_leave_no_file(tmp_path, frames, message):
    with pytest.raises(InputError, match=message):
        write_video(tmp_path / "clip.mp4", frames, fps=16)
    assert list(tmp_path.iterdir()) == []


def test_sound_of_several_channels_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"sound has shape \(2, 100\)"):
        write_video(tmp_path / "clip.mp4", ramp(2), fps=16, audio=np.zeros((2, 100), dtype=np.float32))
