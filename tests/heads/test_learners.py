"""What both learners promise: probabilities, rare and absent classes, class weights, exact files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from talstack.heads import linear
from talstack.heads.config import HeadsConfig
from talstack.heads.gbm import GbmHead
from talstack.heads.linear import LinearHead, _Problem
from talstack.heads.solver import Weights
from talstack.io.errors import ModelError

Learner = type[LinearHead] | type[GbmHead]
FOLDS = np.repeat(np.arange(10), 60) % 3


@pytest.fixture(params=[LinearHead, GbmHead], ids=["linear", "gbm"])
def learner(request: pytest.FixtureRequest) -> Learner:
    return request.param


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(600, 6)).astype(np.float32)


@pytest.fixture
def targets(rows: np.ndarray) -> np.ndarray:
    """Return a frequent, a less frequent, a rare (three examples), an absent and an always present class."""
    noise = np.random.default_rng(1).normal(size=(600, 2)) * 0.5
    rare = np.zeros(600, dtype=bool)
    rare[np.argsort(rows[:300, 2])[-3:]] = True
    zero = np.zeros(600, dtype=bool)
    return np.stack([rows[:, 0] + noise[:, 0] > 0, rows[:, 1] + noise[:, 1] > 1.2, rare, zero, ~zero], axis=1)


def test_probabilities_tell_the_classes_apart(
    learner: Learner, rows: np.ndarray, targets: np.ndarray, quick: HeadsConfig
) -> None:
    config = replace(quick, gbm_rounds=60)
    train = np.arange(600) < 420
    head = learner.fit(rows[train], targets[train], folds=FOLDS[train], link="sigmoid", config=config)
    probs = head.predict_proba(rows[~train])
    assert probs.shape == (180, 5) and probs.dtype == np.float32
    for column in (0, 1):
        own = targets[~train, column]
        assert probs[own, column].mean() > probs[~own, column].mean() + 0.3
        assert probs[:, column].mean() == pytest.approx(own.mean(), abs=0.08)
    assert probs[:, 3].max() < 0.002 and probs[:, 4].min() > 0.998
    assert np.corrcoef(probs[:, 2], rows[~train, 2])[0, 1] > 0.1, "three examples must still teach something"


def test_overlapping_classes_do_not_compete(learner: Learner, rows: np.ndarray, quick: HeadsConfig) -> None:
    both = np.repeat(rows[:, :1] > 0, 2, axis=1)
    head = learner.fit(rows, both, folds=FOLDS, link="sigmoid", config=replace(quick, gbm_rounds=60))
    assert head.predict_proba(rows[rows[:, 0] > 1]).min() > 0.6


def test_softmax_sums_to_one_over_learned_and_absent_classes(
    learner: Learner, rows: np.ndarray, quick: HeadsConfig
) -> None:
    labels = np.where(rows[:, 0] > 0, 0, 2)
    head = learner.fit(
        rows[:40], labels[:40, None] == np.arange(3), folds=np.arange(40) % 3, link="softmax", config=quick
    )
    probs = head.predict_proba(rows)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-5)
    assert (probs.argmax(axis=1) == labels).mean() > 0.85 and (probs[:, 1] < 0.02).all()


@pytest.mark.parametrize("weight", ["sqrt", "balanced"])
def test_weighting_rare_classes_up_leaves_probabilities_honest(
    learner: Learner, weight: str, rows: np.ndarray, targets: np.ndarray, quick: HeadsConfig
) -> None:
    config = replace(quick, class_weight=weight, gbm_rounds=60)
    head = learner.fit(rows, targets[:, 1:2], folds=FOLDS, link="sigmoid", config=config)
    assert head.predict_proba(rows).mean() == pytest.approx(targets[:, 1].mean(), abs=0.06)


def test_one_recording_or_one_class_do_not_crash(learner: Learner, rows: np.ndarray, quick: HeadsConfig) -> None:
    targets = rows[:50, :1] > 0
    config = replace(quick, gbm_early_stopping=True)
    head = learner.fit(rows[:50], targets, folds=np.zeros(50, int), link="sigmoid", config=config)
    assert head.predict_proba(rows).shape == (600, 1)
    empty = learner.fit(rows, np.zeros((600, 2), bool), folds=FOLDS, link="sigmoid", config=config)
    assert (empty.predict_proba(rows) < 0.001).all()


def test_saved_heads_predict_the_same(
    learner: Learner, rows: np.ndarray, targets: np.ndarray, quick: HeadsConfig, tmp_path: Path
) -> None:
    head = learner.fit(rows, targets, folds=FOLDS, link="sigmoid", config=quick)
    (file,) = head.save(tmp_path / "action-x")
    again = learner.load(tmp_path / "action-x", link="sigmoid", summary=head.summary)
    np.testing.assert_allclose(again.predict_proba(rows), head.predict_proba(rows), rtol=1e-6)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelError, match="run `talstack heads` again"):
        learner.load(tmp_path / "action-x", link="sigmoid", summary=head.summary)
    file.unlink()
    with pytest.raises(ModelError, match="run `talstack heads` again"):
        learner.load(tmp_path / "action-x", link="sigmoid", summary=head.summary)


def test_fitting_twice_gives_the_same_bits(
    learner: Learner, rows: np.ndarray, targets: np.ndarray, quick: HeadsConfig
) -> None:
    first, second = (
        learner.fit(rows, targets, folds=FOLDS, link="sigmoid", config=quick).predict_proba(rows) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_penalty_is_chosen_on_inner_folds(quick: HeadsConfig) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 40)).astype(np.float32)
    config = replace(quick, linear_l2=(1.0, 1e-4))
    noise = LinearHead.fit(rows, rng.random((600, 1)) > 0.5, folds=FOLDS, link="sigmoid", config=config)
    signal = LinearHead.fit(rows, rows[:, :1] > 0, folds=FOLDS, link="sigmoid", config=config)
    assert (noise.l2, signal.l2) == (1.0, 1e-4)


def test_early_stopping_takes_fewer_trees_on_noise(rows: np.ndarray, quick: HeadsConfig) -> None:
    config = replace(quick, gbm_rounds=80, gbm_early_stopping=True)
    noise = GbmHead.fit(
        rows, np.random.default_rng(2).random((600, 1)) > 0.5, folds=FOLDS, link="sigmoid", config=config
    )
    signal = GbmHead.fit(rows, rows[:, :1] > 0, folds=FOLDS, link="sigmoid", config=config)
    assert noise.num_rounds < 60 < signal.num_rounds


def test_overconfident_logits_are_cooled_on_inner_folds(quick: HeadsConfig) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(600, 200)).astype(np.float32)
    targets = rows[:, :1] + rng.normal(size=(600, 1)) > 1.5
    head = LinearHead.fit(
        rows[:300], targets[:300], folds=FOLDS[:300], link="sigmoid", config=replace(quick, linear_l2=(1e-3,))
    )
    assert head.temperature > 1.2
    hot = replace(head, solution=Weights(head.solution.weights * head.temperature, head.solution.bias))
    probs, loud = (np.clip(model.predict_proba(rows[300:]), 1e-6, 1 - 1e-6) for model in (head, hot))
    loss, loud_loss = (-np.where(targets[300:], np.log(p), np.log1p(-p)).mean() for p in (probs, loud))
    assert loss < loud_loss and probs.mean() == pytest.approx(targets.mean(), abs=0.06)


def test_a_penalty_path_stops_where_the_loss_rises(quick: HeadsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    solve = _Problem.solve
    monkeypatch.setattr(
        _Problem, "solve", lambda self, folds, l2s, **kw: tried.append(l2s) or solve(self, folds, l2s, **kw)
    )
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 40)).astype(np.float32)
    config = replace(quick, linear_l2=(1.0, 0.1, 0.01, 1e-3, 1e-4))
    head = LinearHead.fit(rows, rng.random((600, 1)) > 0.5, folds=FOLDS, link="sigmoid", config=config)
    assert head.l2 == 1.0 and [l2s[0] for l2s in tried] == [1.0] * 3 + [0.1] * 3 + [1.0]


def test_choices_on_some_of_the_rows_lose_no_class_and_next_to_nothing(
    quick: HeadsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    steady = np.repeat(rng.normal(size=(300, 60)), 4, axis=0).astype(np.float32)  # neighbours say nearly the same
    rows = steady + 0.1 * rng.normal(size=steady.shape).astype(np.float32)
    targets = rows[:, :3] + np.repeat(rng.normal(size=(300, 3)), 4, axis=0) > [0.5, 1.0, 9.0]
    targets[[1, 5, 9], 2] = True  # none of the rows that are looked at has the third class
    folds, config = np.arange(1200) // 400, replace(quick, linear_l2=(0.1, 0.03, 0.01))
    whole = LinearHead.fit(rows, targets, folds=folds, link="sigmoid", config=config)
    monkeypatch.setattr(linear, "_CHOICE_ROWS", 300)
    monkeypatch.setattr(linear, "_CHOICE_AXES", 50)
    some = LinearHead.fit(rows, targets, folds=folds, link="sigmoid", config=config)
    assert some.l2 == whole.l2 and some.columns.learned.all()
    assert np.abs(some.solution.weights[:, 2]).max() > 0
    np.testing.assert_allclose(some.predict_proba(rows), whole.predict_proba(rows), atol=0.06)


def test_a_class_that_no_row_looked_at_has_is_learned_where_nothing_can_be_chosen_too(
    quick: HeadsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 6)).astype(np.float32)
    targets = rows[:, :2] + 0.3 * rng.normal(size=(400, 2)) > [0.0, 9.0]
    targets[1::40, 1] = True
    monkeypatch.setattr(linear, "_CHOICE_ROWS", 100)
    none = np.zeros(400, dtype=np.int64)
    head = LinearHead.fit(rows, targets, folds=none, link="sigmoid", config=quick)
    assert head.columns.learned.all() and np.isfinite(head.predict_proba(rows)).all()
    assert 0.005 < head.predict_proba(rows)[:, 1].mean() < 0.1


def test_where_few_rows_would_lose_an_inner_fold_all_of_them_choose_the_size_of_context(
    quick: HeadsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = noted_problems(monkeypatch)
    monkeypatch.setattr(linear, "_GAIN_ROWS", 100)
    rows = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    config = replace(quick, linear_context_gain=(1.0, 0.1))
    for place, expected in ((1, [400, 400]), (4, [100, 100, 400])):
        looked_at.clear()
        folds = (np.arange(400) == place).astype(np.int64)
        LinearHead.fit(rows, rows[:, :1] > 0, folds=folds, link="sigmoid", config=config, context=np.arange(6) >= 3)
        assert [num_rows for num_rows, _ in looked_at] == expected


def test_the_next_size_of_context_is_tried_near_the_penalty_that_was_best(
    quick: HeadsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, attempt = [], _Problem._try
    monkeypatch.setattr(_Problem, "_try", lambda self, l2, starts: tried.append(l2) or attempt(self, l2, starts))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 40)).astype(np.float32)
    targets = (rows[:, :1] + rng.normal(size=(600, 1))) > 0
    config = replace(quick, linear_context_gain=(1.0, 0.9), linear_l2=(3.0, 1.0, 0.3, 0.1, 0.03, 0.01))
    head = LinearHead.fit(rows, targets, folds=FOLDS, link="sigmoid", config=config, context=np.arange(40) >= 20)
    downwards = [l2 for l2 in config.linear_l2 if l2 >= head.l2]
    assert tried[: len(downwards)] == downwards
    second = tried[len(downwards) + 1 :]  # after the one penalty that was too small
    assert second[:2] == downwards[-2:] and len(second) <= 3, tried


def noted_problems(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return where the number of rows and axes of every problem that choices are made on will be noted."""
    looked_at, made = [], _Problem.of.__func__  # type: ignore[attr-defined]

    def noted(cls: type[_Problem], rows: np.ndarray, *args: object, **options: object) -> _Problem:
        looked_at.append((len(rows), args[2].shape[1]))  # type: ignore[attr-defined]
        return made(cls, rows, *args, **options)

    monkeypatch.setattr(_Problem, "of", classmethod(noted))
    return looked_at


def test_where_rows_are_many_the_size_of_context_is_chosen_on_some_and_the_rest_on_more(
    quick: HeadsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = noted_problems(monkeypatch)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1200, 60)).astype(np.float32)
    context, folds = np.arange(60) >= 30, np.arange(1200) // 400
    targets = rows[:, :2] + 0.5 * rng.normal(size=(1200, 2)) > 0
    config = replace(quick, linear_context_gain=(1.0, 0.05), linear_l2=(0.1, 0.03, 0.01))
    whole = LinearHead.fit(rows, targets, folds=folds, link="sigmoid", config=config, context=context)
    looked_at.clear()
    for name, value in (("_GAIN_ROWS", 300), ("_GAIN_AXES", 20), ("_CHOICE_AXES", 50)):
        monkeypatch.setattr(linear, name, value)
    some = LinearHead.fit(rows, targets, folds=folds, link="sigmoid", config=config, context=context)
    assert looked_at == [(300, 20), (300, 20), (1200, 50)]
    assert some.context_gain == whole.context_gain == 0.05
    np.testing.assert_allclose(some.predict_proba(rows), whole.predict_proba(rows), atol=0.05)


def test_context_is_made_small_where_it_only_distracts(quick: HeadsConfig) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 60)).astype(np.float32)
    context = np.arange(60) >= 5
    config = replace(quick, linear_context_gain=(1.0, 0.05), linear_l2=(0.1, 0.01, 0.001))
    chosen = [
        LinearHead.fit(rows, (rows @ w + 0.5 * rng.normal(size=600) > 0)[:, None], folds=FOLDS, link="sigmoid",
                       config=config, context=context)
        for w in (np.where(context, 0.0, 1.0), np.where(context, 1.0, 0.0))
    ]  # fmt: skip
    assert [head.context_gain for head in chosen] == [0.05, 1.0]
    assert np.abs(chosen[0].solution.weights[5:]).max() < 0.1 < np.abs(chosen[1].solution.weights[5:]).max()
