"""Several backbones for one data set: no recording's features come from one that knows it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.extract.backbone_set import SET_FILE, BackboneSet, save_set
from talstack.extract.card import BackboneCard
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.engine import extract_clip_group
from talstack.extract.item import NetworkOrder
from talstack.extract.plan import ExtractionPlan, plan_extraction
from talstack.extract.runtimes import Computed
from talstack.extract.weights import build_network, save_backbone
from talstack.io.errors import LeakError, MissingInputError, ModelError
from talstack.io.extraction import Extraction, FeatureSet
from talstack.io.manifest import Manifest
from talstack.io.members import Member

SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=4, frame_size=32)
CONFIG = ExtractConfig(modalities=("rgb",), views=("front",), runtime="folded", batch_segments=2)
CARD = BackboneCard("resnet18_narrow", True, 1.0, 4, 32, ("clap", "wave"), ("kitchen", "park"))
LEVEL = {"r0": 40, "r1": 50, "r2": 60, "r3": 70}  # grey of the front view's background
MARK = 100.0


class Marker:
    """A network that shouts where it sees a recording that it knows: the plainest leak there is."""

    name = "marker"

    def __init__(self, card: BackboneCard) -> None:
        self._levels = [LEVEL[name] for name in card.known]

    def run(self, pixels: np.ndarray) -> Computed:
        grey = pixels[:, :, 26:].mean(axis=(1, 2, 3, 4))
        known = np.array([any(abs(level - found) < 4 for level in self._levels) for found in grey])
        logits = np.zeros((len(pixels), 3), np.float32)
        logits[:, 1] = MARK * known
        return Computed(np.zeros((len(pixels), 8), np.float32), logits, logits[:, :2].copy())


def save_member(folder: Path, *, seen: tuple[str, ...] = (), seed: int = 0, **changes: object) -> BackboneCard:
    import torch

    torch.manual_seed(seed)
    card = replace(CARD, seen=seen, **changes)
    return save_backbone(folder, build_network(card), card)


def save_folds(manifest: Manifest, folder: Path) -> BackboneSet:
    """Write a member per fold that knows all other recordings of split train."""
    members = []
    for fold in range(3):
        own = set(manifest.folds.filter(pl.col("fold") == fold)["recording"])
        seen = tuple(name for name in manifest.recordings_of(["train"]) if name not in own)
        save_member(folder / f"fold{fold}", seen=seen, seed=fold)
        members.append(Member(f"fold{fold}", folds=(fold,)))
    return save_set(folder, members)


def plan(data: Path, store: Path, backbone: Path, **changes: object) -> ExtractionPlan:
    return plan_extraction(data, store, config=replace(CONFIG, **changes), sampling=SAMPLING, backbone=backbone)


def extract(data: Path, store: Path, backbone: Path, **changes: object) -> FeatureSet:
    planned = plan(data, store, backbone, **changes)
    planned.extraction.save(store)
    for item in planned.items(planned.keys, 1):
        assert {row.outcome for row in extract_clip_group(item)} <= {"done", "cached"}
    return FeatureSet.open(Manifest.load(data), store)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `Marker` in the place of every network."""

    def runtime_of(order: NetworkOrder, modality: str, **_: object) -> Marker:
        return Marker(order.source.card)

    monkeypatch.setattr("talstack.extract.engine.runtime_of", runtime_of)


def largest_share(features: FeatureSet, recording: str) -> float:
    logits = features.read(recording, "front", "rgb").logits.astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((shares / shares.sum(axis=1, keepdims=True)).max())


@pytest.mark.usefixtures("marked")
def test_no_feature_comes_from_a_network_that_knows_the_recording(toy_data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(toy_data)
    save_folds(manifest, tmp_path / "set")
    features = extract(toy_data, tmp_path / "store", tmp_path / "set")
    assert [largest_share(features, name) for name in LEVEL] == pytest.approx([1 / 3] * 4)
    assert features.seen == frozenset()
    assert not features.comparable
    save_member(tmp_path / "one", seen=("r0", "r1"))
    alone = extract(toy_data, tmp_path / "other", tmp_path / "one")
    assert [largest_share(alone, name) for name in LEVEL] == pytest.approx([1, 1, 1 / 3, 1 / 3])
    assert alone.seen == {"r0", "r1"}
    assert alone.comparable


@pytest.mark.usefixtures("marked")
def test_a_recording_without_a_fold_is_seen_if_one_of_its_networks_knows_it(toy_data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(toy_data)
    save_folds(manifest, tmp_path / "set")
    manifest.with_folds(manifest.folds.filter(pl.col("recording") != "r1")).save(toy_data)
    features = extract(toy_data, tmp_path / "store", tmp_path / "set")
    assert features.seen == {"r1"}
    assert largest_share(features, "r1") > 0.9


def test_folds_other_than_those_it_was_trained_with_are_refused(toy_data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(toy_data)
    save_folds(manifest, tmp_path / "set")
    manifest.with_folds(manifest.folds.with_columns((pl.col("fold") + 1) % 3)).save(toy_data)
    with pytest.raises(LeakError, match="r0: lies in fold ., and 'fold.', the backbone trained without that fold, has"):
        plan(toy_data, tmp_path / "store", tmp_path / "set")


def test_a_validated_recording_counts_as_seen(toy_data: Path, tmp_path: Path) -> None:
    save_member(tmp_path / "one", seen=("r1",), validated=("r0",))
    assert plan(toy_data, tmp_path / "store", tmp_path / "one").extraction.seen == ("r0", "r1")
    manifest = Manifest.load(toy_data)
    for fold in range(3):
        own = tuple(manifest.folds.filter(pl.col("fold") == fold)["recording"])
        save_member(tmp_path / "set" / f"fold{fold}", validated=own)
    save_set(tmp_path / "set", [Member(f"fold{fold}", folds=(fold,)) for fold in range(3)])
    with pytest.raises(LeakError, match="r0: lies in fold"):
        plan(toy_data, tmp_path / "store", tmp_path / "set")


def test_recordings_without_a_fold_have_the_mean_of_all_in_one_pass(toy_data: Path, tmp_path: Path) -> None:
    save_folds(Manifest.load(toy_data), tmp_path / "set")
    planned = plan(toy_data, tmp_path / "store", tmp_path / "set")
    assert [len(item.keys) for item in planned.items(planned.keys, 1)] == [1, 1, 1, 3]
    features = extract(toy_data, tmp_path / "store", tmp_path / "set")
    from talstack.io.store import FeatureStore

    own = [FeatureStore(tmp_path / "store").read(key).logits for key in planned.keys if key.recording == "r3"]
    logs = [logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) for logits in own]
    assert np.abs(logs[0] - logs[1]).max() > 1e-3, "three networks"
    np.testing.assert_allclose(features.read("r3", "front", "rgb").logits, np.mean(logs, axis=0), atol=1e-5)
    assert features.read("r3", "front", "rgb").features.shape == (4, 0)
    assert features.fingerprints("front", "rgb", ["r3", "gone"])[0].count("+") == 2


def test_the_order_of_the_members_changes_nothing_and_other_weights_do(toy_data: Path, tmp_path: Path) -> None:
    save_folds(Manifest.load(toy_data), tmp_path / "set")
    before = plan(toy_data, tmp_path / "store", tmp_path / "set")
    described = json.loads((tmp_path / "set" / SET_FILE).read_text())
    described["members"].reverse()
    (tmp_path / "set" / SET_FILE).write_text(json.dumps(described))
    after = plan(toy_data, tmp_path / "store", tmp_path / "set")
    assert [key.fingerprint for key in after.keys] == [key.fingerprint for key in before.keys]
    assert after.extraction == before.extraction
    set_ = BackboneSet.load(tmp_path / "set")
    save_member(tmp_path / "set" / "fold1", seen=set_.members[1].known, seed=9)
    with pytest.raises(ModelError, match=r"fold1: not the backbone that set.json names; finish `talstack finetune`"):
        BackboneSet.load(tmp_path / "set")
    save_set(tmp_path / "set", set_.members)
    changed = plan(toy_data, tmp_path / "store", tmp_path / "set")
    pairs = zip(before.keys, changed.keys, strict=True)
    folds = dict(Manifest.load(toy_data).folds.iter_rows())
    moved = {one.recording for one, two in pairs if one.fingerprint != two.fingerprint}
    assert moved == {"r3", *(name for name, fold in folds.items() if fold == 1)}


def test_a_shard_that_is_not_there_for_all_members_is_missing(toy_data: Path, tmp_path: Path) -> None:
    save_folds(Manifest.load(toy_data), tmp_path / "set")
    extract(toy_data, tmp_path / "store", tmp_path / "set")
    planned = plan(toy_data, tmp_path / "store", tmp_path / "set")
    gone = next(key for key in planned.keys if key.recording == "r3")
    planned.store.path_of(gone).unlink()
    features = FeatureSet.open(Manifest.load(toy_data), tmp_path / "store")
    assert features.read("r3", "front", "rgb") is None
    assert features.missing == [gone]
    assert features.read("r0", "front", "rgb") is not None


def test_one_backbone_per_view_stays_comparable(toy_data: Path, tmp_path: Path) -> None:
    for seed, view in enumerate(("ego", "front")):
        save_member(tmp_path / "set" / view, seen=("r0",), seed=seed)
    found = save_set(tmp_path / "set", [Member(view, views=(view,)) for view in ("ego", "front")])
    features = extract(toy_data, tmp_path / "store", tmp_path / "set", views=())
    assert features.comparable and features.seen == {"r0"}
    assert features.read("r1", "front", "rgb").features.shape == (4, 256)
    networks = {key.view: key.recipe["backbone"] for key in plan(toy_data, tmp_path, tmp_path / "set", views=()).keys}
    assert networks == {member.views[0]: member.backbone for member in found.members}
    assert networks["ego"] != networks["front"]
    save_set(tmp_path / "set", [Member("ego", views=("ego",))])
    with pytest.raises(ModelError, match="view 'front': no backbone of the set is for it; they are for ego"):
        plan(toy_data, tmp_path / "store", tmp_path / "set")


def test_the_record_of_an_extraction_keeps_its_members(toy_data: Path, tmp_path: Path) -> None:
    save_folds(Manifest.load(toy_data), tmp_path / "set")
    planned = plan(toy_data, tmp_path / "store", tmp_path / "set")
    planned.extraction.save(tmp_path / "store")
    assert Extraction.load(tmp_path / "store", "toy") == planned.extraction
    assert {json.dumps(key.recipe, sort_keys=True) for key in planned.keys} == {
        json.dumps(recipe, sort_keys=True) for recipe in planned.extraction.all_recipes
    }


def test_an_ordinary_folder_is_a_set_of_one_and_damaged_sets_are_refused(toy_data: Path, tmp_path: Path) -> None:
    save_member(tmp_path / "one")
    assert BackboneSet.load(tmp_path / "one").is_single
    assert plan(toy_data, tmp_path / "store", tmp_path / "one").extraction.members == ()
    with pytest.raises(MissingInputError, match="no backbone there"):
        BackboneSet.load(tmp_path / "gone")
    save_folds(Manifest.load(toy_data), tmp_path / "set")
    save_member(tmp_path / "set" / "fold2", actions=("clap", "jump"))
    with pytest.raises(ModelError, match="fold2: actions is .*'jump'.*; the backbones of a set must agree"):
        save_set(tmp_path / "set", [Member(f"fold{fold}", folds=(fold,)) for fold in range(3)])
    for text in ("{}", "[]", '{"format_version": 1, "members": [{"name": "../x"}]}', '{"format_version": 9}'):
        (tmp_path / "set" / SET_FILE).write_text(text)
        with pytest.raises(ModelError, match="set.json"):
            BackboneSet.load(tmp_path / "set")
