import numpy as np
import pytest

from talstack.extract.audio import HOP_S, log_mel, mel_bank, segment_statistics, stereo_statistics
from talstack.io.errors import InputError

RATE, MELS = 16000, 40


def tone(hz: float, seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def test_bands_cover_the_spectrum_without_gaps() -> None:
    bank = mel_bank(MELS, 201, rate=RATE)
    bins_hz = np.linspace(0, RATE / 2, 201)
    assert bank.shape == (MELS, 201)
    assert (bank[:, (bins_hz > 300) & (bins_hz < 7500)].sum(axis=0) > 0.5).all()


@pytest.mark.parametrize("hz", [300.0, 1000.0, 4000.0])
def test_a_tone_lights_the_band_of_its_pitch(hz: float) -> None:
    spectrogram = log_mel(tone(hz, 0.5), rate=RATE, num_mels=MELS)
    band = int(spectrogram.mean(axis=0).argmax())
    edges = 700 * (
        10 ** (np.linspace(2595 * np.log10(1 + 40 / 700), 2595 * np.log10(1 + 8000 / 700), MELS + 2) / 2595) - 1
    )
    assert edges[band] <= hz <= edges[band + 2]


def test_chunked_spectrogram_equals_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(size=RATE * 45).astype(np.float32)
    whole = log_mel(noise, rate=RATE, num_mels=MELS)  # 4,498 frames: two chunks
    tail = log_mel(noise[4096 * 160 :], rate=RATE, num_mels=MELS)
    assert np.allclose(whole[4096:], tail, atol=1e-5)


def test_statistics_fall_into_the_segment_where_the_sound_is() -> None:
    samples = np.concatenate([np.zeros(RATE, np.float32), tone(1000, 1.0), np.zeros(RATE, np.float32)])
    spectrogram = log_mel(samples, rate=RATE, num_mels=MELS)
    features, valid = segment_statistics(spectrogram, np.array([-2.0, 0.0, 1.0, 2.0, 2.6]), segment_s=1.0)
    assert valid.tolist() == [False, True, True, True, False]
    loudness = features[:, :MELS].max(axis=1)
    assert loudness[2] > loudness[1] + 5
    assert loudness[2] > loudness[3] + 5


def test_a_clip_that_starts_late_shifts_the_segments() -> None:
    spectrogram = np.arange(300, dtype=np.float32)[:, None]
    features, _ = segment_statistics(spectrogram, np.array([0.5]), segment_s=1.0)
    assert features[0, 0] == pytest.approx(0.5 / HOP_S + 49.5)
    assert features[0, 2] == pytest.approx(149.0)


def delayed(sound: np.ndarray, seconds: float) -> np.ndarray:
    """Return the sound later by any fraction of a sample (it goes around at the end)."""
    hz = np.fft.rfftfreq(len(sound), 1 / RATE)
    return np.fft.irfft(np.fft.rfft(sound) * np.exp(-2j * np.pi * hz * seconds), len(sound)).astype(np.float32)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=int(seconds * RATE))).astype(np.float32)


def stereo_of(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    seconds = len(left) / RATE
    features, valid = stereo_statistics(np.stack([left, right]), np.array([0.0]), rate=RATE, segment_s=seconds)
    assert valid.all() and features.shape == (1, 4) and features.dtype == np.float32
    return features[0]


@pytest.mark.parametrize("gain_db", [-30.0, -3.0, 0.0, 6.0, 20.0])
def test_level_difference_is_positive_where_left_is_louder(gain_db: float) -> None:
    sound = noise(1.0)
    mean_db, std_db, delay_s, peak = stereo_of(sound, sound * np.float32(10 ** (-gain_db / 20)))
    assert mean_db == pytest.approx(gain_db, abs=0.05) and std_db < 0.05
    assert delay_s == pytest.approx(0.0, abs=1e-6) and peak > 0.99


@pytest.mark.parametrize("delay_s", [-0.0009, -0.00021, 0.0, 0.00003, 0.0004137, 0.0007])
def test_delay_is_positive_where_left_is_first(delay_s: float) -> None:
    sound = noise(1.0)
    _, _, found_s, peak = stereo_of(sound, 0.3 * delayed(sound, delay_s))
    assert found_s == pytest.approx(delay_s, abs=2e-6)  # a sample is 62e-6 s
    assert peak > 0.95


def test_delay_of_a_voice_like_sound_in_noise() -> None:
    rng = np.random.default_rng(1)
    sound = np.convolve(noise(2.0), np.hanning(9) / 4, mode="same").astype(np.float32)
    left = sound + 0.02 * rng.normal(size=len(sound)).astype(np.float32)
    right = delayed(sound, 0.0005) + 0.02 * rng.normal(size=len(sound)).astype(np.float32)
    _, _, delay_s, peak = stereo_of(left, right)
    assert delay_s == pytest.approx(0.0005, abs=1e-5) and 0.2 < peak < 0.95


def test_channels_with_nothing_in_common_have_no_peak() -> None:
    _, _, delay_s, peak = stereo_of(noise(2.0, 1), noise(2.0, 2))
    assert abs(delay_s) <= 0.001 and peak < 0.2


def test_level_that_changes_shows_in_the_spread() -> None:
    sound = noise(1.0)
    swing = np.where(np.arange(RATE) < RATE // 2, 1.0, 0.1).astype(np.float32)
    mean_db, std_db, _, _ = stereo_of(sound, sound * swing)
    assert mean_db == pytest.approx(10, abs=0.2) and std_db == pytest.approx(10, abs=0.2)


def test_silence_is_neutral_and_finite() -> None:
    silence = np.zeros(RATE, np.float32)
    assert not stereo_of(silence, silence).any()
    assert not stereo_of(1e-5 * noise(1.0, 1), 1e-5 * noise(1.0, 2)).any()
    mean_db, std_db, delay_s, peak = stereo_of(noise(1.0), silence)
    assert 50 < mean_db < 90 and np.isfinite(std_db) and (delay_s, peak) == (0, 0)
    # pauses do not pull the level difference towards zero
    half = np.concatenate([noise(0.5), silence[: RATE // 2]])
    assert stereo_of(half, 0.5 * half)[0] == pytest.approx(6.02, abs=0.05)


def test_stereo_statistics_fall_into_their_segments() -> None:
    sound = noise(3.0)
    right = np.concatenate([sound[:RATE], 0.5 * sound[RATE : 2 * RATE], delayed(sound[2 * RATE :], 0.0005)])
    starts_s = np.array([-2.0, -0.4, 1.0, 2.0, 2.6, 9.0])
    features, valid = stereo_statistics(np.stack([sound, right]), starts_s, rate=RATE, segment_s=1.0)
    assert valid.tolist() == [False, True, True, True, False, False]
    assert not features[~valid].any()
    assert features[1:4, 0] == pytest.approx([0, 6.02, 0], abs=0.2)
    assert features[1:4, 2] == pytest.approx([0, 0, 0.0005], abs=5e-6)


def test_segments_shorter_than_a_window() -> None:
    sound = noise(0.02)
    mean_db, _, delay_s, peak = stereo_of(sound, 0.5 * sound)
    assert mean_db == pytest.approx(6.02, abs=0.01) and delay_s == pytest.approx(0, abs=1e-5) and peak > 0.9


def test_one_row_is_no_stereo() -> None:
    with pytest.raises(InputError, match=r"\(2, n\), left and right, got \(16000,\)"):
        stereo_statistics(noise(1.0), np.array([0.0]), rate=RATE, segment_s=1.0)
