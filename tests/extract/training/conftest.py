"""A small training set without any media: coloured squares that move left or right."""

from collections.abc import Callable

import numpy as np
import pytest

from talstack.extract.card import BackboneCard
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.dataset import TrainingSet
from talstack.extract.training.framecache import FrameCache

CARD = BackboneCard("resnet18_narrow", True, 1.0, 4, 32, ("left", "right"), ("dark", "bright"))


@pytest.fixture(scope="session")
def small_card() -> BackboneCard:
    return CARD


@pytest.fixture(scope="session")
def small_config() -> FinetuneConfig:
    return FinetuneConfig(
        arch="resnet18_narrow", imagenet=False, epochs=3, batch_size=8, segments_per_recording=2, lr=2e-3,
        dropout=0.3, draws=2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_set() -> Callable[..., TrainingSet]:
    """Return a function that makes a training set of a seed; class 0 is background, 1 moves left, 2 right."""

    def made(seed: int = 0, *, num_recordings: int = 4, num_segments: int = 6) -> TrainingSet:
        rng = np.random.default_rng(seed)
        blocks, labels = [], []
        for recording in range(num_recordings):
            pixels = rng.integers(0, 40, size=(num_segments, 8, 32, 32, 3)).astype(np.uint8) + 60 * (recording % 2)
            kinds = rng.permutation(np.arange(num_segments) % 3)
            for segment, kind in enumerate(kinds):
                for frame in range(8 if kind else 0):
                    x = 2 * frame if kind == 2 else 14 - 2 * frame
                    pixels[segment, frame, 8:20, x + 4 : x + 12] = 220
            blocks.append(pixels)
            labels.append(kinds)
        kinds = np.concatenate(labels)
        units = np.repeat(np.arange(num_recordings), num_segments)
        frames = FrameCache(
            tuple(blocks), units, np.tile(np.arange(num_segments), num_recordings), units.astype(str),
            np.full(len(kinds), "front"), np.tile(np.arange(num_segments), num_recordings), 2, (),
        )  # fmt: skip
        targets = np.eye(3, dtype=np.float32)[kinds]
        return TrainingSet(
            frames, targets, targets[:, 1:] > 0, np.eye(2, dtype=np.float32)[units % 2], np.zeros(len(kinds), bool)
        )

    return made
