import numpy as np
import pytest

from talstack.extract.audio import HOP_S, log_mel, mel_bank, segment_statistics

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
