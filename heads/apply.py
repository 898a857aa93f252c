"""A run's heads on other recordings: what was fitted stays as it is, nothing is fitted."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from talstack.heads.components import num_shared, reduced
from talstack.heads.crossfit import mean_predictions, rows_of
from talstack.heads.features import GroupFeatures, read_group
from talstack.heads.members import load_models
from talstack.heads.model import TrainedHead
from talstack.io.errors import InputError, MissingInputError, ModelError
from talstack.io.extraction import FeatureSet
from talstack.io.files import read_json
from talstack.io.predictions import SCHEMA, ModelKey, SegmentIndex


def apply_heads(run: Path, features: FeatureSet) -> pl.DataFrame:
    """Return what the heads of a run say about every recording of `features`, `talstack.io.predictions.SCHEMA`.

    Heads whose (view, modality) the recordings lack say nothing; `fold` is null throughout.

    Args:
        run: the folder that `talstack heads` wrote.

    Raises:
        MissingInputError: heads.json is not there.
        InputError: features that were made otherwise than those that the heads learned from, or none that a head
            knows.
        ModelError: a head's file is missing or damaged.
        StoreError: a shard is damaged.
    """
    path = run / "heads.json"
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; run `talstack heads` first")
    record = read_json(path)
    if not isinstance(record, dict) or not {"models", "config"} <= set(record):
        raise ModelError(f"{path}: not what talstack writes; run `talstack heads` again")
    _check_features(record, features)
    tables: list[pl.DataFrame] = []
    with threadpool_limits(limits=1):  # as in training: the same numbers whatever the number of threads
        for (view, modality), cards in _cards(record, run).items():
            if (view, modality) in features.groups:
                group = read_group(features, view, modality)
                tables += _predictions(group, [load_models(card) for card in cards], record["config"])
    if not tables:
        known = ", ".join(sorted({f"{view}/{modality}" for view, modality in _cards(record, run)}))
        there = ", ".join("/".join(group) for group in features.groups)
        raise InputError(f"{run}: its heads know {known}; the recordings have {there}")
    return pl.concat(tables)


def _cards(record: Mapping[str, Any], run: Path) -> dict[tuple[str, str], list[Path]]:
    """Return the cards of the run's heads by (view, modality)."""
    cards: dict[tuple[str, str], list[Path]] = {}
    for model in record["models"]:
        cards.setdefault((model["view"], model["modality"]), []).append(run / model["card"])
    return cards


def _check_features(record: Mapping[str, Any], features: FeatureSet) -> None:
    """Raise InputError where a group of features was made otherwise than the one of that name that was learned from."""
    recipes = {(view, modality): recipe for view, modality, recipe in record.get("recipes", ())}
    if not recipes:
        raise InputError(
            "heads.json: does not say how the features were made that the heads learned from; run `talstack heads`"
        )
    changed = [
        f"{view}/{modality}"
        for view, modality in features.groups
        if recipes.get((view, modality), own := features.extraction.recipe_hash(view, modality)) != own
    ]
    if changed:
        raise InputError(
            f"{', '.join(changed)}: made otherwise than the features that the heads learned from; extract with the "
            "--config and the --backbone of the run"
        )


def _reduced(group: GroupFeatures, heads: list[TrainedHead], config: Mapping[str, Any]) -> GroupFeatures:
    """Return the components that the heads share, taken once for all of them, where they learned from such."""
    number = num_shared(config)
    if not number or group.features.shape[1] <= number:
        return group
    widest = max((head.design.reduction for head in heads), key=lambda one: len(one.energies))
    fits = len(widest.scaler.mean) == group.features.shape[1]
    return reduced(group, widest) if fits else group  # what does not fit is refused by the head


def _predictions(
    group: GroupFeatures, heads: list[dict[int, TrainedHead]], config: Mapping[str, Any]
) -> Iterator[pl.DataFrame]:
    """Yield each head's rows, the mean of its models; those that left out the same fold share their components."""
    parts: dict[ModelKey, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    about: dict[ModelKey, tuple[SegmentIndex, tuple[str, ...]]] = {}
    for fold in sorted({fold for models in heads for fold in models}):
        models = [by_fold[fold] for by_fold in heads if fold in by_fold]
        components = _reduced(group, models, config)
        for head in models:
            pooled = head.key.task == "scene"
            usable = components if pooled or group.aligned.all() else components.subset(group.aligned)
            if usable.recordings:
                probs, valid = head.predict_proba(usable)
                parts.setdefault(head.key, []).append((np.ones(len(probs), dtype=bool), probs, valid))
                about[head.key] = usable.index, head.classes
    for key, (index, classes) in about.items():
        probs, valid = mean_predictions(parts[key])
        nowhere = np.full(len(probs), -1, dtype=np.int64)
        yield rows_of(key, index, probs, valid=valid, fold=nowhere, classes=classes).select(SCHEMA.keys())
