import numpy as np
import pytest
import torch
from torchvision.models import resnet101

from talstack.extract.backbone import TSMBackbone
from talstack.extract.image_networks import insert_shift
from talstack.extract.shift import TemporalShift, temporal_shift


def shift_by_the_definition(x: np.ndarray, num_frames: int) -> np.ndarray:
    """FACTS: channels [0:C//8] take the next frame's value, [C//8:2C//8] the previous one's, zeros at the ends."""
    fold = x.shape[1] // 8
    out = x.copy()
    for i in range(len(x)):
        t = i % num_frames
        out[i, :fold] = x[i + 1, :fold] if t + 1 < num_frames else 0
        out[i, fold : 2 * fold] = x[i - 1, fold : 2 * fold] if t > 0 else 0
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("num_frames", "channels"), [(8, 64), (4, 16), (1, 8), (3, 20)])
def test_shift_is_the_definition(num_frames: int, channels: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2 * num_frames, channels, 3, 5).contiguous(memory_format=memory_format)
    shifted = temporal_shift(x, num_frames)
    assert np.array_equal(shifted.numpy(), shift_by_the_definition(x.numpy(), num_frames))
    assert shifted.is_contiguous(memory_format=memory_format)


def causal_by_the_definition(x: np.ndarray, num_frames: int) -> np.ndarray:
    """FACTS: only the first C // 8 channels, from the previous time step."""
    fold, out = x.shape[1] // 8, x.copy()
    for i in range(len(x)):
        out[i, :fold] = x[i - 1, :fold] if i % num_frames else 0
    return out


@pytest.mark.parametrize(("num_frames", "channels"), [(8, 64), (1, 8), (3, 20)])
def test_causal_shift_is_the_definition(num_frames: int, channels: int) -> None:
    x = torch.randn(2 * num_frames, channels, 3, 5)
    assert np.array_equal(
        temporal_shift(x, num_frames, causal=True).numpy(), causal_by_the_definition(x.numpy(), num_frames)
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fold_div", [2, 8])
def test_the_gradient_is_the_derivative(causal: bool, fold_div: int) -> None:
    x = torch.randn(6, 8, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: temporal_shift(x, 3, fold_div=fold_div, causal=causal), x)
    assert torch.autograd.gradgradcheck(lambda x: temporal_shift(x, 3, fold_div=fold_div, causal=causal) ** 2, x)


@pytest.mark.parametrize("arch", ["resnet18_narrow", "mobilenet_v2", "efficientnet_lite0"])
def test_a_causal_network_sees_no_later_frame(arch: str) -> None:
    torch.manual_seed(0)
    frames = torch.randn(4, 3, 32, 32)
    for causal in (True, False):
        model = TSMBackbone(arch, num_frames=4, num_actions=3, num_scenes=2, causal=causal).eval()
        changed = frames.clone()
        changed[3] += 1
        with torch.inference_mode():
            moved = (model.net(changed) - model.net(frames)).abs().amax(1)
        assert moved[3] > 0 and (moved[:3].max() == 0) == causal


def test_gradient_flows_back_to_the_frame_it_came_from() -> None:
    x = torch.randn(4, 8, 1, 1, requires_grad=True)
    temporal_shift(x, 4)[0, 0].sum().backward()
    expected = torch.zeros(4, 8, 1, 1)
    expected[1, 0] = 1  # frame 0 shows channel 0 of frame 1
    assert torch.equal(x.grad, expected)


def test_shift_sits_in_the_residual_branch_of_every_block() -> None:
    net = TSMBackbone("resnet18", num_frames=4, num_actions=3, num_scenes=2).net
    blocks = [block for stage in (net.layer1, net.layer2, net.layer3, net.layer4) for block in stage]
    assert all(isinstance(block.conv1, TemporalShift) for block in blocks)
    assert not any(isinstance(m, TemporalShift) for b in blocks if b.downsample for m in b.downsample.modules())


def test_deep_network_shifts_every_second_block() -> None:
    net = resnet101(weights=None)
    insert_shift(net, 8)
    shifted = [isinstance(block.conv1, TemporalShift) for block in net.layer3]
    assert shifted == [i % 2 == 0 for i in range(23)]


def test_only_the_shifted_network_sees_the_order_of_frames() -> None:
    torch.manual_seed(0)
    frames = torch.randn(2, 8, 3, 32, 32)
    for shift in (True, False):
        net = TSMBackbone("resnet18_narrow", num_frames=8, num_actions=3, num_scenes=2, shift=shift).eval()
        with torch.inference_mode():
            forward, backward = net(frames).features, net(frames.flip(1)).features
        assert torch.allclose(forward, backward, atol=1e-4) != shift
