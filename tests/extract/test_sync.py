"""Lags between sounds, as arrays."""

import numpy as np
import pytest

from talstack.extract.sync import MAX_FEATURE, MIN_CONFIDENCE, RATE, LagEstimate, estimate_lag, sound_features


def scene(seed: int, seconds: float) -> np.ndarray:
    """Return noise bursts of random colour, length and loudness over a quiet hiss, (n,) float32."""
    rng = np.random.default_rng(seed)
    num = round(seconds * RATE)
    sound = 0.002 * rng.normal(size=num)
    for _ in range(round(4 * seconds)):
        length = int(rng.uniform(0.05, 0.6) * RATE)
        first = int(rng.integers(0, num))
        burst = rng.normal(size=length) * np.hanning(length)
        burst = np.convolve(burst, rng.normal(size=24), mode="same") * rng.uniform(0.002, 0.05)
        sound[first : first + length] += burst[: num - first]
    return sound.astype(np.float32)


def spoilt(sound: np.ndarray, *, snr_db: float, gain: float, seed: int = 99) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=len(sound))
    noise *= np.sqrt(np.mean(np.square(sound)) / 10 ** (snr_db / 10))
    return (gain * (sound + noise)).astype(np.float32)


def lag(reference: np.ndarray, clip: np.ndarray, **limits: float) -> LagEstimate:
    features = sound_features(reference), sound_features(clip)
    assert features[0] is not None
    assert features[1] is not None
    found = estimate_lag(*features, **limits)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("first_s", "length_s"),
    [(3.0, 5.0), (9.37125, 4.0), (-3.5, 7.0), (16.0, 7.0), (-4.0, 28.0)],
    ids=["within", "between frames", "starts before", "ends after", "longer than the recording"],
)
@pytest.mark.parametrize(("snr_db", "gain"), [(20, 1.0), (0, 0.03), (-5, 3.0)])
def test_a_clip_cut_at_a_known_offset_is_found(first_s: float, length_s: float, snr_db: float, gain: float) -> None:
    world, start_s = scene(0, 30), 5.0  # the recording is 20 s of it, from second 5 on
    reference = world[round(start_s * RATE) : round(25 * RATE)]
    first = round((start_s + first_s) * RATE)
    clip = spoilt(world[first : first + round(length_s * RATE)], snr_db=snr_db, gain=gain)
    found = lag(reference, clip)
    assert found.lag_s == pytest.approx(first_s, abs=0.004)
    assert found.confidence > 1.5 * MIN_CONFIDENCE
    assert found.overlap_s == pytest.approx(min(20, first_s + length_s) - max(0, first_s), abs=0.15)


def test_frames_of_ten_milliseconds_are_refined() -> None:
    world = scene(1, 12)
    errors = [lag(world, world[n : n + 5 * RATE]).lag_s - n / RATE for n in range(RATE, 2 * RATE, 1640)]
    assert np.abs(errors).max() < 0.002  # whole frames would be up to 5 ms off


def test_wrong_pairs_stay_far_below_the_threshold() -> None:
    sounds = [scene(seed, 8) for seed in range(10, 18)]
    found = [lag(a, b[:n]).confidence for a in sounds for b in sounds if a is not b for n in (4 * RATE, 8 * RATE)]
    assert len(found) == 112
    assert max(found) < MIN_CONFIDENCE / 2


def test_what_both_sounds_have_by_accident_decides_nothing() -> None:
    a, b = scene(20, 10), scene(21, 10)
    for sound, at_s in ((a, 3), (b, 6)):  # a click as loud as can be, and a dropout
        sound[at_s * RATE : at_s * RATE + 40] = 1.0
        sound[(at_s + 1) * RATE : round((at_s + 1.5) * RATE)] = 0.0
    assert lag(a, b).confidence < MIN_CONFIDENCE / 2
    features = sound_features(a)
    assert features is not None
    assert not features.values[405:445].any()  # the dropout is no sound
    assert np.abs(features.values).max() <= MAX_FEATURE


def test_a_repeated_beat_fits_everywhere_and_so_nowhere() -> None:
    song = np.tile(scene(30, 1.0), 12)
    found = lag(song, spoilt(song[: 4 * RATE], snr_db=20, gain=1.0))
    assert found.correlation > 0.4
    assert found.confidence < MIN_CONFIDENCE


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(8 * RATE, np.float32),
        np.full(8 * RATE, 2e-5, np.float32),
        (0.5 * np.sin(np.arange(8 * RATE) * 0.17)).astype(np.float32),
        scene(40, 1.5),
        np.concatenate([scene(41, 1.0), np.zeros(9 * RATE, np.float32)]),
        np.zeros(0, np.float32),
    ],
    ids=["silence", "nearly silence", "a steady tone", "too short", "mostly silence", "empty"],
)
def test_where_nothing_happens_there_is_nothing_to_compare(sound: np.ndarray) -> None:
    assert sound_features(sound) is None


def test_two_short_sounds_have_too_few_lags_to_tell_a_match_from_chance() -> None:
    short = sound_features(scene(50, 2.4))
    assert short is not None
    assert estimate_lag(short, short) is None


def test_only_lags_that_are_asked_for_are_considered() -> None:
    world = scene(51, 12)
    clip = world[7 * RATE : 11 * RATE]
    assert lag(world, clip, max_lag_s=7.1).lag_s == pytest.approx(7.0, abs=0.004)
    assert lag(world, clip, near_s=8.0, max_lag_s=1.1).lag_s == pytest.approx(7.0, abs=0.004)
    elsewhere = lag(world, clip, max_lag_s=3.0)
    assert abs(elsewhere.lag_s) <= 3.01
    assert elsewhere.confidence < MIN_CONFIDENCE
    features = sound_features(world)
    assert features is not None
    assert estimate_lag(features, features, near_s=60.0, max_lag_s=5.0) is None


def test_where_the_sounds_start_on_their_own_clocks_counts() -> None:
    world = scene(52, 10)
    reference = sound_features(world, start_s=-0.25)
    clip = sound_features(world[3 * RATE : 8 * RATE], start_s=0.5)
    assert reference is not None
    assert clip is not None
    found = estimate_lag(reference, clip)
    assert found is not None
    assert found.lag_s == pytest.approx(3.0 - 0.25 - 0.5, abs=0.004)
