"""Log-mel statistics of the sound in each segment, and what its two channels say about direction.

Short-time Fourier transform with a 25-ms Hann window every 10 ms, triangular bands equally spaced on the mel scale
(O'Shaughnessy's formula), natural logarithm of the power; then mean, standard deviation, maximum and mean absolute
change of every band over the segment.

Stereo: level difference, and delay by generalised cross-correlation with the phase transform (Knapp and Carter, IEEE
Trans. ASSP 24, 1976) on spectra averaged over the segment. Positive means left: louder there, or there first.
"""

from functools import lru_cache

import numpy as np
from scipy import fft

from talstack.io.errors import InputError

WINDOW_S, HOP_S = 0.025, 0.010
FLOOR = 1e-8  # power of about -80 dB, below which bands are treated as silent
NUM_STATISTICS = 4
STEREO_STATISTICS = ("level difference mean, dB", "level difference std, dB", "delay, s", "delay peak")
SILENCE = 1e-7  # mean power of -70 dB, below which direction is noise
MAX_DELAY_S = 0.001  # sound needs 0.7 ms from ear to ear
DELAY_WINDOW_S = 0.128
LAGS_PER_SAMPLE = 8
WEAKEST_BIN = 1e-6  # of the strongest bin's cross power; weaker ones, as above a codec's cutoff, have no phase


def mel_bank(num_mels: int, num_bins: int, *, rate: int, low_hz: float = 40.0) -> np.ndarray:
    """Return the (M, B) float32 triangular filters over the bins of a power spectrum that reaches rate / 2."""

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return 2595.0 * np.log10(1.0 + hz / 700.0)

    edges = np.linspace(to_mel(np.array(low_hz)), to_mel(np.array(rate / 2)), num_mels + 2)
    edges_hz = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    bins_hz = np.linspace(0, rate / 2, num_bins)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


def log_mel(samples: np.ndarray, *, rate: int, num_mels: int) -> np.ndarray:
    """Return the (F, M) float32 log-mel spectrogram; frame f is centred WINDOW_S / 2 after f * HOP_S.

    Args:
        samples: (n,) float32 mono in [-1, 1].
    """
    window, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    size = fft.next_fast_len(window, real=True)
    bank = mel_bank(num_mels, size // 2 + 1, rate=rate).T
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    taper = np.hanning(window).astype(np.float32)
    out = np.empty((len(frames), num_mels), dtype=np.float32)
    for start in range(0, len(frames), 4096):  # bounds memory on long recordings
        spectrum = fft.rfft(frames[start : start + 4096] * taper, n=size, axis=1)
        out[start : start + 4096] = np.log((np.abs(spectrum) ** 2 / window) @ bank + FLOOR)
    return out


def segment_statistics(
    spectrogram: np.ndarray, starts_s: np.ndarray, *, segment_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return per-segment statistics (n, 4 M) float32 and whether the sound covers half the segment, (n,) bool.

    Args:
        spectrogram: (F, M), one frame per HOP_S, frame 0 at second 0.
        starts_s: (n,) start of each segment, seconds on the spectrogram's clock.
    """
    num_frames, num_mels = spectrogram.shape
    features = np.zeros((len(starts_s), NUM_STATISTICS * num_mels), dtype=np.float32)
    valid = np.zeros(len(starts_s), dtype=bool)
    wanted = max(1, round(segment_s / HOP_S))
    for i, start_s in enumerate(starts_s):
        first = int(np.floor(start_s / HOP_S + 0.5))
        rows = spectrogram[max(first, 0) : max(min(first + wanted, num_frames), 0)]
        if 2 * len(rows) < wanted or len(rows) == 0:
            continue
        change = np.abs(np.diff(rows, axis=0)).mean(axis=0) if len(rows) > 1 else np.zeros(num_mels)
        features[i] = np.concatenate([rows.mean(axis=0), rows.std(axis=0), rows.max(axis=0), change])
        valid[i] = True
    return features, valid


def stereo_statistics(
    samples: np.ndarray, starts_s: np.ndarray, *, rate: int, segment_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return per-segment STEREO_STATISTICS (n, 4) float32 and whether the sound covers half the segment, (n,) bool.

    The level differences are those of windows of WINDOW_S that are not silent. The delay lies within MAX_DELAY_S, to a
    fraction of a sample; its peak is 1 where one channel is a delayed copy of the other, near 0 where they have nothing
    in common. A segment in which either channel is silent has no delay, one in which both are has only zeros. A file
    with one channel gives zeros and a peak of 1: leave it out by `Audio.num_channels`.

    Args:
        samples: (2, n) float32, left and right, in [-1, 1].
        starts_s: (n,) start of each segment, seconds on the samples' clock (sample 0 at second 0).
        rate: samples per second.
        segment_s: length of a segment, seconds.

    Raises:
        InputError: not two rows of samples.
    """
    if samples.ndim != 2 or len(samples) != 2:
        raise InputError(f"stereo: samples must be (2, n), left and right, got {samples.shape}")
    features = np.zeros((len(starts_s), len(STEREO_STATISTICS)), dtype=np.float32)
    valid = np.zeros(len(starts_s), dtype=bool)
    wanted, num_samples = max(1, round(segment_s * rate)), samples.shape[1]
    for i, start_s in enumerate(starts_s):
        first = int(np.floor(start_s * rate + 0.5))
        part = samples[:, max(first, 0) : max(min(first + wanted, num_samples), 0)]
        if part.shape[1] == 0 or 2 * part.shape[1] < wanted:
            continue
        features[i] = (*_level_difference_db(part, rate), *_delay(part, rate))
        valid[i] = True
    return features, valid


def _level_difference_db(part: np.ndarray, rate: int) -> tuple[float, float]:
    """Return mean and standard deviation over the windows of (2, n) samples that are not silent; 0, 0 without any."""
    window = min(round(WINDOW_S * rate), part.shape[1])
    blocks = part[:, : part.shape[1] // window * window].reshape(2, -1, window)
    power = (blocks.astype(np.float64) ** 2).mean(axis=2)
    left, right = power[:, power.max(axis=0) > SILENCE]
    if not len(left):
        return 0.0, 0.0
    difference_db = 10 * np.log10((left + FLOOR) / (right + FLOOR))
    return float(difference_db.mean()), float(difference_db.std())


def _delay(part: np.ndarray, rate: int) -> tuple[float, float]:
    """Return by how many seconds the right channel of (2, n) samples lags, and the peak's height; 0, 0 in silence."""
    if (part.astype(np.float64) ** 2).mean(axis=1).min() <= SILENCE:
        return 0.0, 0.0
    window = fft.next_fast_len(round(DELAY_WINDOW_S * rate), real=True)
    padded = np.pad(part, ((0, 0), (0, max(0, window - part.shape[1]))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, :: window // 2]
    left, right = fft.rfft(frames * np.hanning(window).astype(np.float32), axis=2)
    cross = (left * right.conj()).sum(axis=0)[1:]  # without the constant part
    strength = np.abs(cross)
    audible = np.flatnonzero(strength > WEAKEST_BIN * strength.max())
    if not len(audible):
        return 0.0, 0.0
    phases = cross[audible] / strength[audible]
    lags_s, waves = _lag_waves(window, rate)
    curve = (waves[:, audible] @ phases.astype(np.complex64)).real / len(audible)
    return _peak(lags_s, curve)


@lru_cache(maxsize=4)
def _lag_waves(window: int, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lags in seconds, (k,), and for each the phases that it takes from the bins 1 to B, (k, B)."""
    reach = max(2, round(MAX_DELAY_S * rate * LAGS_PER_SAMPLE))
    lags_s = np.arange(-reach, reach + 1) / reach * MAX_DELAY_S
    bins_hz = np.arange(1, window // 2 + 1) * rate / window
    return lags_s, np.exp(-2j * np.pi * lags_s[:, None] * bins_hz).astype(np.complex64)


def _peak(lags_s: np.ndarray, curve: np.ndarray) -> tuple[float, float]:
    """Return place and height of the highest point of the curve, between its samples by a parabola."""
    top = int(curve.argmax())
    if not 0 < top < len(curve) - 1:
        return float(lags_s[top]), float(max(curve[top], 0.0))
    before, at, after = (float(value) for value in curve[top - 1 : top + 2])
    bend = before - 2 * at + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    height = at - 0.25 * (before - after) * shift
    return float(lags_s[top] + shift * (lags_s[1] - lags_s[0])), float(np.clip(height, 0.0, 1.0))
