"""Where one sound lies in another: cross-correlation of whitened log-mel spectrograms over every lag.

The features: the log-mel spectrogram of the sound at unit power, less its own moving mean of a second, its bands
decorrelated and brought to one variance (bands that rise and fall together would else count many times and widen the
peak). At every lag the products over the overlap are divided by the energies of the overlapping parts, and the
correlation is weighted by the root of the overlap: for sounds that have nothing in common that has the same scatter at
every lag, so a short overlap wins neither by chance nor never.

Confidence: how far the best lag stands above the best of the others, in units of the scatter (1.4826 times the median
absolute deviation) of the others. It is low both where nothing matches and where several lags match alike, as with a
beat. docs/decisions/0010-sync.md has what it was for right and wrong pairs.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import uniform_filter1d

from talstack.extract.audio import FLOOR, HOP_S, log_mel

RATE = 16000
NUM_MELS = 48
MEAN_S = 1.0  # length of the moving mean that is taken off
MIN_OVERLAP_S = 2.0
PEAK_S = 0.3  # lags this near to the best one belong to its peak
MIN_OTHER_LAGS = 100  # below, their scatter says nothing
MIN_CONFIDENCE = 6.0
SILENT_PEAK = 1e-4  # of full scale: 3 steps of 16-bit sound
SILENT_POWER = 1e-6  # of a frame, relative to the mean: digital silence within sound, not a pause
STILL_NATS = 0.05  # scatter of the log-mel spectrogram; steady noise has 0.3 and more
MAX_FEATURE = 4.0  # standard deviations; one click must not decide


@dataclass(frozen=True, slots=True, eq=False)
class SoundFeatures:
    """What is compared of a sound.

    Attributes:
        values: (F, M) float32, one row per HOP_S; zero where the sound is digital silence.
        sounding: (F,) bool.
        start_s: where row 0 lies on the clip's clock, seconds.
    """

    values: np.ndarray
    sounding: np.ndarray
    start_s: float


@dataclass(frozen=True, slots=True)
class LagEstimate:
    """Where a sound fits best.

    Attributes:
        lag_s: the clip's second 0 on the reference's clock, seconds; negative where the clip starts first.
        confidence: see the module.
        correlation: of the features at that lag, -1 to 1.
        overlap_s: how much of both sounds meets there, seconds.
    """

    lag_s: float
    confidence: float
    correlation: float
    overlap_s: float


def sound_features(samples: np.ndarray, *, rate: int = RATE, start_s: float = 0.0) -> SoundFeatures | None:
    """Return the features of a sound, or None where nothing happens in it (silence, a steady tone, below 2 s).

    Args:
        samples: (n,) float32 mono in [-1, 1].
        rate: samples per second.
        start_s: where sample 0 lies on the clip's clock.
    """
    if len(samples) < MIN_OVERLAP_S * rate or np.abs(samples).max() < SILENT_PEAK:
        return None
    power = np.mean(np.square(samples), dtype=np.float64)
    spectrogram = log_mel(samples * np.float32(0.1 / np.sqrt(power)), rate=rate, num_mels=NUM_MELS)
    np.logaddexp(spectrogram, np.float32(np.log(10 * FLOOR)), out=spectrogram)  # a soft floor 60 dB down
    sounding = _sounding(samples, len(spectrogram), rate=rate, silent_power=SILENT_POWER * power)
    if sounding.sum() * HOP_S < MIN_OVERLAP_S:
        return None
    values = _less_moving_mean(spectrogram, sounding)
    if np.sqrt(np.mean(np.square(values[sounding]))) < STILL_NATS:
        return None
    return SoundFeatures(_whiten(values, sounding), sounding, start_s)


def _sounding(samples: np.ndarray, num_frames: int, *, rate: int, silent_power: float) -> np.ndarray:
    """Return whether each frame and the ones beside it hold sound, (F,) bool; the sound's two ends count as none."""
    hop = round(HOP_S * rate)
    hops = samples[: num_frames * hop]
    power = np.square(np.pad(hops, (0, num_frames * hop - len(hops)))).reshape(num_frames, hop).mean(axis=1)
    heard = np.convolve(power > silent_power, np.ones(7), mode="same") > 6.5  # a window reaches 2 hops further
    return np.asarray(heard)


def _less_moving_mean(spectrogram: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """Return the spectrogram less the mean of the sounding frames around each; zero where there is no sound."""
    width, weight = round(MEAN_S / HOP_S) | 1, sounding[:, None].astype(np.float32)
    total = uniform_filter1d(spectrogram * weight, width, axis=0, mode="constant")
    count = uniform_filter1d(weight, width, axis=0, mode="constant")
    return (spectrogram - total / np.maximum(count, 0.5 / width)) * weight


def _whiten(values: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """Return the features with bands that are uncorrelated and of variance 1, limited to MAX_FEATURE."""
    covariance = (values.T @ values).astype(np.float64) / sounding.sum()
    covariance += 0.01 * np.trace(covariance) / NUM_MELS * np.eye(NUM_MELS)  # bands with next to nothing stay small
    variances, axes = np.linalg.eigh(covariance)
    white = values @ ((axes / np.sqrt(variances)) @ axes.T).astype(np.float32)
    scale = np.sqrt(np.square(white).sum(axis=0) / sounding.sum())
    return np.clip(white / np.maximum(scale, 1e-6), -MAX_FEATURE, MAX_FEATURE)


def estimate_lag(
    reference: SoundFeatures, clip: SoundFeatures, *, near_s: float = 0.0, max_lag_s: float = np.inf
) -> LagEstimate | None:
    """Return where the clip fits best; None where no lag, or too few to judge one, has 2 s of both sounds.

    Args:
        reference: the sound whose clock counts.
        clip: the sound to place.
        near_s, max_lag_s: only lags within `max_lag_s` of `near_s` are considered.
    """
    lags, correlation, overlap = _correlate(reference, clip)
    # rows are HOP_S apart; what is left is where the two sounds start on their own clocks
    to_s = reference.start_s - clip.start_s
    enough = overlap * HOP_S >= MIN_OVERLAP_S
    allowed = enough & (np.abs(lags * HOP_S + to_s - near_s) <= max_lag_s)
    if not allowed.any():
        return None
    height = correlation * np.sqrt(overlap)
    best = int(np.flatnonzero(allowed)[height[allowed].argmax()])
    other = enough & (np.abs(lags - lags[best]) * HOP_S > PEAK_S)
    if other.sum() < MIN_OTHER_LAGS:
        return None
    scatter = 1.4826 * np.median(np.abs(height[other] - np.median(height[other])))
    rivals = height[other & allowed]
    second = max(float(rivals.max(initial=-np.inf)), float(np.median(height[other])))
    return LagEstimate(
        lag_s=float((lags[best] + _vertex(height, best)) * HOP_S + to_s),
        confidence=float((height[best] - second) / max(scatter, 1e-9)),
        correlation=float(correlation[best]),
        overlap_s=float(overlap[best] * HOP_S),
    )


def _correlate(a: SoundFeatures, b: SoundFeatures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every lag of b against a in rows, the correlation there, and the rows of sound that both have."""
    num_a, num_b = len(a.values), len(b.values)
    size = fft.next_fast_len(num_a + num_b - 1, real=True)
    spectrum = np.zeros(size // 2 + 1, dtype=np.complex128)
    for band in range(a.values.shape[1]):  # one band at a time bounds memory on long recordings
        spectrum += fft.rfft(a.values[:, band], size) * np.conj(fft.rfft(b.values[:, band], size))
    lags = np.arange(1 - num_b, num_a)
    products = fft.irfft(spectrum, size)[lags]
    first, last = np.maximum(lags, 0), np.minimum(lags + num_b, num_a)
    energy_a = _sums(np.square(a.values).sum(axis=1), first, last)
    energy_b = _sums(np.square(b.values).sum(axis=1), first - lags, last - lags)
    overlap = np.minimum(_sums(a.sounding, first, last), _sums(b.sounding, first - lags, last - lags))
    return lags, products / np.sqrt(np.maximum(energy_a * energy_b, 1e-6)), overlap


def _sums(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the sums over [first, last), float64."""
    running = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return running[last] - running[first]


def _vertex(values: np.ndarray, peak: int) -> float:
    """Return where between its neighbours the parabola through a peak has its vertex, -0.5 to 0.5."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    left, middle, right = values[peak - 1 : peak + 2]
    bend = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend < 0 else 0.0
