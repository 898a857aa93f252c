"""`talstack import`: turn a data set's own files into a talstack data folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from talstack.io.manifest import Manifest

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


def _common_options(command_function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every importer has."""
    for option in (
        click.option("--quiet", is_flag=True, help="No progress bar."),
        click.option(
            "--folds",
            "num_folds",
            type=click.IntRange(min=2),
            default=5,
            show_default=True,
            help="Folds over the train and val recordings, for fine-tuning, heads and stacker alike.",
        ),
        click.option("--out", required=True, type=FOLDER, help="The data folder to write; replaced if it is there."),
    ):
        command_function = option(command_function)
    return command_function


def _group_option(command_function: Callable[..., None]) -> Callable[..., None]:
    """Add the option that names another column than `group`."""
    option = click.option(
        "--group-column",
        metavar="NAME",
        help="Column of the recordings' table (a person, a house, ...) whose equals share a fold. [group, if there]",
    )
    return option(command_function)


@click.group("import")
def command() -> None:
    """Turn a data set's own files into a talstack data folder.

    The media stay where they are: the data folder holds tables only (recordings, clips, instances, features,
    folds) and where the media lie. Whatever is skipped or changed is counted below and listed in skipped.parquet
    with file, line or entry, and reason.
    """


@command.command("binego360")
@click.argument("root", type=FOLDER)
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Share of the annotated recordings that becomes the test split where there is no splits.csv.",
)
@_common_options
def binego360(root: Path, test_fraction: float, out: Path, num_folds: int, quiet: bool) -> None:
    """Import BinEgo-360 / 360+x from the folder ROOT.

    \b
    ROOT in the layout of the challenge:
        panoramic/<id>.mp4               the whole turn
        third_person/<id>.mp4            the front view, same clock
        monocular/<id>/<clip>.mp4        egocentric, one lens
        binocular/<id>/<clip>.mp4        egocentric, two lenses
        TAL_annotations/<id>.json        actions
        label/<id>/label.json            the scene's name
    or of the development kit:
        <id>/360/360_panoramic.mp4, <id>/360/front_view.mp4
        <id>/Snapchat/<clip>/mono.mp4 and stereo.mp4
        <id>/<id>.json, <id>/label.json

    \b
    Tables at ROOT may add what the files do not say:
        scenes.csv     recording, scene
        splits.csv     recording, split (train, val, test)
        offsets.csv    recording, view, clip, offset_s (when an egocentric clip starts)

    Views and annotations may be missing. Without splits.csv, recordings without annotations are test, and so is a
    share of the others, picked by a hash of their id.
    """
    from talstack.io.import_binego360 import import_binego360

    with _progress(quiet) as progress:
        manifest = import_binego360(root, test_fraction=test_fraction, num_folds=num_folds, progress=progress)
    _save(manifest, out)


@command.command("activitynet")
@click.argument("annotations", type=FILE)
@click.option("--media", required=True, type=FOLDER, help="Folder that holds the clips; all paths are relative to it.")
@click.option("--clips", type=FILE, help="Table: recording, view, clip, path, offset_s (empty: unknown).")
@click.option("--recordings", type=FILE, help="Table: recording, scene (may be empty), split (train, val, test).")
@click.option("--features", type=FILE, help="Table: recording, modality, path of an .npz with values and times_s.")
@click.option("--classes", type=FILE, help="Text file, one class a line: their order. [classes.txt, or alphabetical]")
@_group_option
@_common_options
def activitynet(
    annotations: Path,
    media: Path,
    clips: Path | None,
    recordings: Path | None,
    features: Path | None,
    classes: Path | None,
    group_column: str | None,
    out: Path,
    num_folds: int,
    quiet: bool,
) -> None:
    """Import ANNOTATIONS.json in ActivityNet's format.

    \b
        {"database": {"<recording>": {"subset": "training", "duration": 81.5,
            "annotations": [{"label": "pouring", "segment": [3.2, 7.9]}, ...]}, ...}}

    The subsets training, validation and testing become the splits train, val and test. Without --clips every
    recording is one clip <media>/<recording>.mp4 (or .mkv, .webm, .avi, .mov, ...; v_<recording> works too). With
    --clips a recording may have several views, and clips that start late. --recordings adds scenes, recordings
    without annotations, splits that go before the subsets, and groups (a person, a house) that share a fold.
    """
    from talstack.io.import_activitynet import import_activitynet

    with _progress(quiet) as progress:
        manifest = import_activitynet(
            annotations,
            media=media,
            clips=clips,
            recordings=recordings,
            features=features,
            classes=classes,
            group_column=group_column,
            num_folds=num_folds,
            progress=progress,
        )
    _save(manifest, out)


@command.command("csv")
@click.argument("folder", type=FOLDER)
@_group_option
@_common_options
def csv(folder: Path, group_column: str | None, out: Path, num_folds: int, quiet: bool) -> None:
    """Import FOLDER, a data set described by CSV tables.

    \b
        recordings.csv   recording, scene (may be empty), split (train, val, test); optional: group (may be empty)
        clips.csv        recording, view, clip, path, offset_s (seconds from the recording's start; empty: unknown)
        instances.csv    recording, start_s, end_s, label; only the header where nothing is labelled
        features.csv     optional: recording, modality, path of an .npz with values [T, C] and times_s [T]
        classes.txt      optional: the actions, one a line, in the order of their ids; so scenes.txt

    Paths are relative to FOLDER and must stay inside it. Recordings of one group (a person, a house, a session) never
    lie in different folds. Further columns are ignored.
    """
    from talstack.io.import_csv import import_csv

    with _progress(quiet) as progress:
        manifest = import_csv(folder, group_column=group_column, num_folds=num_folds, progress=progress)
    _save(manifest, out)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on stderr over the clips that are being measured; gives the callback that moves it."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("measuring clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring clips", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _save(manifest: "Manifest", out: Path) -> None:
    """Write the data folder and say what is in it."""
    import polars as pl

    from talstack.io.folds import groups_in_several_splits

    manifest.save(out)
    hours = float(manifest.recordings["duration_s"].sum()) / 3600
    splits = ", ".join(f"{n} {split}" for split, n in manifest.recordings["split"].value_counts().sort("split").rows())
    num_groups = len(set(manifest.groups.values()))
    grouped = f"{num_groups} groups, " if "group" in manifest.recordings.columns else ""
    click.echo(
        f"{out}: {manifest.recordings.height} recordings ({splits}), {grouped}"
        f"{manifest.clips.height} clips, {manifest.instances.height} instances, {hours:.2f} h"
    )
    for name, shared in groups_in_several_splits(manifest).items():
        click.echo(f"warning: group {name!r} lies in the splits {' and '.join(shared)}: scores will flatter", err=True)
    if manifest.skipped.height:
        category = pl.col("reason").str.split(": ").list.first().alias("category")
        counts = manifest.skipped.group_by(category).len().sort(["len", "category"], descending=[True, False])
        for name, count in counts.rows():
            click.echo(f"  {count:>6}  {name}")
        click.echo(f"  skipped or changed: {manifest.skipped.height}, listed in {out / 'skipped.parquet'}")
