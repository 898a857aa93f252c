"""`talstack cache import`: features of other programs into the feature store."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from talstack.extract.feature_import import ImportPlan
    from talstack.extract.status import StatusRow

SHOWN = 10
FRAMES = click.FloatRange(min=0, min_open=True)


@click.command("import")
@click.argument("store", type=click.Path(path_type=Path, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--modality", required=True, help="What to call the features, such as i3d_rgb.")
@click.option("--view", help="The camera they are of: rows then count from the start of its clips.")
@click.option("--stride", type=FRAMES, metavar="FRAMES", help="Frames from one row to the next.")
@click.option("--fps", type=FRAMES, help="Frames per second of that count.")
@click.option("--window", type=FRAMES, metavar="FRAMES", help="Frames that a row is made of [the stride].")
@click.option("--layout", type=click.Choice(["TxC", "CxT"]), default="TxC", show_default=True, help="Axes of a file.")
@click.option("--pattern", help="Files within FOLDER [{recording} with any known suffix], such as {recording}_rgb.npy.")
@click.option("--key", help="Array or data set within each file [feats, features, values, arr_0, or the only one].")
@click.option(
    "--pool",
    type=click.Choice(["mean", "statistics"]),
    default="mean",
    show_default=True,
    help="What a segment gets of its rows; statistics: mean, std, min, max and mean difference.",
)
@click.option(
    "--between",
    type=click.Choice(["linear", "nearest", "mask"]),
    default="linear",
    show_default=True,
    help="What a segment gets where rows are further apart than segments are long.",
)
@click.option("--segment-s", type=FRAMES, help="Seconds in a segment [those of the extraction; else 1].")
@click.option("--name", help="Extraction to enter the features into [the data set's name].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(  # noqa: PLR0913 - one parameter per option
    store: Path, data: Path, folder: Path, modality: str, view: str | None, stride: float | None, fps: float | None,
    window: float | None, layout: Literal["TxC", "CxT"], pattern: str | None, key: str | None,
    pool: Literal["mean", "statistics"], between: Literal["linear", "nearest", "mask"], segment_s: float | None,
    name: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Import the features in FOLDER, one file per recording of DATA, into STORE.

    \b
    FOLDER holds  <recording>.npy, .npz, .csv, .pt, .pth, .h5 or .hdf5 with rows (T, C); video_features'
                  <clip>_<type>.npy with its timestamps beside; or is one HDF5 file with a data set per recording.

    Row i is of the frames from i * STRIDE on, WINDOW of them: its middle lies at (i * STRIDE + WINDOW / 2) / FPS
    seconds. ActionFormer calls them feat_stride and num_frames, OpenTAD feature_stride and 2 * offset_frames. Where a
    file brings times, these count and stride and fps are not needed. Rows with NaN are missing rows, not zeros.

    `talstack heads` then finds the features beside those that `talstack extract` made. A file that cannot be read is
    recorded as a failure, and the exit code is 1; one that contradicts the settings ends the import with exit code 2.
    """
    from talstack.extract.feature_import import plan_import
    from talstack.extract.feature_rows import ImportSettings
    from talstack.io.manifest import Manifest

    settings = ImportSettings(stride, fps, window, layout, pool, between)
    plan = plan_import(
        Manifest.load(data), store, folder, modality=modality, settings=settings, view=view, pattern=pattern, key=key,
        segment_s=segment_s, name=name,
    )  # fmt: skip
    rows = _run(plan, store)
    failed = [row for row in rows if row.outcome == "failed"]
    if as_json:
        click.echo(json.dumps(_summary(plan, rows)))
    else:
        _print(plan, rows, store)
    if failed:
        raise click.exceptions.Exit(1)


def _run(plan: "ImportPlan", store: Path) -> "list[StatusRow]":
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from talstack.extract.feature_import import run_import

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("importing", total=len(plan.shards))
        return run_import(plan, store, report=lambda row: progress.advance(bar))


def _summary(plan: "ImportPlan", rows: "list[StatusRow]") -> dict[str, object]:
    return {
        "extraction": plan.extraction.name,
        "pattern": plan.found.pattern,
        "segment_s": plan.extraction.segment_s,
        "shards": [asdict(row) for row in rows],
        "recordings_without_file": list(plan.recordings_without_file),
        "clips_without_file": ["/".join(pair) for pair in plan.found.without_file if pair[1]],
        "files_without_recording": list(plan.found.without_recording),
        "clips_at_unknown_offset": list(plan.unaligned),
    }


def _print(plan: "ImportPlan", rows: "list[StatusRow]", store: Path) -> None:
    count = {outcome: sum(row.outcome == outcome for row in rows) for outcome in ("done", "cached", "failed")}
    segments, valid = sum(row.num_segments for row in rows), sum(row.num_valid for row in rows)
    click.echo(
        f"{store}: extraction {plan.extraction.name!r}, {count['done']} shards imported, {count['cached']} there "
        f"already, {count['failed']} failed; {segments} segments, {segments - valid} without features"
    )
    for row in rows:
        if row.reason:
            click.echo(f"{'failed' if row.outcome == 'failed' else 'note'}: {row.recording}: {row.reason}", err=True)
    for what, names in (
        ("recordings without a file", plan.recordings_without_file),
        ("clips without a file", tuple("/".join(pair) for pair in plan.found.without_file if pair[1])),
        ("files without a recording", plan.found.without_recording),
        ("clips at an unknown offset, left out", plan.unaligned),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more (--json lists all)" if len(names) > SHOWN else ""
            click.echo(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}", err=True)
