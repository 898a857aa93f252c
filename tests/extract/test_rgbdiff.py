"""Stacked frame differences: times, channels, and the first convolution over them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from talstack.extract.architectures import PIXEL_STD
from talstack.extract.backbone import normalise
from talstack.extract.layout import ClipSegments
from talstack.extract.motion import adapt_first_conv, differences
from talstack.extract.rgbdiff import (
    NUM_FRAMES,
    OWN_FRAME,
    difference_times_s,
)
from talstack.io.errors import InputError
from talstack.io.media import FrameReader


def test_rgb_times_are_among_them_and_all_stay_in_the_clip() -> None:
    clip = ClipSegments(Path("a.mp4"), np.arange(3), np.array([-0.5, 1.0, 2.0]), 2.9)
    rgb_s = clip.sample_times_s(4, 1.0)
    times_s = difference_times_s(rgb_s, end_s=clip.end_s)
    assert times_s.shape == (3, 4, NUM_FRAMES)
    assert np.array_equal(times_s[..., OWN_FRAME], rgb_s)
    assert times_s.min() == 0.0 and times_s.max() == 2.9
    assert np.diff(times_s[1, 1]) == pytest.approx(np.full(5, 1 / 15))
    assert np.diff(difference_times_s(rgb_s, end_s=9, spacing_s=0.02)[1, 0]) == pytest.approx(np.full(5, 0.02))


def test_overlapping_times_are_read_once_and_in_order(tmp_path, write_clip, numbers_of) -> None:
    path = write_clip(tmp_path / "a.mp4")  # 60 frames at 30 fps
    clip = ClipSegments(path, np.arange(2), np.array([0.0, 1.0]), 59 / 30)
    times_s = difference_times_s(clip.sample_times_s(8, 1.0), end_s=clip.end_s)  # moments are closer than six frames
    ascending, index = np.unique(times_s, return_inverse=True)
    assert len(ascending) < times_s.size
    with FrameReader(path) as reader:
        pixels = reader.frames_at(ascending).pixels[index.reshape(times_s.shape)]
    shown = np.array(numbers_of(pixels.reshape(-1, *pixels.shape[3:]))).reshape(times_s.shape)
    assert np.array_equal(shown, np.floor(times_s * 30 + 0.03))


def test_a_constant_video_has_no_differences() -> None:
    still = torch.randint(0, 256, (2, 3, 1, 8, 8, 3), dtype=torch.uint8).expand(-1, -1, NUM_FRAMES, -1, -1, -1)
    found = differences(still)
    assert found.shape == (2, 3, 15, 8, 8) and found.dtype == torch.float32
    assert not found.any()


def test_channels_are_differences_in_order_of_time_then_colour() -> None:
    pixels = torch.zeros((1, 1, NUM_FRAMES, 2, 2, 3), dtype=torch.uint8)
    pixels[0, 0, 3:, :, :, 1] = 100  # green rises between frames 2 and 3
    pixels[0, 0, 5, :, :, 2] = 255  # blue between 4 and 5
    pixels[0, 0, 0, :, :, 0] = 51  # red falls between 0 and 1
    found = differences(pixels)[0, 0, :, 0, 0]
    expected = torch.zeros(15)
    expected[0], expected[3 * 2 + 1], expected[3 * 4 + 2] = (
        -0.2 / PIXEL_STD[0],
        100 / 255 / PIXEL_STD[1],
        1 / PIXEL_STD[2],
    )
    assert torch.allclose(found, expected)


def test_they_are_the_differences_of_standardised_frames() -> None:
    pixels = torch.randint(0, 256, (2, 2, NUM_FRAMES, 5, 7, 3), dtype=torch.uint8)
    frames = normalise(pixels)
    expected = (frames[:, :, 1:] - frames[:, :, :-1]).reshape(2, 2, 15, 5, 7)
    assert torch.allclose(differences(pixels), expected, atol=1e-5)


def test_a_moving_edge_lights_where_it_passes() -> None:
    pixels = torch.zeros((1, 1, NUM_FRAMES, 4, 16, 3), dtype=torch.uint8)
    for k in range(NUM_FRAMES):
        pixels[0, 0, k, :, : 2 + 2 * k] = 255  # two pixels to the right per frame
    red = differences(pixels)[0, 0, ::3, 0]
    for k in range(5):
        assert torch.nonzero(red[k]).flatten().tolist() == [2 + 2 * k, 3 + 2 * k]
        assert red[k, 2 + 2 * k] == pytest.approx(1 / PIXEL_STD[0])


@pytest.mark.parametrize("bias", [True, False])
def test_first_convolution_starts_from_the_mean_over_colours(bias: bool) -> None:
    conv = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=bias)
    adapted = adapt_first_conv(conv, 15)
    assert adapted.weight.shape == (8, 15, 7, 7) and adapted.weight.requires_grad
    assert (adapted.stride, adapted.padding) == (conv.stride, conv.padding)
    for channel in range(15):
        assert torch.equal(adapted.weight[:, channel], conv.weight.mean(dim=1))
    # five grey pictures on top of each other count five times
    grey = torch.rand(1, 1, 16, 16)
    offset = conv.bias[:, None, None] if conv.bias is not None else 0.0
    once, five = conv(grey.expand(-1, 3, -1, -1)) - offset, adapted(grey.expand(-1, 15, -1, -1)) - offset
    assert torch.allclose(five, 5 * once, atol=1e-4)
    with torch.no_grad():
        adapted.weight.zero_()
    assert conv.weight.any()


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="positive number of seconds, got 0"):
        difference_times_s(np.zeros((1, 8)), end_s=1.0, spacing_s=0)
    with pytest.raises(InputError, match=r"\(segments, moments\), got \(8,\)"):
        difference_times_s(np.zeros(8), end_s=1.0)
    with pytest.raises(InputError, match=r"\(n, T, 6, H, W, 3\) uint8, got \(1, 1, 5, 2, 2, 3\)"):
        differences(torch.zeros((1, 1, 5, 2, 2, 3), dtype=torch.uint8))
    with pytest.raises(InputError, match=r"got .* torch.float32"):
        differences(torch.zeros((1, 1, 6, 2, 2, 3)))
    with pytest.raises(InputError, match="3 input channels in one group, got 15 in 1"):
        adapt_first_conv(nn.Conv2d(15, 8, 3))
    with pytest.raises(InputError, match="at least 1 new input channel, got 0"):
        adapt_first_conv(nn.Conv2d(3, 8, 3), 0)
