"""How often `talstack sync` places right pairs of sounds, how exactly, and how often wrong ones.

    .venv/bin/python benchmarks/sync.py PATH_TO_X360

Right pairs: the panoramic against the third-person clip, and pieces of the third-person clip cut at known places, with
noise, gain and distortion, against the panoramic one. Wrong pairs: clips of other recordings, and two halves of one
clip, which sound alike and have nothing in common. The egocentric clips' offsets are not known: for them a second table
has what the phases of the waveforms say, which the estimate does not look at. The data are not part of the project:
the folder holds panoramic/<id>.mp4, third_person/<id>.mp4 and binocular/<id>/clip0.mp4.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import fft, signal
from scipy.ndimage import uniform_filter1d

from talstack.extract.audio import log_mel
from talstack.extract.sync import (
    MIN_CONFIDENCE,
    NUM_MELS,
    RATE,
    LagEstimate,
    SoundFeatures,
    estimate_lag,
    sound_features,
)
from talstack.io.audio_track import read_audio

DRIFT_PPM = 300  # as far as 20 minutes at 50 ppm, which a bad quartz has
REPEATS = 4  # cuts of each recording
THRESHOLDS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
PHASE_BANDS_HZ = ((100, 1000), (1000, 3000))


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut and to spoil a piece of a clip."""

    name: str
    length_s: float = 5.0
    snr_db: float = 20.0
    kind: str = "white"


CUTS = (
    *(Cut(f"5 s, noise at {snr:+d} dB", snr_db=snr) for snr in (20, 10, 0, -5, -10)),
    Cut("3 s, noise at +0 dB", length_s=3.0, snr_db=0),
    Cut("5 s, another recording at +0 dB", snr_db=0, kind="other"),
    Cut("5 s, low-pass 1.5 kHz, +10 dB", snr_db=10, kind="low-pass"),
    Cut("5 s, compressor and 8 bits, +10 dB", snr_db=10, kind="compressor"),
    Cut("5 s, half a second of echo, +20 dB", kind="echo"),
    Cut("starts 3 s before the recording, +10 dB", length_s=6.5, snr_db=10, kind="early"),
)
Found = tuple[LagEstimate | None, float]  # the estimate, and the true lag (nan where there is none)


def read_sounds(root: Path, view: str) -> dict[str, np.ndarray]:
    """Return {recording: samples} of a view."""
    paths = {path.parent.name if view == "binocular" else path.stem: path for path in root.glob(f"{view}/**/*.mp4")}
    return {name: read_audio(path, rate=RATE).samples for name, path in sorted(paths.items())}


def spoil(rng: np.random.Generator, piece: np.ndarray, cut: Cut, other: np.ndarray) -> np.ndarray:
    """Return the piece with the cut's distortion and noise, at a gain of -20 to +10 dB."""
    piece = piece.astype(np.float64)
    if cut.kind == "compressor":
        peak = np.abs(piece).max()
        piece = np.round(127 * np.sign(piece) * np.sqrt(np.abs(piece) / peak)) / 127
    if cut.kind == "echo":
        tail = rng.normal(0, 1, RATE // 2) * np.exp(-np.arange(RATE // 2) / (0.1 * RATE))
        piece = signal.fftconvolve(piece, np.concatenate([[5.0], tail]))[: len(piece)]
    noise = other[: len(piece)].astype(np.float64) if cut.kind == "other" else rng.normal(0, 1, len(piece))
    noise *= np.sqrt(np.mean(piece**2) / np.mean(noise**2) / 10 ** (cut.snr_db / 10))
    mixed = piece + noise
    if cut.kind == "low-pass":
        mixed = signal.sosfilt(signal.butter(4, 1500, fs=RATE, output="sos"), mixed)
    return (mixed * 10 ** rng.uniform(-1, 0.5)).astype(np.float32)


def features(samples: np.ndarray) -> SoundFeatures:
    found = sound_features(samples)
    if found is None:
        raise click.ClickException("a clip is silent; is this x360?")
    return found


def cut_pairs(
    whole: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    cut: Cut,
    way: Callable[[np.ndarray], SoundFeatures] = features,
) -> Iterator[Found]:
    """Yield the estimates of pieces of `source` in `whole`."""
    names = list(whole)
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        early = 3 * RATE if cut.kind == "early" else 0
        reference = way(whole[name][early:])
        for _ in range(REPEATS):
            length = round(cut.length_s * RATE)
            first = 0 if early else int(rng.integers(0, len(source[name]) - length))
            other = whole[names[(i + rng.integers(1, len(names))) % len(names)]]
            piece = spoil(rng, source[name][first : first + length], cut, other)
            yield estimate_lag(reference, way(piece)), (first - early) / RATE


def drifting_pairs(whole: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray]) -> Iterator[Found]:
    """Yield the estimates of all recordings in a row against themselves by a fast clock; true is the clip's middle."""
    rng = np.random.default_rng(0)
    for _ in range(REPEATS):
        names = rng.permutation(list(whole))
        reference = np.concatenate([whole[name][: 10 * RATE] for name in names])
        clip = np.concatenate([source[name][: 10 * RATE] for name in names])
        times = np.arange(len(clip)) * (1 + DRIFT_PPM / 1e6)
        drifted = np.interp(times, np.arange(len(clip)), clip)
        piece = spoil(rng, drifted, Cut("", snr_db=10), clip)
        yield estimate_lag(features(reference), features(piece)), DRIFT_PPM / 1e6 * len(clip) / 2 / RATE


def measure(root: Path) -> dict[str, list[Found]]:
    """Return the estimates of every kind of pair."""
    sounds = {view: read_sounds(root, view) for view in ("panoramic", "third_person", "binocular")}
    heard = {view: {name: features(s) for name, s in found.items()} for view, found in sounds.items()}
    panoramic, third, ego = heard.values()
    names, nan = list(panoramic), float("nan")
    table: dict[str, list[Found]] = {}
    table["panoramic, third_person"] = [(estimate_lag(panoramic[n], third[n]), 0.0) for n in names]
    for cut in CUTS:
        table[cut.name] = list(cut_pairs(sounds["panoramic"], sounds["third_person"], cut))
    table[f"200 s, clock {DRIFT_PPM} ppm fast, +10 dB"] = list(
        drifting_pairs(sounds["panoramic"], sounds["third_person"])
    )
    wrong = [(n, other, view) for n in names for other in names if n != other for view in ("third_person", "binocular")]
    table["wrong recording, whole"] = [(estimate_lag(panoramic[n], heard[v][o]), nan) for n, o, v in wrong]
    five = {v: {n: features(s[2 * RATE : 7 * RATE]) for n, s in sounds[v].items()} for v in sounds if v != "panoramic"}
    table["wrong recording, 5 s"] = [(estimate_lag(panoramic[n], five[v][o]), nan) for n, o, v in wrong]
    table["all other recordings in a row"] = []
    for n in names:
        rest = features(np.concatenate([sounds["panoramic"][o] for o in names if o != n]))
        table["all other recordings in a row"] += [(estimate_lag(rest, heard[v][n]), nan) for v in five]
    table["same clip, no overlap"] = [
        (estimate_lag(features(s[: half * RATE]), features(s[half * RATE :])), nan)
        for v in ("panoramic", "binocular") for s in sounds[v].values() for half in (4, 5, 6)
    ]  # fmt: skip
    table["egocentric"] = [(estimate_lag(panoramic[n], ego[n]), nan) for n in names]
    print_phases(sounds["panoramic"], sounds["binocular"], dict(zip(names, table["egocentric"], strict=True)))
    return table


def phase_lag_s(reference: np.ndarray, clip: np.ndarray, near_s: float, band_hz: tuple[int, int]) -> float:
    """Return the lag within half a second of `near_s` at which the phases of the waveforms agree best (GCC-PHAT)."""
    first = round(near_s * RATE)
    a, b = reference[max(first, 0) :], clip[max(-first, 0) :]
    num = min(len(a), len(b))
    size = fft.next_fast_len(2 * num, real=True)
    cross = fft.rfft(a[:num], size) * np.conj(fft.rfft(b[:num], size))
    hz = np.fft.rfftfreq(size, 1 / RATE)
    phases = np.where((hz > band_hz[0]) & (hz < band_hz[1]), cross / np.maximum(np.abs(cross), 1e-12), 0)
    agreement = np.abs(np.roll(fft.irfft(phases, size), RATE // 2)[: RATE + 1])
    return near_s + (int(agreement.argmax()) - RATE // 2) / RATE


def print_phases(
    panoramic: Mapping[str, np.ndarray], ego: Mapping[str, np.ndarray], found: Mapping[str, Found]
) -> None:
    """Print the egocentric clips that stand out, and what their waveforms' phases say within half a second."""
    table = Table("egocentric clip", "confidence", "sound says, s", title="beside the phases of the waveforms")
    for low, high in PHASE_BANDS_HZ:
        table.add_column(f"phases {low}-{high} Hz, s")
    for name, (estimate, _) in found.items():
        if estimate is not None and estimate.confidence >= 1.0:
            lags = (phase_lag_s(panoramic[name], ego[name], estimate.lag_s, band) for band in PHASE_BANDS_HZ)
            shown = (f"{lag:.3f}" for lag in lags)
            table.add_row(name[:8], f"{estimate.confidence:.1f}", f"{estimate.lag_s:.3f}", *shown)
    Console(width=120).print(table)


def print_pairs(table: Mapping[str, list[Found]]) -> None:
    """Print one row per kind of pair."""
    shown = Table(
        "pairs", "number", "placed, %", "median |error|, ms", "largest, ms", title=f"threshold {MIN_CONFIDENCE:g}"
    )
    for name in ("lowest confidence", "median", "highest"):
        shown.add_column(name, justify="right")
    for kind, found in table.items():
        confidence = np.array([0.0 if e is None else e.confidence for e, _ in found])
        placed = confidence >= MIN_CONFIDENCE
        errors = np.array(
            [abs(e.lag_s - true) for e, true in found if e is not None and e.confidence >= MIN_CONFIDENCE]
        )
        known = errors[np.isfinite(errors)] * 1000
        error = (f"{np.median(known):.1f}", f"{known.max():.1f}") if known.size else ("-", "-")
        spread = (f"{value:.1f}" for value in np.quantile(confidence, (0, 0.5, 1)))
        shown.add_row(kind, str(len(found)), f"{100 * placed.mean():.1f}", *error, *spread)
    Console(width=140).print(shown)


def print_thresholds(table: Mapping[str, list[Found]]) -> None:
    """Print what share of wrong pairs would be placed, and of right ones not, at other thresholds."""
    wrong = [kind for kind in table if "wrong" in kind or "other recordings" in kind]
    columns = {
        "wrong placed, %": wrong,
        "no overlap placed, %": ["same clip, no overlap"],
        "cuts not placed, %": [cut.name for cut in CUTS],
        "egocentric placed, %": ["egocentric"],
    }
    shown = Table("threshold", *columns)
    for threshold in THRESHOLDS:
        shares = []
        for name, kinds in columns.items():
            placed = [e is not None and e.confidence >= threshold for kind in kinds for e, _ in table[kind]]
            shares.append(100 * (1 - np.mean(placed) if "not placed" in name else np.mean(placed)))
        shown.add_row(f"{threshold:g}", *(f"{share:.2f}" for share in shares))
    Console(width=120).print(shown)


def plain_features(samples: np.ndarray, *, is_envelope: bool) -> SoundFeatures:
    """Return what could be compared instead: loudness or bands less their moving mean, not decorrelated."""
    loudness = log_mel(samples * np.float32(0.1 / np.sqrt(np.mean(samples**2))), rate=RATE, num_mels=NUM_MELS)
    bands = loudness.mean(axis=1, keepdims=True) if is_envelope else loudness
    values = bands - uniform_filter1d(bands, 101, axis=0, mode="nearest")
    return SoundFeatures(values / values.std(axis=0), np.ones(len(values), dtype=bool), 0.0)


def print_features(whole: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray]) -> None:
    """Print how well the confidence tells right pairs (5 s, noise at 0 dB) from wrong ones, for other features."""
    shown = Table("compared", "wrong: highest confidence", "right: lowest", "median", "right above every wrong, %")
    ways: dict[str, Callable[[np.ndarray], SoundFeatures]] = {
        "envelope": partial(plain_features, is_envelope=True),
        "log-mel": partial(plain_features, is_envelope=False),
        "decorrelated log-mel": features,
    }
    cut = Cut("", snr_db=0)
    for name, way in ways.items():
        heard = {n: way(s) for n, s in whole.items()}
        others = {n: way(s[2 * RATE : 7 * RATE]) for n, s in source.items()}
        wrong = [estimate_lag(heard[n], others[o]) for n in heard for o in others if n != o]
        right = [estimate for estimate, _ in cut_pairs(whole, source, cut, way)]
        lows, highs = (np.array([e.confidence for e in found if e is not None]) for found in (wrong, right))
        above = 100 * np.mean(highs > lows.max())
        shown.add_row(name, *(f"{v:.1f}" for v in (lows.max(), highs.min(), np.median(highs), above)))
    Console(width=120).print(shown)


def print_cost(sounds: Mapping[str, np.ndarray]) -> None:
    """Print what two recordings of 20 minutes cost."""
    whole = np.concatenate(list(sounds.values()) * 6)[: 20 * 60 * RATE]
    tracemalloc.start()
    started_s = time.perf_counter()
    reference, clip = features(whole), features(whole[::-1])
    heard_s = time.perf_counter()
    estimate_lag(reference, clip)
    click.echo(
        f"20 minutes against 20 minutes: features of both {heard_s - started_s:.1f} s, all lags "
        f"{time.perf_counter() - heard_s:.1f} s, at most {tracemalloc.get_traced_memory()[1] / 2**20:.0f} MiB"
    )


@click.command()
@click.argument("root", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(root: Path) -> None:
    """Measure on the x360 clips in ROOT."""
    table = measure(root)
    print_pairs(table)
    print_thresholds(table)
    sounds = read_sounds(root, "panoramic")
    print_features(sounds, read_sounds(root, "third_person"))
    print_cost(sounds)


if __name__ == "__main__":
    main()
