"""Cross-fitting: who is predicted by which model, and that no label leaks into its own prediction."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from talstack.heads.config import HeadsConfig
from talstack.heads.crossfit import FoldPlan, cross_fit, fit_fold
from talstack.heads.features import GroupFeatures
from talstack.heads.targets import task_targets
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.predictions import SCHEMA, ModelKey

HEADS = ("activity-linear", "action-linear", "action-gbm", "boundary-linear", "scene-linear", "scene-gbm")


def predict(
    head: str, group: GroupFeatures, manifest: Manifest, config: HeadsConfig, seen: Sequence[str] = ()
) -> pl.DataFrame:
    key = ModelKey("front", "rgb", head)
    targets = task_targets(key.task, manifest, group, 0.5)
    plan = FoldPlan.of(manifest, seen, config)
    return cross_fit(key, group, targets, plan=plan, config=config).table


def probs_of(table: pl.DataFrame, recordings: Sequence[str]) -> np.ndarray:
    return table.filter(pl.col("recording").is_in(list(recordings)))["prob"].to_numpy()


@pytest.mark.parametrize("head", HEADS)
def test_a_recordings_prediction_never_depends_on_its_own_fold_s_labels(
    head: str, group: GroupFeatures, manifest: Manifest, relabel: Callable, quick: HeadsConfig
) -> None:
    fold = manifest.folds.filter(pl.col("fold") == 0)["recording"].to_list()
    before = predict(head, group, manifest, quick)
    after = predict(head, group, relabel(manifest, fold), quick)
    np.testing.assert_array_equal(probs_of(after, fold), probs_of(before, fold))
    others = [name for name in group.recordings if name not in fold]
    assert not np.array_equal(probs_of(after, others), probs_of(before, others)), "the labels must matter elsewhere"


@pytest.mark.parametrize("head", HEADS)
def test_labels_of_the_test_split_influence_nothing(
    head: str, group: GroupFeatures, manifest: Manifest, relabel: Callable, quick: HeadsConfig
) -> None:
    after = predict(head, group, relabel(manifest, ["r8", "r9"]), quick)
    np.testing.assert_array_equal(after["prob"], predict(head, group, manifest, quick)["prob"])


@pytest.mark.parametrize("head", HEADS)
def test_features_of_the_own_fold_and_of_test_fit_no_scaler(
    head: str, group: GroupFeatures, manifest: Manifest, quick: HeadsConfig
) -> None:
    """Other recordings' predictions stay as they are, to the bit, when the held-out recordings' features go wild."""
    held_out = [*manifest.folds.filter(pl.col("fold") == 0)["recording"], "r8"]
    wild = group.features.copy()
    wild[group.rows_of(held_out)] *= 50
    same_models = ["r9"]  # of test: predicted by the model on all folds, so only r8 may not matter
    wild_test = group.features.copy()
    wild_test[group.rows_of(["r8"])] *= 50
    before = predict(head, group, manifest, quick)
    after = predict(head, replace(group, features=wild_test), manifest, quick)
    everyone_else = [name for name in group.recordings if name != "r8"]
    np.testing.assert_array_equal(probs_of(after, everyone_else), probs_of(before, everyone_else))
    in_fold = [name for name in held_out if name != "r8"]
    one_wild = group.features.copy()
    one_wild[group.rows_of(in_fold[:1])] *= 50
    after = predict(head, replace(group, features=one_wild), manifest, quick)
    np.testing.assert_array_equal(probs_of(after, in_fold[1:]), probs_of(before, in_fold[1:]))
    assert not np.array_equal(probs_of(after, same_models), probs_of(before, same_models))


def test_folds_mark_who_was_predicted_out_of_fold(group: GroupFeatures, manifest: Manifest, quick: HeadsConfig) -> None:
    for head, count in (("action-linear", 40 * 3), ("scene-linear", 2)):
        table = predict(head, group, manifest, quick)
        assert dict(table.schema) == SCHEMA and table["prob"].is_finite().all() and table["valid"].all()
        folds = dict(table.select("recording", "fold").unique().iter_rows())
        assert folds == {**dict(manifest.folds.iter_rows()), "r8": None, "r9": None}
        assert table.group_by("recording").len()["len"].unique().to_list() == [count]
    assert table["segment"].is_null().all()


def test_out_of_fold_predictions_are_right_most_of_the_time(
    group: GroupFeatures, manifest: Manifest, quick: HeadsConfig
) -> None:
    truth = task_targets("action", manifest, group, 0.5).values
    for head in ("action-linear", "action-gbm"):
        config = replace(quick, gbm_rounds=80)
        probs = predict(head, group, manifest, config)["prob"].to_numpy().reshape(-1, 3)
        for column in (0, 1):
            assert probs[truth[:, column], column].mean() > probs[~truth[:, column], column].mean() + 0.2
        assert probs[:, 2].max() < 0.01, "a class without examples keeps its column and a small probability"


def test_fit_on_unseen_learns_from_unseen_recordings_alone(
    group: GroupFeatures, manifest: Manifest, relabel: Callable, quick: HeadsConfig
) -> None:
    seen, config = ["r0", "r1", "r2"], replace(quick, fit_on="unseen")
    before = predict("action-linear", group, manifest, config, seen)
    after = predict("action-linear", group, relabel(manifest, seen), config, seen)
    np.testing.assert_array_equal(before["prob"], after["prob"])
    assert set(before["recording"]) == set(group.recordings), "seen recordings are predicted all the same"
    with pytest.raises(InputError, match="seen every recording"):
        FoldPlan.of(manifest, group.recordings, config)


def test_recordings_outside_fit_splits_are_predicted_by_the_model_of_all(
    group: GroupFeatures, manifest: Manifest, quick: HeadsConfig
) -> None:
    table = predict("action-linear", group, manifest, replace(quick, fit_splits=("train",)))
    assert table.filter(pl.col("recording") == "r7")["fold"].is_null().all()


def test_a_view_that_only_one_fold_has_leaves_it_unpredicted(
    group: GroupFeatures, manifest: Manifest, quick: HeadsConfig
) -> None:
    fold = manifest.folds.filter(pl.col("fold") == 1)["recording"].to_list()
    part = group.subset(np.isin(group.recordings, [*fold, "r8"]))
    key = ModelKey("ego", "rgb", "action-linear")
    targets = task_targets("action", manifest, part, 0.5)
    found = cross_fit(key, part, targets, plan=FoldPlan.of(manifest, (), quick), config=quick)
    assert found.num_unpredicted == len(fold) and set(found.heads) == {-1}
    own = found.table.filter(pl.col("recording").is_in(fold))
    assert not own["valid"].any() and own["prob"].is_nan().all()
    assert found.table.filter(pl.col("recording") == "r8")["valid"].all()


def test_invalid_segments_have_no_prediction(group: GroupFeatures, manifest: Manifest, quick: HeadsConfig) -> None:
    valid = group.valid.copy()
    valid[group.rows_of(["r2"])] = False
    valid[3] = False
    broken = replace(group, valid=valid)
    table = predict("action-gbm", broken, manifest, quick)
    np.testing.assert_array_equal(table["valid"].to_numpy()[::3], valid)
    assert (table["prob"].is_nan() == ~table["valid"]).all()
    scene = predict("scene-linear", broken, manifest, quick)
    assert scene.filter(~pl.col("valid"))["recording"].unique().to_list() == ["r2"]


def test_folds_are_needed(manifest: Manifest, quick: HeadsConfig) -> None:
    with pytest.raises(InputError, match="0 folds among the recordings of split train, val"):
        FoldPlan.of(manifest.with_folds(manifest.folds.clear()), (), quick)


@pytest.mark.parametrize("head", ["action-linear", "scene-gbm"])
def test_the_mean_of_the_folds_models_predicts_others_where_it_is_asked_for(
    head: str, group: GroupFeatures, manifest: Manifest, quick: HeadsConfig
) -> None:
    key, config = ModelKey("front", "rgb", head), replace(quick, others_by="folds")
    targets = task_targets(key.task, manifest, group, 0.5)
    plan = FoldPlan.of(manifest, (), config)
    assert plan.models == tuple(sorted(set(plan.folds.values()))), "no model of all is fitted"
    found = cross_fit(key, group, targets, plan=plan, config=config)
    assert set(found.heads) == set(plan.models) and found.num_unpredicted == 0
    refitted, known = predict(head, group, manifest, quick), pl.col("fold").is_not_null()
    ours, theirs = found.table.filter(known), refitted.filter(known)
    assert ours.drop("prob").equals(theirs.drop("prob")), "out of fold nothing changes"
    # but rounding: a product of more rows at once may add up in another order
    np.testing.assert_allclose(ours["prob"].to_numpy(), theirs["prob"].to_numpy(), rtol=1e-5)
    others = [name for name in group.recordings if name not in plan.folds]
    of_one = group.subset(np.isin(group.recordings, others))
    models = [fit_fold(key, group, targets, fold=fold, plan=plan, config=config).head for fold in plan.models]
    mean = np.mean([model.predict_proba(of_one)[0] for model in models if model is not None], axis=0)
    np.testing.assert_allclose(probs_of(found.table, others), mean.ravel(), rtol=1e-5)
    assert not np.allclose(mean.ravel(), probs_of(refitted, others), atol=1e-4)


def test_a_view_that_only_one_fold_has_is_predicted_elsewhere_by_the_other_folds_models(
    group: GroupFeatures, manifest: Manifest, quick: HeadsConfig
) -> None:
    fold = manifest.folds.filter(pl.col("fold") == 1)["recording"].to_list()
    part = group.subset(np.isin(group.recordings, [*fold, "r8"]))
    key, config = ModelKey("ego", "rgb", "action-linear"), replace(quick, others_by="folds")
    plan = FoldPlan.of(manifest, (), config)
    found = cross_fit(key, part, task_targets("action", manifest, part, 0.5), plan=plan, config=config)
    assert found.num_unpredicted == len(fold) and set(found.heads) == set(plan.models) - {1}
    assert not found.table.filter(pl.col("recording").is_in(fold))["valid"].any()
    assert found.table.filter(pl.col("recording") == "r8")["valid"].all()
