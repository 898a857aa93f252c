"""`talstack cache export`: stored features as files for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from talstack.io.feature_export import ExportSummary


@click.command("export")
@click.argument("store", type=click.Path(path_type=Path, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--modality", required=True, help="Features to export.")
@click.option("--view", "views", multiple=True, help="Only this view (may be given several times) [all].")
@click.option(
    "--format", "file_format", type=click.Choice(["npy", "npz", "h5"]), default="npy", show_default=True,
    help="A file per recording, or one HDF5 file.",
)  # fmt: skip
@click.option(
    "--invalid", type=click.Choice(["nan", "zero", "nearest"]), default="nearest", show_default=True,
    help="What stands in rows without features; a mask beside the files names them.",
)  # fmt: skip
@click.option("--annotations", is_flag=True, help="Also write the instances as ActivityNet JSON.")
@click.option("--name", help="Extraction to read [the data set's name].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(  # noqa: PLR0913 - one parameter per option
    store: Path, data: Path, out: Path, modality: str, views: tuple[str, ...], file_format: Literal["npy", "npz", "h5"],
    invalid: Literal["nan", "zero", "nearest"], annotations: bool, name: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Write the features of DATA in STORE as files under OUT.

    One folder per view, OUT/<view>-<modality>, with <recording>.npy of (segments, channels) float32, masks in valid/,
    and meta.json: what the rows mean, the settings of `talstack cache import` that read them back, and lines for the
    configurations of ActionFormer and OpenTAD. The exit code is 1 where features are missing that the
    data set could have.
    """
    from talstack.io.errors import InputError
    from talstack.io.extraction import FeatureSet
    from talstack.io.feature_export import export_features
    from talstack.io.manifest import Manifest

    features = FeatureSet.open(Manifest.load(data), store, name)
    there = [view for view, one in features.groups if one == modality]
    if not there:
        groups = ", ".join("/".join(group) for group in features.groups)
        raise InputError(f"extraction {features.extraction.name!r} has no modality {modality!r}; there: {groups}")
    summaries = [
        export_features(
            features, view, modality, out=out, file_format=file_format, invalid=invalid, annotations=annotations
        )
        for view in views or there
    ]
    _print(summaries, as_json)
    chosen = {(view, modality) for view in views or there}
    incomplete = [key for key in (*features.missing, *features.failed) if (key.view, key.modality) in chosen]
    for key in incomplete:
        click.echo(f"missing: {key}: not extracted, or its extraction failed", err=True)
    if incomplete:
        raise click.exceptions.Exit(1)


def _print(summaries: "list[ExportSummary]", as_json: bool) -> None:
    import json
    from dataclasses import asdict

    if as_json:
        click.echo(json.dumps([{**asdict(summary), "folder": str(summary.folder)} for summary in summaries]))
        return
    for summary in summaries:
        click.echo(
            f"{summary.folder}: {len(summary.num_rows)} recordings, {sum(summary.num_rows.values())} rows of "
            f"{summary.feature_dim}, {sum(summary.num_invalid.values())} without features; "
            f"stride {summary.stride_frames} at {summary.fps:g} fps"
        )
        for what, names in (
            ("without features", summary.without_features),
            ("at an unknown offset, left out", summary.unaligned),
        ):
            if names:
                click.echo(f"{len(names)} recordings {what}: {', '.join(names)}", err=True)
