"""`talstack compare`: does run A beat run B, or could it be luck."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talstack.cli.evaluate import PRESETS

if TYPE_CHECKING:
    from rich.table import Table

    from talstack.cli.scored import Scored
    from talstack.evaluate.bootstrap import Comparison, Interval

NUM_CLASSES = 10  # shown, those with the largest differences


@click.command("compare")
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Ground truth [the data folder that the runs name].")
@click.option("--preset", default="binego360", show_default=True, type=click.Choice(PRESETS), help="tIoU thresholds.")
@click.option(
    "--split", "--subset", "split", help="Part of the ground truth [data folder: test; run: the one it predicted]."
)
@click.option("--system", help="Whose rows to take of both runs [stack, for a run's folder].")
@click.option("--system-b", help="Whose rows to take of RUN_B, where it is another.")
@click.option("--score-column", default="score", show_default=True, help="Column to rank by, in CSV and parquet.")
@click.option("--draws", default=1000, show_default=True, type=click.IntRange(100), help="Draws of the bootstrap.")
@click.option("--level", default=0.95, show_default=True, type=click.FloatRange(0, 1, True, True), help="Confidence.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the draws.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(  # noqa: PLR0913 - one parameter per option
    run_a: Path, run_b: Path, data: Path | None, preset: str, split: str | None, system: str | None,
    system_b: str | None, score_column: str, draws: int, level: float, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Say whether RUN_A has a higher mAP than RUN_B, by a paired bootstrap over recordings.

    Each is a run's folder or a file of predictions, as `talstack evaluate` reads them. To compare two systems of
    one run, name it twice: compare RUN RUN --system stack --system-b weighted.
    """
    from talstack.cli.scored import read_scored, warnings_of
    from talstack.evaluate.bootstrap import compare_detections
    from talstack.evaluate.map import PRESETS as THRESHOLDS

    truth = data or shared_data_of(run_a, run_b)
    a = read_scored(run_a, truth, split=split, system=system, score_column=score_column)
    b = read_scored(run_b, truth, split=split, system=system_b or system, score_column=score_column)
    a, b = on_equal_terms(a, b)
    for scored in (a, b):
        for warning in warnings_of(scored):
            click.echo(f"warning: {scored.name}: {warning}", err=True)
    result = compare_detections(
        a.detections,
        b.detections,
        a.instances,
        tiou_thresholds=THRESHOLDS[preset],
        recordings=a.truth.recordings,
        num_draws=draws,
        level=level,
        seed=seed,
    )
    if as_json:
        value = {"name_a": a.name, "name_b": b.name, "preset": preset, "seed": seed, **result.to_json()}
        value["seen_recordings"] = max(a.num_seen, b.num_seen)
        click.echo(json.dumps(value, allow_nan=False))
    else:
        print_comparison(result, a.name, b.name)


def shared_data_of(run_a: Path, run_b: Path) -> Path | None:
    """Return the data folder of the two runs, or of the one that is a run's folder; None where neither is.

    Raises:
        MissingInputError: a run does not know its data.
        InputError: the two were made from different data.
    """
    from talstack.io.errors import InputError
    from talstack.io.runs import data_of

    folders = [data_of(run) for run in (run_a, run_b) if run.is_dir()]
    if len({folder.resolve() for folder in folders}) > 1:
        raise InputError(
            f"{run_a} was made from {folders[0]}, {run_b} from {folders[1]}; if they hold the same recordings, name "
            "one of them with --data"
        )
    return folders[0] if folders else None


def on_equal_terms(a: "Scored", b: "Scored") -> "tuple[Scored, Scored]":
    """Return both, by the competition's rules where one of the two is a competition file.

    Raises:
        InputError: they are scored on different recordings.
    """
    from talstack.cli.scored import in_bins
    from talstack.io.errors import InputError

    if a.truth.recordings != b.truth.recordings:
        raise InputError(
            f"{a.name} is scored on {len(a.truth.recordings)} recordings, {b.name} on {len(b.truth.recordings)} other "
            "ones: did they predict different splits? Choose one with --split"
        )
    if a.predictions.binned == b.predictions.binned:
        return a, b
    whole, binned = (b, a) if a.predictions.binned else (a, b)
    click.echo(f"warning: {whole.name}: cut into ten-second bins, as {binned.name} is", err=True)
    return (a, in_bins(b)) if a.predictions.binned else (in_bins(a), b)


def print_comparison(result: "Comparison", name_a: str, name_b: str) -> None:
    """Print mAP of both at each tIoU, the classes that differ most, and the verdict."""
    from rich.console import Console
    from rich.table import Table

    click.echo(f"A: {name_a}\nB: {name_b}")
    percent = f"{100 * result.a.level:g} %"
    table = Table("tIoU", "A", "B", "A - B", title=f"mAP in percent, [{percent} interval]")
    for tiou, a, b, gap in zip(result.a.tiou, result.a.map, result.b.map, result.difference, strict=True):
        table.add_row(f"{tiou:.2f}", _show(a), _show(b), _show(gap, sign="+"))
    table.add_section()
    average = (result.a.average_map, result.b.average_map)
    table.add_row("average", *map(_show, average), _show(result.average_difference, sign="+"), style="bold")
    console = Console(width=max(Console().width, 110))
    console.print(table)
    console.print(_class_table(result))
    click.echo(_verdict(result))


def _show(interval: "Interval", sign: str = "") -> str:
    low, high = (format(100 * value, f"{sign}.1f") for value in (interval.low, interval.high))
    return f"{format(100 * interval.estimate, f'{sign}.1f')} [{low}, {high}]"


def _class_table(result: "Comparison") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from talstack.evaluate.bootstrap import Interval

    rows = result.classes.with_columns(size=result.classes["difference"].abs()).sort(
        "size", "label", descending=[True, False]
    )
    shown = rows.head(NUM_CLASSES)
    table = Table(
        "class", "instances", "A", "B", "A - B", title=f"largest differences, {shown.height} of {rows.height}"
    )
    for row in shown.iter_rows(named=True):
        gap = _show(Interval(row["difference"], row["low"], row["high"]), sign="+")
        table.add_row(
            escape(row["label"]), str(row["num_instances"]), f"{100 * row['a']:.1f}", f"{100 * row['b']:.1f}", gap
        )
    return table


def _verdict(result: "Comparison") -> str:
    gap, a = result.average_difference, result.a
    evidence = (
        f"average mAP A - B {_show(gap, sign='+')} points, p = {result.p_value:.3f}, "
        f"{a.num_recordings} recordings, {a.num_draws} draws"
    )
    if result.verdict == "undecided":
        return f"undecided: this difference can be luck of the recordings; {evidence}"
    return f"{result.verdict.upper()} is better; {evidence}"
