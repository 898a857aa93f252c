"""The sound of a view: every channel is heard."""

import wave
from pathlib import Path

import numpy as np
import pytest

from talstack.extract.audio_shard import make_audio_shard
from talstack.extract.config import ExtractConfig
from talstack.extract.layout import ClipSegments, ViewLayout
from talstack.io.errors import ConfigError
from talstack.io.shard import ShardKey

RATE, MELS = 16000, 16


def features_of(path: Path, channels: np.ndarray) -> np.ndarray:
    """Return the features of (channels, n) samples, two segments of half a second."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((channels.T * 32767).round().astype("<i2").tobytes())
    layout = ViewLayout(
        np.array([0.25, 0.75]), True, (ClipSegments(path, np.arange(2), np.array([0.0, 0.5]), 1.0),), ()
    )
    key = ShardKey("r", "front", "audio", {"kind": "audio", "mels": MELS, "rate": RATE}, (), 1.0, 0.5)
    shard = make_audio_shard(key, layout)
    assert shard.valid.all()
    return shard.features.astype(np.float32)


def test_bands_are_of_all_channels(tmp_path: Path) -> None:
    tone = 0.6 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    centre = np.zeros((6, RATE))
    centre[2] = tone
    found = features_of(tmp_path / "surround.wav", centre)
    alone = features_of(tmp_path / "mono.wav", tone[None] / 6)
    np.testing.assert_allclose(found[:, : 4 * MELS], alone[:, : 4 * MELS], atol=0.2)  # 16 bits
    assert found[:, 4 * MELS :].tolist() == [[0.0] * 4] * 2  # left and right are silent


@pytest.mark.parametrize("change", [{"audio_rate": 50}, {"audio_rate": 0}, {"audio_mels": 0}, {"audio_mels": 3000}])
def test_settings_without_sound_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"audio_rate must lie in \[1000, 384000\] Hz and audio_mels in \[1, 512\]"):
        ExtractConfig(**change)
