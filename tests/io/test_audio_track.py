"""Sound on the clip's clock."""

import av
import numpy as np
import pytest

from talstack.io.errors import InputError, MediaError
from talstack.io.media import read_audio

RATE = 16000


def click_at(*seconds: float, length_s: float = 2.0, level: float = 0.8) -> np.ndarray:
    """Return (1, n) silence with 20 ms bursts of 1 kHz."""
    sound = np.zeros((1, int(length_s * RATE)))
    for second in seconds:
        first = int(second * RATE)
        sound[0, first : first + 320] = level * np.sin(2 * np.pi * 1000 * np.arange(320) / RATE)
    return sound


def onsets_s(samples: np.ndarray, rate: int) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.3)
    return loud[np.concatenate([[True], np.diff(loud) > 0.1 * rate])] / rate


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_sound_keeps_its_place_at_any_rate(tmp_path, write_clip, name, rate):
    path = write_clip(tmp_path / name, sound=click_at(0.5, 1.25))
    audio = read_audio(path, rate=rate)
    assert audio.rate == rate and audio.samples.dtype == np.float32 and audio.samples.ndim == 1
    assert len(audio.samples) / rate == pytest.approx(2.0, abs=0.07)
    assert np.abs(audio.samples).max() == pytest.approx(0.8, abs=0.2)
    assert onsets_s(audio.samples, rate) + audio.start_s == pytest.approx([0.5, 1.25], abs=0.012)


@pytest.mark.parametrize(("video_s", "sound_s"), [(0.0, 1.5), (1.5, 0.0), (2.0, 2.0)])
def test_sound_and_picture_lie_on_one_clock(tmp_path, write_clip, video_s, sound_s):
    stamps_s = video_s + np.arange(30) / 30
    path = write_clip(tmp_path / "a.mkv", stamps_s=stamps_s, sound=click_at(0.5), sound_starts_s=[sound_s])
    audio = read_audio(path, rate=RATE)
    assert audio.start_s == pytest.approx(sound_s - video_s, abs=0.002)
    assert onsets_s(audio.samples, RATE)[0] + audio.start_s == pytest.approx(sound_s + 0.5 - video_s, abs=0.004)


def test_a_gap_in_the_timestamps_becomes_silence(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mkv", sound=click_at(0.5, length_s=1.0), sound_starts_s=[0.0, 4.0, 5.0])
    audio = read_audio(path, rate=RATE)
    assert onsets_s(audio.samples, RATE) == pytest.approx([0.5, 4.5, 5.5], abs=0.004)
    assert len(audio.samples) == pytest.approx(6 * RATE, abs=0.01 * RATE)
    assert not audio.samples[int(1.1 * RATE) : int(3.9 * RATE)].any()


def test_channels_are_averaged(tmp_path, write_clip):
    tone = 0.8 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    same = read_audio(write_clip(tmp_path / "a.mkv", sound=np.stack([tone, tone])), rate=RATE)
    opposed = read_audio(write_clip(tmp_path / "b.mkv", sound=np.stack([tone, -tone])), rate=RATE)
    # the mean of two equal channels is neither louder nor clipped
    assert np.abs(same.samples).max() == pytest.approx(0.8, abs=0.01)
    assert np.abs(opposed.samples).max() < 0.01


def test_left_and_right_on_request(tmp_path, write_clip):
    time_s = np.arange(RATE) / RATE
    left, right = 0.8 * np.sin(2 * np.pi * 440 * time_s), 0.2 * np.sin(2 * np.pi * 880 * time_s)
    # with a gap, so that two runs are joined
    path = write_clip(tmp_path / "a.mkv", sound=np.stack([left, right]), sound_starts_s=[0.0, 3.0])
    both, mean = read_audio(path, rate=RATE, stereo=True), read_audio(path, rate=RATE)
    assert (both.num_channels, mean.num_channels) == (2, 2)
    assert both.samples.shape == (2, len(mean.samples)) and both.samples.dtype == np.float32
    assert (both.start_s, both.rate) == (mean.start_s, mean.rate)
    assert np.abs(both.samples[:, :RATE] - [left, right]).max() < 1e-3
    assert np.abs(both.samples[:, 3 * RATE : 4 * RATE] - [left, right]).max() < 1e-3
    assert not both.samples[:, int(1.1 * RATE) : int(2.9 * RATE)].any()
    assert np.array_equal(both.samples.mean(axis=0, dtype=np.float32), mean.samples)


def test_one_channel_fills_both_rows_and_says_so(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mkv", sound=click_at(0.5))
    both, mean = read_audio(path, rate=RATE, stereo=True), read_audio(path, rate=RATE)
    assert both.num_channels == mean.num_channels == 1
    assert np.array_equal(both.samples, np.stack([mean.samples, mean.samples]))


def test_damaged_packets_leave_the_rest_in_place(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4", num_frames=150, sound=click_at(0.5, 4.25, length_s=5.0))
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in places[len(places) // 3 : len(places) // 2]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    audio = read_audio(path, rate=RATE)
    onsets = onsets_s(audio.samples, RATE) + audio.start_s
    assert onsets[0] == pytest.approx(0.5, abs=0.012) and onsets[-1] == pytest.approx(4.25, abs=0.012)


def test_sound_of_a_clip_whose_picture_is_lost(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4", sound=click_at(0.5))
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    audio = read_audio(path, rate=RATE)
    assert onsets_s(audio.samples, RATE)[0] + audio.start_s == pytest.approx(0.5, abs=0.012)


def test_without_sound_there_is_a_reason(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4", num_frames=5)
    with pytest.raises(MediaError, match=r"a\.mp4: no audio stream"):
        read_audio(path, rate=RATE)
    with pytest.raises(MediaError, match=r"gone\.mp4: cannot be opened"):
        read_audio(tmp_path / "gone.mp4", rate=RATE)
    with pytest.raises(InputError, match="sampling rate"):
        read_audio(path, rate=0)


def test_real_sound_is_as_long_as_its_clip(shared_data):
    for name in ("made/good_faststart.mp4", "made/audio_only.mp4", "made/start_3.5s.ts"):
        audio = read_audio(shared_data / "media" / name, rate=RATE)
        assert len(audio.samples) / RATE == pytest.approx(5.02, abs=0.03), name
        assert abs(audio.start_s) < 0.03 and 0.1 < np.abs(audio.samples).max() <= 1.0
