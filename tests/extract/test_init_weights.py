"""The settings that name a file of weights: extraction without fine-tuning, and fine-tuning from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from talstack.extract.card import BackboneCard, load_card
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.plan import plan_extraction
from talstack.extract.schedule import run_items
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.finetune import finetune
from talstack.extract.weights import build_network, load_backbone
from talstack.io.errors import MissingInputError, ModelError
from talstack.io.manifest import Manifest

SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=2, frame_size=32)
EXTRACT = ExtractConfig(init="random", init_arch="resnet18_narrow", modalities=("rgb",), runtime="folded")
FINETUNE = FinetuneConfig(arch="resnet18_narrow", imagenet=False, holdout_folds=1, epochs=1, batch_size=4, dropout=0.0)


def write_checkpoint(path: Path, *, shift: bool, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    card = BackboneCard("resnet18_narrow", shift, 1.0, 2, 32, ("a",), ())
    state = build_network(card).net.state_dict()
    torch.save({"state_dict": {f"module.base_model.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def test_extraction_from_a_checkpoint_has_a_fingerprint_of_its_own(toy_data: Path, tmp_path: Path) -> None:
    def plan(config: ExtractConfig) -> object:
        return plan_extraction(toy_data, tmp_path / "store", config=config, sampling=SAMPLING, views=["front"])

    weights = str(write_checkpoint(tmp_path / "w.pth", shift=True))
    made = plan(replace(EXTRACT, init_weights=weights))
    assert made.sources[0].card.shift
    assert {row.outcome for row in run_items(made.items(made.keys, 1), jobs=1)} == {"done"}
    assert plan(replace(EXTRACT, init_weights=weights)).missing(made.keys) == []
    assert len(plan(EXTRACT).missing(plan(EXTRACT).keys)) == len(made.keys), "random weights are others"
    write_checkpoint(tmp_path / "w.pth", shift=False, seed=1)
    other = plan(replace(EXTRACT, init_weights=weights))
    assert not other.sources[0].card.shift and len(other.missing(other.keys)) == len(made.keys)
    with pytest.raises(ModelError, match="not weights of resnet18 but of resnet18_narrow"):
        plan(replace(EXTRACT, init_weights=weights, init_arch="resnet18"))
    with pytest.raises(MissingInputError, match="no such checkpoint file"):
        plan(replace(EXTRACT, init_weights=str(tmp_path / "none.pth")))


def test_what_a_start_has_seen_counts_as_seen(toy_data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(toy_data)
    first = finetune(manifest, tmp_path / "first", config=FINETUNE, sampling=SAMPLING)
    pretrained = replace(first, seen=("elsewhere",))
    from talstack.extract.weights import save_backbone

    save_backbone(tmp_path / "other", load_backbone(tmp_path / "first")[0], pretrained)
    config = replace(FINETUNE, weights=str(tmp_path / "other"), lr=1e-9, causal=True)
    card = finetune(manifest, tmp_path / "second", config=config, sampling=SAMPLING)
    assert set(card.seen) == {"elsewhere", *first.seen} and load_card(tmp_path / "second").causal
    start, end = (load_backbone(tmp_path / name)[0].net.conv1.weight for name in ("first", "second"))
    assert torch.allclose(start, end, atol=1e-5), "it started there"
    with pytest.raises(MissingInputError, match="no such checkpoint file or backbone folder"):
        finetune(manifest, tmp_path / "third", config=replace(config, weights="nowhere"), sampling=SAMPLING)
