"""The fitted score and its calibration."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from talstack.ensemble.calibration import BLOCK, Calibration
from talstack.ensemble.curves import CurveMeans
from talstack.ensemble.proposals import Proposals, Runs
from talstack.ensemble.scoring import (
    DEVIATION,
    FEATURES,
    LEAST_ROWS,
    Scorer,
    plain_scores,
    run_features,
    with_deviation,
)


def test_regression_is_the_penalised_logistic_one() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(2.0, 3.0, (500, 4))
    hit = rng.random(500) < expit(features @ [0.5, -0.3, 0.0, 0.2] - 0.5)
    scorer = Scorer.fit(features, hit.astype(float), l2=2.0)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    expected = LogisticRegression(C=0.5, tol=1e-10, max_iter=1000).fit(standard, hit)
    np.testing.assert_allclose(scorer.scores(features), expected.predict_proba(standard)[:, 1], atol=1e-4)


def test_quality_may_be_a_share() -> None:
    features = np.repeat(np.array([[0.0], [1.0]]), 100, axis=0)
    quality = np.repeat([1 / 3, 2 / 3], 100)
    scores = Scorer.fit(features, quality, l2=1e-6).scores(np.array([[0.0], [1.0]]))
    assert scores == pytest.approx([1 / 3, 2 / 3], abs=1e-3)


def test_too_little_teaches_nothing() -> None:
    features = np.random.default_rng(0).normal(size=(LEAST_ROWS, 2))
    assert Scorer.fit(features, np.zeros(LEAST_ROWS), l2=1.0) is None
    assert Scorer.fit(features[1:], np.ones(LEAST_ROWS - 1), l2=1.0) is None


def test_separable_hits_do_not_run_away() -> None:
    features = np.linspace(-1, 1, 200)[:, None]
    scores = Scorer.fit(features, (features[:, 0] > 0).astype(float), l2=1.0).scores(features)
    assert np.isfinite(scores).all()
    assert scores[0] < 0.1 < 0.9 < scores[-1]


def test_full_extent_has_more_contrast_than_the_peak_inside_it() -> None:
    curve = np.full(20, 0.02)
    curve[5:12], curve[7:9] = 0.7, 0.9
    intervals = np.array([[5.0, 12.0], [7.0, 9.0]])
    own = np.zeros(2, dtype=int)
    runs = Runs(own, np.array([1, 1]), np.array([0.5, 0.8]), intervals, np.zeros(2, dtype=bool))
    means = CurveMeans([np.column_stack([curve, curve, 0.1 * curve])], 1.0).at(own)
    found = Proposals(runs, np.array([0, 0]), intervals)
    full, peak = plain_scores(means, found, margin=0.2, contrast_weight=1.0)
    assert full > peak
    features = with_deviation(run_features(means, found), np.array([0.0, -2.0]))
    assert features.shape == (2, FEATURES)
    assert features[0, 3] > features[1, 3]  # contrast with the near surroundings
    unrefined = run_features(means, found)
    np.testing.assert_array_equal(run_features(means, replace(found, intervals=intervals + 0.3)), unrefined)
    changed = np.flatnonzero((features != unrefined).any(axis=0))
    assert list(changed) == list(range(FEATURES))[DEVIATION], "nothing else depends on the refined ends"
    np.testing.assert_array_equal(features[:, DEVIATION], [[0.0, 0.0], [-2.0, 4.0]])
    assert not unrefined[:, DEVIATION].any()


def test_calibrated_score_is_the_precision_and_keeps_the_ranking() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(4000)
    scores = truth**3
    hit = (rng.random(4000) < truth).astype(float)
    calibration = Calibration.fit(scores[:2000], hit[:2000])
    mapped = calibration.apply(scores[2000:])
    assert np.abs(mapped - truth[2000:]).mean() < 0.06
    assert np.abs(scores[2000:] - truth[2000:]).mean() > 0.2
    order = np.argsort(scores[2000:])
    assert (np.diff(mapped[order]) > 0).all()


def test_scores_beyond_those_seen_keep_their_order() -> None:
    calibration = Calibration.fit(np.linspace(0.3, 0.6, 200), np.linspace(0, 1, 200).round())
    mapped = calibration.apply(np.array([0.001, 0.1, 0.29, 0.61, 0.9, 1.0]))
    assert (np.diff(mapped) > 0).all()
    assert (mapped >= 0).all()
    assert (mapped <= 1.001).all()


def test_few_detections_are_not_calibrated() -> None:
    assert Calibration.fit(np.linspace(0, 1, 2 * BLOCK - 1), np.ones(2 * BLOCK - 1)) is None


def test_models_survive_json() -> None:
    rng = np.random.default_rng(0)
    features, scores = rng.normal(size=(200, 3)), rng.random(200)
    scorer, calibration = Scorer.fit(features, scores.round(), l2=1.0), Calibration.fit(scores, scores.round())
    np.testing.assert_array_equal(Scorer.from_json(scorer.to_json()).scores(features), scorer.scores(features))
    np.testing.assert_array_equal(Calibration.from_json(calibration.to_json()).apply(scores), calibration.apply(scores))
