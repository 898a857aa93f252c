"""`talstack sync`: place clips on their recording's clock by their sound."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talstack.cli.jobs import jobs_option

if TYPE_CHECKING:
    from talstack.extract.sync_plan import SyncClip, SyncSettings
    from talstack.extract.sync_record import ClipSync

DEFAULT_CONFIDENCE = 6.0  # extract.sync's, which --help must not import; a test compares them


@click.command("sync")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--view", "views", multiple=True, help="Only clips of this view (may be given several times).")
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULT_CONFIDENCE,
    show_default=True,
    help="Leave a clip where it is below this: how far its best place stands above the second best.",
)
@click.option(
    "--max-lag",
    "max_lag_s",
    type=click.FloatRange(0),
    default=float("inf"),
    show_default="everywhere",
    help="Look only this many seconds around the known offset, or around 0 where it is unknown.",
)
@jobs_option("Processes")
@click.option("--check", is_flag=True, help="Compare known offsets with the sound; writes nothing.")
@click.option("--overwrite", is_flag=True, help="Place clips at a known offset as well.")
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    data: Path, views: tuple[str, ...], min_confidence: float, max_lag_s: float, jobs: int, check: bool,
    overwrite: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Estimate from the sound where the clips of DATA at an unknown offset begin, and write it into DATA.

    A clip is compared with its recording's clips at a known offset, at every lag. One that matches nowhere clearly
    better than elsewhere stays unknown, and is used for the scene only. DATA/sync.parquet says of every clip what was
    found, how sure it was and what came of it; known offsets stay. With --overwrite they do not, but for one clip per
    recording, the longest. Run it between import and finetune: features of a clip that moved are made anew.
    """
    from talstack.extract.sync_plan import SyncSettings, plan_sync
    from talstack.extract.sync_record import load_record, save_offsets
    from talstack.io.manifest import Manifest

    if check and overwrite:
        raise click.UsageError("--check changes nothing, so there is nothing to --overwrite")
    settings = SyncSettings(min_confidence, max_lag_s, check=check, overwrite=overwrite)
    manifest = Manifest.load(data)
    rows = _run(plan_sync(manifest, load_record(data), settings, views=views), settings, jobs)
    is_written = bool(rows) and not (check or dry_run)
    if is_written:
        save_offsets(data, manifest, rows)
    _show(data, rows, as_json=as_json, is_written=is_written)
    for row in rows:
        if row.outcome in ("failed", "differs", "contradictory"):
            click.echo(_warning(row), err=True)
    if any(row.outcome == "failed" for row in rows):
        raise click.exceptions.Exit(1)


def _run(groups: "Sequence[Sequence[SyncClip]]", settings: "SyncSettings", jobs: int) -> "list[ClipSync]":
    """Compare under a progress bar."""
    if not groups:
        return []
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from talstack.extract.sync_clips import sync_recordings

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("comparing sounds", total=len(groups))
        return sync_recordings(groups, settings, jobs=jobs, report=lambda: progress.advance(bar))


def _show(data: Path, rows: "Sequence[ClipSync]", *, as_json: bool, is_written: bool) -> None:
    counts = Counter(row.outcome for row in rows)
    if as_json:
        from dataclasses import asdict

        clips = [asdict(row) for row in rows]
        click.echo(json.dumps({"data": str(data), "written": is_written, "counts": counts, "clips": clips}))
        return
    if rows:
        _print_table(rows)
    shown = ", ".join(f"{counts[name]} {name}" for name in sorted(counts)) or "every offset is known"
    click.echo(f"{data}: {len(rows)} clips: {shown}{'' if is_written or not rows else '; nothing was written'}")


def _print_table(rows: "Sequence[ClipSync]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="offsets by sound")
    for name in ("recording", "view/clip", "outcome"):
        table.add_column(name, overflow="fold")
    for name in ("known, s", "sound says, s", "confidence", "overlap, s"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = ((row.known_s, 3), (row.estimate_s, 3), (row.confidence, 1), (row.overlap_s, 1))
        shown = ("-" if number is None else f"{number:.{digits}f}" for number, digits in numbers)
        table.add_row(row.recording, f"{row.view}/{row.clip}", row.outcome, *shown)
    console = Console(stderr=True)
    Console(stderr=True, width=max(console.width, 130)).print(table)


def _warning(row: "ClipSync") -> str:
    where = f"{row.recording} {row.view}/{row.clip}"
    if row.outcome == "failed":
        return f"failed: {where}: {row.reason}"
    says = f"{row.reference} says {row.estimate_s:.3f} s (confidence {row.confidence:.1f})"
    if row.outcome == "differs":
        return f"warning: {where}: at {row.known_s:.3f} s in the data set, but the sound of {says}"
    return f"warning: {where}: the sound of {says}, but {row.reason}; left where it is"
