"""Weights of other programs: our logits against a plain TSM written here, and what must be refused."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from talstack.extract.card import BackboneCard
from talstack.extract.checkpoints import load_checkpoint, read_checkpoint
from talstack.extract.weights import build_network, checkpoint_source, load_source, save_backbone, start_from
from talstack.io.errors import ConfigError, MissingInputError, ModelError

CLASSES, FRAMES, SIZE = 7, 3, 64
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
MOBILE_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                 (6, 320, 1, 1))  # fmt: skip


def card_of(arch: str, **changes: object) -> BackboneCard:
    actions = tuple(f"class {i}" for i in range(CLASSES - 1))
    return replace(BackboneCard(arch, True, 1.0, FRAMES, SIZE, actions, ("a", "b")), **changes)


class PlainTSM:
    """A second implementation: draws the weights, writes them down in a program's layout, and computes with them."""

    def __init__(self, arch: str, layout: str, *, shift: bool = True, prefix: str = "") -> None:
        self.arch, self.layout, self.shift, self.prefix = arch, layout, shift, prefix
        self.state: dict[str, torch.Tensor] = {}
        self.rng = torch.Generator().manual_seed(0)
        self.frames: torch.Tensor | None = None

    def logits(self, frames: torch.Tensor) -> torch.Tensor:
        """Return (B, classes) of (B, T, 3, H, W)."""
        x = frames.flatten(0, 1)
        pooled = (self._mobilenet(x) if self.arch == "mobilenet_v2" else self._resnet(x)).mean((2, 3))
        name = self.prefix + ("new_fc" if self.layout == "tsm" else "cls_head.fc_cls")
        weight = self._draw(f"{name}.weight", (CLASSES, pooled.shape[1]), scale=0.3)
        bias = self._draw(f"{name}.bias", (CLASSES,))
        return (pooled @ weight.T + bias).unflatten(0, (-1, FRAMES)).mean(1)

    def _draw(self, key: str, shape: tuple[int, ...], *, scale: float = 0.1, centre: float = 0.0) -> torch.Tensor:
        if key not in self.state:
            self.state[key] = centre + scale * torch.randn(shape, generator=self.rng)
        return self.state[key]

    def _convolve(
        self, x: torch.Tensor, conv: str, norm: str, width: int, *, kernel: int, stride: int = 1, groups: int = 1
    ) -> torch.Tensor:
        fan = x.shape[1] // groups * kernel**2
        shape = (width, x.shape[1] // groups, kernel, kernel)
        weight = self._draw(f"{self._base()}{conv}.weight", shape, scale=(2 / fan) ** 0.5)
        x = functional.conv2d(x, weight, None, stride, kernel // 2, 1, groups)
        name = f"{self._base()}{norm}"
        scale = self._draw(f"{name}.weight", (width,), centre=0.7)
        offset, mean = self._draw(f"{name}.bias", (width,)), self._draw(f"{name}.running_mean", (width,))
        if f"{name}.running_var" not in self.state:
            self.state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.rng)
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(5)
        variance = self.state[f"{name}.running_var"]
        vector = (None, slice(None), None, None)
        return (x - mean[vector]) / (variance[vector] + 1e-5).sqrt() * scale[vector] + offset[vector]

    def _base(self) -> str:
        return self.prefix + ("base_model." if self.layout == "tsm" else "backbone.")

    def _shifted(self, x: torch.Tensor) -> torch.Tensor:
        if not self.shift:
            return x
        x, fold = x.unflatten(0, (-1, FRAMES)), x.shape[1] // 8
        out = torch.zeros_like(x)
        for t in range(FRAMES):
            out[:, t, 2 * fold :] = x[:, t, 2 * fold :]
            if t + 1 < FRAMES:
                out[:, t, :fold] = x[:, t + 1, :fold]
            if t > 0:
                out[:, t, fold : 2 * fold] = x[:, t - 1, fold : 2 * fold]
        return out.flatten(0, 1)

    def _resnet(self, x: torch.Tensor) -> torch.Tensor:
        mm = self.layout == "mmaction2"
        stem = ("conv1.conv", "conv1.bn") if mm else ("conv1", "bn1")
        x = functional.max_pool2d(self._convolve(x, *stem, 64, kernel=7, stride=2).relu(), 3, 2, 1)
        depths, is_deep = DEPTHS[self.arch], self.arch != "resnet18"
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride, width = 2 if stage and not block else 1, 64 * 2**stage
                shifts = self.shift and block % (2 if depths[2] >= 23 else 1) == 0
                x = self._block(x, f"layer{stage + 1}.{block}", width, stride, shifts=shifts, is_deep=is_deep)
        return x

    def _block(
        self, x: torch.Tensor, name: str, width: int, stride: int, *, shifts: bool, is_deep: bool
    ) -> torch.Tensor:
        mm, net = self.layout == "mmaction2", ".net" if shifts else ""
        names = [
            (f"{name}.conv{i}.conv", f"{name}.conv{i}.bn") if mm else (f"{name}.conv{i}", f"{name}.bn{i}")
            for i in (1, 2, 3)
        ]
        first = (names[0][0] + net, names[0][1])
        y = self._shifted(x) if shifts else x
        if is_deep:
            y = self._convolve(y, *first, width, kernel=1).relu()
            y = self._convolve(y, *names[1], width, kernel=3, stride=stride).relu()
            y = self._convolve(y, *names[2], 4 * width, kernel=1)
        else:
            y = self._convolve(y, *first, width, kernel=3, stride=stride).relu()
            y = self._convolve(y, *names[1], width, kernel=3)
        if y.shape != x.shape:
            shortcut = ("downsample.conv", "downsample.bn") if mm else ("downsample.0", "downsample.1")
            x = self._convolve(x, *(f"{name}.{part}" for part in shortcut), y.shape[1], kernel=1, stride=stride)
        return (x + y).relu()

    def _mobilenet(self, x: torch.Tensor) -> torch.Tensor:
        mm, number = self.layout == "mmaction2", 0
        x = self._convolve(x, *(("conv1.conv", "conv1.bn") if mm else ("features.0.0", "features.0.1")), 32, kernel=3,
                           stride=2).clamp(0, 6)  # fmt: skip
        for stage, (expand, width, depth, first_stride) in enumerate(MOBILE_STAGES):
            for block in range(depth):
                number += 1
                stride = first_stride if block == 0 else 1
                name = f"layer{stage + 1}.{block}.conv" if mm else f"features.{number}.conv"
                x = self._inverted(x, name, width, stride, expand=expand)
        last = ("conv2.conv", "conv2.bn") if mm else ("features.18.0", "features.18.1")
        return self._convolve(x, *last, 1280, kernel=1).clamp(0, 6)

    def _inverted(self, x: torch.Tensor, name: str, width: int, stride: int, *, expand: int) -> torch.Tensor:
        mm, residual = self.layout == "mmaction2", stride == 1 and x.shape[1] == width
        shifts, hidden, y, at = self.shift and residual and expand != 1, x.shape[1] * expand, x, 0
        if expand != 1:
            net = ".net" if shifts else ""
            names = (f"{name}.0{net}.conv", f"{name}.0{net}.bn") if mm else (f"{name}.0{net}", f"{name}.1")
            y, at = self._convolve(self._shifted(x) if shifts else x, *names, hidden, kernel=1).clamp(0, 6), 1
        names = (f"{name}.{at}.conv", f"{name}.{at}.bn") if mm else (f"{name}.{3 * at}", f"{name}.{3 * at + 1}")
        y = self._convolve(y, *names, hidden, kernel=3, stride=stride, groups=hidden).clamp(0, 6)
        at += 1
        names = (f"{name}.{at}.conv", f"{name}.{at}.bn") if mm else (f"{name}.{3 * at}", f"{name}.{3 * at + 1}")
        y = self._convolve(y, *names, width, kernel=1)
        return x + y if residual else y


def make_frames() -> torch.Tensor:
    return torch.randn(2, FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arch", "layout"),
    [(arch, layout) for arch in ("resnet18", "resnet50", "mobilenet_v2") for layout in ("tsm", "mmaction2")]
    + [("resnet101", "tsm")],
)
def test_logits_are_those_of_a_plain_tsm(arch: str, layout: str, tmp_path: Path) -> None:
    plain, frames = PlainTSM(arch, layout, prefix="module." if layout == "tsm" else ""), make_frames()
    expected = plain.logits(frames)
    torch.save({"state_dict": plain.state, "epoch": 50}, tmp_path / "ckpt.pth.tar")
    weights = read_checkpoint(tmp_path / "ckpt.pth.tar")
    model = build_network(card_of(arch)).eval()
    notes = load_checkpoint(model, weights, arch=arch, where="here")
    with torch.inference_mode():
        found = model(frames).logits
    assert weights.layout == layout and weights.shifted
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert "1/8 of the channels from both sides is assumed" in notes[1]
    assert "its classifier of 7 classes is the action classifier" in notes[-1]


def test_a_file_without_a_shift_is_told(tmp_path: Path) -> None:
    plain = PlainTSM("resnet18", "tsm", shift=False, prefix="module.")
    expected = plain.logits(make_frames())
    torch.save(plain.state, tmp_path / "tsn.pth")
    weights = read_checkpoint(tmp_path / "tsn.pth")
    model = build_network(card_of("resnet18", shift=False)).eval()
    notes = load_checkpoint(model, weights, arch="resnet18", where="here")
    assert "taken as weights of the plain network" in notes[1]
    with torch.inference_mode():
        assert (model(make_frames()).logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "model.base_model.", "net."])
def test_prefixes_do_not_matter(prefix: str, tmp_path: Path) -> None:
    source = build_network(card_of("resnet18", shift=False))
    state = {f"{prefix}{name}": tensor for name, tensor in source.net.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    model = build_network(card_of("resnet18"))
    notes = load_checkpoint(model, read_checkpoint(tmp_path / "w.safetensors"), arch="resnet18", where="here")
    assert torch.equal(model.net.layer1[0].conv1.net.weight, source.net.layer1[0].conv1.weight)
    assert "before which a shift now stands" in notes[1] and notes[-1] == "no classifier in it"


def test_another_number_of_classes_is_left_out_and_said() -> None:
    plain = PlainTSM("resnet18", "tsm")
    plain.logits(make_frames())
    model = build_network(card_of("resnet18", actions=("x",)))
    before = model.action.weight.clone()
    from talstack.extract.checkpoint_keys import plain_state

    notes = load_checkpoint(model, plain_state(plain.state), arch="resnet18", where="here")
    assert notes[-1] == "its classifier of 7 classes is left out: 2 are needed"
    assert torch.equal(model.action.weight, before)


@pytest.mark.parametrize(("given", "wanted"), [("resnet50", "resnet101"), ("resnet50", "resnext50_32x4d")])
def test_another_architecture_is_refused_by_name(given: str, wanted: str, tmp_path: Path) -> None:
    torch.save(build_network(card_of(given)).net.state_dict(), tmp_path / "w.pth")
    weights = read_checkpoint(tmp_path / "w.pth")
    with pytest.raises(ModelError, match=f"not weights of {wanted} but of {given}; missing: .*; unexpected: .*"):
        load_checkpoint(build_network(card_of(wanted)), weights, arch=wanted, where="here")


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    state = build_network(card_of("resnet18")).net.state_dict()
    del state["layer1.0.bn1.weight"]
    torch.save({**state, "layer2.0.nl.g.weight": torch.zeros(1)}, tmp_path / "w.pth")
    expected = r"missing: layer1\.0\.bn1\.weight; unexpected: layer2\.0\.nl\.g\.weight; of another shape: none"
    with pytest.raises(ModelError, match=expected):
        load_checkpoint(
            build_network(card_of("resnet18")), read_checkpoint(tmp_path / "w.pth"), arch="resnet18", where="here"
        )


def test_a_shift_around_whole_blocks_is_refused() -> None:
    from talstack.extract.checkpoint_keys import plain_state

    state = build_network(card_of("resnet18", shift=False)).net.state_dict()
    state = {re.sub(r"^(layer\d\.\d)\.", r"\1.net.", name): tensor for name, tensor in state.items()}
    with pytest.raises(ModelError, match="temporal shift stands at other places"):
        load_checkpoint(build_network(card_of("resnet18")), plain_state(state), arch="resnet18", where="here")


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_no_code_in_a_file_is_run(write: object, tmp_path: Path) -> None:
    trace = tmp_path / "was_here"
    write({"state_dict": {"conv1.weight": Hostile(trace)}}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="w.pth: holds more than tensors and plain values"):
        read_checkpoint(tmp_path / "w.pth")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such checkpoint file"):
        read_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ModelError, match=name):
        read_checkpoint(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "e.pth")
    with pytest.raises(ModelError, match="no weights in it"):
        read_checkpoint(tmp_path / "e.pth")


def test_extraction_takes_the_shift_from_the_file(tmp_path: Path) -> None:
    plain = PlainTSM("resnet18", "mmaction2")
    expected = plain.logits(make_frames())
    torch.save({"state_dict": plain.state, "meta": {}}, tmp_path / "w.pth")
    source = checkpoint_source(card_of("resnet18", shift=False), tmp_path / "w.pth")
    assert source.card.shift and source.identity["checkpoint_sha256"] == source.checkpoint_sha256 != ""
    with torch.inference_mode():
        found = load_source(source)(make_frames()).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    torch.save({"state_dict": plain.state}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="has changed since"):
        load_source(source)
    with pytest.raises(ConfigError, match="goes to --backbone"):
        checkpoint_source(card_of("resnet18"), tmp_path)


def test_training_can_start_from_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    card = card_of("resnet18_narrow", seen=("r1", "r2"))
    first = build_network(card)
    save_backbone(tmp_path, first, card)
    second = build_network(card)
    assert "2 recordings" in start_from(second, card, tmp_path)[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = replace(card, actions=("x", "y"), causal=True)
    third = build_network(other)
    notes = start_from(third, other, tmp_path)
    assert notes[1:] == ("causal was False and is True", "its action classifier is left out: the classes are others")
    assert torch.equal(third.net.conv1.weight, first.net.conv1.weight)
    with pytest.raises(ModelError, match=r"a backbone of resnet18_narrow; this one is to be resnet18"):
        start_from(build_network(card_of("resnet18")), card_of("resnet18"), tmp_path)
