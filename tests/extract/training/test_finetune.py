import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from talstack.extract.backbone import normalise
from talstack.extract.card import BackboneCard, load_card
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.plan import plan_extraction
from talstack.extract.schedule import run_items
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.finetune import finetune, split_recordings
from talstack.extract.training.trainer import Watcher
from talstack.extract.weights import WEIGHTS_FILE, build_network, load_backbone, save_backbone
from talstack.io.errors import ConfigError, InputError, LeakError, MissingInputError, ModelError, TalstackError
from talstack.io.extraction import FeatureSet
from talstack.io.manifest import Manifest

SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=4, frame_size=32)
CONFIG = FinetuneConfig(
    arch="resnet18_narrow",
    imagenet=False,
    holdout_folds=1,
    epochs=2,
    batch_size=4,
    segments_per_recording=2,
    lr=1e-3,
    dropout=0.2,
)


FAST = {
    "arch": "resnet18_narrow", "imagenet": False, "holdout_folds": 1, "epochs": 6, "batch_size": 4,
    "segments_per_recording": 2, "checkpoint_s": 0.0,
}  # fmt: skip


def test_training_keeps_the_held_out_folds_and_the_test_split_apart(toy_data: Path) -> None:
    manifest = Manifest.load(toy_data)
    held_out = manifest.folds.filter(pl.col("fold") == 0)["recording"].to_list()
    split = split_recordings(manifest, CONFIG)
    assert sorted([*split.train, *held_out]) == ["r0", "r1", "r2"]
    assert split.validation == ()
    with pytest.raises(LeakError, match="the stacker needs some it has not seen"):
        split_recordings(manifest, replace(CONFIG, holdout_folds=0))
    with pytest.raises(InputError, match="no training recording left after holding out 3 folds"):
        split_recordings(manifest, replace(CONFIG, holdout_folds=3))


def test_validation_folds_are_neither_trained_on_nor_held_out(toy_data: Path) -> None:
    manifest = Manifest.load(toy_data)
    fold = {number: name for name, number in manifest.folds.select("recording", "fold").iter_rows()}
    split = split_recordings(manifest, replace(CONFIG, validation_folds=1))
    assert (split.train, split.validation) == ((fold[2],), (fold[1],))
    with pytest.raises(LeakError, match="the stacker needs some it has not seen"):
        split_recordings(manifest, replace(CONFIG, holdout_folds=0, validation_folds=1))
    with pytest.raises(ConfigError, match="patience needs finetune.validation_folds"):
        replace(CONFIG, patience=3)


def test_a_val_split_lets_the_backbone_see_all_of_train(toy_data: Path) -> None:
    manifest = Manifest.load(toy_data)
    split = pl.when(pl.col("recording") == "r2").then(pl.lit("val")).otherwise("split").alias("split")
    manifest = replace(manifest, recordings=manifest.recordings.with_columns(split))
    assert split_recordings(manifest, replace(CONFIG, holdout_folds=0)).train == ("r0", "r1")


def test_finetuned_backbone_feeds_the_extraction(toy_data: Path, tmp_path: Path) -> None:
    manifest, epochs = Manifest.load(toy_data), []
    watcher = Watcher(epoch=lambda row, speed: epochs.append(row.epoch))
    config = replace(CONFIG, validation_folds=1)
    card = finetune(manifest, tmp_path / "bb", config=config, sampling=SAMPLING, watcher=watcher)
    assert epochs == [1, 2]
    split = split_recordings(manifest, config)
    assert (card.seen, card.validated) == (split.train, split.validation)
    assert card.training["folds_seen"] == [1, 2]
    assert card.training["history"][card.training["best_epoch"] - 1]["val_map"] is not None
    assert not (tmp_path / "bb" / "unfinished").exists()
    assert load_card(tmp_path / "bb") == card
    config = ExtractConfig(modalities=("rgb",))
    plan = plan_extraction(toy_data, tmp_path / "s", config=config, sampling=SAMPLING, backbone=tmp_path / "bb")
    run_items(plan.items(plan.keys, 1), jobs=1)
    plan.extraction.save(tmp_path / "s")
    features = FeatureSet.open(manifest, tmp_path / "s")
    assert features.seen == {*card.seen, *card.validated}
    shard = features.read("r3", "front", "rgb")
    assert shard.logits.shape == (4, 3)  # background and two actions
    assert shard.scene_logits.shape == (4, 2)
    with pytest.raises(ConfigError, match=r"frame_size is 64, but the backbone .* was trained with 32"):
        other = replace(SAMPLING, frame_size=64)
        plan_extraction(toy_data, tmp_path / "s", config=config, sampling=other, backbone=tmp_path / "bb")


def test_an_equal_training_is_not_repeated_and_another_is(toy_data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(toy_data)
    first = finetune(manifest, tmp_path / "bb", config=CONFIG, sampling=SAMPLING)
    again: list[int] = []
    watcher = Watcher(step=lambda done, total: again.append(done))
    other = replace(CONFIG, checkpoint_s=0.0)  # changes nothing about the weights
    assert finetune(manifest, tmp_path / "bb", config=other, sampling=SAMPLING, watcher=watcher) == first
    assert again == []
    moved = manifest.instances.with_columns(pl.col("end_s") + 0.25)
    changed = finetune(replace(manifest, instances=moved), tmp_path / "bb", config=CONFIG, sampling=SAMPLING)
    assert changed.training["fingerprint"] != first.training["fingerprint"]


def test_the_same_seed_gives_the_same_weights(toy_data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(toy_data)
    cards = [finetune(manifest, tmp_path / name, config=CONFIG, sampling=SAMPLING) for name in ("a", "b")]
    assert cards[0].weights_sha256 == cards[1].weights_sha256
    other = finetune(manifest, tmp_path / "c", config=replace(CONFIG, seed=1), sampling=SAMPLING)
    assert other.weights_sha256 != cards[0].weights_sha256


@pytest.mark.slow  # two trainings in processes of their own; test_trainer kills them inside one
def test_a_training_killed_hard_goes_on_and_ends_with_the_same_weights(toy_data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "c.toml"
    settings.write_text(
        "[sampling]\nframes_per_segment = 4\nframe_size = 32\n[finetune]\n"
        + "".join(f"{k} = {json.dumps(v)}\n" for k, v in FAST.items())
    )
    command = [sys.executable, "-P", "-m", "talstack.cli", "finetune", str(toy_data), "--config", str(settings)]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    kills = 0
    for pause in (0.0, 0.2):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "bb")], stderr=subprocess.DEVNULL)
        before = progress(tmp_path / "bb")
        while process.poll() is None and progress(tmp_path / "bb") == before:
            time.sleep(0.01)  # until it has written a checkpoint of its own
        time.sleep(pause)
        process.kill()
        kills += process.wait() != 0
    assert kills
    done = subprocess.run([*command, "--out", str(tmp_path / "bb")], check=True, capture_output=True, text=True)
    assert "fine-tuned" in done.stdout
    assert load_card(tmp_path / "bb").weights_sha256 == load_card(tmp_path / "whole").weights_sha256
    print(f"killed {kills} times, weights equal")


def progress(out: Path) -> int:
    """Return when the checkpoint was written, 0 without any."""
    return max((path.stat().st_mtime_ns for path in (out / "unfinished").glob("*.pt")), default=0)


def test_divergence_is_an_error_and_leaves_no_backbone(toy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TalstackError, match="the loss is not finite"):
        finetune(Manifest.load(toy_data), tmp_path / "bb", config=replace(CONFIG, lr=1e30), sampling=SAMPLING)
    with pytest.raises(MissingInputError, match="no backbone there"):
        load_card(tmp_path / "bb")


def test_normalised_pixels_have_the_published_mean_and_spread() -> None:
    grey = normalise(torch.full((1, 2, 2, 3), 128, dtype=torch.uint8))
    assert grey.shape == (1, 3, 2, 2)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(grey[0, :, 0, 0], expected, atol=1e-5)


CARD = BackboneCard("resnet18_narrow", True, 1.0, 4, 32, ("a", "b"), ("x",))


def test_weights_round_trip_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_network(CARD).eval()
    save_backbone(tmp_path, model, CARD)
    back, _ = load_backbone(tmp_path)
    frames = torch.randn(1, 4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(frames).logits, back(frames).logits)
    weights = {name: array.clone() for name, array in load_file(tmp_path / WEIGHTS_FILE).items()}  # it maps the file
    (tmp_path / WEIGHTS_FILE).write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_backbone(tmp_path)
    weights.pop("action.bias")
    save_file(weights, tmp_path / "w")
    save_backbone(tmp_path, model, CARD)
    card = load_card(tmp_path)
    (tmp_path / "w").replace(tmp_path / WEIGHTS_FILE)
    from talstack.io.files import sha256_file

    rewritten = (tmp_path / "card.json").read_text().replace(card.weights_sha256, sha256_file(tmp_path / WEIGHTS_FILE))
    (tmp_path / "card.json").write_text(rewritten)
    with pytest.raises(ModelError, match=r"missing \['action.bias'\]"):
        load_backbone(tmp_path)


def test_missing_imagenet_weights_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(MissingInputError, match=r"put resnet50-\w+\.pth into .*checkpoints"):
        build_network(replace(CARD, arch="resnet50"), imagenet=True)
    with pytest.raises(ConfigError, match="has no ImageNet weights"):
        build_network(CARD, imagenet=True)
