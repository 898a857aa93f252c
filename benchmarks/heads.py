"""What heads cost and what they are worth.

    .venv/bin/python benchmarks/heads.py OUT                  # 232 recordings x 4 views, 250,000 segments x 2048
    .venv/bin/python benchmarks/heads.py OUT --quick          # a size for two busy cores
    .venv/bin/python benchmarks/heads.py OUT --only linear    # one table: linear, gbm, growth, run-linear ... (--help)
    .venv/bin/python benchmarks/heads.py OUT --mhad RUN       # accuracy on what benchmarks/mhad.py made in RUN

Features are made up and kept under OUT, so that a second call starts at once. Seconds are the processor's, so that
other work on the machine counts little; ratios are within one run. Competitors learn some of the classes only, and
their seconds are scaled up to all; ours learn all, since the classes share most of the work. Losses are per held-out
segment and class, over those same classes. The tables of whole runs count seconds on the wall as well; each has a
folder of its own, so that several may be made at once. "changed" is what an idea costs: heads are there, one setting is
another, the heads that it is about are fitted anew, and so is the ensemble, down to mAP on split test.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import lightgbm as lgb
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from talstack.heads.config import HeadsConfig
from talstack.heads.design import Design
from talstack.heads.features import GroupFeatures, group_of
from talstack.heads.gbm import GbmHead
from talstack.heads.inner_folds import inner_folds
from talstack.heads.linear import LinearHead
from talstack.heads.model import card_path, design_settings
from talstack.heads.reduction import Scaler
from talstack.heads.run import plan_jobs, run_heads
from talstack.heads.targets import task_targets
from talstack.io.extraction import FeatureSet
from talstack.io.manifest import Manifest
from talstack.io.predictions import ModelKey
from talstack.io.shard import Shard

sys.path.insert(0, str(Path(__file__).parent))
from heads_data import SEGMENT_S, make_features, make_manifest, make_store  # noqa: E402
from heads_mhad import accuracy_table  # noqa: E402

TABLES = ("linear", "gbm", "growth", "run-linear", "run-gbm", "changed")
VIEW = "view0"
Timed = tuple[float, np.ndarray]
NO_SEARCH: dict[str, Any] = {
    "proposals": ("both",), "hmm": (False,), "smoothing_s": (0.0,), "gap_s": (0.0,), "nms_sigma": (0.5,),
    "score": ("fitted",), "refine": (True,), "stacker": "logistic",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How much is made up."""

    recordings: int
    segments: int
    views: int
    width: int
    classes: int
    competitor_classes: int
    rounds: int


FULL = Size(232, 270, 4, 2048, 34, 4, 1)
QUICK = Size(32, 120, 2, 512, 12, 3, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One view, one fold held out: raw features and targets of both parts, and the group of the training part."""

    train: GroupFeatures
    test: GroupFeatures
    train_targets: np.ndarray
    test_targets: np.ndarray
    folds: np.ndarray


def make_group(manifest: Manifest, width: int, recordings: int | None = None) -> GroupFeatures:
    shards = {}
    for name in sorted(manifest.recordings["recording"])[:recordings]:
        features = make_features(manifest, name, 0, width)
        shards[name] = Shard(features, np.ones(len(features), dtype=bool), np.arange(len(features)) + 0.5)
    return group_of(shards)


def make_problem(manifest: Manifest, group: GroupFeatures, config: HeadsConfig) -> Problem:
    fold_of = dict(manifest.folds.iter_rows())
    group = group.subset(np.isin(group.recordings, list(fold_of)))
    fold = np.array([fold_of[name] for name in group.recordings])
    targets = task_targets("action", manifest, group, SEGMENT_S).values
    train, test = group.subset(fold != 0), group.subset(fold == 0)
    held_out = (fold == 0)[group.row_recordings]
    inner = inner_folds(fold[fold != 0], config.inner_folds, seed=0)[train.row_recordings]
    return Problem(train, test, targets[~held_out], targets[held_out], inner)


def timed(work: Callable[[], np.ndarray]) -> Timed:
    """Return processor seconds and what the work gave."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def log_loss(probs: np.ndarray, targets: np.ndarray) -> float:
    probs = np.clip(probs.astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-np.where(targets, np.log(probs), np.log1p(-probs)).mean())


def some_classes(problem: Problem, size: Size) -> np.ndarray:
    """Return classes from frequent to rare that competitors learn; all of them occur in training."""
    there = np.flatnonzero(problem.train_targets.any(axis=0))
    return there[np.linspace(0, len(there) - 1, size.competitor_classes).astype(int)]


def show_ways(
    title: str, ways: dict[str, Callable[[], Timed]], problem: Problem, classes: np.ndarray, rounds: int
) -> None:
    """Print seconds, ratio to the first way, and held-out log-loss of each; every round runs all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses = {}
    for _ in range(rounds):
        for name, way in ways.items():
            spent, probs = way()
            seconds[name].append(spent)
            probs = probs if probs.shape[1] == len(classes) else probs[:, classes]
            losses[name] = log_loss(probs, problem.test_targets[:, classes])
    table = Table(title=title)
    for column in ("", "seconds", "times ours", "held-out log-loss"):
        table.add_column(column, justify="left" if not column else "right")
    first = next(iter(ways))
    for name in ways:
        ratio = statistics.median(s / f for s, f in zip(seconds[name], seconds[first], strict=True))
        table.add_row(name, f"{statistics.median(seconds[name]):.1f}", f"{ratio:.1f}", f"{losses[name]:.5f}")
    show(table)


def show(table: Table) -> None:
    Console(width=max(Console().width, 120)).print(table)


def fit_ours(problem: Problem, config: HeadsConfig, learner: str) -> Timed:
    """Time components, design, choice of settings, fit and prediction of one head."""
    made = LinearHead if learner == "linear" else GbmHead
    settings = design_settings(ModelKey("v", "rgb", f"action-{learner}"), config, SEGMENT_S)

    def work() -> np.ndarray:
        design = Design.fit(problem.train, settings)
        head = made.fit(
            design.rows(problem.train)[0], problem.train_targets, folds=problem.folds, link="sigmoid", config=config,
            context=design.context_columns,
        )  # fmt: skip
        return head.predict_proba(design.rows(problem.test)[0])

    return timed(work)


def show_linear(problem: Problem, size: Size) -> None:
    config = HeadsConfig()
    classes = some_classes(problem, size)
    share = problem.train_targets.shape[1] / len(classes)
    settings = design_settings(ModelKey("v", "rgb", "action-linear"), config, SEGMENT_S)
    design = Design.fit(problem.train, settings)
    rows, test_rows = design.rows(problem.train)[0], design.rows(problem.test)[0]
    chosen = LinearHead.fit(
        rows, problem.train_targets, folds=problem.folds, link="sigmoid", config=config, context=design.context_columns
    )
    scale = np.where(design.context_columns, np.float32(chosen.context_gain), np.float32(1))
    rows, test_rows = rows * scale, test_rows * scale
    fixed = replace(config, linear_l2=(chosen.l2,))
    none = np.zeros(len(rows), dtype=np.int64)
    scaler = Scaler.of(problem.train.features, 6.0)

    def ours() -> Timed:
        return timed(
            lambda: LinearHead.fit(rows, problem.train_targets, folds=none, link="sigmoid", config=fixed).predict_proba(
                test_rows
            )
        )

    def scikit(train: np.ndarray, test: np.ndarray, l2: float) -> Timed:
        def work() -> np.ndarray:
            models = (LogisticRegression(C=1 / (l2 * len(train)), max_iter=1000) for _ in classes)
            return np.stack([
                model.fit(train, problem.train_targets[:, column]).predict_proba(test)[:, 1]
                for model, column in zip(models, classes, strict=True)
            ], axis=1)  # fmt: skip

        seconds, probs = timed(work)
        return seconds * share, probs

    def raw() -> Timed:
        """Return the penalty that is best on the very rows that it is scored on; its choice costs nothing here."""
        train, test = scaler(problem.train.features), scaler(problem.test.features)
        tried = [scikit(train, test, l2) for l2 in (0.1, 0.03, 0.01)]
        return min(tried, key=lambda result: log_loss(result[1], problem.test_targets[:, classes]))

    ways = {
        f"ours, l2 = {chosen.l2:g}": ours,
        "LogisticRegression, same rows and l2": lambda: scikit(rows, test_rows, chosen.l2),
        "LogisticRegression, raw columns, best l2 on the test rows": raw,
        "ours with components, design and choices": lambda: fit_ours(problem, config, "linear"),
    }
    title = f"linear: {len(rows)} rows, {rows.shape[1]} columns, {problem.train_targets.shape[1]} classes"
    show_ways(title, ways, problem, classes, size.rounds)


def show_gbm(problem: Problem, size: Size) -> None:
    config = HeadsConfig()
    classes = some_classes(problem, size)[:2]
    share = problem.train_targets.shape[1] / len(classes)
    raw, test = problem.train.features.astype(np.float32), problem.test.features.astype(np.float32)
    none = np.zeros(len(raw), dtype=np.int64)

    def same_settings() -> Timed:
        def work() -> np.ndarray:
            targets = problem.train_targets[:, classes]
            return GbmHead.fit(raw, targets, folds=none, link="sigmoid", config=config).predict_proba(test)

        seconds, probs = timed(work)
        return seconds * share, probs

    def defaults() -> Timed:
        def work() -> np.ndarray:
            out = []
            for column in classes:
                data = lgb.Dataset(raw, problem.train_targets[:, column].astype(np.float32))
                params = {"objective": "binary", "num_threads": 1, "verbose": -1, "seed": 0}
                out.append(np.asarray(lgb.train(params, data, num_boost_round=100).predict(test, num_threads=1)))
            return np.stack(out, axis=1)

        seconds, probs = timed(work)
        return seconds * share, probs

    ways = {
        "ours": lambda: fit_ours(problem, config, "gbm"),
        "raw columns, LightGBM's defaults": defaults,
        "raw columns, our settings": same_settings,
    }
    title = f"gbm: {len(raw)} rows, {raw.shape[1]} raw columns, {problem.train_targets.shape[1]} classes"
    show_ways(title, ways, problem, classes, 1)


def show_growth(out: Path, size: Size) -> None:
    """Print the cost of a tenth and of all rows, all in one view."""
    config, everything = HeadsConfig(), size.recordings * size.views
    manifest = make_manifest(out, recordings=everything, segments=size.segments, views=1, classes=size.classes)
    table = Table(title="growth of one head: components, design, choice, fit, prediction (seconds; ours alone)")
    for column in ("rows", "linear", "gbm", "linear per 1000 rows", "gbm per 1000 rows"):
        table.add_column(column, justify="right")
    for count in (everything // 10, everything):
        problem = make_problem(manifest, make_group(manifest, size.width, count), config)
        linear, gbm = (fit_ours(problem, config, learner)[0] for learner in ("linear", "gbm"))
        thousands = len(problem.train.features) / 1000
        seconds = (linear, gbm, linear / thousands, gbm / thousands)
        table.add_row(f"{len(problem.train.features)}", *(f"{value:.3g}" for value in seconds))
    show(table)


def show_run(out: Path, learner: str, jobs: int) -> None:
    """Print time and memory of whole runs of every head of one learner, each in a process of its own."""
    table = Table(title=f"{learner}: all heads of all views, 5 folds, {jobs} processes")
    for column in ("", "processor seconds", "seconds on the wall", "peak memory of one process, MB", "heads fitted"):
        table.add_column(column, justify="left" if not column else "right")
    for name in (learner, "again"):
        row = (name, *run_step(out, f"run-{learner}", {"learners": (learner,)}, None, jobs))
        click.echo("  ".join(row), err=True)
        table.add_row(*row)
    show(table)


def show_changed(out: Path, jobs: int) -> None:
    """Print what it takes to change a setting and see the mAP."""
    table = Table(title=f"one setting changed, down to mAP, {jobs} processes")
    for column in ("", "heads fitted", "heads, s", "ensemble, s", "together, s", "average mAP"):
        table.add_column(column, justify="left" if not column else "right")
    base: dict[str, Any] = {"learners": ("linear",)}
    less, one = {**base, "boundary_context": ()}, f"{VIEW}/rgb/boundary-linear"
    for name, heads, ensemble, again in (
        ("linear heads, first time", base, {}, ""),
        ("boundary heads see less context", less, {}, ""),
        ("nothing but the stacker's penalty", less, {"shared_l2": (10.0,)}, ""),
        ("boundary heads, intervals not searched", {**base, "boundary_context": (2,)}, NO_SEARCH, ""),
        ("one view's boundary head", less, {"shared_l2": (3.0,)}, one),
        ("one view's boundary head, intervals not searched", less, NO_SEARCH, one),
    ):
        _, seconds, _, fitted, ensemble_s, average = run_step(out, "run-linear", heads, ensemble, jobs, again)
        row = (name, fitted, seconds, ensemble_s, f"{float(seconds) + float(ensemble_s):.0f}", average)
        click.echo("  ".join(row), err=True)
        table.add_row(*row)
    show(table)


def run_step(
    out: Path, folder: str, heads: dict[str, Any], ensemble: dict[str, Any] | None, jobs: int, again: str = ""
) -> list[str]:
    """Run heads, and the ensemble if any, in a process of its own; return processor seconds, and what it prints.

    Args:
        again: a head that is fitted although it is there, as if its settings had changed.
    """
    child = repr((folder, heads, ensemble, again))
    command = [sys.executable, "-P", __file__, str(out), "--child", child, "--jobs", str(jobs)]
    before = os.times()
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return [f"{cpu:.0f}", *found]


def run_child(features: FeatureSet, out: Path, settings: str, jobs: int) -> None:
    import ast
    import resource

    from talstack.ensemble.config import EnsembleConfig
    from talstack.ensemble.run import run_ensemble

    folder, heads, ensemble, again = ast.literal_eval(settings)
    config = HeadsConfig(**heads)
    for job in plan_jobs(features, out / folder, config):
        if str(job.key) == again:
            card_path(job.folder, job.key).unlink()
    started = time.monotonic()
    results, _ = run_heads(features, out / folder, config=config, jobs=jobs)
    seconds = time.monotonic() - started
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    fitted = sum(result.outcome == "fitted" for result in results)
    click.echo(f"{seconds:.0f} {max(peaks) / 1000:.0f} {fitted}")
    if ensemble is not None:
        started, combined = time.monotonic(), EnsembleConfig(combiners=(), **ensemble)
        found = run_ensemble(features.manifest, out / folder, config=combined, jobs=jobs, singles=False)
        assert found.metrics is not None
        average = found.metrics["detections"]["stack"]["average_map"]
        click.echo(f"{time.monotonic() - started:.0f} {100 * average:.1f}")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True)
@click.option("--only", type=click.Choice(TABLES))
@click.option("--jobs", default=2, show_default=True)
@click.option("--mhad", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--child", hidden=True)
def main(out: Path, quick: bool, only: str | None, jobs: int, mhad: Path | None, child: str | None) -> None:
    """Print what heads cost on made-up features of the full size; see the module's docstring."""
    if mhad is not None:
        return show(accuracy_table(mhad, out, jobs))
    size = QUICK if quick or out.name == "quick" else FULL
    out = out if out.name in ("quick", "full") else out / ("quick" if size is QUICK else "full")
    manifest = make_manifest(
        out, recordings=size.recordings, segments=size.segments, views=size.views, classes=size.classes
    )
    if child is not None:
        return run_child(make_store(out, manifest, views=size.views, width=size.width), out, child, jobs)
    click.echo(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with threadpool_limits(limits=1):
        if only in (None, "linear", "gbm"):
            problem = make_problem(manifest, make_group(manifest, size.width), HeadsConfig())
            if only != "gbm":
                show_linear(problem, size)
            if only != "linear":
                show_gbm(problem, size)
        if only in (None, "growth"):
            show_growth(out, size)
    if only in (None, "run-linear", "run-gbm", "changed"):
        make_store(out, manifest, views=size.views, width=size.width)
    for learner in ("linear", "gbm"):
        if only in (None, f"run-{learner}"):
            show_run(out, learner, jobs)
    if only in (None, "changed"):
        show_changed(out, jobs)
    return None


if __name__ == "__main__":
    main()
