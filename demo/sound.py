"""The sound of a recording: an ambience, a voice while someone speaks, and noises that tell what but not which way.

`pouring` and `smoking` share one hiss, `pushing` and `moving things` one rumble; the other actions are silent.
Sound is mono float32 in [-1, 1] at AUDIO_RATE samples per second.
"""

import numpy as np

from talstack.demo.world import AUDIO_RATE, EgoClip, Recording

AMBIENCE_LEVEL = 0.02  # root mean square, as are the other levels
VOICE_LEVEL = 0.16
HISS_LEVEL = 0.05
RUMBLE_LEVEL = 0.07
EGO_GAIN = 0.5
EGO_NOISE_LEVEL = 0.008
FADE_S = 0.02  # against the click of an abrupt start

# loudness falls with frequency as f ** -tilt: a kitchen's hum is darker than the wind in the trees
AMBIENCE_TILTS = {"Kitchen": 1.0, "Workspaces": 0.7, "Parks & Recreational Areas": 0.35}
HISS_BAND_HZ = (2500.0, 6500.0)
RUMBLE_BAND_HZ = (60.0, 320.0)

_SOUND_STREAM, _EGO_SOUND_STREAM = 20, 21


def render_sound(recording: Recording) -> np.ndarray:
    """Return the (n,) float32 sound of the whole recording, as its fixed microphone hears it."""
    rng = recording.rng(_SOUND_STREAM)
    num_samples = round(recording.duration_s * AUDIO_RATE)
    sound = AMBIENCE_LEVEL * _tilted_noise(rng, num_samples, AMBIENCE_TILTS[recording.scene])
    for instance in recording.instances:
        start = round(instance.start_s * AUDIO_RATE)
        length = round(instance.end_s * AUDIO_RATE) - start
        sound[start : start + length] += _action_sound(rng, instance.label, length) * _fade(length)
    return np.clip(sound, -1.0, 1.0).astype(np.float32)


def ego_sound(recording: Recording, clip: EgoClip, sound: np.ndarray) -> np.ndarray:
    """Return the (n,) float32 sound of an egocentric clip: its part of `sound`, quieter and noisier."""
    rng = recording.rng(_EGO_SOUND_STREAM + recording.ego_clips.index(clip))
    start = round(clip.offset_s * AUDIO_RATE)
    heard = EGO_GAIN * sound[start : start + round(clip.duration_s * AUDIO_RATE)]
    return np.clip(heard + EGO_NOISE_LEVEL * rng.normal(size=len(heard)), -1.0, 1.0).astype(np.float32)


def _action_sound(rng: np.random.Generator, label: str, num_samples: int) -> np.ndarray:
    match label:
        case "speaking":
            return VOICE_LEVEL * _voice(rng, num_samples)
        case "pouring" | "smoking":
            return HISS_LEVEL * _band_noise(rng, num_samples, HISS_BAND_HZ)
        case "pushing" | "moving things":
            return RUMBLE_LEVEL * _band_noise(rng, num_samples, RUMBLE_BAND_HZ)
        case _:
            return np.zeros(num_samples)


def _voice(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Return a harmonic tone of gliding pitch, loud and soft three to five times a second like syllables."""
    time_s = np.arange(num_samples) / AUDIO_RATE
    glide = 0.06 * np.sin(2 * np.pi * rng.uniform(0.3, 0.7) * time_s + rng.uniform(0, 2 * np.pi))
    phase = 2 * np.pi * np.cumsum(rng.uniform(110.0, 220.0) * (1 + glide)) / AUDIO_RATE
    overtones = np.arange(1, 15)[:, None]
    tone = (np.sin(overtones * phase) / overtones**0.7).sum(axis=0)
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(3.0, 5.0) * time_s)
    return _normalised(tone * syllables)


def _tilted_noise(rng: np.random.Generator, num_samples: int, tilt: float) -> np.ndarray:
    frequency_hz = np.maximum(np.fft.rfftfreq(num_samples, 1 / AUDIO_RATE), 40.0)
    return _shaped_noise(rng, num_samples, frequency_hz**-tilt)


def _band_noise(rng: np.random.Generator, num_samples: int, band_hz: tuple[float, float]) -> np.ndarray:
    frequency_hz = np.fft.rfftfreq(num_samples, 1 / AUDIO_RATE)
    return _shaped_noise(rng, num_samples, (frequency_hz >= band_hz[0]) & (frequency_hz < band_hz[1]))


def _shaped_noise(rng: np.random.Generator, num_samples: int, gain: np.ndarray) -> np.ndarray:
    return _normalised(np.fft.irfft(np.fft.rfft(rng.normal(size=num_samples)) * gain, num_samples))


def _normalised(sound: np.ndarray) -> np.ndarray:
    return sound / float(np.sqrt(np.mean(sound**2)))


def _fade(num_samples: int) -> np.ndarray:
    ramp = np.arange(1, num_samples + 1) / (FADE_S * AUDIO_RATE)
    return np.minimum(1.0, np.minimum(ramp, ramp[::-1]))
