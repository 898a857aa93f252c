"""`talstack predict`: a finished run on recordings that it has never seen, without fitting anything."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from talstack.ensemble.predict import Prediction

FORMATS = ("csv", "activitynet", "parquet", "binego360", "vtt", "eaf", "audacity")


@click.command("predict")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--store", required=True, type=click.Path(path_type=Path), help="Feature store that holds DATA's features."
)
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder of `talstack heads` and `submit`.")
@click.option("--extraction", "name", help="Which extraction's features to take [the data set's name].")
@click.option(
    "--system",
    default="stack",
    show_default=True,
    help="stack, mean, weighted, another combiner or view/modality/head.",
)
@click.option("--format", "format_", type=click.Choice(FORMATS), default="csv", show_default=True)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The file; a folder for vtt, eaf, audacity."
)
@click.option("--scenes", type=click.Path(path_type=Path), help="Also write the scenes' probabilities, as CSV.")
@click.option(
    "--min-score", type=float, default=0.2, show_default=True, help="vtt, eaf, audacity: leave out detections below."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(  # noqa: PLR0913 - one parameter per option
    data: Path, store: Path, run: Path, name: str | None, system: str, format_: str, out: Path, scenes: Path | None,
    min_score: float, as_json: bool,
) -> None:  # fmt: skip
    """Find the actions of RUN in the recordings of DATA, whatever their split; nothing is fitted.

    DATA is any data folder (`talstack import`); it needs no annotations, and those that it has are not looked at. Its
    features must have been extracted with the settings and the backbone that RUN's were (`talstack extract DATA --store
    STORE --backbone ... --config RUN/config.toml`). Views that RUN knows may be missing. Detections carry the score
    that the run's system has learned, the precision to be expected. Features that are still to be extracted are
    listed, and the exit code is 1.
    """
    from talstack.ensemble.predict import predict
    from talstack.heads.apply import apply_heads
    from talstack.io.extraction import FeatureSet
    from talstack.io.manifest import Manifest

    features = FeatureSet.open(Manifest.load(data), store, name)
    found = predict(run, apply_heads(run, features), features.manifest, system=system)
    files = write_files(found, format_=format_, out=out, scenes=scenes, min_score=min_score)
    missing, failed = (
        [f"{key.recording} {key.view}/{key.modality}" for key in keys] for keys in (features.missing, features.failed)
    )
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    for one in failed:
        click.echo(f"failed in extraction, left out: {one}", err=True)
    for one in missing:
        click.echo(f"missing: {one}", err=True)
    counts = {
        "recordings": found.manifest.recordings.height,
        "detections": found.detections.height,
        "missing": len(missing),
        "failed": len(failed),
    }
    if as_json:
        click.echo(json.dumps({**counts, "files": [str(path) for path in files], "warnings": list(found.warnings)}))
    else:
        click.echo(
            f"{counts['detections']} detections in {counts['recordings']} recordings: {', '.join(map(str, files))}"
        )
    if missing:
        raise click.exceptions.Exit(1)


def write_files(found: "Prediction", *, format_: str, out: Path, scenes: Path | None, min_score: float) -> list[Path]:
    """Write what was found; return the files."""
    from talstack.ensemble.submission import LABEL_FORMATS, label_files, write_submission
    from talstack.io.files import atomic_path, write_text

    if format_ in LABEL_FORMATS:
        texts = label_files(found.detections, found.manifest, split=None, format=format_, out=out, min_score=min_score)
        for path, text in texts.items():
            write_text(path, text)
        files = list(texts)
    else:
        write_submission(found.detections, found.manifest, split=None, format=format_, out=out)
        files = [out]
    if scenes is not None:
        with atomic_path(scenes) as temporary:
            found.scenes.write_csv(temporary)
        files.append(scenes)
    return files
