"""Stage two's second half for one run: combiners, tuning, detections, scenes and scores of one split.

Writes into the run's folder: stack/ (models, weights, tuned settings, and the record with the fingerprint, last),
detections.parquet (with a `system` column), scene.parquet, and metrics.json where the split has annotations.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from talstack.ensemble.boundaries import boundary_votes
from talstack.ensemble.config import COMBINERS, EnsembleConfig
from talstack.ensemble.crossfit import (
    BY_CLASS,
    Training,
    fit_and_cross_fit_stack,
    fit_and_cross_fit_weighted,
    learnable_folds,
    refuse_leaks,
)
from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import Decoder, DecodeSettings
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.heads_run import HeadsRun
from talstack.ensemble.tune import TARGET_TIOU, Problem, Tuned, average_map, is_search, solve_each, tune, tuned_with
from talstack.ensemble.tuned_file import NAME as TUNED_FILE
from talstack.ensemble.tuned_file import load_tuned, stale_warnings, tuning_basis
from talstack.ensemble.weighted import combine, vote
from talstack.evaluate.map import PRESETS
from talstack.evaluate.scene import evaluate_scenes
from talstack.io.config import to_dict
from talstack.io.detections import write_parquet
from talstack.io.errors import InputError, LeakError
from talstack.io.files import atomic_path, canonical_json, read_json, sha256_text, write_json
from talstack.io.manifest import SPLITS, Manifest
from talstack.io.targets import scene_targets, segment_index, segment_targets

FORMAT_VERSION = 6
ENSEMBLES = ("stack", "weighted", "mean", *COMBINERS)


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleResult:
    """What `run_ensemble` made or found.

    Attributes:
        cached: everything was there already, nothing was done.
        record: stack/ensemble.json: what was learned from, the penalties, tuned scores, warnings.
        metrics: metrics.json; None where the split has no annotations.
    """

    cached: bool
    record: Mapping[str, Any]
    metrics: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """One way of predicting.

    Attributes:
        name: stack, weighted, mean, or the name of a single model.
        tuning: its predictions for the training recordings, not in-sample.
        scored: its predictions for the recordings of the split.
    """

    name: str
    tuning: Curves
    scored: Curves


def run_ensemble(
    manifest: Manifest,
    run: Path,
    *,
    config: EnsembleConfig,
    split: str = "test",
    jobs: int = 1,
    allow_seen: bool = False,
    heads: HeadsRun | None = None,
    singles: bool = True,
    report: Callable[[str], None] = lambda step: None,
) -> EnsembleResult:
    """Fit the ensemble on unseen out-of-fold predictions and predict the recordings of `split`.

    Does nothing where the run's folder holds the result of the same inputs already. Recordings of the split are
    never learned from, wherever they lie.

    Args:
        manifest: the data set that the heads were trained on.
        run: the folder that `talstack heads` wrote.
        jobs: threads, and processes where intervals are searched.
        allow_seen: score recordings that the backbone was fine-tuned on; the metrics then count them.
        heads: the heads' predictions; read from the run's folder by default.
        singles: tune and score every single model too, which takes most of the time where there are many.
        report: is told what is being done.

    Raises:
        MissingInputError, InputError: heads' files are missing or made for other data, or the split is empty.
        LeakError: recordings of the split were seen by the backbone, or nothing unseen is left to learn from.
    """
    heads = heads or HeadsRun.load(run, manifest)
    scored = recordings_to_score(manifest, split, heads.seen, allow_seen=allow_seen)
    off_limits = heads.seen | set(scored)
    folds = learnable_folds(heads.table, seen=heads.seen, scored=scored, groups=manifest.groups)
    basis = tuning_basis(manifest, heads, config, list(folds))
    chosen = load_tuned(run, basis)
    fingerprint = _fingerprint(
        manifest, heads, config, split=split, allow_seen=allow_seen, chosen=chosen, singles=singles
    )
    cached = _cached(run, fingerprint)
    if cached is not None:
        return cached
    training = training_of(manifest, heads, folds, off_limits)
    (run / "stack" / "ensemble.json").unlink(missing_ok=True)  # from here on the folder is in between two states
    (run / "metrics.json").unlink(missing_ok=True)
    evidence = evidence_of(manifest, heads, scored)
    report("fitting the stacker and the weighted ensemble")
    with threadpool_limits(limits=1):  # `jobs` are the threads; those of the matrix library would get in their way
        systems, learned = fit_systems(training, evidence, run / "stack", config=config, jobs=jobs)
    systems = [system for system in systems if singles or system.name in ENSEMBLES]
    decoder = decoder_of(manifest, heads, list(training.evidence.index.recordings), scored)
    report(f"tuning the intervals of {len(systems)} systems")
    problems = _problems(decoder, systems, training, manifest.instances, off_limits)
    with threadpool_limits(limits=1):
        tuned = _tune_all(problems, chosen, run / "stack", config=config, jobs=jobs)
    detections = {s.name: decoder.decode(s.scored, tuned[s.name].settings, tuned[s.name].fitted) for s in systems}
    scenes, warnings = scene_table(evidence)
    _write_tables(run, detections, scenes)
    metrics = _metrics(manifest, detections, scenes, split=split, seen=heads.seen)
    if metrics is not None:
        write_json(run / "metrics.json", metrics)
    record = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "split": split,
        "recordings": scored,
        "learned_from": list(training.evidence.index.recordings),
        **learned,
        "tuned_average_map": {name: result.average_map for name, result in tuned.items()},
        "settings_from": TUNED_FILE if chosen else "submit",
        "warnings": [*_missing_models(training.evidence, evidence), *warnings, *stale_warnings(run, basis)],
        "has_metrics": metrics is not None,
    }
    write_json(run / "stack" / "ensemble.json", record)
    return EnsembleResult(False, record, metrics)


def recordings_to_score(manifest: Manifest, split: str, seen: frozenset[str], *, allow_seen: bool) -> list[str]:
    """Return the recordings of the split; refuse an unknown or empty one, and seen recordings unless allowed."""
    if split not in SPLITS:
        raise InputError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
    recordings = manifest.recordings_of([split])
    if not recordings:
        raise InputError(f"{manifest.name}: no recording is in split {split!r}")
    leaked = [name for name in recordings if name in seen]
    if leaked and not allow_seen:
        raise LeakError(
            f"{len(leaked)} of {len(recordings)} recordings of split {split!r} were seen by the fine-tuned backbone, "
            f"the first: {leaked[0]}; their scores would be optimistic. Choose another split, or pass --allow-seen"
        )
    return recordings


def _fingerprint(
    manifest: Manifest,
    heads: HeadsRun,
    config: EnsembleConfig,
    *,
    split: str,
    allow_seen: bool,
    chosen: Mapping[str, DecodeSettings],
    singles: bool,
) -> str:
    tables = {name: getattr(manifest, name).write_csv() for name in ("recordings", "instances")}
    return sha256_text(
        canonical_json(
            {
                "format_version": FORMAT_VERSION,
                "oof": heads.sha256,
                "segment_s": heads.segment_s,
                "seen": sorted(heads.seen),
                "config": to_dict(config),
                "split": split,
                "allow_seen": allow_seen,
                **({} if singles else {"singles": False}),
                "data": {name: sha256_text(text) for name, text in tables.items()},
                "classes": [list(manifest.actions), list(manifest.scenes)],
                "chosen": {name: asdict(settings) for name, settings in chosen.items()},
            }
        )
    )


def _cached(run: Path, fingerprint: str) -> EnsembleResult | None:
    """Return the result that lies in the folder if it is that of the fingerprint and complete."""
    record_path, metrics_path = run / "stack" / "ensemble.json", run / "metrics.json"
    if not record_path.is_file():
        return None
    record = read_json(record_path)
    names = ["detections.parquet", "scene.parquet", *(["metrics.json"] if record.get("has_metrics") else [])]
    if record.get("fingerprint") != fingerprint or not all((run / name).is_file() for name in names):
        return None
    return EnsembleResult(True, record, read_json(metrics_path) if record["has_metrics"] else None)


def training_of(manifest: Manifest, heads: HeadsRun, folds: Mapping[str, int], off_limits: Collection[str]) -> Training:
    """Return what the heads say about the recordings of {recording: group}, and what is true of them.

    Raises:
        LeakError: one of them is off limits: seen by a lower level, or to be scored.
    """
    refuse_leaks(folds, off_limits, doing="fitting of the ensemble")
    evidence = evidence_of(manifest, heads, list(folds))
    targets = segment_targets(manifest, evidence.index, heads.segment_s)
    groups = np.array(list(folds.values()), dtype=np.int64)
    return Training(evidence, targets, scene_targets(manifest, list(folds)), groups, heads.segment_s)


def evidence_of(manifest: Manifest, heads: HeadsRun, recordings: list[str]) -> Evidence:
    """Return what the heads say about these recordings."""
    index = segment_index(manifest, heads.segment_s, recordings)
    return Evidence.of(heads.table, index, actions=manifest.actions, scenes=manifest.scenes)


def fit_systems(
    training: Training, evidence: Evidence, folder: Path, *, config: EnsembleConfig, jobs: int
) -> tuple[list[System], dict[str, Any]]:
    """Return all systems, stack first, and what was learned; the models are saved into the folder."""
    named = ("weighted", *config.combiners)
    learned = {name for name in named if name != "vote"} | ({BY_CLASS} if config.stack_mean else set())
    weighed = fit_and_cross_fit_weighted(training, sorted(learned), config=config, jobs=jobs)
    by_class = weighed.get(BY_CLASS)  # a part of the stack, and a combiner of its own
    stack, held_out, chosen = fit_and_cross_fit_stack(training, config=config, mean=by_class, jobs=jobs)
    stack.save(folder)
    models = training.evidence.models
    evidence = evidence.with_models(models)
    systems = [
        System("stack", held_out, stack.predict(evidence)),
        System("mean", combine(training.evidence), combine(evidence)),
    ]
    for name in named:
        if name == "vote":
            systems.append(System(name, vote(training.evidence), vote(evidence)))
        else:
            weights, held_out = weighed[name]
            systems.append(System(name, held_out, combine(evidence, weights)))
    weights_of = {
        name: _named_weights(training.evidence, weights) for name, (weights, _) in weighed.items() if name in named
    }
    write_json(folder / "weights.json", weights_of["weighted"])
    write_json(folder / "weights_of_combiners.json", weights_of)
    for key in models:
        systems.append(
            System(str(key), combine(training.evidence.with_models([key])), combine(evidence.with_models([key])))
        )
    return systems, {
        "penalty": asdict(chosen.penalty),
        "stacker": {"kind": config.stacker, "num_rounds": chosen.num_rounds, "share": chosen.share},
        "weights": weights_of["weighted"],
    }


def _named_weights(evidence: Evidence, weights: np.ndarray) -> dict[str, Any]:
    """Return {model: weight}, or {model: {action: weight}}."""
    rows = zip(evidence.models, weights, strict=True)
    if weights.ndim == 1:
        return {str(key): float(weight) for key, weight in rows}
    return {str(key): dict(zip(evidence.actions, by_class.tolist(), strict=True)) for key, by_class in rows}


def decoder_of(manifest: Manifest, heads: HeadsRun, training: list[str], scored: list[str]) -> Decoder:
    """Return the decoder that knows the training instances, and what boundary heads say of all recordings."""
    decoder = Decoder.of(manifest, heads.segment_s, training)
    index = segment_index(manifest, heads.segment_s, sorted({*training, *scored}))
    return replace(decoder, boundaries=boundary_votes(heads.table, index, heads.segment_s))


def _problems(
    decoder: Decoder, systems: list[System], training: Training, instances: pl.DataFrame, off_limits: Collection[str]
) -> dict[str, Problem]:
    groups = dict(zip(training.evidence.index.recordings, training.groups.tolist(), strict=True))
    first = Problem.of(decoder, systems[0].tuning, instances, groups, off_limits=off_limits)
    return {system.name: replace(first, curves=system.tuning) for system in systems}  # all of the same recordings


def _tune_all(
    problems: Mapping[str, Problem],
    chosen: Mapping[str, DecodeSettings],
    folder: Path,
    *,
    config: EnsembleConfig,
    jobs: int,
) -> dict[str, Tuned]:
    """Return what every system is decoded with; it is written too.

    Args:
        chosen: settings that `talstack tune` has chosen; systems without are tuned here.
    """

    def solve(name: str, problem: Problem) -> Tuned:
        return tuned_with(problem, chosen[name]) if name in chosen else tune(problem, config=config)

    search = is_search(config) and not problems.keys() <= chosen.keys()
    tuned = solve_each(problems, solve, jobs=jobs, search=search)
    record = {name: {"settings": asdict(t.settings), **t.fitted.to_json()} for name, t in tuned.items()}
    write_json(folder / "decode.json", record)
    decoder = next(iter(problems.values())).decoder
    write_json(folder / "durations.json", decoder.durations.to_json())
    return tuned


def scene_table(evidence: Evidence) -> tuple[pl.DataFrame, list[str]]:
    """Return recording and one probability column per scene, and warnings; uniform where no scene head spoke."""
    probs = evidence.scene_probs.astype(np.float64)
    unknown = np.flatnonzero(np.isnan(probs).any(axis=1))
    probs[unknown] = 1.0 / max(len(evidence.scenes), 1)
    names = [evidence.index.recordings[row] for row in unknown]
    columns = {scene: probs[:, i] for i, scene in enumerate(evidence.scenes)}
    table = pl.DataFrame({"recording": list(evidence.index.recordings), **columns})
    if not names:
        return table, []
    return table, [f"no scene head predicts {len(names)} recordings, all scenes equal there: {', '.join(names)}"]


def _missing_models(learned: Evidence, scored: Evidence) -> list[str]:
    """Return a warning per model that cannot be learned from, and one for recordings that no model predicts."""
    warnings = [
        f"{key} predicts none of the recordings that the ensemble learns from; the stacker ignores it"
        for key, present in zip(learned.models, learned.present, strict=True)
        if not present.any()
    ]
    return warnings + unpredicted(scored)


def unpredicted(scored: Evidence) -> list[str]:
    """Return a warning where no model predicts a recording."""
    predicted = np.atleast_1d(scored.present.any(axis=0))
    names = [name for name, rows in scored.index.slices() if not predicted[rows].any()]
    if not names:
        return []
    return [f"no model predicts {len(names)} recordings (every view failed?): {', '.join(names)}"]


def _write_tables(run: Path, detections: Mapping[str, pl.DataFrame], scenes: pl.DataFrame) -> None:
    rows = pl.concat([table.select(pl.lit(name).alias("system"), pl.all()) for name, table in detections.items()])
    write_parquet(rows, run / "detections.parquet")
    with atomic_path(run / "scene.parquet") as temporary:
        scenes.write_parquet(temporary)


def _metrics(
    manifest: Manifest,
    detections: Mapping[str, pl.DataFrame],
    scenes: pl.DataFrame,
    *,
    split: str,
    seen: frozenset[str],
) -> dict[str, Any] | None:
    """Return the scores on the split; None where it has neither an instance nor a known scene."""
    recordings = scenes["recording"].to_list()
    instances = manifest.instances.filter(pl.col("recording").is_in(recordings))
    truth = manifest.recordings.filter(pl.col("recording").is_in(recordings) & pl.col("scene").is_not_null())
    metrics: dict[str, Any] = {
        "split": split,
        "num_recordings": len(recordings),
        "num_instances": instances.height,
        "seen_recordings": len(seen & set(recordings)),
    }
    if instances.height:
        scores = {name: _detection_scores(table, instances) for name, table in detections.items()}
        singles = {name: score for name, score in scores.items() if name not in ENSEMBLES}
        metrics["detections"] = {**{name: scores[name] for name in ENSEMBLES if name in scores}, "single": singles}
    if truth.height:
        result = evaluate_scenes(scenes, truth, scenes=manifest.scenes)
        metrics["scene"] = {"top1": result.top1, "num_recordings": result.num_recordings}
    return metrics if instances.height or truth.height else None


def _detection_scores(detections: pl.DataFrame, instances: pl.DataFrame) -> dict[str, Any]:
    average, by_tiou = average_map(detections, instances, tiou=TARGET_TIOU)
    dense, _ = average_map(detections, instances, tiou=PRESETS["anet"])
    return {"average_map": average, "map": by_tiou, "average_map_0.50_0.95": dense}
