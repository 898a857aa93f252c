from dataclasses import replace

import numpy as np
import pytest

from talstack.demo.sound import ego_sound, render_sound
from talstack.demo.world import AUDIO_RATE, EgoClip, Instance, plan_recording


def sound_of(*instances):
    return render_sound(replace(plan_recording(0, duration_s=8.0, seed=0), instances=instances))


def level(sound, start_s, end_s):
    """Return the root mean square of a part of the sound."""
    return np.sqrt(np.mean(sound[round(start_s * AUDIO_RATE) : round(end_s * AUDIO_RATE)] ** 2))


def spectrum(sound, start_s, end_s):
    """Return the power in eight octave-like bands, as shares."""
    part = sound[round(start_s * AUDIO_RATE) : round(end_s * AUDIO_RATE)]
    power = np.add.reduceat(np.abs(np.fft.rfft(part)) ** 2, np.geomspace(10, len(part) // 2, 9).astype(int)[:-1])
    return power / power.sum()


def test_speaking_is_heard_from_start_to_end_only():
    sound, silence = sound_of(Instance("speaking", 2.0, 5.0)), sound_of()
    assert sound.dtype == np.float32
    assert sound.shape == (8 * AUDIO_RATE,)
    assert level(sound, 2.0, 5.0) > 5 * level(silence, 2.0, 5.0)
    np.testing.assert_array_equal(sound[: 2 * AUDIO_RATE], silence[: 2 * AUDIO_RATE])
    np.testing.assert_array_equal(sound[5 * AUDIO_RATE :], silence[5 * AUDIO_RATE :])


def test_speaking_has_syllables_and_noise_has_not():
    def pulse(label):
        envelope = np.abs(sound_of(Instance(label, 1.0, 7.0))[AUDIO_RATE : 7 * AUDIO_RATE])
        loudness = envelope.reshape(-1, AUDIO_RATE // 40).mean(axis=1)
        power = np.abs(np.fft.rfft(loudness - loudness.mean())) ** 2
        hertz = np.fft.rfftfreq(len(loudness), 1 / 40)
        return power[(hertz >= 3) & (hertz <= 5)].sum() / power.sum()

    assert pulse("speaking") > 0.5
    assert pulse("pouring") < 0.3


@pytest.mark.parametrize(("forth", "back"), [("pouring", "smoking"), ("pushing", "moving things")])
def test_sound_names_the_pair_and_not_the_direction(forth, back):
    sounds = [sound_of(Instance(label, 2.0, 6.0)) for label in (forth, back)]
    np.testing.assert_array_equal(*sounds)
    assert level(sounds[0], 2.0, 6.0) > 1.5 * level(sound_of(), 2.0, 6.0)


def test_the_pairs_sound_different_from_each_other():
    hiss, rumble = (spectrum(sound_of(Instance(label, 2.0, 6.0)), 2.0, 6.0) for label in ("pouring", "pushing"))
    assert np.abs(hiss - rumble).sum() > 1.0


@pytest.mark.parametrize("label", ["dancing", "flashing", "operating phone"])
def test_the_other_actions_are_silent(label):
    np.testing.assert_array_equal(sound_of(Instance(label, 2.0, 6.0)), sound_of())


def test_an_egocentric_clip_hears_its_part_quieter():
    clip = EgoClip("clip0", 1.234, 5.0)
    recording = replace(
        plan_recording(0, duration_s=8.0, seed=0), instances=(Instance("speaking", 2.0, 5.0),), ego_clips=(clip,)
    )
    sound = render_sound(recording)
    heard = ego_sound(recording, clip, sound)
    assert heard.shape == (5 * AUDIO_RATE,)
    lags = range(-40, 41)
    start = round(1.234 * AUDIO_RATE)
    match = [np.dot(heard, sound[start + lag : start + lag + len(heard)]) for lag in lags]
    assert lags[int(np.argmax(match))] == 0
    assert level(heard, 1.0, 3.0) < 0.7 * level(sound, 2.234, 4.234)
    assert np.abs(heard - 0.5 * sound[start : start + len(heard)]).std() > 0.001
