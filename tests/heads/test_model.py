"""A trained head as files."""

import json
from pathlib import Path

import numpy as np
import pytest

from talstack.heads.config import HeadsConfig
from talstack.heads.features import GroupFeatures
from talstack.heads.model import TrainedHead, card_path, write_card
from talstack.heads.targets import task_targets
from talstack.io.errors import InputError, ModelError
from talstack.io.files import write_json
from talstack.io.manifest import Manifest
from talstack.io.predictions import ModelKey

HEADS = ("action-linear", "boundary-gbm", "scene-linear")


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest, group: GroupFeatures, manifest: Manifest, quick: HeadsConfig) -> TrainedHead:
    key = ModelKey("front", "rgb", request.param)
    train = np.array([name < "r8" for name in group.recordings])
    targets = task_targets(key.task, manifest, group, 0.5)
    folds = np.arange(len(train)) % 4
    fitted = TrainedHead.fit(key, group, targets, train=train, folds=folds, config=quick)
    assert fitted is not None
    return fitted


def saved(head: TrainedHead, folder: Path) -> Path:
    path = card_path(folder, head.key)
    write_card(path, head.save(folder))
    return path


def test_a_loaded_head_predicts_the_same(head: TrainedHead, group: GroupFeatures, tmp_path: Path) -> None:
    again = TrainedHead.load(saved(head, tmp_path))
    assert (again.key, again.classes, again.link) == (head.key, head.classes, head.link)
    expected, valid = head.predict_proba(group)
    got, there = again.predict_proba(group)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(there, valid)


def test_every_damaged_or_missing_file_is_refused(head: TrainedHead, tmp_path: Path) -> None:
    card = saved(head, tmp_path)
    for name in json.loads(card.read_text())["files"]:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            TrainedHead.load(card)
        (tmp_path / name).unlink()
        with pytest.raises(ModelError, match="missing"):
            TrainedHead.load(card)
        (tmp_path / name).write_bytes(content)
    TrainedHead.load(card)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "format_version None"), ('{"format_version": 99}', "format_version 99")],
)
def test_foreign_cards_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "action-linear.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        TrainedHead.load(path)


def test_a_card_without_its_fields_is_refused(head: TrainedHead, tmp_path: Path) -> None:
    card = saved(head, tmp_path)
    content = json.loads(card.read_text())
    del content["design"], content["card_sha256"]
    write_card(card, content)
    with pytest.raises(ModelError, match="not the card of a head"):
        TrainedHead.load(card)


def test_a_changed_figure_in_a_card_is_noticed(head: TrainedHead, tmp_path: Path) -> None:
    card = saved(head, tmp_path)
    content = json.loads(card.read_text())
    write_json(card, {**content, "learner": {**content["learner"], "l2": 0.5}})
    with pytest.raises(ModelError, match="damaged, or not a card that talstack wrote"):
        TrainedHead.load(card)


def test_truncated_flipped_and_foreign_files_are_errors_and_never_a_crash(head: TrainedHead, tmp_path: Path) -> None:
    card = saved(head, tmp_path)
    rng = np.random.default_rng(0)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) == 3
    for path in files:
        content = path.read_bytes()
        places = rng.integers(0, len(content) - 1, 25)  # the last byte of a card is its newline
        cut = [content[:place] for place in places]
        flipped = [content[:p] + bytes([content[p] ^ (1 << rng.integers(8))]) + content[p + 1 :] for p in places]
        other = [other.read_bytes() for other in files if other != path]
        for broken in (*cut, *flipped, *other, b"", b"tree\nversion=v4\n", b"\x80\x04\x95", b"[1" * 100_000):
            path.write_bytes(broken)
            with pytest.raises(ModelError, match="talstack heads"):
                TrainedHead.load(card)
        path.write_bytes(content)
    TrainedHead.load(card)


def test_features_of_another_width_are_refused(head: TrainedHead, group: GroupFeatures) -> None:
    other = GroupFeatures(
        group.index, group.features[:, :5], group.valid, group.aligned, group.log_probs, group.scene_log_probs
    )
    with pytest.raises(InputError, match="trained on 12 features, got 5"):
        head.predict_proba(other)
