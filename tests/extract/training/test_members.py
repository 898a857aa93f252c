"""Fine-tuning of several backbones, and the whole path on what they give."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from talstack.cli.main import main
from talstack.extract.backbone_set import SET_FILE, BackboneSet
from talstack.extract.card import BackboneCard, load_card
from talstack.extract.config import SamplingConfig
from talstack.extract.training import members
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.finetune import RecordingSplit
from talstack.extract.training.members import finetune_set, plan_members
from talstack.extract.training.trainer import Watcher
from talstack.heads.features import read_group
from talstack.io.errors import InputError, LeakError
from talstack.io.extraction import FeatureSet
from talstack.io.manifest import Manifest

SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=4, frame_size=32)
CONFIG = FinetuneConfig(
    arch="resnet18_narrow", imagenet=False, holdout_folds=1, epochs=1, batch_size=4, lr=1e-3, dropout=0.0
)
SETTINGS = """
[sampling]
frames_per_segment = 4
frame_size = 32
[finetune]
arch = "resnet18_narrow"
imagenet = false
epochs = 1
batch_size = 4
[extract]
modalities = ["rgb", "rgbdiff"]
runtime = "folded"
[heads]
learners = ["linear"]
context = [1]
linear_l2 = [0.01]
[ensemble]
smoothing_s = [0.0]
proposals = ["class"]
margin = [0.2]
shared_l2 = [1.0]
class_l2 = [30.0]
nms_sigma = [0.5]
contrast_weight = [1.0]
weighted_rounds = 2
"""


def talstack(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{arguments}: {result.output}{result.exception!r}"
    return result


def test_each_member_leaves_its_folds_out_and_together_they_cover_all(toy_data: Path) -> None:
    manifest = Manifest.load(toy_data)
    folds = dict(manifest.folds.iter_rows())
    plans = plan_members(manifest, CONFIG, cross_fit=3)
    assert [(plan.name, plan.folds, plan.views) for plan in plans] == [(f"fold{i}", (i,), None) for i in range(3)]
    for plan in plans:
        assert set(plan.split.train) == {name for name in folds if folds[name] not in plan.folds}
    two = plan_members(manifest, CONFIG, cross_fit=2)
    assert [plan.folds for plan in two] == [(0, 2), (1,)]
    assert [len(plan.split.train) for plan in two] == [1, 2]
    both = plan_members(manifest, replace(CONFIG, per_view=True), cross_fit=2)
    assert [(plan.name, plan.views) for plan in both] == [
        (f"view-{view}-fold{i}", (view,)) for view in ("ego", "front") for i in range(2)
    ]
    assert plan_members(manifest, CONFIG)[0].name == ""
    with pytest.raises(InputError, match="toy: cross-fitting 4 backbones needs 2 to 3, the number of its folds"):
        plan_members(manifest, CONFIG, cross_fit=4)


def refuse(member: str) -> Watcher:
    return Watcher(step=lambda done, total: pytest.fail(f"{member} is trained again"))


def test_a_cross_fitted_member_is_validated_on_folds_that_it_does_not_serve(toy_data: Path) -> None:
    manifest = Manifest.load(toy_data)
    folds = dict(manifest.folds.iter_rows())
    for plan in plan_members(manifest, replace(CONFIG, validation_folds=1), cross_fit=3):
        (own,), (train,), (looked_at,) = plan.folds, plan.split.train, plan.split.validation
        assert folds[looked_at] == (own + 1) % 3
        assert folds[train] == (own + 2) % 3
    with pytest.raises(InputError, match="no training recording outside folds 0 and validation folds 1, 2"):
        plan_members(manifest, replace(CONFIG, validation_folds=2), cross_fit=3)


def test_one_backbone_per_view_is_trained_on_its_view_alone(toy_data: Path, tmp_path: Path) -> None:
    manifest, rows = Manifest.load(toy_data), []
    config = replace(CONFIG, per_view=True)
    made = finetune_set(
        manifest, tmp_path / "bb", config=config, sampling=SAMPLING,
        watcher_of=lambda member: Watcher(epoch=lambda row, speed: rows.append(member)),
    )  # fmt: skip
    assert [(member.name, member.views, member.folds) for member in made.members] == [
        ("view-ego", ("ego",), ()), ("view-front", ("front",), ()),
    ]  # fmt: skip
    assert [source.card.training["views"] for source in made.sources] == [["ego"], ["front"]]
    assert rows == ["view-ego", "view-front"]
    again = finetune_set(manifest, tmp_path / "bb", config=config, sampling=SAMPLING, watcher_of=refuse)
    assert again == made
    test = pl.col("recording") == "r3"
    scene = pl.when(test).then(pl.lit("kitchen")).otherwise("scene").alias("scene")
    blind = replace(
        manifest, recordings=manifest.recordings.with_columns(scene), instances=manifest.instances.filter(~test)
    )
    assert not blind.recordings.equals(manifest.recordings)
    lied_to = finetune_set(blind, tmp_path / "bb", config=config, sampling=SAMPLING, watcher_of=refuse)
    assert lied_to == made, "scenes and instances of the test split are no input"
    with pytest.raises(InputError, match="holds a set of backbones; take another folder"):
        finetune_set(manifest, tmp_path / "bb", config=CONFIG, sampling=SAMPLING)


def test_a_member_that_comes_to_know_its_own_fold_is_refused(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peeking(manifest: Manifest, out: Path, *, split: RecordingSplit, **_: object) -> BackboneCard:
        return BackboneCard("resnet18", True, 1.0, 4, 32, (), (), seen=split.train, validated=("r0", "r1", "r2"))

    monkeypatch.setattr(members, "finetune", peeking)
    with pytest.raises(LeakError, match="fold0: was to be trained without folds 0, and knows r. all the same"):
        finetune_set(Manifest.load(toy_data), tmp_path, config=CONFIG, sampling=SAMPLING, cross_fit=3)
    assert not (tmp_path / SET_FILE).exists()


def test_the_whole_path_learns_from_every_recording_and_is_honest(toy_data: Path, tmp_path: Path) -> None:
    settings, backbone, store, run = tmp_path / "c.toml", tmp_path / "bb", tmp_path / "store", tmp_path / "run"
    settings.write_text(SETTINGS)
    common = (toy_data, "--config", settings)
    result = talstack("finetune", *common, "--out", backbone, "--cross-fit", 3)
    assert result.stdout.count("weights of epoch 1, 2 recordings seen") == 3
    assert talstack("finetune", *common, "--out", backbone, "--cross-fit", 3).stdout.count("unchanged") == 3
    talstack("extract", *common, "--store", store, "--backbone", backbone, "--jobs", 1)
    manifest = Manifest.load(toy_data)
    _check_cards(manifest, backbone)
    features = FeatureSet.open(manifest, store)
    assert not features.comparable and features.seen == frozenset() and not features.missing
    group = read_group(features, "front", "rgbdiff")
    assert group.features.shape[1] == 3 + 2, "log-probabilities of actions with background, and of scenes"
    talstack("heads", *common, "--store", store, "--run", run)
    talstack("submit", *common, "--store", store, "--run", run, "--format", "csv", "--out", run / "out.csv")
    assert json.loads((run / "heads.json").read_text())["seen"] == []
    record = json.loads((run / "stack" / "ensemble.json").read_text())
    assert record["learned_from"] == ["r0", "r1", "r2"]
    assert json.loads((run / "metrics.json").read_text())["seen_recordings"] == 0
    _check_cache_commands(toy_data, store, settings, backbone)


def _check_cards(manifest: Manifest, backbone: Path) -> None:
    for member in BackboneSet.load(backbone).members:
        own = manifest.folds.filter(pl.col("fold").is_in(member.folds))["recording"].to_list()
        assert own and not set(own) & set(load_card(backbone / member.name).known)


def _check_cache_commands(data: Path, store: Path, settings: Path, backbone: Path) -> None:
    listed = json.loads(talstack("cache", "ls", store, "--json").stdout)["recipes"]
    assert len(listed) == 6, "three members, two modalities"
    assert {tuple(recipe["extractions"]) for recipe in listed} == {("toy",)}
    options = ("--config", settings, "--backbone", backbone, "--json")
    for recording, number in (("r0", 1), ("r3", 3)):
        shards = json.loads(talstack("cache", "explain", store, data, recording, "front", *options).stdout)["shards"]
        assert [shard["outcome"] for shard in shards] == ["served"] * 2 * number
    swept = json.loads(talstack("cache", "gc", store, "--data", data, "--older-than", 0, "--json").stdout)
    assert swept["garbage"] == [] and swept["num_unjudged"] == 0
