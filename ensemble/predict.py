"""A finished run on other recordings: its ensemble and its intervals as they are, nothing is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from talstack.ensemble.boundaries import boundary_votes
from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import Decoder, DecodeSettings, Fitted
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.run import scene_table, unpredicted
from talstack.ensemble.stack import Stack
from talstack.ensemble.tuned_file import settings_from_json
from talstack.ensemble.weighted import combine, vote
from talstack.io.errors import InputError, MissingInputError, ModelError
from talstack.io.files import read_json
from talstack.io.manifest import Manifest, empty_table
from talstack.io.predictions import ModelKey, models_of
from talstack.io.targets import segment_index

HEADS, ENSEMBLE, DECODING = "heads.json", "stack/ensemble.json", "stack/decode.json"


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a run says about recordings.

    Attributes:
        manifest: these recordings, with the classes of the run and without instances.
        detections: (recording, start_s, end_s, label, score).
        scenes: recording and one probability column per scene.
        warnings: what is missing.
    """

    manifest: Manifest
    detections: pl.DataFrame
    scenes: pl.DataFrame
    warnings: tuple[str, ...]


def predict(run: Path, table: pl.DataFrame, manifest: Manifest, *, system: str = "stack") -> Prediction:
    """Return the detections of one system of a finished run on the recordings of a data set.

    Annotations of these recordings are not looked at.

    Args:
        run: the folder of `talstack heads` and `talstack submit`.
        table: what the run's heads say about them (`talstack.heads.apply`).
        manifest: any data set.
        system: stack, mean, weighted, another combiner of the run, or view/modality/head.

    Raises:
        MissingInputError: the run is not finished.
        InputError: no such system.
        ModelError: a file of the run is damaged or of another version.
    """
    heads, ensemble, decoding = (_read(run, name) for name in (HEADS, ENSEMBLE, DECODING))
    if system not in decoding:
        raise InputError(f"{run}: no system {system!r}; there: {', '.join(sorted(decoding))}")
    manifest, segment_s = _with_classes(manifest, heads), float(heads["segment_s"])
    recordings = sorted(manifest.recordings["recording"])
    index = segment_index(manifest, segment_s, recordings)
    if not models_of(table, "action"):
        raise InputError(
            f"{manifest.name}: no recording has features that an action head of {run} can read: clips lie at unknown "
            "offsets (`talstack sync`), or their shards are missing"
        )
    evidence = Evidence.of(table, index, actions=manifest.actions, scenes=manifest.scenes)
    missing = sorted({str(key) for key in _action_heads(heads)} - {str(key) for key in evidence.models})
    evidence = evidence.with_models(_action_heads(heads))
    settings, fitted, durations = _decoding(run, decoding[system])
    decoder = replace(
        Decoder.of(manifest, segment_s, []),
        durations=durations, boundaries=boundary_votes(table, index, segment_s),
    )  # fmt: skip
    detections = decoder.decode(_curves(run, evidence, system), settings, fitted)
    scenes, warnings = scene_table(evidence)
    warnings += unpredicted(evidence)
    seen = sorted(set(ensemble.get("learned_from", ())) & set(recordings))
    if seen and heads["dataset"] == manifest.name:
        warnings.append(f"the run learned from {len(seen)} of these recordings, the first: {seen[0]}")
    if missing:
        warnings.append(f"without features for {', '.join(missing)}; the other heads decide alone")
    return Prediction(manifest, detections, scenes, tuple(warnings))


def _read(run: Path, name: str) -> dict[str, Any]:
    if not (run / name).is_file():
        raise MissingInputError(f"{run / name}: no such file; run `talstack heads` and `talstack submit` first")
    record = read_json(run / name)
    if not isinstance(record, dict):
        raise ModelError(f"{run / name}: not what talstack writes; run `talstack submit` again")
    return record


def _with_classes(manifest: Manifest, heads: Mapping[str, Any]) -> Manifest:
    """Return the recordings with the classes of the run in place of their own labels."""
    return replace(
        manifest,
        actions=tuple(heads["actions"]),
        scenes=tuple(heads["scenes"]),
        first_action_id=int(heads["first_action_id"]),
        instances=empty_table("instances"),
        recordings=manifest.recordings.with_columns(pl.lit(None, dtype=pl.String).alias("scene")),
    )


def _action_heads(heads: Mapping[str, Any]) -> list[ModelKey]:
    keys = (ModelKey(model["view"], model["modality"], model["head"]) for model in heads["models"])
    return sorted(key for key in keys if key.task == "action")


def _decoding(run: Path, entry: Mapping[str, Any]) -> tuple[DecodeSettings, Fitted, ClassDurations]:
    try:
        durations = ClassDurations.from_json(_read(run, "stack/durations.json"))
        return settings_from_json(entry["settings"]), Fitted.from_json(entry), durations
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{run / 'stack'}: damaged, or of another version ({error!r}); run `talstack submit`"
        ) from error


def _curves(run: Path, evidence: Evidence, system: str) -> Curves:
    """Return what one system says, segment by segment."""
    if system == "stack":
        return Stack.load(run / "stack").predict(evidence)
    if system == "mean":
        return combine(evidence)
    if system == "vote":
        return vote(evidence)
    weights = _read(run, "stack/weights_of_combiners.json")
    if system in weights:
        try:
            return combine(evidence, _weights(weights[system], evidence))
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{run / 'stack'}: damaged weights of {system} ({error!r}); run `talstack submit`"
            ) from error
    return combine(evidence.with_models([key for key in evidence.models if str(key) == system]))


def _weights(named: Mapping[str, Any], evidence: Evidence) -> np.ndarray:
    """Return (M,) weights, or (M, C) by action; 0 for a model that has none."""
    rows = [named.get(str(key), 0.0) for key in evidence.models]
    if not any(isinstance(row, Mapping) for row in rows):
        return np.array(rows, dtype=np.float64)
    by_class = [row if isinstance(row, Mapping) else {} for row in rows]
    return np.array([[row.get(action, 0.0) for action in evidence.actions] for row in by_class], dtype=np.float64)
