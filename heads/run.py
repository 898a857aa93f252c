"""Stage two of a run: every head of every (view, modality), in parallel, each done once per fingerprint.

RUN/heads/<view>-<modality>/components/              what the heads of a group share (heads.components)
RUN/heads/<view>-<modality>/<fingerprint>/<head>.*   the head's files (heads.members) and its <head>.oof.parquet
RUN/oof.parquet                                      all out-of-fold predictions, one long table
RUN/heads.json                                       what the table holds and what it was made from; written last

The folder of a head is named by the first digits of its fingerprint, so that heads of several settings lie side by
side and going back to earlier settings fits nothing.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import joblib
import polars as pl
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from talstack.heads.components import ComponentsJob, make_components, plan_components
from talstack.heads.config import HeadsConfig
from talstack.heads.crossfit import CrossFit, FoldFit, FoldPlan, fit_fold, together
from talstack.heads.inputs import HeadInputs
from talstack.heads.members import save_models
from talstack.heads.model import FORMAT_VERSION, card_path, read_card, write_card
from talstack.io.cluster import AHEAD, Cluster, ClusterBackend
from talstack.io.config import to_dict
from talstack.io.errors import InputError, ModelError, TalstackError
from talstack.io.extraction import FeatureSet
from talstack.io.files import atomic_path, canonical_json, read_json, sha256_file, sha256_text, write_json
from talstack.io.manifest import Manifest
from talstack.io.predictions import SCHEMA, ModelKey, read_table

_FOLDER_DIGITS = 12
_NAMED = 4  # heads in a message
_SHARED_SETTINGS = ("clip", "class_weight", "inner_folds", "others_by", "seed")


@dataclass(frozen=True, slots=True)
class HeadJob:
    """One head to be fitted.

    Attributes:
        key: which.
        folder: where its files lie.
        fingerprint: of everything that its predictions depend on.
        components: where those of its group come from; None where it takes the features as they are.
    """

    key: ModelKey
    folder: Path
    fingerprint: str
    components: ComponentsJob | None


@dataclass(frozen=True, slots=True)
class HeadResult:
    """What became of one job.

    Attributes:
        key: which head.
        outcome: "fitted", "cached", or "skipped" where no training recording has labelled features.
        num_unpredicted: recordings with features but without a prediction, for want of training recordings.
        fingerprint: of the job.
        seconds: that fitting took just now; 0 where nothing was fitted.
    """

    key: ModelKey
    outcome: str
    num_unpredicted: int
    fingerprint: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class HeadTask:
    """A head to be fitted, and what that needs."""

    job: HeadJob
    features: FeatureSet
    config: HeadsConfig


def plan_jobs(features: FeatureSet, run: Path, config: HeadsConfig) -> list[HeadJob]:
    """Return the jobs of every (view, modality), task and learner; the slowest come first.

    Raises:
        InputError: the data set has no folds, or nothing to learn from.
    """
    manifest = features.manifest
    plan = FoldPlan.of(manifest, features.seen, config)
    tasks = [task for task in config.tasks if task != "scene" or len(manifest.scenes) > 1]
    labels = {task: _labels(manifest, plan, task) for task in tasks}
    jobs = []
    components = {}
    for view, modality in features.groups:
        folder = run / "heads" / _folder_name(view, modality)
        components[view, modality] = plan_components(features, view, modality, folder, plan=plan, config=config)
    for learner in sorted(config.learners):  # gbm before linear
        for task in sorted(tasks, key=("action", "boundary", "activity", "scene").index):
            for view, modality in features.groups:
                key, made = ModelKey(view, modality, f"{task}-{learner}"), components[view, modality]
                fingerprint = sha256_text(canonical_json(_identity(features, key, plan, config, labels[task], made)))
                folder = run / "heads" / _folder_name(view, modality) / fingerprint[:_FOLDER_DIGITS]
                jobs.append(HeadJob(key, folder, fingerprint, made))
    return jobs


def run_heads(
    features: FeatureSet,
    run: Path,
    *,
    config: HeadsConfig,
    jobs: int = 1,
    cluster: Cluster | None = None,
    report: Callable[[HeadResult], None] = lambda result: None,
) -> tuple[list[HeadResult], bool]:
    """Fit what is not there yet, and write `oof.parquet` and `heads.json`.

    Args:
        jobs: processes; each uses one thread, so that the numbers do not depend on how many there are.
        cluster: where they are; None for this machine.
        report: called after every head.

    Returns:
        (one result per head, in sorted order; whether the run's files were written anew).
    """
    planned = plan_jobs(features, run, config)
    found = {job.key: cached_result(job) for job in planned}
    results = [result for result in found.values() if result is not None]
    for result in results:
        report(result)
    todo = [HeadTask(job, features, config) for job in planned if found[job.key] is None]
    for result in fit_tasks(todo, jobs=jobs, cluster=cluster):
        results.append(result)
        report(result)
    results.sort(key=lambda result: result.key)
    return results, _write_run(run, planned, results, features=features, config=config)


def fit_tasks(tasks: Sequence[HeadTask], *, jobs: int, cluster: Cluster | None = None) -> Iterator[HeadResult]:
    """Fit heads, of one setting or of several, in as many processes; yield each result as soon as it is there.

    The models of a head are work for as many processes, so that one head alone keeps them all busy too.
    """
    _make_components(tasks, jobs, cluster)
    plans = [FoldPlan.of(task.features.manifest, task.features.seen, task.config) for task in tasks]
    parallel = _parallel(jobs, cluster, return_as="generator_unordered")
    fitted = parallel(
        joblib.delayed(_numbered)(number, task.job, task.features, task.config, fold)
        for number, (task, plan) in enumerate(zip(tasks, plans, strict=True))
        for fold in plan.models
    )
    gathered: dict[int, list[tuple[FoldFit, float]]] = {number: [] for number in range(len(tasks))}
    with _told_of_deaths(lambda: "fitting " + _listed([tasks[number].job.key for number in gathered])):
        for number, part, seconds in fitted:
            gathered[number].append((part, seconds))
            if len(gathered[number]) == len(plans[number].models):
                parts = gathered.pop(number)
                found = together(tasks[number].job.key, [part for part, _ in parts], plans[number])
                yield _save(tasks[number].job, found, sum(seconds for _, seconds in parts))


def _numbered(
    number: int, job: HeadJob, features: FeatureSet, config: HeadsConfig, fold: int
) -> tuple[int, FoldFit, float]:
    started = time.perf_counter()
    return number, fit_model(job, features, config, fold), time.perf_counter() - started


def fit_model(job: HeadJob, features: FeatureSet, config: HeadsConfig, fold: int) -> FoldFit:
    """Fit the model of a head that has not seen a fold, -1 for that of all."""
    with threadpool_limits(limits=1):
        inputs = HeadInputs.of(job.key, job.components, features, name=job.fingerprint)
        plan, group = FoldPlan.of(features.manifest, features.seen, config), inputs.group(fold)
        return fit_fold(job.key, group, inputs.targets(group), fold=fold, plan=plan, config=config)


def _save(job: HeadJob, fitted: CrossFit, seconds: float) -> HeadResult:
    """Write a head's files; the card comes last."""
    card: dict[str, Any] = {"format_version": FORMAT_VERSION, "files": {}}
    if fitted.heads:
        card = save_models(fitted.heads, job.folder)
        table_file = _table_path(job)
        _write_table(table_file, fitted.table)
        card["files"][table_file.name] = sha256_file(table_file)
    card |= {"fingerprint": job.fingerprint, "num_unpredicted": fitted.num_unpredicted}
    write_card(card_path(job.folder, job.key), card)
    _remove_older_layout(job)
    outcome = "fitted" if fitted.heads else "skipped"
    return HeadResult(job.key, outcome, fitted.num_unpredicted, job.fingerprint, seconds)


def _parallel(jobs: int, cluster: Cluster | None, **options: Any) -> joblib.Parallel:
    """Return what runs calls in processes of this machine, or of a cluster."""
    backend = None if cluster is None else ClusterBackend(cluster, _died)
    jobs = jobs if cluster is None else cluster.jobs
    return joblib.Parallel(n_jobs=jobs, backend=backend, batch_size=1, pre_dispatch=AHEAD * jobs, **options)


def _died(arguments: tuple[Any, ...], text: str) -> Any:
    """Say which head, or which group's components, a worker of a cluster died of."""
    job = next(one for one in arguments if isinstance(one, HeadJob | ComponentsJob))
    what = str(job.key) if isinstance(job, HeadJob) else f"components of {job.view}/{job.modality}"
    raise TalstackError(f"{what}: {text}; heads that are done are kept, run the command again to go on")


@contextmanager
def _told_of_deaths(doing: Callable[[], str]) -> Iterator[None]:
    """Say what was left to do where a process of this machine has died; which part of it was under way is not known."""
    try:
        yield
    except TerminatedWorkerError as error:
        raise TalstackError(
            f"{doing()}: a process died (out of memory?); heads that are done are kept, run the command again with "
            "fewer --jobs to go on"
        ) from error


def _listed(keys: Sequence[ModelKey]) -> str:
    return ", ".join(map(str, keys[:_NAMED])) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _make_components(tasks: Sequence[HeadTask], jobs: int, cluster: Cluster | None) -> None:
    """Make the components that heads to be fitted share, each once."""
    shared = {tuple(task.job.components.files.values()): task for task in tasks if task.job.components is not None}
    with _told_of_deaths(lambda: "finding components"):
        _parallel(jobs, cluster)(
            joblib.delayed(make_components)(
                task.job.components, task.features, FoldPlan.of(task.features.manifest, task.features.seen, task.config)
            )
            for task in shared.values()
            if task.job.components is not None and task.job.components.missing()
        )


def cached_result(job: HeadJob) -> HeadResult | None:
    """Return the result of a head that is there, whole and of this fingerprint; None where it must be fitted."""
    try:
        card = read_card(card_path(job.folder, job.key))
    except ModelError:
        return None
    files: Mapping[str, str] = card["files"]
    whole = all((job.folder / name).is_file() and sha256_file(job.folder / name) == h for name, h in files.items())
    if card.get("fingerprint") != job.fingerprint or not whole:
        return None
    return HeadResult(job.key, "cached" if files else "skipped", int(card["num_unpredicted"]), job.fingerprint)


def _remove_older_layout(job: HeadJob) -> None:
    """Remove this head's files one folder up, where they lay when there was room for one setting only."""
    for path in job.folder.parent.glob(f"{job.key.head}.*"):
        path.unlink(missing_ok=True)


def read_tables(jobs: Iterable[HeadJob]) -> pl.DataFrame:
    """Return the out-of-fold table of fitted heads, `talstack.io.predictions.SCHEMA`, in the order of the jobs."""
    return pl.concat([read_table(_table_path(job)) for job in jobs])


def _write_run(
    run: Path, planned: Iterable[HeadJob], results: list[HeadResult], *, features: FeatureSet, config: HeadsConfig
) -> bool:
    """Write the run's table and its sidecar unless they are there already; return whether they were written."""
    present = {result.key for result in results if result.outcome != "skipped"}
    used = sorted((job for job in planned if job.key in present), key=lambda job: job.key)
    if not used:
        raise InputError(f"{features.manifest.name}: no (view, modality) has features of a recording to learn from")
    sidecar, table_file = run / "heads.json", run / "oof.parquet"
    content = describe_run(used, run, features=features, config=config)
    if table_file.is_file() and _same(sidecar, content, sha256_file(table_file)):
        return False
    sidecar.unlink(missing_ok=True)  # a new table never lies beside the description of an old one
    _write_table(table_file, read_tables(used))
    write_json(sidecar, {**content, "oof_sha256": sha256_file(table_file)})
    return True


def describe_run(used: Sequence[HeadJob], folder: Path, *, features: FeatureSet, config: HeadsConfig) -> dict[str, Any]:
    """Return the content of heads.json for the out-of-fold table of these heads.

    Args:
        used: fitted heads, in the order of the table.
        folder: where heads.json will lie; the paths of the cards are relative to it.
    """
    manifest, extraction = features.manifest, features.extraction
    plan = FoldPlan.of(manifest, features.seen, config)
    content = {
        "format_version": 1,
        "dataset": manifest.name,
        "segment_s": features.segment_s,
        "seen": sorted(features.seen),
        "folds": dict(plan.folds),
        "learned_from": sorted(plan.learn),
        "extraction": extraction.name,
        "actions": list(manifest.actions),
        "scenes": list(manifest.scenes),
        "first_action_id": manifest.first_action_id,
        "recipes": [
            [view, modality, extraction.recipe_hash(view, modality)]
            for view, modality in sorted({(job.key.view, job.key.modality) for job in used})
        ],
        "config": to_dict(config),
        "models": [
            {
                "view": job.key.view,
                "modality": job.key.modality,
                "head": job.key.head,
                "card": os.path.relpath(card_path(job.folder, job.key), folder),
                "components": [os.path.relpath(path, folder) for path in _component_files(job)],
                "fingerprint": job.fingerprint,
            }
            for job in used
        ],
    }
    return {**content, "fingerprint": sha256_text(canonical_json(content))}


def _component_files(job: HeadJob) -> list[Path]:
    return [] if job.components is None else list(job.components.files.values())


def _same(sidecar: Path, content: Mapping[str, Any], oof_sha256: str) -> bool:
    try:
        found = read_json(sidecar)
    except TalstackError:
        return False
    wanted = {"fingerprint": content["fingerprint"], "oof_sha256": oof_sha256}
    return isinstance(found, dict) and all(found.get(name) == value for name, value in wanted.items())


def _labels(manifest: Manifest, plan: FoldPlan, task: str) -> dict[str, Any]:
    """Return the labels of a task that its heads learn from: classes, and the hash of the table's rows."""
    columns = ["recording", "scene"] if task == "scene" else ["recording", "start_s", "end_s", "label"]
    table = manifest.recordings if task == "scene" else manifest.instances
    learned_from = table.filter(pl.col("recording").is_in(sorted(plan.learn))).select(columns).sort(columns)
    classes = manifest.scenes if task == "scene" else manifest.actions
    return {"classes": list(classes), "rows_sha256": sha256_text(learned_from.write_csv())}


def _identity(
    features: FeatureSet,
    key: ModelKey,
    plan: FoldPlan,
    config: HeadsConfig,
    labels: Mapping[str, Any],
    components: ComponentsJob | None,
) -> dict[str, Any]:
    """Return everything that the predictions of a head depend on; labels of the recordings it learns from alone."""
    recordings = sorted(features.manifest.recordings["recording"])
    prefixes = [f"{key.learner}_", f"{key.task}_", *(["context"] if key.task != "scene" else [])]
    settings = {
        name: value
        for name, value in to_dict(config).items()
        if name in _SHARED_SETTINGS or name.startswith(tuple(prefixes))
    }
    return {
        "format_version": FORMAT_VERSION,
        "library": version("lightgbm" if key.learner == "gbm" else "scipy"),
        "model": str(key),
        "settings": settings,
        "components": [] if components is None else [path.stem for path in components.files.values()],
        "shards": features.fingerprints(key.view, key.modality, recordings),
        "recordings": recordings,
        "folds": dict(plan.folds),
        "learn": sorted(plan.learn),
        "labels": dict(labels),
        **({} if features.link == "softmax" else {"link": features.link}),
        **({} if features.is_comparable(key.view, key.modality) else {"features": "log-probabilities"}),
    }


def _write_table(path: Path, table: pl.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.select(SCHEMA.keys()).write_parquet(temporary)


def _table_path(job: HeadJob) -> Path:
    return job.folder / f"{job.key.head}.oof.parquet"


def _folder_name(view: str, modality: str) -> str:
    """Return <view>-<modality> as a file name; two groups never share one."""
    return f"{quote(view, safe=' ').replace('-', '%2D')}-{quote(modality, safe=' ')}"
