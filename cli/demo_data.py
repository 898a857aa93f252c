"""`talstack demo-data`: render the sample data set."""

from pathlib import Path

import click

from talstack.cli.jobs import jobs_option


@click.command("demo-data")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--recordings", "num_recordings", default=32, show_default=True, help="Number of recordings, at least 6.")
@click.option(
    "--duration", "duration_s", default=36.0, show_default=True, help="Length of each recording in seconds, at least 8."
)
@click.option("--seed", default=0, show_default=True, help="Another seed gives another data set.")
@jobs_option("Recordings rendered at the same time")
@click.option("--force", is_flag=True, help="Replace a sample data set that was made with other parameters.")
def command(out: Path, num_recordings: int, duration_s: float, seed: int, jobs: int, force: bool) -> None:
    """Render a sample data set into the folder OUT.

    Short recordings of eight actions in three scenes, each filmed by three cameras with sound, in the layout of the
    BinEgo-360 challenge. The same options always give the same data set; a finished one is left as it is, an
    interrupted one is completed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from talstack.demo.write import write_demo

    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("rendering", total=None, visible=False)
        summary = write_demo(
            out,
            num_recordings=num_recordings,
            duration_s=duration_s,
            seed=seed,
            jobs=jobs,
            force=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    click.echo(
        f"{out}: {summary.num_recordings} recordings, {summary.num_clips} clips, {summary.num_instances} actions"
        + ("" if summary.written else " (already there, nothing done)")
    )
