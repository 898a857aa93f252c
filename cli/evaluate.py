"""`talstack evaluate`: mean average precision of a file of predictions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from talstack.cli.scored import Scored
    from talstack.evaluate.bootstrap import MapIntervals
    from talstack.evaluate.map import MapResult
    from talstack.evaluate.recall import AverageRecall, RecallAtKx
    from talstack.evaluate.scene import SceneResult

PRESETS = ("anet", "thumos", "epic", "ego4d", "binego360")
COMPAT = ("actionformer", "opentad", "x360", "x360-repeats", "thumos14")
CUSTOM = "custom"


@click.command("evaluate")
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("ground_truth", required=False, type=click.Path(path_type=Path))
@click.option("--track", default="tal", show_default=True, type=click.Choice(["tal", "scene"]), help="What to score.")
@click.option("--preset", type=click.Choice(PRESETS), help="Whose tIoU thresholds to use.")
@click.option(
    "--tiou", multiple=True, metavar="T", help="Own thresholds instead: 0.5, or 0.3:0.7:0.1 for first:last:step."
)
@click.option("--compat", type=click.Choice(COMPAT), help="Score by the rules of another evaluator.")
@click.option("--score-column", default="score", show_default=True, help="Column to rank by, in CSV and parquet.")
@click.option("--system", help="Whose rows to take, where a `system` column names several [stack, for a run].")
@click.option(
    "--split",
    "--subset",
    "split",
    help="Part of the ground truth [data folder: test; run: the one it predicted; file: all].",
)
@click.option(
    "--bootstrap",
    "num_draws",
    default=0,
    metavar="N",
    type=click.IntRange(0),
    help="Also a 95 % interval from N draws, say 1000.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the draws.")
@click.option("--recall", "with_recall", is_flag=True, help="Also AR@AN and Recall@kx, at k = 1 and 5.")
@click.option("--per-class", is_flag=True, help="Also print the average precision of every class.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    predictions: Path, ground_truth: Path | None, track: str, preset: str | None, tiou: tuple[str, ...],
    compat: str | None, score_column: str, system: str | None, split: str | None, num_draws: int, seed: int,
    with_recall: bool, per_class: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score PREDICTIONS against GROUND_TRUTH: mAP at each tIoU and its average.

    PREDICTIONS: a run's folder, a CSV or parquet table (recording, start_s, end_s, label, score), ActivityNet result
    JSON, or a BinEgo-360 submission; for the last the ground truth is cut into ten-second bins as well.
    GROUND_TRUTH: a data folder, ActivityNet JSON, or a CSV (recording, start_s, end_s, label); a run knows its own.

    A class of the ground truth without a prediction counts as 0. Predictions on recordings that the ground truth
    does not list are false positives. What was ignored or is odd is counted on stderr.

    --compat actionformer and opentad drop instances that are duplicates within 1 ms, the second rounds predictions
    too; x360 cuts, rounds and snaps to ten-second pieces as the 360+x kit does, x360-repeats also counts repeated hits
    as it does (AP may exceed 1); thumos14 follows the challenge's toolkit. Recall and --bootstrap go without it.

    --track scene scores scene.parquet of a run or a scene submission: top-1, top-5, what is taken for what.
    """
    from talstack.cli.evaluation_tables import print_map, print_recall, print_scenes
    from talstack.cli.scored import read_scored

    if track == "scene":
        refuse_tal_options(click.get_current_context())
        scenes = score_scenes(predictions, ground_truth, split=split)
        for reason, count in (scenes.ignored or {}).items():
            click.echo(f"warning: ignored {count}: {reason}", err=True)
        if scenes.missing:
            click.echo(f"warning: {len(scenes.missing)} recordings have no prediction and count as wrong", err=True)
        click.echo(json.dumps(scenes.to_json(), allow_nan=False)) if as_json else print_scenes(scenes)
        return
    name, thresholds = choose_thresholds(preset, tiou)
    if compat and (with_recall or num_draws):
        raise click.UsageError("--recall and --bootstrap follow rules of their own; run them without --compat")
    scored = read_scored(predictions, ground_truth, split=split, system=system, score_column=score_column)
    result = score(scored, name, tiou_thresholds=thresholds, compat=compat)
    intervals = bootstrap(scored, thresholds, num_draws=num_draws, seed=seed) if num_draws else None
    recall = score_recall(scored, thresholds) if with_recall else None
    for warning in warnings_of(scored, result):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        extra: dict[str, Any] = {"recall": recall_json(*recall)} if recall else {}
        extra.update({"bootstrap": {**intervals.to_json(), "seed": seed}} if intervals else {})
        extra.update({"seen_recordings": scored.num_seen} if scored.num_seen else {})
        click.echo(json.dumps({**result.to_json(), **extra}, allow_nan=False))
        return
    print_map(result, intervals, per_class=per_class)
    if recall:
        print_recall(*recall)


def refuse_tal_options(context: click.Context) -> None:
    """Raise click.UsageError where an option was given that means nothing to the scene track."""
    default = click.core.ParameterSource.DEFAULT
    kept = {"predictions", "ground_truth", "track", "split", "as_json"}
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name not in kept and context.get_parameter_source(str(parameter.name)) != default
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)}: not for --track scene")


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
    scored: "Scored", preset: str, *, tiou_thresholds: tuple[float, ...], compat: str | None = None
) -> "MapResult":
    """Return the mAP; what the readers left out is counted in `ignored`."""
    from dataclasses import replace
    from functools import partial

    from talstack.evaluate.compat import evaluate_compat
    from talstack.evaluate.map import evaluate_detections

    evaluate = partial(evaluate_compat, compat) if compat else evaluate_detections
    raw = compat is not None and compat.startswith("x360")  # it cuts and rounds by rules of its own
    result = evaluate(
        scored.predictions.detections if raw else scored.detections,
        scored.truth.instances if raw else scored.instances,
        tiou_thresholds=tiou_thresholds,
        preset=preset,
        recordings=scored.truth.recordings,
    )
    unscored = {} if raw and scored.predictions.binned else scored.unscored
    return replace(result, ignored={**unscored, **result.ignored})


def bootstrap(scored: "Scored", thresholds: tuple[float, ...], *, num_draws: int, seed: int) -> "MapIntervals":
    """Return the mAP with its intervals."""
    from talstack.evaluate.bootstrap import bootstrap_map
    from talstack.evaluate.map import match_for_map

    listed = scored.truth.recordings
    matched, _ = match_for_map(scored.detections, scored.instances, thresholds, recordings=listed)
    return bootstrap_map(matched, recordings=listed, num_draws=num_draws, seed=seed)


def score_recall(scored: "Scored", thresholds: tuple[float, ...]) -> "tuple[AverageRecall, RecallAtKx]":
    """Return AR@AN at ActivityNet's thresholds, and Recall@kx at these."""
    from talstack.evaluate.recall import average_recall, recall_at_kx

    proposals = average_recall(scored.detections, scored.instances)
    return proposals, recall_at_kx(scored.detections, scored.instances, tiou_thresholds=thresholds)


def score_scenes(path: Path, ground_truth: Path | None, *, split: str | None) -> "SceneResult":
    """Return the accuracy of a run's scenes, or of a file of scene predictions.

    Raises:
        MissingInputError, InputError: as the readers, or a ground truth that knows no scenes.
    """
    import polars as pl

    from talstack.cli.scored import truth_of
    from talstack.evaluate.scene import evaluate_scenes
    from talstack.io.errors import InputError
    from talstack.io.scene_probs import read_scene_probs

    truth = truth_of(path, ground_truth, split=split)
    if not truth.scenes:
        raise InputError("the ground truth knows no scene of these recordings; the scene track needs a data folder")
    probs = read_scene_probs(path / "scene.parquet" if path.is_dir() else path, scenes=truth.scene_names)
    columns = {"recording": truth.recordings, "scene": [truth.scenes.get(name) for name in truth.recordings]}
    recordings = pl.DataFrame(columns, schema={"recording": pl.String, "scene": pl.String})
    return evaluate_scenes(probs, recordings, scenes=truth.scene_names)


def recall_json(proposals: "AverageRecall", at_kx: "RecallAtKx") -> dict[str, Any]:
    """Return the value of `recall` in the JSON object."""
    return {"average_recall": proposals.to_json(), "recall_at_kx": at_kx.to_json()}


def warnings_of(scored: "Scored", result: "MapResult") -> list[str]:
    """Return what a reader of the score should know, one line each."""
    from talstack.cli import scored as reading
    from talstack.evaluate.map import UNKNOWN_LABEL

    lines = reading.warnings_of(scored, compat=result.compat)
    said = {*scored.unscored, UNKNOWN_LABEL}
    lines += [f"ignored {count}: {reason}" for reason, count in result.ignored.items() if reason not in said]
    return lines + [f"changed {count} by --compat {result.compat}: {what}" for what, count in result.changed.items()]
