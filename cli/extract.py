"""`talstack extract`: run the backbone once over every view and store the features."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talstack.cli.backend import backend_options, check_backend
from talstack.cli.extract_progress import print_table, running_bar, summary_line, to_json
from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    from talstack.extract.plan import ExtractionPlan
    from talstack.extract.status import StatusRow
    from talstack.io.cluster import Backend
    from talstack.io.shard import ShardKey


@click.command("extract")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Feature store; may hold several sets.")
@click.option("--backbone", type=click.Path(path_type=Path), help="Folder made by `talstack finetune`.")
@click.option("--view", "views", multiple=True, help="Only this view (may be given several times).")
@click.option("--modality", "modalities", multiple=True, help="Only rgb, rgbdiff, audio or an external feature's name.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file; see `talstack init`.")
@click.option("--name", help="Name of this extraction for `talstack heads --extraction` [the data set's name].")
@jobs_option("Processes", chosen="up to four per GPU, or one per core as far as memory goes")
@backend_options
@click.option("--shard", default="1/1", metavar="i/n", help="Only the i-th of n parts, for array jobs.")
@click.option("--retry-failed", is_flag=True, help="Try recorded failures again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    data: Path, store: Path, backbone: Path | None, views: tuple[str, ...], modalities: tuple[str, ...],
    config_file: Path | None, name: str | None, jobs: int, backend: "Backend", scheduler: str | None, shard: str,
    retry_failed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Extract the features of every (recording, view, modality) of DATA into the store.

    Safe to stop at any moment and to run again: what is done is skipped. A clip that cannot be read becomes a
    recorded failure with its reason; so does one that kills or hangs its worker twice; the rest goes on, and the exit
    code is 1.
    """
    from talstack.cli.config import load_config
    from talstack.extract.plan import plan_extraction

    started_s = time.monotonic()
    check_backend(backend, scheduler)
    store = store.resolve()  # workers of a cluster have another working directory
    config = load_config(config_file)
    plan = plan_extraction(
        data, store, config=config.extract, sampling=config.sampling, backbone=backbone, views=views,
        modalities=modalities, name=name,
    )  # fmt: skip
    todo = plan.part(_parse_shard(shard))
    if retry_failed:
        plan.forget_failures(todo)  # and not what other array jobs have just recorded
    rows = _run(todo, plan, jobs=jobs, backend=backend, scheduler=scheduler)
    seconds = time.monotonic() - started_s
    if as_json:
        named = {"extraction": plan.extraction.name, "store": str(store)}
        click.echo(json.dumps({**named, **to_json(rows, seconds=seconds)}, allow_nan=False))
    else:
        print_table(rows)
        click.echo(f"{store}: extraction {plan.extraction.name!r}, {summary_line(rows, seconds=seconds)}")
    failed = [row for row in rows if row.outcome == "failed"]
    for row in failed:
        click.echo(f"failed: {row.recording} {row.view}/{row.modality}: {row.reason}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _parse_shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{text!r}: expected i/n with 1 <= i <= n, such as 1/4", param_hint="--shard")
    return int(part), int(parts)


def _run(
    todo: "list[ShardKey]", plan: "ExtractionPlan", *, jobs: int, backend: "Backend", scheduler: str | None
) -> "list[StatusRow]":
    """Run what is missing under a progress bar; cached shards never start a worker or import torch."""
    # before looking what is there: a `cache gc` at the same time keeps what a record names
    plan.extraction.save(plan.store.root)
    rows = plan.finished_rows(todo)
    missing = plan.missing(todo)
    if missing:
        from talstack.extract.remote import open_pool
        from talstack.extract.schedule import run_items
        from talstack.extract.worker import probe_machine
        from talstack.extract.workers import Workers

        local = plan.workers(missing, jobs) if backend == "loky" else Workers(1)
        with open_pool(backend, local, scheduler=scheduler) as (pool, workers), running_bar(len(missing)) as bar:
            items = plan.items(missing, workers, here=backend == "loky")
            rows += run_items(
                items, jobs=workers, pool=pool, hang_s=plan.config.hang_s, probe=probe_machine, report=bar.report,
                warn=bar.warn,
            )  # fmt: skip
    return sorted(rows, key=lambda row: (row.recording, row.view, row.modality))
