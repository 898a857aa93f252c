"""What `talstack ablate` does: one pool of heads for all variants, an ensemble per variant, and their scores.

RUN/heads/                            every head of every variant, beside those of `talstack heads`
RUN/ablation/<fingerprint>/           one ensemble: stack/, detections.parquet, heads.json; ablation.json, last
RUN/ablation/seconds.json             how long each head took, by fingerprint

A head or an ensemble that lies there under its fingerprint is not fitted again, whichever grid asks for it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import polars as pl
from threadpoolctl import threadpool_limits

from talstack.cli.ablation_grid import Grid, Variant, refuse_unknown_names
from talstack.ensemble import run as ensemble_run
from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import learnable_folds
from talstack.ensemble.heads_run import HeadsRun
from talstack.heads import run as heads_run
from talstack.heads.crossfit import FoldPlan
from talstack.heads.run import HeadJob, HeadResult, HeadTask
from talstack.io.cluster import Cluster
from talstack.io.config import to_dict
from talstack.io.detections import write_parquet
from talstack.io.errors import ConfigError, InputError, MissingInputError, TalstackError
from talstack.io.extraction import FeatureSet
from talstack.io.files import canonical_json, read_json, sha256_text, write_json
from talstack.io.manifest import Manifest
from talstack.io.view_names import split_view

FORMAT_VERSION = 1
OUT_OF_FOLD = "oof"
SINGLE = "single"
_FOLDER_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Exam:
    """What every variant is scored on.

    Attributes:
        split: train, val, test, or "oof" for recordings to learn from, each predicted without its fold.
        folds: {recording: fold}, for "oof" alone.
        recordings: what is scored, sorted.
        allow_seen: score recordings that a backbone was fine-tuned on as well.
    """

    split: str
    folds: Mapping[str, int]
    recordings: tuple[str, ...]
    allow_seen: bool


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleJob:
    """One ensemble to be fitted.

    Attributes:
        heads: the heads that it combines, in the order of their table.
        record: content of heads.json.
        config: its settings.
        singles: whether single models are tuned and scored as well.
        folder: where its files lie.
        fingerprint: of everything that its detections depend on.
    """

    heads: tuple[HeadJob, ...]
    record: Mapping[str, Any]
    config: EnsembleConfig
    singles: bool
    folder: Path
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A variant and the heads that it asks for."""

    variant: Variant
    tasks: tuple[HeadTask, ...]


def open_features(grid: Grid, manifest: Manifest, store: Path) -> dict[str, FeatureSet]:
    """Return {extraction: its features} of all variants; "" is the extraction named like the data set.

    Raises:
        MissingInputError, StoreError: the store has no such extraction, or it has no shard.
        ConfigError: a variant asks for a view or modality that it lacks.
    """
    names = dict.fromkeys(variant.selection.extraction for variant in grid.variants)
    features = {name: FeatureSet.open(manifest, store, name or None) for name in names}
    for variant in grid.variants:
        chosen, groups = variant.selection, features[variant.selection.extraction].groups
        where = f"variant {variant.name!r}: extraction {chosen.extraction or manifest.name!r} has no features of"
        views = sorted({name for view, _ in groups for name in (view, split_view(view)[0])})
        refuse_unknown_names(chosen.views, views, what=f"{where} view")
        refuse_unknown_names(chosen.modalities, sorted({m for _, m in groups}), what=f"{where} modality")
        if not any(selects(variant, view, modality) for view, modality in groups):
            raise InputError(f"{where} {', '.join(chosen.modalities)} for views {', '.join(chosen.views)}")
    return features


def plan_heads(grid: Grid, features: Mapping[str, FeatureSet], run: Path) -> list[Planned]:
    """Return the heads of every variant; variants that share a head share its job.

    Raises:
        ConfigError: a variant has no action head, so nothing to make detections of.
    """
    jobs: dict[tuple[str, str], list[HeadJob]] = {}
    planned = []
    for variant in grid.variants:
        source = features[variant.selection.extraction]
        key = (variant.selection.extraction, canonical_json(to_dict(variant.heads)))
        if key not in jobs:
            jobs[key] = heads_run.plan_jobs(source, run, variant.heads)
        own = [job for job in jobs[key] if selects(variant, job.key.view, job.key.modality)]
        if not any(job.key.task == "action" for job in own):
            raise ConfigError(f"variant {variant.name!r}: heads.tasks without 'action': nothing to make detections of")
        planned.append(Planned(variant, tuple(HeadTask(job, source, variant.heads) for job in own)))
    return planned


def find_heads(planned: Iterable[Planned]) -> tuple[dict[str, HeadResult], list[HeadTask]]:
    """Return {fingerprint: result} of the heads that are there, and the tasks of those that are not, slowest first."""
    found: dict[str, HeadResult] = {}
    missing: dict[str, HeadTask] = {}
    for task in (task for plan in planned for task in plan.tasks):
        name = task.job.fingerprint
        if name in found or name in missing:
            continue
        result = heads_run.cached_result(task.job)
        if result is None:
            missing[name] = task
        else:
            found[name] = result
    return found, sorted(missing.values(), key=lambda task: task.job.key.learner != "gbm")


def fit_heads(
    tasks: Sequence[HeadTask],
    run: Path,
    *,
    jobs: int,
    cluster: Cluster | None = None,
    report: Callable[[], None] = lambda: None,
) -> dict[str, HeadResult]:
    """Fit the heads of all variants at once; return {fingerprint: result}. Each is kept as soon as it is done."""
    path = run / "ablation" / "seconds.json"
    seconds, results = read_seconds(run), {}
    for result in heads_run.fit_tasks(tasks, jobs=jobs, cluster=cluster):
        results[result.fingerprint] = result
        seconds = {**seconds, result.fingerprint: round(result.seconds, 3)}
        write_json(path, seconds)
        report()
    return results


def read_seconds(run: Path) -> dict[str, float]:
    """Return {fingerprint: seconds} of the heads that ablations fitted in this run; {} where nothing is readable."""
    try:
        seconds = read_json(run / "ablation" / "seconds.json")
    except TalstackError:
        return {}
    return seconds if isinstance(seconds, dict) else {}


def set_exam(
    planned: Sequence[Planned], manifest: Manifest, *, split: str | None = None, allow_seen: bool = False
) -> Exam:
    """Return what the variants are scored on: by default val, or training recordings out of fold where there is none.

    Raises:
        InputError: the split has no annotated recording.
        LeakError: nothing unseen is left to score out of fold.
    """
    seen = frozenset().union(*(plan.tasks[0].features.seen for plan in planned)) if not allow_seen else frozenset()
    annotated = set(manifest.instances["recording"])
    val = [name for name in manifest.recordings_of(["val"]) if name in annotated]
    chosen = split or ("val" if len(val) > 1 and not seen & set(val) else OUT_OF_FOLD)
    if chosen != OUT_OF_FOLD:
        recordings = manifest.recordings_of([chosen])
        if not annotated & set(recordings):
            raise InputError(f"{manifest.name}: no recording of split {chosen!r} has an annotated action to score by")
        return Exam(chosen, {}, tuple(recordings), allow_seen)
    first = planned[0]
    folds = FoldPlan.of(manifest, first.tasks[0].features.seen, first.variant.heads).folds
    table = pl.DataFrame(list(folds.items()), schema={"recording": pl.String, "fold": pl.Int32}, orient="row")
    groups = learnable_folds(table, seen=seen, scored=(), groups=manifest.groups)
    return Exam(OUT_OF_FOLD, groups, tuple(groups), allow_seen)


def plan_ensembles(planned: Sequence[Planned], run: Path, exam: Exam) -> list[EnsembleJob]:
    """Return one ensemble per variant; variants that differ in the scored system alone share one."""
    data: dict[int, dict[str, Any]] = {}
    jobs = []
    for plan in planned:
        features, config = plan.tasks[0].features, plan.variant.ensemble
        base = data.setdefault(id(features), _data_identity(features, exam))
        singles = plan.variant.selection.system not in ensemble_run.ENSEMBLES
        heads = tuple(sorted((task.job for task in plan.tasks), key=lambda job: job.key))
        identity = {**base, "heads": [job.fingerprint for job in heads], "config": to_dict(config), "singles": singles}
        fingerprint = sha256_text(canonical_json(identity))
        folder = run / "ablation" / fingerprint[:_FOLDER_DIGITS]
        record = heads_run.describe_run(heads, folder, features=features, config=plan.variant.heads)
        jobs.append(EnsembleJob(heads, record, config, singles, folder, fingerprint))
    return jobs


def _data_identity(features: FeatureSet, exam: Exam) -> dict[str, Any]:
    manifest = features.manifest
    tables = {name: getattr(manifest, name).write_csv() for name in ("recordings", "instances")}
    return {
        "format_versions": [FORMAT_VERSION, ensemble_run.FORMAT_VERSION],
        "segment_s": features.segment_s,
        "seen": sorted(features.seen),
        "split": exam.split,
        "folds": dict(exam.folds),
        "allow_seen": exam.allow_seen,
        "data": {name: sha256_text(text) for name, text in tables.items()},
        "classes": [list(manifest.actions), list(manifest.scenes)],
    }


def find_ensembles(jobs: Iterable[EnsembleJob]) -> list[EnsembleJob]:
    """Return the ensembles that are not there yet, each once."""
    missing = {job.fingerprint: job for job in jobs if read_record(job) is None}
    return list(missing.values())


def read_record(job: EnsembleJob) -> dict[str, Any] | None:
    """Return the record of a finished ensemble (seconds, warnings); None where it must be fitted."""
    try:
        record = read_json(job.folder / "ablation.json")
    except TalstackError:
        return None
    whole = isinstance(record, dict) and record.get("fingerprint") == job.fingerprint
    return record if whole and (job.folder / "detections.parquet").is_file() else None


def fit_ensembles(
    ensembles: Sequence[EnsembleJob],
    manifest: Manifest,
    exam: Exam,
    *,
    jobs: int,
    report: Callable[[], None] = lambda: None,
) -> None:
    """Fit the ensembles, several at a time, one thread each; each is kept as soon as it is done."""
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=2 * jobs)
    for _ in parallel(joblib.delayed(fit_ensemble)(job, manifest, exam) for job in ensembles):
        report()


def fit_ensemble(job: EnsembleJob, manifest: Manifest, exam: Exam) -> None:
    """Fit one ensemble and write its detections of the exam's recordings; the record comes last."""
    started = time.perf_counter()
    with threadpool_limits(limits=1):
        present = [head for head in job.heads if head_is_fitted(head)]
        if not present:
            raise InputError("no (view, modality) has features of a recording to learn from")
        heads = HeadsRun.of(
            heads_run.read_tables(present), job.record, manifest, sha256=job.fingerprint, where=job.folder
        )
        used = {head.fingerprint for head in present}
        models = [model for model in job.record["models"] if model["fingerprint"] in used]
        write_json(job.folder / "heads.json", {**job.record, "models": models})
        if exam.split == OUT_OF_FOLD:
            parts = [
                _detections(job, held_out, heads, job.folder / f"fold-{fold}", split="val", allow_seen=exam.allow_seen)
                for fold, held_out in _held_out_by_fold(manifest, exam)
            ]
        else:
            parts = [_detections(job, manifest, heads, job.folder, split=exam.split, allow_seen=exam.allow_seen)]
    write_parquet(pl.concat([table for table, _ in parts]), job.folder / "detections.parquet")
    warnings = sorted({warning for _, warnings in parts for warning in warnings})
    record = {"format_version": FORMAT_VERSION, "fingerprint": job.fingerprint, "split": exam.split}
    seconds = round(time.perf_counter() - started, 3)
    write_json(job.folder / "ablation.json", {**record, "seconds": seconds, "warnings": warnings})


def head_is_fitted(job: HeadJob) -> bool:
    """Return whether a head of which there is a card has predictions; a skipped one has none."""
    result = heads_run.cached_result(job)
    if result is None:
        raise MissingInputError(f"{job.folder}: {job.key} has gone since it was fitted; run the command again")
    return result.outcome != "skipped"


def _held_out_by_fold(manifest: Manifest, exam: Exam) -> Iterable[tuple[int, Manifest]]:
    """Yield (fold, the data set with the fold's recordings as split val and the other ones to learn from)."""
    for fold in sorted(set(exam.folds.values())):
        own = [name for name, group in exam.folds.items() if group == fold]
        inside = pl.col("recording").is_in(own)
        split = pl.when(inside).then(pl.lit("val")).when(pl.col("split") == "val").then(pl.lit("train"))
        yield fold, replace(manifest, recordings=manifest.recordings.with_columns(split=split.otherwise("split")))


def _detections(
    job: EnsembleJob, manifest: Manifest, heads: HeadsRun, folder: Path, *, split: str, allow_seen: bool
) -> tuple[pl.DataFrame, list[str]]:
    """Return the detections of every system (with `system`, and "single" for the best single model), and warnings."""
    result = ensemble_run.run_ensemble(
        manifest, folder, config=job.config, split=split, allow_seen=allow_seen, heads=heads, singles=job.singles
    )
    table = pl.read_parquet(folder / "detections.parquet").filter(pl.col("system") != SINGLE)
    tuned = result.record["tuned_average_map"]
    singles = {n: score for n, score in tuned.items() if n not in ensemble_run.ENSEMBLES and score is not None}
    if singles:
        best = max(sorted(singles), key=singles.__getitem__)
        own = table.filter(pl.col("system") == best).with_columns(system=pl.lit(SINGLE))
        table = pl.concat([table, own])
    return table, result.record["warnings"]


def selects(variant: Variant, view: str, modality: str) -> bool:
    """Return whether a variant takes the features of a group."""
    chosen = variant.selection
    by_view = not chosen.views or view in chosen.views or split_view(view)[0] in chosen.views
    return by_view and (not chosen.modalities or modality in chosen.modalities)
