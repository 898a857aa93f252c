"""`talstack extract`: run the backbone once over every view and store the features."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    from talstack.extract.plan import ExtractionPlan
    from talstack.io.shard import ShardKey


@click.command("extract")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Feature store; may hold several sets.")
@click.option("--backbone", type=click.Path(path_type=Path), help="Folder made by `talstack finetune`.")
@click.option("--view", "views", multiple=True, help="Only this view (may be given several times).")
@click.option("--modality", "modalities", multiple=True, help="Only rgb, audio or an external feature's name.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file; see `talstack init`.")
@click.option("--name", help="Name of this extraction for `talstack heads --extraction` [the data set's name].")
@jobs_option("Processes")
@click.option("--shard", default="1/1", metavar="i/n", help="Only the i-th of n parts, for array jobs.")
@click.option("--retry-failed", is_flag=True, help="Try recorded failures again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    data: Path, store: Path, backbone: Path | None, views: tuple[str, ...], modalities: tuple[str, ...],
    config_file: Path | None, name: str | None, jobs: int, shard: str, retry_failed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Extract the features of every (recording, view, modality) of DATA into the store.

    Safe to stop at any moment and to run again: what is done is skipped. A clip that cannot be read becomes a
    recorded failure with its reason; the rest goes on, and the exit code is 1.
    """
    from talstack.cli.config import load_config
    from talstack.extract.plan import plan_extraction

    config = load_config(config_file)
    plan = plan_extraction(
        data, store, config=config.extract, sampling=config.sampling, backbone=backbone, views=views,
        modalities=modalities, name=name,
    )  # fmt: skip
    if retry_failed:
        plan.forget_failures()
    todo = plan.part(_parse_shard(shard))
    rows = _run(todo, plan, jobs)
    failed = [row for row in rows if row["outcome"] == "failed"]
    if as_json:
        click.echo(json.dumps({"extraction": plan.extraction.name, "store": str(store), "shards": rows}))
    else:
        _print_table(rows)
        click.echo(f"{store}: extraction {plan.extraction.name!r}, {len(rows)} shards, {len(failed)} failed")
    if failed:
        for row in failed:
            click.echo(f"failed: {row['recording']} {row['view']}/{row['modality']}: {row['reason']}", err=True)
        raise click.exceptions.Exit(1)


def _parse_shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{text!r}: expected i/n with 1 <= i <= n, such as 1/4", param_hint="--shard")
    return int(part), int(parts)


def _run(todo: "list[ShardKey]", plan: "ExtractionPlan", jobs: int) -> list[dict[str, Any]]:
    """Run what is missing under a progress bar; cached shards never start a worker or import torch."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    # before looking what is there: a `cache gc` at the same time keeps what a record names
    plan.extraction.save(plan.store.root)
    rows = plan.finished_rows(todo)
    missing = plan.missing(todo)
    if missing:
        from talstack.extract.schedule import run_items

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("extracting", total=len(missing))
            rows += run_items(
                plan.items(missing, jobs), jobs=jobs, hang_s=plan.config.hang_s,
                report=lambda row: progress.advance(bar), warn=progress.console.print,
            )  # fmt: skip
    return [asdict(row) for row in sorted(rows, key=lambda row: (row.recording, row.view, row.modality))]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    table = Table("view", "modality", "new", "cached", "failed", "segments", "masked", title="features")
    for view, modality in sorted({(row["view"], row["modality"]) for row in rows}):
        group = [row for row in rows if (row["view"], row["modality"]) == (view, modality)]
        count = Counter(row["outcome"] for row in group)
        segments = sum(row["num_segments"] for row in group)
        masked = segments - sum(row["num_valid"] for row in group)
        table.add_row(
            view, modality, *(str(count[k]) for k in ("done", "cached", "failed")), str(segments), str(masked)
        )
    Console(stderr=True).print(table)
