"""Log-mel statistics of the sound in each segment.

Short-time Fourier transform with a 25-ms Hann window every 10 ms, triangular bands equally spaced on the mel scale
(O'Shaughnessy's formula), natural logarithm of the power; then mean, standard deviation, maximum and mean absolute
change of every band over the segment.
"""

import numpy as np
from scipy import fft

WINDOW_S, HOP_S = 0.025, 0.010
FLOOR = 1e-8  # power of about -80 dB, below which bands are treated as silent
NUM_STATISTICS = 4


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
