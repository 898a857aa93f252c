"""`talstack heads`: train the heads on stored features and write the out-of-fold table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from talstack.cli.backend import backend_options, check_backend, opened
from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    import polars as pl

    from talstack.heads.config import HeadsConfig
    from talstack.heads.run import HeadResult
    from talstack.io.cluster import Backend, Cluster
    from talstack.io.extraction import FeatureSet


@click.command("heads")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Feature store of `talstack extract`.")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder of the run, made where needed.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings (see `talstack init`).")
@click.option("--extraction", "name", help="Which extraction's features to take [the data set's name].")
@jobs_option("Processes")
@backend_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    data: Path, store: Path, run: Path, config_file: Path | None, name: str | None, jobs: int,
    backend: "Backend", scheduler: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Train the heads of every (view, modality) of DATA and predict every recording out of fold.

    Writes RUN/oof.parquet (the probabilities of every head in every segment), RUN/heads.json and RUN/heads/. A head
    whose features, labels and settings have not changed is not trained again. The table shows each head's quality on
    out-of-fold recordings that the backbone has not seen. Features that are still to be extracted are listed, and the
    exit code is 1.
    """
    from talstack.cli.config import load_config
    from talstack.heads.quality import quality_table
    from talstack.io.extraction import FeatureSet
    from talstack.io.manifest import Manifest
    from talstack.io.predictions import read_table
    from talstack.io.runs import record_data

    check_backend(backend, scheduler)
    config = load_config(config_file)
    # workers of a cluster have another working directory
    features = FeatureSet.open(Manifest.load(data), store.resolve(), name)
    with opened(backend, scheduler) as cluster:
        results, written = _run(features, run.resolve(), config.heads, jobs, cluster)
    config.save_resolved(run)
    record_data(run, data, store)
    quality = quality_table(read_table(run / "oof.parquet"), features)
    if as_json:
        click.echo(json.dumps(_summary(run, results, quality, features, written=written), allow_nan=False))
    else:
        _print_table(quality)
        click.echo(_line(run, results, written=written))
    _warn(results, features)
    if features.missing:
        raise click.exceptions.Exit(1)


def _run(
    features: "FeatureSet", run: Path, config: "HeadsConfig", jobs: int, cluster: "Cluster | None"
) -> tuple[list["HeadResult"], bool]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from talstack.heads.run import plan_jobs, run_heads

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("training heads", total=len(plan_jobs(features, run, config)))
        return run_heads(
            features, run, config=config, jobs=jobs, cluster=cluster, report=lambda result: progress.advance(bar)
        )


def _line(run: Path, results: list["HeadResult"], *, written: bool) -> str:
    counts = _counts(results)
    if not written:
        return f"{run}: nothing to do, {counts['cached']} heads are up to date"
    return f"{run}: {counts['fitted']} heads trained, {counts['cached']} up to date; wrote oof.parquet and heads.json"


def _counts(results: list["HeadResult"]) -> dict[str, int]:
    return {
        outcome: sum(result.outcome == outcome for result in results) for outcome in ("fitted", "cached", "skipped")
    }


def _summary(
    run: Path, results: list["HeadResult"], quality: "pl.DataFrame", features: "FeatureSet", *, written: bool
) -> dict[str, Any]:
    return {
        "run": str(run),
        "written": written,
        **_counts(results),
        "heads": quality.to_dicts(),
        "skipped_heads": [str(result.key) for result in results if result.outcome == "skipped"],
        "missing": [str(key) for key in features.missing],
        "failed": [str(key) for key in features.failed],
    }


def _print_table(quality: "pl.DataFrame") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("view", "modality", "head", "metric", title="out-of-fold quality on unseen recordings, percent")
    table.add_column("value", justify="right")
    table.add_column("recordings", justify="right")
    for view, modality, head, metric, value, count in quality.iter_rows():
        table.add_row(view, modality, head, metric, "-" if value is None else f"{100 * value:.1f}", str(count))
    Console(stderr=True).print(table)


def _warn(results: list["HeadResult"], features: "FeatureSet") -> None:
    for result in results:
        if result.outcome == "skipped":
            click.echo(f"warning: {result.key}: skipped, no training recording has labelled features", err=True)
        elif result.num_unpredicted:
            text = f"{result.num_unpredicted} recordings not predicted, no other fold has labelled features"
            click.echo(f"warning: {result.key}: {text}", err=True)
    if features.failed:
        click.echo(f"note: {len(features.failed)} shards failed in extraction and are not used", err=True)
    for key in features.missing:
        click.echo(f"missing: {key}: not extracted yet; run `talstack extract`", err=True)
