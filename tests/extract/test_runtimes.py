"""Every runtime against the module it was made from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from talstack.extract import folded_steps, networks, runtimes
from talstack.extract.backbone import TSMBackbone
from talstack.extract.card import BackboneCard, BackboneSource
from talstack.extract.folding import fold_network
from talstack.extract.item import NetworkOrder
from talstack.extract.motion import differences, motion_backbone
from talstack.extract.networks import runtime_of
from talstack.extract.rgbdiff import NUM_FRAMES
from talstack.extract.runtime_choice import (
    CANDIDATES,
    TOLERANCE,
    Choice,
    cache_file,
    recall,
    remember,
    with_fastest_runtime,
)
from talstack.extract.runtime_measure import check_agreement, measure_runtimes
from talstack.extract.runtimes import (
    Computed,
    EagerRuntime,
    FoldedRuntime,
    build_runtime,
    has_compiler,
    is_installed,
    largest_difference,
)
from talstack.extract.shift import TemporalShift
from talstack.io.errors import ConfigError, ModelError
from talstack.io.files import read_json

SIZE, FRAMES = 64, 4


def make_model(
    arch: str = "resnet18_narrow", *, shift: bool = True, num_frames: int = FRAMES, causal: bool = False
) -> TSMBackbone:
    """Return a network whose batch norms do something."""
    torch.manual_seed(0)
    model = TSMBackbone(arch, num_frames=num_frames, num_actions=5, num_scenes=3, shift=shift, causal=causal).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def make_pixels(segments: int = 2, num_frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    shape = (segments, num_frames, size, size, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", ["folded", "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("arch", "shift"), [("resnet18_narrow", True), ("resnet18_narrow", False), ("resnet50", True), ("resnet18", True)]
)
def test_a_runtime_computes_what_the_module_does(name: str, arch: str, shift: bool) -> None:
    if name == "openvino" and not is_installed(name):
        pytest.skip("openvino is an extra")
    model, pixels = make_model(arch, shift=shift), make_pixels()
    reference = EagerRuntime(model).run(pixels)
    found = build_runtime(name, model, frame_size=SIZE, threads=1).run(pixels)
    for part in ("features", "logits", "scene_logits"):
        expected = getattr(reference, part)
        np.testing.assert_allclose(getattr(found, part), expected, atol=TOLERANCE * np.abs(expected).max())
        assert getattr(found, part).dtype == np.float32


DEEP = [pytest.param(arch, False, marks=pytest.mark.slow) for arch in ("resnet101", "resnext101_32x8d")]


@pytest.mark.parametrize(
    ("arch", "causal"),
    [("resnet34", False), ("resnext50_32x4d", False), ("mobilenet_v2", False), ("efficientnet_lite0", False),
     ("resnet18_narrow", True), ("mobilenet_v2", True), ("efficientnet_lite0", True), *DEEP],
)  # fmt: skip
def test_every_architecture_runs_in_every_runtime(arch: str, causal: bool) -> None:
    size = 72  # halved to odd sizes, where TensorFlow's padding differs from torch's
    model, pixels = make_model(arch, num_frames=3, causal=causal), make_pixels(1, 3, size)
    reference = EagerRuntime(model).run(pixels)
    assert np.isfinite(reference.features).all() and reference.features.std() > 0
    for name in filter(is_installed, ("onnxruntime", "openvino")):
        runtime = build_runtime(name, model, frame_size=size, threads=1)
        check_agreement(runtime, runtime.run(pixels), reference)
    folded = build_runtime("folded", model, frame_size=size, threads=1)
    check_agreement(folded, folded.run(pixels), reference)


@pytest.mark.parametrize("arch", ["resnext50_32x4d", "mobilenet_v2", "efficientnet_lite0"])
def test_differences_go_into_every_architecture(arch: str) -> None:
    model = motion_backbone(make_model(arch, num_frames=2))
    pixels = np.random.default_rng(1).integers(0, 256, (1, 2, NUM_FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    reference = EagerRuntime(model).run(pixels)
    by_hand = model(differences(torch.from_numpy(pixels), model.normalisation)).features.detach().numpy()
    np.testing.assert_allclose(reference.features, by_hand, atol=TOLERANCE * np.abs(by_hand).max())
    for name in ("folded", "onnxruntime"):
        runtime = build_runtime(name, model, frame_size=SIZE, threads=1)
        check_agreement(runtime, runtime.run(pixels), reference)


def test_pixels_are_standardised_as_the_weights_expect() -> None:
    """A grey of level 127 is EfficientNet-Lite's zero, in every runtime."""
    model = make_model("efficientnet_lite0", num_frames=1)
    grey = np.full((1, 1, SIZE, SIZE, 3), 127, dtype=np.uint8)
    expected = model(torch.zeros(1, 1, 3, SIZE, SIZE)).features.detach().numpy()
    for name in ("eager", "folded", "onnxruntime"):
        found = build_runtime(name, model, frame_size=SIZE, threads=1).run(grey).features
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


def test_activations_and_additions_are_inside_the_convolutions() -> None:
    for arch in ("resnet18", "mobilenet_v2"):
        kinds = [fused.step.kind for fused in folded_steps.fuse_steps(fold_network(make_model(arch).net))]
        assert not {"relu", "relu6", "add"} & set(kinds)


def test_a_network_that_the_graph_cannot_express_is_left_to_the_others() -> None:
    model = make_model("resnet18_narrow", num_frames=1)
    for module in model.modules():
        if isinstance(module, TemporalShift):
            module.fold_div = 2  # nothing of a lone frame stays in place
    choice = measure_runtimes(model, ("onnxruntime", "folded"), frame_size=SIZE, threads=1)
    assert choice.name == "folded" and "no channel of its own" in choice.rejected["onnxruntime"]


@pytest.mark.parametrize("name", ["folded", "onnxruntime"])
def test_the_shift_is_in_every_runtime(name: str) -> None:
    plain = build_runtime(name, make_model(shift=False), frame_size=SIZE, threads=1)
    shifted = build_runtime(name, make_model(shift=True), frame_size=SIZE, threads=1)
    pixels = make_pixels()
    backwards = np.ascontiguousarray(pixels[:, ::-1])
    same = largest_difference(plain.run(backwards), plain.run(pixels))
    changed = largest_difference(shifted.run(backwards), shifted.run(pixels))
    assert same < TOLERANCE < 0.01 < changed  # without a shift the order of frames does not matter


def test_a_deep_network_shifts_every_second_block() -> None:
    """ResNet-101's rule; the blocks between read tensors that were written in parts."""
    torch.manual_seed(0)
    model = make_model("resnet50")
    stage = model.net.layer2
    stage[1].conv1 = stage[1].conv1.net
    reference = EagerRuntime(model).run(make_pixels())
    for name in ("folded", "onnxruntime"):
        found = build_runtime(name, model, frame_size=SIZE, threads=1).run(make_pixels())
        check_agreement(build_runtime(name, model, frame_size=SIZE, threads=1), found, reference)


@pytest.mark.parametrize("name", ["folded", "onnxruntime"])
def test_stacked_differences_go_in_as_well(name: str) -> None:
    model = motion_backbone(make_model())
    shape = (2, FRAMES, NUM_FRAMES, SIZE, SIZE, 3)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    reference = model(differences(torch.from_numpy(pixels))).features.detach().numpy()
    found = build_runtime(name, model, frame_size=SIZE, threads=1).run(pixels).features
    np.testing.assert_allclose(found, reference, atol=TOLERANCE * np.abs(reference).max())
    assert measure_runtimes(model, CANDIDATES, frame_size=SIZE, threads=1).rejected == {}


@pytest.mark.parametrize("name", ["folded", "onnxruntime"])
def test_one_frame_per_segment(name: str) -> None:
    model, pixels = make_model(num_frames=1), make_pixels(num_frames=1)
    found = build_runtime(name, model, frame_size=SIZE, threads=1).run(pixels)
    assert largest_difference(found, EagerRuntime(model).run(pixels)) < TOLERANCE


@pytest.mark.parametrize("name", ["folded", "onnxruntime"])
def test_features_do_not_depend_on_the_batch(name: str) -> None:
    runtime, pixels = build_runtime(name, make_model(), frame_size=SIZE, threads=1), make_pixels(3)
    together = runtime.run(pixels)
    for row in range(3):
        alone = runtime.run(pixels[row : row + 1])
        np.testing.assert_allclose(alone.features[0], together.features[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["folded", "onnxruntime", "openvino"])
def test_a_large_batch_is_computed_in_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "openvino" and not is_installed(name):
        pytest.skip("openvino is an extra")
    runtime, pixels = build_runtime(name, make_model(), frame_size=SIZE, threads=1), make_pixels(5)
    together, sizes, compute = runtime.run(pixels), [], runtime._run
    monkeypatch.setattr(runtimes, "PASS_PIXELS", 2 * FRAMES * SIZE * SIZE)
    monkeypatch.setattr(runtime, "_run", lambda part: sizes.append(len(part)) or compute(part))
    found = runtime.run(pixels)
    assert sizes == [2, 2, 1]
    for part in ("features", "logits", "scene_logits"):
        np.testing.assert_allclose(getattr(found, part), getattr(together, part), rtol=1e-5, atol=1e-6)


def test_without_the_fused_operators_the_features_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, pixels = build_runtime("folded", make_model(), frame_size=SIZE, threads=1), make_pixels()
    before = runtime.run(pixels)
    monkeypatch.setattr(folded_steps, "HAS_FUSED", False)
    assert largest_difference(runtime.run(pixels), before) < TOLERANCE


def test_folding_refuses_what_it_does_not_know() -> None:
    model = make_model()
    with pytest.raises(ModelError, match="evaluation mode"):
        fold_network(model.net.train())
    model.net.eval().relu = nn.GELU()
    with pytest.raises(ModelError, match=r"GELU.*runtime = eager"):
        fold_network(model.net)


def test_unknown_and_missing_runtimes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="expected one of eager"):
        build_runtime("tensorrt", make_model(), frame_size=SIZE, threads=1)
    monkeypatch.setattr("talstack.extract.runtimes.is_installed", lambda name: False)
    with pytest.raises(ConfigError, match="pip install openvino"):
        build_runtime("openvino", make_model(), frame_size=SIZE, threads=1)


def make_order(**changes: object) -> NetworkOrder:
    card = BackboneCard("resnet18_narrow", False, 1.0, FRAMES, SIZE, ("x",), ())
    return NetworkOrder(BackboneSource(card), **changes)


def test_the_fastest_is_measured_once_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    order = with_fastest_runtime(make_order())
    choice = recall(order.source, 1)
    assert choice is not None and {"folded", "onnxruntime", "eager"} <= set(choice.segments_per_s)
    assert order.runtime == choice.name == max(choice.segments_per_s, key=lambda name: choice.segments_per_s[name])
    monkeypatch.setattr("talstack.extract.networks.measure_runtimes", lambda *a, **k: Choice("eager"))
    assert with_fastest_runtime(make_order()) == order, "not measured again"
    assert with_fastest_runtime(make_order(threads=2)).runtime == "eager", "another number of threads is"
    assert len(read_json(cache_file())) == 2
    assert with_fastest_runtime(make_order(runtime="folded")).runtime == "folded", "what is asked for stays"
    cache_file().write_text("[1")
    assert with_fastest_runtime(make_order()).runtime == "eager"


def test_what_cannot_be_remembered_is_measured_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(make_order().source, 1, Choice("folded"))
    assert recall(make_order().source, 1) is None


def test_a_worker_computes_by_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_of(make_order(runtime="onnxruntime"), "rgb").name.startswith("onnxruntime")
    assert runtime_of(make_order(runtime="folded"), "rgbdiff").name.startswith("torch folded")
    sixteen = make_order(precision="bfloat16")
    assert runtime_of(sixteen, "rgb").name.startswith("torch folded") and "bfloat16" in runtime_of(sixteen, "rgb").name
    monkeypatch.setattr("talstack.extract.networks.recall", lambda source, threads: Choice("eager"))
    assert runtime_of(make_order(threads=3), "rgb").name.startswith("torch eager")


def test_a_runtime_that_computes_something_else_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(EagerRuntime):
        def run(self, pixels: np.ndarray) -> Computed:
            found = super().run(pixels)
            return Computed(found.features * 1.01, found.logits, found.scene_logits)

    def build(name: str, model: TSMBackbone, **settings: int) -> EagerRuntime:
        return Wrong(model) if name == "folded" else EagerRuntime(model)

    monkeypatch.setattr("talstack.extract.runtime_measure.build_runtime", build)
    choice = measure_runtimes(make_model(), ("folded", "eager"), frame_size=SIZE, threads=1)
    assert choice.name == "eager"
    assert "differ from the module's by 0.01" in choice.rejected["folded"]


def test_when_nothing_else_works_the_module_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, *args: object, **settings: int) -> None:
        raise ImportError("no such library")

    monkeypatch.setattr("talstack.extract.runtime_measure.build_runtime", build)
    choice = measure_runtimes(make_model(), ("onnxruntime",), frame_size=SIZE, threads=1)
    assert choice == Choice("eager", {}, {"onnxruntime": "ImportError: no such library"})


@pytest.mark.slow
def test_compile_computes_what_the_module_does() -> None:
    if not has_compiler():
        pytest.skip("no C++ compiler here")
    model, pixels = make_model(), make_pixels()
    reference = EagerRuntime(make_model()).run(pixels)
    runtime = build_runtime("compile", model, frame_size=SIZE, threads=1)
    check_agreement(runtime, runtime.run(pixels), reference)
    assert largest_difference(runtime.run(pixels[:1]), Computed(reference.features[:1], *[np.zeros(1)] * 2)) < TOLERANCE


def test_without_a_compiler_compile_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talstack.extract.runtimes.has_compiler", lambda: False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        build_runtime("compile", make_model(), frame_size=SIZE, threads=1)
    choice = measure_runtimes(make_model(), ("compile", "folded"), frame_size=SIZE, threads=1)
    assert choice.name == "folded" and "compiler" in choice.rejected["compile"]


def test_16_bits_in_the_folded_network_move_features_a_little() -> None:
    pixels = make_pixels()
    reference = EagerRuntime(make_model()).run(pixels)
    found = FoldedRuntime(make_model(), precision="bfloat16").run(pixels)
    assert 1e-4 < largest_difference(found, reference) < 0.1 and found.features.dtype == np.float32


def test_16_bits_and_a_gpu_get_the_folded_network_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    order, here = make_order(runtime="auto", precision="bfloat16"), torch.device("cpu")
    assert "folded" in networks._build_folded(make_model(), here, order).name
    assert "eager" in networks._build_folded(make_model(), here, make_order(runtime="eager", precision="bfloat16")).name

    def wrong(self: FoldedRuntime, pixels: np.ndarray) -> Computed:
        found = EagerRuntime(make_model()).run(pixels)
        return Computed(found.features * 1.5, found.logits, found.scene_logits)

    monkeypatch.setattr(FoldedRuntime, "run", wrong)
    assert "eager" in networks._build_folded(make_model(), here, order).name
