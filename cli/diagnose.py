"""`talstack diagnose`: what a mAP loses to which errors, where, and whether the scores mean anything."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talstack.cli.evaluate import PRESETS

if TYPE_CHECKING:
    from talstack.cli.scored import Scored
    from talstack.evaluate.diagnosis import Diagnosis

PLOTS = ("png", "svg", "none")
EDGES = ("quantile", "anet", "thumos")


@click.command("diagnose")
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("ground_truth", required=False, type=click.Path(path_type=Path))
@click.option("--preset", default="binego360", show_default=True, type=click.Choice(PRESETS), help="tIoU thresholds.")
@click.option("--tiou", default=0.5, show_default=True, help="tIoU that tells the kinds of errors apart.")
@click.option("--split", "--subset", "split", help="Part of the ground truth [test; for a run, the one it predicted].")
@click.option("--score-column", default="score", show_default=True, help="Column to rank by, in CSV and parquet.")
@click.option("--system", help="Whose rows to take, where a `system` column names several [stack, for a run].")
@click.option("--edges", default="quantile", show_default=True, type=click.Choice(EDGES), help="Groups of instances.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to [RUN/diagnosis].")
@click.option("--plots", type=click.Choice(PLOTS), help="Format of the figures [png].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(  # noqa: PLR0913 - one parameter per option
    predictions: Path, ground_truth: Path | None, preset: str, tiou: float, split: str | None, score_column: str,
    system: str | None, edges: str, out: Path | None, plots: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Say why PREDICTIONS score what they score against GROUND_TRUTH.

    Both are what `talstack evaluate` takes. PREDICTIONS may also be a run's folder: then its detections, the
    segment probabilities of its heads (oof.parquet) and its scenes (scene.parquet) are looked at, GROUND_TRUTH may
    be left out, and the tables and figures go to RUN/diagnosis. For a file nothing is written without --out.

    Shown are the kinds of errors and what each costs, missed instances and normalised mAP by coverage, length and
    number of instances (groups of equal size, or those of ActivityNet or THUMOS14), the worst classes, the
    calibration of scores and probabilities, and the scenes. --tiou is for the kinds and the missed instances; mAP
    and its gains are averages over the preset's thresholds.
    """
    from talstack.cli.diagnosis_tables import print_diagnosis
    from talstack.cli.scored import read_scored, warnings_of

    out = out or (predictions / "diagnosis" if predictions.is_dir() else None)
    if plots not in (None, "none") and out is None:
        raise click.UsageError(f"--plots {plots} needs --out, the folder to write the figures to")
    scored = read_scored(predictions, ground_truth, split=split, system=system, score_column=score_column)
    diagnosis = diagnose_scored(scored, preset=preset, tiou=tiou, edges=edges)
    if predictions.is_dir():
        diagnosis = add_run(diagnosis, scored, predictions, ground_truth)
    for warning in warnings_of(scored):
        click.echo(f"warning: {warning}", err=True)
    files = (
        write_files(diagnosis, out, plots=plots or "png", about=about(scored, predictions)) if out is not None else []
    )
    if as_json:
        value = {**diagnosis.to_json(), "seen_recordings": scored.num_seen, "files": [str(path) for path in files]}
        click.echo(json.dumps(value, allow_nan=False))
        return
    print_diagnosis(diagnosis)
    if files:
        click.echo(f"wrote {len(files)} files to {out}")


def diagnose_scored(scored: "Scored", *, preset: str, tiou: float, edges: str) -> "Diagnosis":
    """Return the diagnosis of the detections; what the readers left out is counted in its result's `ignored`."""
    from talstack.evaluate.diagnosis import diagnose
    from talstack.evaluate.map import PRESETS as THRESHOLDS
    from talstack.evaluate.sensitivity import PRESET_EDGES

    diagnosis = diagnose(
        scored.detections,
        replace(scored.truth, instances=scored.instances),
        tiou_thresholds=THRESHOLDS[preset],
        preset=preset,
        tiou_threshold=tiou,
        edges=PRESET_EDGES.get(edges),
    )
    ignored = {**scored.unscored, **diagnosis.result.ignored}
    return replace(diagnosis, result=replace(diagnosis.result, ignored=ignored))


def add_run(diagnosis: "Diagnosis", scored: "Scored", run: Path, ground_truth: Path | None) -> "Diagnosis":
    """Return the diagnosis with the heads and scenes of a run.

    Both need a data folder as ground truth; without one the diagnosis is left as it is.
    """
    import polars as pl

    from talstack.evaluate.diagnosis import with_scenes, with_segments
    from talstack.io.files import read_json
    from talstack.io.manifest import Manifest
    from talstack.io.runs import data_of
    from talstack.io.scene_probs import read_scene_probs

    data, recordings = ground_truth or data_of(run), scored.truth.recordings
    heads = read_json(run / "heads.json") if (run / "heads.json").is_file() else {}
    if not data.is_dir():
        return diagnosis
    manifest = Manifest.load(data)
    if (run / "oof.parquet").is_file() and "segment_s" in heads:
        table = pl.scan_parquet(run / "oof.parquet").filter(pl.col("recording").is_in(list(recordings))).collect()
        diagnosis = with_segments(diagnosis, table, manifest, segment_s=heads["segment_s"], recordings=recordings)
    if (run / "scene.parquet").is_file() and manifest.scenes:
        probs = read_scene_probs(run / "scene.parquet", scenes=manifest.scenes)
        diagnosis = with_scenes(diagnosis, probs, manifest, recordings=recordings)
    return diagnosis


def about(scored: "Scored", path: Path) -> str:
    """Return which predictions these are and how many, for the figures."""
    name = path.resolve().name + scored.name.removeprefix(str(path))
    counts = (scored.detections.height, scored.instances.height, len(scored.truth.recordings))
    binned = ", cut into ten-second bins" if scored.predictions.binned else ""
    return name + ": {:,} detections, {:,} instances, {:,} recordings".format(*counts) + binned


def write_files(diagnosis: "Diagnosis", folder: Path, *, plots: str, about: str) -> list[Path]:
    """Write tables, JSON and figures; return the files."""
    from talstack.evaluate.plots import save_plots

    files = diagnosis.save(folder)
    return files if plots == "none" else files + save_plots(diagnosis, folder, format=plots, about=about)
