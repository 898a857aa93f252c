"""`talstack evaluate`: mean average precision of a file of predictions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from talstack.evaluate.map import MapResult
    from talstack.io.detections import Predictions
    from talstack.io.ground_truth import GroundTruth

PRESETS = ("anet", "thumos", "epic", "ego4d", "binego360")


@click.command("evaluate")
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("ground_truth", type=click.Path(path_type=Path))
@click.option("--preset", required=True, type=click.Choice(PRESETS), help="Whose tIoU thresholds to use.")
@click.option("--score-column", default="score", show_default=True, help="Column to rank by, in CSV and parquet.")
@click.option("--system", help="Whose rows to take, where a `system` column names several.")
@click.option("--split", "--subset", "split", help="Part of the ground truth [test, for a data folder].")
@click.option("--per-class", is_flag=True, help="Also print the average precision of every class.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    predictions: Path, ground_truth: Path, preset: str, score_column: str, system: str | None, split: str | None,
    per_class: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score PREDICTIONS against GROUND_TRUTH: mAP at each tIoU and its average.

    PREDICTIONS: detections.parquet of a run, a CSV (recording, start_s, end_s, label, score), ActivityNet result
    JSON, or a BinEgo-360 submission; for the last the ground truth is cut into ten-second bins as well.
    GROUND_TRUTH: a data folder, ActivityNet JSON, or a CSV (recording, start_s, end_s, label).

    A class of the ground truth without a prediction counts as 0. Predictions on recordings that the ground truth
    does not list are false positives. What was ignored or is odd is counted on stderr.
    """
    from talstack.io.detections import read_predictions
    from talstack.io.ground_truth import read_ground_truth

    truth = read_ground_truth(ground_truth, split=split)
    found = read_predictions(predictions, score_column=score_column, system=system, class_ids=truth.class_ids)
    result = score(found, truth, preset)
    for warning in warnings_of(result, found, truth):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json(), allow_nan=False))
    else:
        _print_table(result, per_class=per_class)


def score(predictions: "Predictions", truth: "GroundTruth", preset: str) -> "MapResult":
    """Return the mAP; what the readers left out is counted in `ignored`."""
    from dataclasses import replace

    from talstack.evaluate.map import PRESETS as THRESHOLDS
    from talstack.evaluate.map import evaluate_detections
    from talstack.io.bins import bin_instances

    result = evaluate_detections(
        predictions.detections,
        bin_instances(truth.instances) if predictions.binned else truth.instances,
        tiou_thresholds=THRESHOLDS[preset],
        preset=preset,
        recordings=truth.recordings,
    )
    unread = {f"{reason} (instance)": count for reason, count in truth.dropped.items()}
    return replace(result, ignored={**predictions.dropped, **unread, **result.ignored})


def warnings_of(result: "MapResult", predictions: "Predictions", truth: "GroundTruth") -> list[str]:
    """Return what a reader of the score should know, one line each."""
    lines = [f"predictions: {text}" for text in predictions.warnings]
    lines += [f"ground truth: {text}" for text in truth.warnings]
    lines += [f"ignored {count}: {reason}" for reason, count in result.ignored.items()]
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
        summary.add_row(f"{threshold:.2f}", f"{100 * value:.2f}")
    summary.add_section()
    summary.add_row("average", f"{100 * result.average_map:.2f}", style="bold")
    console.print(summary)
    click.echo(f"{result.num_predictions} predictions, {result.num_instances} instances, {len(result.ap)} classes")
    if per_class:
        thresholds = [f"{threshold:.2f}" for threshold in result.tiou]
        table = Table("class", "instances", *thresholds, "average", title="average precision, %")
        for label, values in result.ap.items():
            percents = [f"{100 * value:.1f}" for value in (*values, sum(values) / len(values))]
            table.add_row(label, str(result.instances_per_class[label]), *percents)
        # rich would cut the figures to fit 80 columns, which is also what it takes a pipe to have
        Console(width=max(console.width, 40 + 10 * len(thresholds))).print(table)
