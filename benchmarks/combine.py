"""Combiners side by side: best single model, mean, vote, weighted ensembles, logistic and boosted stacker.

    .venv/bin/python benchmarks/combine.py frames PATH_TO_TCN     # frame-wise scores of four published models
    .venv/bin/python benchmarks/combine.py run RUN DATA           # a run of `talstack heads`, scored on its test split
    .venv/bin/python benchmarks/combine.py views RUN DATA         # the same run when views are missing at test time

`frames`: cross-validated over the data set's own splits, so no combiner sees the videos it is scored on; settings are
fixed, but for the smoothing before the likeliest class is taken, which is chosen per system and split on the other
splits (by edit score and F1@25). The folder holds index.csv and the .npz files that it names; it is not part of the
project. `run`: everything is learned and tuned on out-of-fold predictions of recordings outside the split; stackers
with and without the scene posterior.

Differences come with 95 % intervals of a paired bootstrap over videos or recordings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter1d
from scipy.special import softmax

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.crossfit import (
    Training,
    cross_fit_stackers,
    cross_fit_weighted,
    fit_stack,
    fit_weights,
    learnable_folds,
    refuse_leaks,
)
from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import Decoder, DecodeSettings
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.heads_run import HeadsRun
from talstack.ensemble.run import decoder_of
from talstack.ensemble.stack import mixed
from talstack.ensemble.tune import TARGET_TIOU, Problem, tune
from talstack.ensemble.weighted import combine, segment_ap, vote
from talstack.evaluate.bootstrap import compare_detections, draw_weights
from talstack.evaluate.map import PRESETS, evaluate_detections
from talstack.evaluate.segmentation import edit_score, frame_accuracy, label_runs, segmental_f1
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest
from talstack.io.predictions import ModelKey, SegmentIndex
from talstack.io.targets import scene_targets, segment_index, segment_targets
from talstack.io.view_names import split_view

MODELS = ("svm", "tcnn", "dilated_tcn", "ed_tcn")
FIXED = EnsembleConfig(shared_l2=(3.0,), class_l2=(30.0,), gbm_rounds=(200,), combiners=())
REACHES = {"50salads-mid": (2.0, 8.0, 25.0), "gtea": (0.7, 2.0, 6.0)}  # seconds; actions last 30 s and 2 s
SMOOTHING = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # frames
MEASURES = ("accuracy", "edit", "F1@10", "F1@25", "F1@50")
WEIGHTED = ("weighted", "weighted_direct", "weighted_by_class")
ALONE = ", alone"  # a stack without its share of the weighted mean
STACKS = {"stack logistic": "logistic", "stack gbm": "gbm", "stack both": "both"}
PAIRS = (
    ("mean", "best single"), ("weighted", "mean"), ("weighted_by_class", "mean"), ("stack logistic", "mean"),
    ("stack logistic", "weighted"), ("stack gbm", "stack logistic"), ("stack both", "stack logistic"),
    ("stack both", "weighted"), ("stack both", "weighted_by_class"), ("stack both", f"stack both{ALONE}"),
)  # fmt: skip
SCENE_PAIRS = tuple((name, f"{name}, no scene") for name in STACKS)


@dataclass(frozen=True, slots=True, eq=False)
class Videos:
    """The frame-wise scores of one data set.

    Attributes:
        training: one class per column, background first; groups are the splits.
        labels: (N,) int64, the class of each frame.
    """

    training: Training
    labels: np.ndarray

    def slices(self) -> list[tuple[str, slice]]:
        """Return every video and its frames."""
        return list(self.training.evidence.index.slices())


def load_videos(folder: Path, dataset: str) -> Videos:
    """Return a data set's videos with the scores of every model that has them."""
    index = pl.read_csv(folder / "index.csv", schema_overrides={"video": pl.String, "group": pl.String})
    rows = index.filter(pl.col("dataset") == dataset).sort("video").rows(named=True)
    files = [np.load(folder / row["path"]) for row in rows]
    labels = np.concatenate([file["labels"] for file in files]).astype(np.int64)
    num_classes = rows[0]["classes"]
    probs = np.stack([np.concatenate([_probs(file, model, num_classes) for file in files]) for model in MODELS])
    names = tuple(str(c) for c in range(num_classes))
    evidence = Evidence(
        index=SegmentIndex(tuple(row["video"] for row in rows), tuple(len(file["labels"]) for file in files)),
        models=tuple(ModelKey(model, "rgb", "action-linear") for model in MODELS),
        actions=names,
        scenes=(),
        action_probs=probs,
        activity_probs=1.0 - probs[:, :, 0],
        scene_probs=np.zeros((len(rows), 0), dtype=np.float32),
    )
    splits = np.array([row["split"] for row in rows])
    targets = labels[:, None] == np.arange(num_classes)
    return Videos(Training(evidence, targets, np.full(len(rows), -1), splits, rows[0]["step_s"]), labels)


def _probs(file: Any, model: str, num_classes: int) -> np.ndarray:
    if model not in file:
        return np.full((len(file["labels"]), num_classes), np.nan, dtype=np.float32)
    scores = file[model].astype(np.float32)
    return np.asarray(softmax(scores, axis=1) if model == "svm" else scores)


def held_out_curves(training: Training, config: EnsembleConfig) -> dict[str, Curves]:
    """Return the predictions of every system for groups that it was not fitted on."""
    evidence = training.evidence
    found = {str(key): combine(evidence.with_models([key])) for key in evidence.models}
    found |= {"mean": combine(evidence), "vote": vote(evidence)}
    for name in WEIGHTED:
        found[name] = cross_fit_weighted(training, config=config, combiner=name)
    stacks = cross_fit_stackers(training, STACKS.values(), config=replace(config, stack_mean=0.0))
    for name, kind in STACKS.items():
        alone = stacks[kind][0]
        found |= {name + ALONE: alone, name: mixed(alone, found["weighted_by_class"], config.stack_mean)}
    return found


def smoothed_labels(curves: Curves, sigma: float) -> np.ndarray:
    """Return the likeliest class of every frame after smoothing over time, (N,) int64."""
    parts = [
        gaussian_filter1d(curves.action[rows], sigma, axis=0, mode="nearest") if sigma else curves.action[rows]
        for _, rows in curves.index.slices()
    ]
    return np.concatenate([part.argmax(axis=1) for part in parts])


def video_scores(videos: Videos, predicted: np.ndarray) -> np.ndarray:
    """Return `MEASURES` of every video, (V, 5); background counts for accuracy and edit score only."""
    rows = []
    for _, part in videos.slices():
        pair = predicted[part], videos.labels[part]
        f1 = [segmental_f1(*pair, tiou=tiou, background=[0]) for tiou in (0.1, 0.25, 0.5)]
        rows.append([frame_accuracy(*pair), edit_score(*pair, background=[0]), *f1])
    return np.array(rows)


def smoothed_scores(videos: Videos, curves: Curves) -> np.ndarray:
    """Return `video_scores` with the smoothing that is best on the other splits."""
    candidates = np.stack([video_scores(videos, smoothed_labels(curves, sigma)) for sigma in SMOOTHING])
    chosen = np.empty_like(candidates[0])
    for split in np.unique(videos.training.groups):
        own = videos.training.groups == split
        best = candidates[:, ~own][:, :, [1, 3]].mean(axis=(1, 2)).argmax()
        chosen[own] = candidates[best][own]
    return chosen


def detect(videos: Videos, curves: Curves) -> pl.DataFrame:
    """Return the detections of the curves under the default settings, background left out."""
    index, actions = curves.index, videos.training.evidence.actions[1:]
    step_s = videos.training.segment_s
    grids = {name: SegmentGrid((rows.stop - rows.start) * step_s, step_s) for name, rows in index.slices()}
    decoder = Decoder(actions, grids, ClassDurations.unknown(len(actions)))
    return decoder.decode(Curves(index, curves.action[:, 1:], 1.0 - curves.action[:, 0]), DecodeSettings())


def instances_of(videos: Videos) -> pl.DataFrame:
    """Return the true segments as instances, background left out."""
    rows = []
    for name, part in videos.slices():
        spans, labels = label_runs(videos.labels[part], background=[0])
        step_s = videos.training.segment_s
        rows += [
            (name, start * step_s, end * step_s, str(label)) for (start, end), label in zip(spans, labels, strict=True)
        ]
    schema = {"recording": pl.String, "start_s": pl.Float64, "end_s": pl.Float64, "label": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def mean_difference(first: np.ndarray, second: np.ndarray) -> list[str]:
    """Return "difference [low, high]" in percent for each column, by a paired bootstrap over the rows."""
    gaps = 100.0 * (first - second)
    draws = draw_weights(len(gaps), 2000, seed=0) @ gaps / len(gaps)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return [f"{mid:+.1f} [{lo:+.1f}, {hi:+.1f}]" for mid, lo, hi in zip(gaps.mean(axis=0), low, high, strict=True)]


def map_difference(first: pl.DataFrame, second: pl.DataFrame, instances: pl.DataFrame, tiou: Sequence[float]) -> str:
    """Return "difference [low, high]" of the average mAP in percent."""
    gap = compare_detections(first, second, instances, tiou_thresholds=tiou).average_difference
    return f"{100 * gap.estimate:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 160)
    console.print(table)


def report_frames(folder: Path, dataset: str) -> None:
    """Print the table of one data set of frame-wise scores, and that of the differences."""
    videos = load_videos(folder, dataset)
    curves = held_out_curves(videos.training, replace(FIXED, neighbours_s=REACHES[dataset]))
    raw = {name: video_scores(videos, one.action.argmax(axis=1)) for name, one in curves.items()}
    smooth = {name: smoothed_scores(videos, one) for name, one in curves.items()}
    found, instances = {name: detect(videos, one) for name, one in curves.items()}, instances_of(videos)
    whole = [key for key, has in zip(videos.training.evidence.models, videos.training.evidence.present, strict=True)
             if has.all()]  # fmt: skip
    best = max(map(str, whole), key=lambda name: raw[name][:, 0].mean())
    rows = []
    for name in curves:
        result = evaluate_detections(found[name], instances, tiou_thresholds=PRESETS["anet"])
        values = [*raw[name].mean(axis=0), *smooth[name].mean(axis=0)[1:], result.map[0], result.average_map]
        rows.append([f"{name} (best single)" if name == best else name, *(f"{100 * v:.1f}" for v in values)])
    header = ["system", *MEASURES, *(f"smooth {name}" for name in MEASURES[1:]), "mAP@.5", "mAP .5:.95"]
    show(f"{dataset}: {len(raw[best])} videos, percent", header, rows)
    raw["best single"], smooth["best single"], found["best single"] = raw[best], smooth[best], found[best]
    rows = [
        [f"{a} - {b}", *mean_difference(raw[a], raw[b])[:1], *mean_difference(smooth[a], smooth[b])[1:],
         map_difference(found[a], found[b], instances, PRESETS["anet"])]
        for a, b in PAIRS
    ]  # fmt: skip
    show(f"{dataset}: differences (all but accuracy smoothed)", ["pair", *MEASURES, "mAP .5:.95"], rows)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run's recordings to learn from and to score, and what decoding needs."""

    learned: Training
    scored: Training
    decoder: Decoder
    instances: pl.DataFrame
    off_limits: frozenset[str]


def load_run(folder: Path, data: Path, split: str) -> Run:
    """Return what the run's heads predict, out of fold, for the recordings to learn from, and for those to score."""
    manifest = Manifest.load(data)
    heads, scored = HeadsRun.load(folder, manifest), manifest.recordings_of([split])
    folds = learnable_folds(heads.table, seen=heads.seen, scored=scored, groups=manifest.groups)
    refuse_leaks(folds, heads.seen | set(scored), doing="fitting of the combiners")

    def training(groups: dict[str, int]) -> Training:
        index = segment_index(manifest, heads.segment_s, list(groups))
        evidence = Evidence.of(heads.table, index, actions=manifest.actions, scenes=manifest.scenes)
        targets = segment_targets(manifest, index, heads.segment_s)
        return Training(
            evidence, targets, scene_targets(manifest, list(groups)), np.array(list(groups.values())), heads.segment_s
        )

    learned = training(folds)
    test = training(dict.fromkeys(scored, 0))
    test = replace(test, evidence=test.evidence.with_models(learned.evidence.models))
    decoder = decoder_of(manifest, heads, list(folds), scored)
    return Run(learned, test, decoder, manifest.instances, heads.seen | frozenset(scored))


def without_scene(training: Training) -> Training:
    """Return the training as if no scene head had spoken."""
    silent = np.full_like(training.evidence.scene_probs, np.nan)
    return replace(training, evidence=replace(training.evidence, scene_probs=silent))


def run_curves(run: Run, config: EnsembleConfig) -> dict[str, tuple[Curves, Curves]]:
    """Return {system: (predictions to tune on, predictions to score)}."""
    learned, scored = run.learned, run.scored.evidence
    found = {
        str(key): (combine(learned.evidence.with_models([key])), combine(scored.with_models([key])))
        for key in learned.evidence.models
    }
    found["mean"] = combine(learned.evidence), combine(scored)
    found["vote"] = vote(learned.evidence), vote(scored)
    for name in WEIGHTED:
        weights = fit_weights(learned, config=config, combiner=name)
        found[name] = cross_fit_weighted(learned, config=config, combiner=name), combine(scored, weights)
    for suffix, change in (("", lambda part: part), (", no scene", without_scene)):
        part, test = change(learned), change(run.scored)
        plain = replace(config, stack_mean=0.0)
        stacks = cross_fit_stackers(part, STACKS.values(), config=plain)
        fitted = fit_stack(part, stacks["gbm"][1], config=plain)
        for name, kind in STACKS.items():
            held_out, chosen = stacks[kind]
            own = replace(fitted, share=chosen.share) if chosen.share else replace(fitted, boosted=None)
            alone, mean = (held_out, own.predict(test.evidence)), found["weighted_by_class"]
            found[name + suffix] = (
                mixed(alone[0], mean[0], config.stack_mean),
                mixed(alone[1], mean[1], config.stack_mean),
            )
            if not suffix:
                found[name + ALONE] = alone
    return found


def report_run(run: Run, title: str) -> None:
    """Print mAP of every system on the scored recordings, and the differences."""
    config = EnsembleConfig()
    instances = run.instances.filter(pl.col("recording").is_in(list(run.scored.evidence.index.recordings)))
    found, rows, tuned_scores = {}, [], {}
    groups = dict(zip(run.learned.evidence.index.recordings, run.learned.groups.tolist(), strict=True))
    for name, (tuning, scored) in run_curves(run, config).items():
        problem = Problem.of(run.decoder, tuning, run.instances, groups, off_limits=run.off_limits)
        tuned = tune(problem, config=config)
        tuned_scores[name] = tuned.average_map or 0.0
        found[name] = run.decoder.decode(scored, tuned.settings, tuned.fitted)
        result = evaluate_detections(found[name], instances, tiou_thresholds=TARGET_TIOU)
        dense = evaluate_detections(found[name], instances, tiou_thresholds=PRESETS["anet"]).average_map
        aps = [segment_ap(curves.action, part.targets)
               for curves, part in ((tuning, run.learned), (scored, run.scored))]  # fmt: skip
        values = [*result.map, result.average_map, dense, tuned_scores[name], *aps]
        rows.append([name, *(f"{100 * value:.1f}" for value in values)])
    header = ["system", *map(str, TARGET_TIOU), "average", ".5:.95", "tuned oof", "segment AP oof", "segment AP"]
    show(f"{title}: mAP in percent", header, rows)
    singles = [str(key) for key in run.learned.evidence.models]
    found["best single"] = found[max(singles, key=tuned_scores.__getitem__)]
    rows = [
        [
            f"{a} - {b}",
            *(map_difference(found[a], found[b], instances, tiou) for tiou in (TARGET_TIOU, PRESETS["anet"])),
        ]
        for a, b in (*PAIRS, *SCENE_PAIRS)
    ]
    show(f"{title}: differences", ["pair", "average", ".5:.95"], rows)


def report_views(run: Run, title: str) -> None:
    """Print the segments' mean AP on the scored recordings with each view missing, and with all but one missing."""
    config = EnsembleConfig()
    stacks = cross_fit_stackers(run.learned, STACKS.values(), config=config)
    fitted = fit_stack(run.learned, stacks["gbm"][1], config=config)
    evidence, targets = run.scored.evidence, run.scored.targets
    views = sorted({split_view(key.view)[0] for key in evidence.models})
    others = [[other for other in views if other != view] for view in views]
    rows = []
    for gone in [[], *([view] for view in views), *(others if len(views) > 2 else [])]:
        left = evidence.without_views(gone)
        scores = {"best single": max(segment_ap(np.nan_to_num(probs), targets) for probs in left.action_probs)}
        scores["mean"] = segment_ap(combine(left).action, targets)
        for name, kind in STACKS.items():
            chosen = stacks[kind][1]
            own = replace(fitted, share=chosen.share) if chosen.share else replace(fitted, boosted=None, share=0.0)
            scores[name] = segment_ap(own.predict(left).action, targets)
        rows.append([", ".join(gone) or "none", *(f"{100 * value:.1f}" for value in scores.values())])
    show(f"{title}: segment AP in percent", ["missing", "best single left", "mean", *STACKS], rows)


@click.group()
def main() -> None:
    """Compare the combiners."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--dataset", type=click.Choice(list(REACHES)), multiple=True, default=list(REACHES))
def frames(folder: Path, dataset: tuple[str, ...]) -> None:
    """Combine frame-wise scores of several models."""
    for name in dataset:
        report_frames(folder, name)


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--split", default="test", show_default=True)
def run(run: Path, data: Path, split: str) -> None:
    """Combine the heads of a run."""
    report_run(load_run(run, data, split), f"{run.name}, split {split}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--split", default="test", show_default=True)
def views(run: Path, data: Path, split: str) -> None:
    """Combine the heads of a run when views are missing."""
    report_views(load_run(run, data, split), f"{run.name}, split {split}")


if __name__ == "__main__":
    main()
