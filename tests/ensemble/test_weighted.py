"""The plain mean and the weighted ensemble."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from talstack.ensemble import weighted
from talstack.ensemble.weighted import combine, greedy_weights, mean_of, negative_log_loss, segment_ap, vote
from talstack.io.errors import InputError


@pytest.fixture
def mixed() -> tuple[np.ndarray, np.ndarray]:
    """Return (M, N, C) probabilities of two models that complete each other and of one that guesses; targets."""
    rng = np.random.default_rng(0)
    targets = rng.random((600, 3)) < 0.2
    noise = rng.normal(0, 1, (3, 600, 3))
    signal = np.stack([1.5 * targets, 1.5 * targets, 0 * targets])
    return 1 / (1 + np.exp(-(signal + noise - 1))), targets


@pytest.mark.parametrize("metric", ["ap", "log_loss"])
def test_good_models_get_the_weight(evidence_of, mixed, metric) -> None:
    probs, targets = mixed
    weights = greedy_weights(evidence_of(probs), targets, rounds=20, metric=metric)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()
    assert weights[2] < 0.2
    assert min(weights[:2]) > 0.2


def test_weights_beat_the_mean_and_every_model_on_what_they_were_found_on(evidence_of, mixed) -> None:
    probs, targets = mixed
    evidence = evidence_of(probs)
    weights = greedy_weights(evidence, targets, rounds=20)
    score = segment_ap(combine(evidence, weights).action, targets)
    assert score > segment_ap(combine(evidence).action, targets)
    assert score > max(segment_ap(p, targets) for p in probs)


def test_missing_model_passes_its_weight_on() -> None:
    probs = np.array([[0.2, np.nan, np.nan], [0.8, 0.4, np.nan], [np.nan, 0.6, np.nan]])
    weights = np.array([0.75, 0.25, 0.0])
    np.testing.assert_allclose(mean_of(probs, weights=weights), [0.35, 0.4, 0.0])
    np.testing.assert_allclose(mean_of(probs), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(mean_of(probs, fallback=np.array([9.0, 9.0, 0.3])), [0.5, 0.5, 0.3])
    # only models of weight 0 are present: they count equally
    np.testing.assert_allclose(mean_of(probs, weights=np.array([1.0, 0.0, 0.0])), [0.2, 0.5, 0.0])


@pytest.mark.parametrize("weights", [None, (0.5, 0.2, 0.3), (0.0, 0.0, 0.0)])
def test_mean_is_the_same_whether_or_not_another_segment_misses_a_model(weights) -> None:
    probs = np.random.default_rng(0).random((3, 6, 4)).astype(np.float32)
    some = probs.copy()
    some[1, 5] = np.nan
    weights = None if weights is None else np.array(weights)
    whole, with_gap = mean_of(probs, weights=weights), mean_of(some, weights=weights)
    np.testing.assert_array_equal(whole[:5], with_gap[:5])
    expected = np.average(probs, axis=0, weights=None if weights is None or not weights.any() else weights)
    np.testing.assert_allclose(whole, expected, rtol=1e-6)
    by_class = np.array([[[1.0, 0.0, 2.0, 0.5]]])  # the same for every model
    np.testing.assert_array_equal(mean_of(probs, weights=by_class)[:5], mean_of(some, weights=by_class)[:5])


def test_segment_ap_is_the_mean_average_precision(mixed) -> None:
    probs, targets = mixed
    expected = np.mean([average_precision_score(targets[:, c], probs[0, :, c]) for c in range(3)])
    assert segment_ap(probs[0], targets) == pytest.approx(expected, abs=1e-5)
    targets[:, 1] = False
    expected = np.mean([average_precision_score(targets[:, c], probs[0, :, c]) for c in (0, 2)])
    assert segment_ap(probs[0], targets) == pytest.approx(expected, abs=1e-5)
    assert segment_ap(probs[0], np.zeros_like(targets)) == 0.0


def test_what_is_the_same_for_all_segments_earns_nothing() -> None:
    targets = np.zeros((100, 2), dtype=bool)
    targets[:5] = True  # in a tie they come last, wherever they stand
    assert segment_ap(np.zeros((100, 2)), targets) == pytest.approx(np.mean([k / (95 + k) for k in range(1, 6)]))
    assert segment_ap(np.zeros((100, 2)), targets) == segment_ap(np.full((100, 2), 0.3), targets[::-1])


def test_selection_on_evenly_spread_segments_finds_the_same_models(evidence_of, mixed, monkeypatch) -> None:
    probs, targets = mixed
    whole = greedy_weights(evidence_of(probs), targets, rounds=20)
    monkeypatch.setattr(weighted, "MAX_ROWS", len(targets) // 3)
    np.testing.assert_allclose(greedy_weights(evidence_of(probs), targets, rounds=20), whole, atol=0.15)


def test_log_loss_prefers_the_truth() -> None:
    targets = np.array([[True, False]])
    assert negative_log_loss(np.array([[0.9, 0.1]]), targets) == pytest.approx(2 * np.log(0.9))
    assert negative_log_loss(np.array([[0.0, 0.0]]), targets) == pytest.approx(np.log(1e-4))


def test_no_round_is_refused(evidence_of, mixed) -> None:
    probs, targets = mixed
    with pytest.raises(InputError, match="at least 1, got 0"):
        greedy_weights(evidence_of(probs), targets, rounds=0)


def test_bags_spread_the_weight(evidence_of, mixed) -> None:
    probs, targets = mixed
    many = np.concatenate([probs, probs, probs])
    one = greedy_weights(evidence_of(many), targets, rounds=5)
    bagged = greedy_weights(evidence_of(many), targets, rounds=5, bags=12, seed=1)
    assert bagged.sum() == pytest.approx(1.0)
    assert (bagged > 0).sum() > (one > 0).sum()
    assert bagged[2::3].sum() < 0.2
    np.testing.assert_array_equal(bagged, greedy_weights(evidence_of(many), targets, rounds=5, bags=12, seed=1))


def test_sure_model_outvotes_unsure_ones_and_counts_less_where_it_is_unsure(evidence_of) -> None:
    sure, unsure = [0.98, 0.01], [0.3, 0.35]
    action = np.array([[sure, unsure], [unsure, sure], [unsure, [np.nan, np.nan]]])
    curves = vote(evidence_of(action))
    assert curves.action[0, 0] > 0.85 > combine(evidence_of(action)).action[0, 0]
    assert curves.action[1, 0] > 0.8


def test_vote_of_guessing_models_is_their_mean_and_of_none_zero(evidence_of) -> None:
    third = 1 / 3
    action = np.array([[[third, third], [np.nan, np.nan]], [[third, third], [np.nan, np.nan]]])
    curves = vote(evidence_of(action))
    np.testing.assert_allclose(curves.action, [[third, third], [0, 0]], atol=1e-6)
    assert np.isfinite(curves.activity).all()
