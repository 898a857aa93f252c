"""`talstack tune`: choose how probabilities become intervals, on unseen out-of-fold predictions."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    from talstack.ensemble.tune_run import TunedSystem


@click.command("tune")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path), help="The data folder [what RUN/provenance.json names].")
@click.option("--split", default="test", show_default=True, help="Recordings that take no part: those to score later.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file [RUN/config.toml].")
@click.option(
    "--nested/--no-nested", default=True, show_default=True, help="Also tune without each group of recordings."
)
@jobs_option("Processes and threads")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    run: Path, data: Path | None, split: str, config_file: Path | None, nested: bool, jobs: int, as_json: bool
) -> None:
    """Choose how the predictions of RUN become intervals, and write the choice to RUN/tuned.json.

    Proposals, smoothing, refinement, scores and suppression are tuned for every single model, the mean, the weighted
    ensemble and the stack, for mAP at tIoU 0.5, 0.75 and 0.95, on out-of-fold predictions of recordings that neither
    heads nor backbone have seen. A setting replaces the first candidate of its list only if it is better beyond what
    luck explains. `talstack submit` with the same settings file and split then takes the choice from there.

    "nested" is the honest figure: every group of recordings decoded with what was tuned on the others. Where it lies
    below "first", the tuning has learned accidents, and the lists of candidates in [ensemble] are better made shorter.
    """
    from rich.console import Console

    from talstack.cli.config import load_config
    from talstack.ensemble.tune_run import tune_run
    from talstack.io.manifest import Manifest
    from talstack.io.runs import data_of

    kept = run / "config.toml"
    config = load_config(config_file or (kept if kept.is_file() else None))
    manifest = Manifest.load(data or data_of(run))
    with Console(stderr=True).status("reading predictions") as status:
        results = tune_run(
            manifest, run, config=config.ensemble, split=split, nested=nested, jobs=jobs, report=status.update
        )
    if as_json:
        click.echo(json.dumps({"systems": {result.name: asdict(result) for result in results}}))
        return
    print_table(results)
    click.echo(f"wrote {run / 'tuned.json'}")


def print_table(results: list["TunedSystem"]) -> None:
    """Print the average mAP of every system with the first candidates, tuned and nested, and what was changed."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 120)
    title = "average mAP in percent at tIoU 0.5, 0.75 and 0.95, out of fold"
    table = Table("system", "first", "tuned", "nested", "tried", "changed", title=title)
    for result in results:
        changed = ", ".join(f"{name} = {_shown(value)}" for name, value in result.changed.items())
        nested = "" if result.nested_average_map is None else f"{100 * result.nested_average_map:.1f}"
        table.add_row(
            result.name, f"{100 * result.first_average_map:.1f}", f"{100 * result.average_map:.1f}", nested,
            str(result.num_tried), changed or "nothing",
        )  # fmt: skip
    console.print(table)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
