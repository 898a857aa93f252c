"""`talstack evaluate`: mean average precision of a file of predictions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from talstack.evaluate.map import MapResult
    from talstack.evaluate.recall import AverageRecall, RecallAtKx
    from talstack.io.detections import Predictions
    from talstack.io.ground_truth import GroundTruth

PRESETS = ("anet", "thumos", "epic", "ego4d", "binego360")
COMPAT = ("actionformer", "opentad", "x360", "x360-repeats", "thumos14")
CUSTOM = "custom"


@click.command("evaluate")
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("ground_truth", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(PRESETS), help="Whose tIoU thresholds to use.")
@click.option(
    "--tiou", multiple=True, metavar="T", help="Own thresholds instead: 0.5, or 0.3:0.7:0.1 for first:last:step."
)
@click.option("--compat", type=click.Choice(COMPAT), help="Score by the rules of another evaluator.")
@click.option("--score-column", default="score", show_default=True, help="Column to rank by, in CSV and parquet.")
@click.option("--system", help="Whose rows to take, where a `system` column names several.")
@click.option("--split", "--subset", "split", help="Part of the ground truth [test, for a data folder].")
@click.option("--recall", "with_recall", is_flag=True, help="Also AR@AN and Recall@kx, at k = 1 and 5.")
@click.option("--per-class", is_flag=True, help="Also print the average precision of every class.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    predictions: Path, ground_truth: Path, preset: str | None, tiou: tuple[str, ...], compat: str | None,
    score_column: str, system: str | None, split: str | None, with_recall: bool, per_class: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score PREDICTIONS against GROUND_TRUTH: mAP at each tIoU and its average.

    PREDICTIONS: detections.parquet of a run, a CSV (recording, start_s, end_s, label, score), ActivityNet result
    JSON, or a BinEgo-360 submission; for the last the ground truth is cut into ten-second bins as well.
    GROUND_TRUTH: a data folder, ActivityNet JSON, or a CSV (recording, start_s, end_s, label).

    A class of the ground truth without a prediction counts as 0. Predictions on recordings that the ground truth
    does not list are false positives. What was ignored or is odd is counted on stderr.

    --compat actionformer and opentad drop instances that are duplicates within 1 ms, the second rounds predictions
    too; x360 cuts, rounds and snaps to ten-second pieces as the 360+x kit does, x360-repeats also counts repeated hits
    as it does (AP may exceed 1); thumos14 follows the challenge's toolkit. Recall has its own definitions, so it goes
    without --compat.
    """
    from talstack.io.detections import read_predictions
    from talstack.io.ground_truth import read_ground_truth

    name, thresholds = choose_thresholds(preset, tiou)
    if compat and with_recall:
        raise click.UsageError("--recall follows ActivityNet's and Ego4D's own rules; run it without --compat")
    truth = read_ground_truth(ground_truth, split=split)
    found = read_predictions(predictions, score_column=score_column, system=system, class_ids=truth.class_ids)
    result = score(found, truth, name, tiou_thresholds=thresholds, compat=compat)
    recall = score_recall(found, truth, thresholds) if with_recall else None
    for warning in warnings_of(result, found, truth):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        extra = {"recall": recall_json(*recall)} if recall else {}
        click.echo(json.dumps({**result.to_json(), **extra}, allow_nan=False))
        return
    _print_table(result, per_class=per_class)
    if recall:
        _print_recall(*recall)


def choose_thresholds(preset: str | None, tiou: tuple[str, ...]) -> tuple[str, tuple[float, ...]]:
    """Return the name of the threshold list and its values, ascending where they are the user's own.

    Raises:
        click.UsageError: neither or both were given, or a threshold is not a number in (0, 1].
    """
    from talstack.evaluate.map import PRESETS as THRESHOLDS

    if (preset is None) == (not tiou):
        raise click.UsageError("give --preset, or own thresholds with --tiou, and not both")
    if preset is not None:
        return preset, THRESHOLDS[preset]
    values = {value for text in tiou for part in text.split(",") for value in parse_thresholds(part)}
    return CUSTOM, tuple(sorted(values))


def parse_thresholds(text: str) -> list[float]:
    """Return the thresholds of "0.5" or of "first:last:step", such as "0.3:0.7:0.1"; the last one is included.

    Raises:
        click.UsageError: another form, a value outside (0, 1], or a step that does not lead from first to last.
    """
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError as error:
        raise click.UsageError(f"--tiou {text!r}: expected a number, or first:last:step such as 0.3:0.7:0.1") from error
    if len(numbers) not in (1, 3) or not all(0 < number <= 1 for number in numbers):
        raise click.UsageError(f"--tiou {text!r}: expected one number in (0, 1], or first:last:step, all in (0, 1]")
    if len(numbers) == 1:
        return numbers
    first, last, step = numbers
    steps = round((last - first) / step)
    if steps < 1 or abs(first + steps * step - last) > 1e-9:
        raise click.UsageError(f"--tiou {text!r}: steps of {step:g} do not lead from {first:g} to {last:g}")
    return [round(first + index * step, 10) for index in range(steps + 1)]  # 0.3, not 0.30000000000000004


def score(
    predictions: "Predictions",
    truth: "GroundTruth",
    preset: str,
    *,
    tiou_thresholds: tuple[float, ...],
    compat: str | None = None,
) -> "MapResult":
    """Return the mAP; what the readers left out is counted in `ignored`."""
    from dataclasses import replace
    from functools import partial

    from talstack.evaluate.compat import evaluate_compat
    from talstack.evaluate.map import evaluate_detections

    evaluate = partial(evaluate_compat, compat) if compat else evaluate_detections
    result = evaluate(
        predictions.detections,
        instances_for(predictions, truth),
        tiou_thresholds=tiou_thresholds,
        preset=preset,
        recordings=truth.recordings,
    )
    unread = {f"{reason} (instance)": count for reason, count in truth.dropped.items()}
    return replace(result, ignored={**predictions.dropped, **unread, **result.ignored})


def instances_for(predictions: "Predictions", truth: "GroundTruth") -> "pl.DataFrame":
    """Return the instances, cut into ten-second bins where the predictions are."""
    from talstack.io.bins import bin_instances

    return bin_instances(truth.instances) if predictions.binned else truth.instances


def score_recall(
    predictions: "Predictions", truth: "GroundTruth", thresholds: tuple[float, ...]
) -> "tuple[AverageRecall, RecallAtKx]":
    """Return AR@AN at ActivityNet's thresholds, and Recall@kx at these."""
    from talstack.evaluate.recall import average_recall, recall_at_kx

    instances = instances_for(predictions, truth)
    proposals = average_recall(predictions.detections, instances)
    return proposals, recall_at_kx(predictions.detections, instances, tiou_thresholds=thresholds)


def recall_json(proposals: "AverageRecall", at_kx: "RecallAtKx") -> dict[str, Any]:
    """Return the value of `recall` in the JSON object."""
    return {"average_recall": proposals.to_json(), "recall_at_kx": at_kx.to_json()}


def warnings_of(result: "MapResult", predictions: "Predictions", truth: "GroundTruth") -> list[str]:
    """Return what a reader of the score should know, one line each."""
    lines = [f"predictions: {text}" for text in predictions.warnings]
    lines += [f"ground truth: {text}" for text in truth.warnings]
    lines += [f"ignored {count}: {reason}" for reason, count in result.ignored.items()]
    lines += [f"changed {count} by --compat {result.compat}: {what}" for what, count in result.changed.items()]
    if result.num_unlisted:
        lines.append(
            f"{result.num_unlisted} predictions are on recordings that the ground truth does not list "
            "(another split?); they count as false positives"
        )
    if not result.num_predictions:
        lines.append("there is no prediction to score")
    return lines


def _print_table(result: "MapResult", *, per_class: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    summary = Table("tIoU", "mAP, %")
    for threshold, value in zip(result.tiou, result.map, strict=True):
        summary.add_row(_show_tiou(threshold), f"{100 * value:.2f}")
    summary.add_section()
    summary.add_row("average", f"{100 * result.average_map:.2f}", style="bold")
    console.print(summary)
    rules = f"; rules of {result.compat}" if result.compat else ""
    counts = f"{result.num_predictions} predictions, {result.num_instances} instances, {len(result.ap)} classes"
    click.echo(counts + rules)
    if per_class:
        # rich would cut the figures to fit 80 columns, which is also what it takes a pipe to have
        Console(width=max(console.width, 40 + 10 * len(result.tiou))).print(_class_table(result))


def _class_table(result: "MapResult") -> "Table":
    from rich.table import Table

    headers = [_show_tiou(threshold) for threshold in result.tiou]
    table = Table("class", "instances", *headers, "average", title="average precision, %")
    for label, values in result.ap.items():
        percents = [f"{100 * value:.1f}" for value in (*values, sum(values) / len(values))]
        table.add_row(label, str(result.instances_per_class[label]), *percents)
    return table


def _print_recall(proposals: "AverageRecall", at_kx: "RecallAtKx") -> None:
    """Print AR at the usual numbers of proposals, and Recall@kx at each threshold."""
    from rich.console import Console
    from rich.table import Table

    points = proposals.to_json()["ar"]
    table = Table(*(f"AR@{number}" for number in points), "AUC", title="recall of proposals, %")
    table.add_row(*(f"{100 * value:.2f}" for value in (*points.values(), proposals.auc)))
    names = [f"Recall@{k}x" for k in at_kx.k]
    second = Table("tIoU", *names, *(f"{name}, pooled" for name in names), title="recall of detections, %")
    for place, threshold in enumerate(at_kx.tiou.tolist()):
        values = (*at_kx.mean[place], *at_kx.pooled[place])
        second.add_row(_show_tiou(threshold), *(f"{100 * value:.2f}" for value in values))
    console = Console(width=max(Console().width, 90))
    console.print(table)
    console.print(second)


def _show_tiou(threshold: float) -> str:
    return f"{threshold:.2f}" if abs(threshold - round(threshold, 2)) < 1e-9 else f"{threshold:g}"
