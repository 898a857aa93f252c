"""int8 networks: what they compute, what they are made from, and that nothing mixes them with others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from talstack.extract.backbone import TSMBackbone
from talstack.extract.calibration import _publish, calibration_batches, choose_views
from talstack.extract.card import BackboneCard, BackboneSource
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.int8 import build_quantized, quantize
from talstack.extract.item import QuantizedNetwork
from talstack.extract.motion import motion_backbone
from talstack.extract.onnx_stacked import export_stacked
from talstack.extract.plan import ExtractionPlan, plan_extraction
from talstack.extract.rgbdiff import NUM_FRAMES
from talstack.extract.runtimes import EagerRuntime, OnnxRuntime, is_installed, largest_difference
from talstack.extract.schedule import run_items
from talstack.io.errors import ConfigError, MediaError, MissingInputError, ModelError
from talstack.io.extraction import FeatureSet
from talstack.io.files import sha256_file
from talstack.io.manifest import Manifest
from talstack.io.store_contents import scan_store

SIZE, FRAMES = 32, 4
SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=FRAMES, frame_size=SIZE)
CONFIG = ExtractConfig(init="random", init_arch="resnet18_narrow", precision="int8", modalities=("rgb",))
SOURCE = BackboneSource(BackboneCard("resnet18_narrow", False, 1.0, FRAMES, SIZE, ("clap", "wave"), ()))


def make_model(modality: str = "rgb") -> TSMBackbone:
    torch.manual_seed(0)
    model = TSMBackbone("resnet18_narrow", num_frames=FRAMES, num_actions=5, num_scenes=3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return motion_backbone(model) if modality == "rgbdiff" else model


def make_pixels(modality: str = "rgb", *, segments: int = 3, seed: int = 1) -> np.ndarray:
    moments = (FRAMES, NUM_FRAMES) if modality == "rgbdiff" else (FRAMES,)
    shape = (segments, *moments, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("modality", ["rgb", "rgbdiff"])
def test_the_stacked_graph_computes_what_the_module_does(modality: str) -> None:
    model, pixels = make_model(modality), make_pixels(modality)
    reference = EagerRuntime(model).run(pixels)
    found = OnnxRuntime(export_stacked(model, SIZE), threads=1).run(pixels)
    for part in ("features", "logits", "scene_logits"):
        expected = getattr(reference, part)
        np.testing.assert_allclose(getattr(found, part), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("modality", ["rgb", "rgbdiff"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_features_are_near_the_modules_and_not_equal(tmp_path: Path, modality: str, runtime: str) -> None:
    if not is_installed(runtime):
        pytest.skip("openvino is an extra")
    model, path = make_model(modality), tmp_path / "int8.onnx"
    path.write_bytes(quantize(model, [make_pixels(modality, seed=2)], frame_size=SIZE))
    made = build_quantized(QuantizedNetwork(modality, path, sha256_file(path), runtime), threads=1)
    pixels = make_pixels(modality)
    found, reference = made.run(pixels), EagerRuntime(model).run(pixels)
    assert 1e-4 < relative_error(found.features, reference.features) < 0.1
    backwards = made.run(np.ascontiguousarray(pixels[:, ::-1]))
    assert largest_difference(backwards, found) > 0.01, "the shift is in it"
    assert path.stat().st_size < 0.4 * len(export_stacked(model, SIZE)), "weights are bytes"
    assert runtime in made.name and made.name.endswith("int8")


def plan(data: Path, store: Path, **changes: object) -> ExtractionPlan:
    return plan_extraction(data, store, config=replace(CONFIG, **changes), sampling=SAMPLING)


def networks(store: Path) -> list[Path]:
    return sorted((store / "calibration").glob("*.onnx"))


def test_an_extraction_makes_its_network_once_and_records_it(toy_data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    planned = plan(toy_data, store)
    keys = planned.part((1, 1))
    rows = run_items(planned.items(keys, 1), jobs=1)
    assert {row.outcome for row in rows} == {"done"} and all("int8" in row.runtime for row in rows)
    (path,) = networks(store)
    assert planned.extraction.recipes["rgb"]["int8"] == {"sha256": sha256_file(path), "runtime": "onnxruntime"}
    before = path.stat().st_mtime_ns
    again = plan(toy_data, store)
    assert again.missing(again.keys) == [] and path.stat().st_mtime_ns == before
    planned.extraction.save(store)
    shard = FeatureSet.open(Manifest.load(toy_data), store).read("r0", "front", "rgb")
    assert shard is not None and shard.valid.all()
    assert [file.kind for file in scan_store(store).files if file.path == path] == ["network"]


def test_int8_float32_and_another_runtime_never_share_a_shard(toy_data: Path, tmp_path: Path) -> None:
    made = [plan(toy_data, tmp_path / "store", **changes) for changes in ({}, {"precision": "float32"})]
    if is_installed("openvino"):
        made.append(plan(toy_data, tmp_path / "store", runtime="openvino"))
    prints = [{key.fingerprint for key in planned.keys} for planned in made]
    assert all(not a & b for i, a in enumerate(prints) for b in prints[:i])
    assert len(networks(tmp_path / "store")) == 1


def test_a_data_set_that_grows_keeps_its_network(toy_data: Path, tmp_path: Path) -> None:
    before = plan(toy_data, tmp_path / "store").quantized
    manifest = Manifest.load(toy_data)
    fewer = replace(manifest, clips=manifest.clips.filter(pl.col("recording") != "r0"))
    fewer.save(tmp_path / "fewer")
    assert plan(tmp_path / "fewer", tmp_path / "store").quantized == before


def test_ranges_come_from_every_view_and_not_from_the_test_split(toy_data: Path) -> None:
    manifest = Manifest.load(toy_data)
    chosen = choose_views(manifest)
    assert {view for _, view in chosen[:2]} == {"ego", "front"}
    assert {recording for recording, _ in chosen} == {"r0", "r1", "r2"}
    all_test = replace(manifest, recordings=manifest.recordings.with_columns(split=pl.lit("test")))
    assert len(choose_views(all_test)) == 8
    first, second = ([*calibration_batches(manifest, SOURCE, "rgb")] for _ in range(2))
    assert len(first) == 6 and all((a == b).all() for a, b in zip(first, second, strict=True))


def test_without_a_readable_clip_there_are_no_ranges(toy_data: Path, tmp_path: Path) -> None:
    manifest = replace(Manifest.load(toy_data), media_root=tmp_path)
    with pytest.raises(MediaError, match="no clip gives a segment"):
        list(calibration_batches(manifest, SOURCE, "rgb"))


def test_a_network_that_is_gone_or_changed_is_refused(tmp_path: Path) -> None:
    network = QuantizedNetwork("rgb", tmp_path / "int8.onnx", "0" * 64, "onnxruntime")
    with pytest.raises(MissingInputError, match="run `talstack extract` again"):
        build_quantized(network, threads=1)
    network.path.write_bytes(b"x")
    with pytest.raises(ModelError, match="changed since"):
        build_quantized(network, threads=1)


def test_of_two_processes_that_make_a_network_the_first_wins(tmp_path: Path) -> None:
    path = tmp_path / "calibration" / "a-rgb.onnx"
    _publish(path, b"first")
    _publish(path, b"second")
    assert path.read_bytes() == b"first" and len(list(path.parent.iterdir())) == 1


def test_int8_has_its_own_runtimes() -> None:
    with pytest.raises(ConfigError, match=r"int8 needs runtime = onnxruntime.*'folded'"):
        replace(CONFIG, runtime="folded")
