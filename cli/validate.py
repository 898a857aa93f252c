"""`talstack validate`: what the competition would refuse or silently drop in a submission file."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from talstack.io.manifest import Manifest
    from talstack.io.submission_findings import SubmissionCheck

NUM_EXAMPLES = 3
PRESET = "binego360"


@click.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--track", required=True, type=click.Choice(["tal", "scene"]), help="Which of the two formats it has.")
@click.option("--data", required=True, type=click.Path(path_type=Path, file_okay=False), help="Data folder.")
@click.option("--split", default="test", show_default=True, help="Recordings it must cover: train, val or test.")
@click.option("--score", "with_score", is_flag=True, help="Also score it, where the split has annotations.")
@click.option("--all", "show_all", is_flag=True, help=f"List every finding, not {NUM_EXAMPLES} of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with everything instead of a table.")
def command(  # noqa: PLR0913 - one parameter per option
    file: Path, track: str, data: Path, split: str, with_score: bool, show_all: bool, as_json: bool
) -> None:
    """Say line and column of everything in FILE that the competition would refuse or silently drop.

    Tracks: tal (`id,prediction`, one row per recording and ten-second bin) and scene (`id,0,1,...`, one row per
    recording). An error is refused or dropped by the competition; a warning is accepted but probably not meant.

    --score: tal is scored against the annotations cut into bins, times rounded to 0.1 s; scene by top-1 and
    top-5. What carries an error is left out of the score and counted.

    Exit codes: 0 at most warnings, 1 errors found, 2 wrong usage, no such file, or a data folder that cannot be read.
    """
    from talstack.io.manifest import Manifest
    from talstack.io.submission_check import check_submission

    manifest = Manifest.load(data)
    check = check_submission(file, manifest, track=track, split=split)
    result = score(check, manifest, split) if with_score else None
    if with_score and result is None:
        click.echo(f"warning: split {split!r} has no annotations, so there is no score", err=True)
    if as_json:
        click.echo(json.dumps(to_json(file, check, split=split, score=result), allow_nan=False))
    else:
        _print_counts(check)
        _print_findings(check, limit=None if show_all else NUM_EXAMPLES)
        click.echo(summary(file, check, split))
        if result is not None:
            _print_score(check, result)
    sys.exit(1 if check.num_errors else 0)


def score(check: "SubmissionCheck", manifest: "Manifest", split: str) -> dict[str, Any] | None:
    """Return the score of what carries no error, as the competition computes it; None without annotations."""
    from talstack.evaluate.map import PRESETS, evaluate_detections
    from talstack.evaluate.scene import evaluate_scenes
    from talstack.io.bins import bin_instances

    rows = manifest.recordings.filter(split=split)
    if check.track == "scene":
        if rows["scene"].is_null().all():
            return None
        scenes = evaluate_scenes(check.usable, rows, scenes=manifest.scenes)
        values: dict[str, Any] = {"top1": scenes.top1, "top5": scenes.top5, "num_recordings": scenes.num_recordings}
        return {**values, "missing": list(scenes.missing), "left_out": check.num_left_out}
    recordings = rows["recording"].to_list()
    durations_s = dict(rows.select("recording", "duration_s").iter_rows())
    targets = manifest.instances.join(rows.select("recording"), on="recording", how="semi")
    instances, unscored = bin_instances(targets, durations_s)
    if instances.is_empty():
        return None
    result = evaluate_detections(
        check.usable, instances, tiou_thresholds=PRESETS[PRESET], preset=PRESET, recordings=recordings
    )
    value = result.to_json()
    return {**value, "ignored": {**value["ignored"], **unscored}, "left_out": check.num_left_out}


def to_json(file: Path, check: "SubmissionCheck", *, split: str, score: dict[str, Any] | None) -> dict[str, Any]:
    """Return the object that --json prints."""
    from talstack.io.submission_findings import KINDS, Finding

    names = [field.name for field in fields(Finding)]
    kinds = [{"kind": kind, "severity": KINDS[kind], "count": count} for kind, count in check.counts().items()]
    return {
        "file": str(file),
        "track": check.track,
        "split": split,
        "num_rows": check.num_rows,
        "num_entries": check.num_entries,
        "num_left_out": check.num_left_out,
        "num_errors": check.num_errors,
        "num_warnings": len(check.findings) - check.num_errors,
        "kinds": kinds,
        "findings": [{name: getattr(found, name) for name in names} for found in check.findings],
        "missing": list(check.missing),
        "score": score,
    }


def summary(file: Path, check: "SubmissionCheck", split: str) -> str:
    """Return one line: what the file holds and how many errors and warnings there are."""
    entries = f", {check.num_entries} entries" if check.track == "tal" else ""
    verdict = f"{check.num_errors} errors, {len(check.findings) - check.num_errors} warnings"
    verdict = verdict if check.findings else "nothing to object to"
    return f"{file}: {check.num_rows} rows{entries}, split {split}: {verdict}"


def _print_counts(check: "SubmissionCheck") -> None:
    from rich.console import Console
    from rich.table import Table

    from talstack.io.submission_findings import KINDS

    if not check.findings:
        return
    table = Table("severity", "kind", "findings")
    for kind, count in check.counts().items():
        table.add_row(KINDS[kind], kind, str(count), style="red" if KINDS[kind] == "error" else "yellow")
    Console().print(table)


def _print_findings(check: "SubmissionCheck", *, limit: int | None) -> None:
    """Print the findings kind by kind, `limit` of each; not through rich, which would break and restyle them."""
    for kind, count in check.counts().items():
        found = [item for item in check.findings if item.kind == kind][:limit]
        click.echo(f"{found[0].severity}: {kind}")
        for item in found:
            click.echo(f"  {item.place}: {item.message}")
        if count > len(found):
            click.echo(f"  ... and {count - len(found)} more; --all lists them")


def _print_score(check: "SubmissionCheck", result: dict[str, Any]) -> None:
    if check.track == "scene":
        click.echo(f"top-1 {100 * result['top1']:.2f} %, top-5 {100 * result['top5']:.2f} %", nl=False)
        click.echo(f" of {result['num_recordings']} recordings; {result['left_out']} rows with errors left out")
        return
    values = ", ".join(
        f"{100 * value:.2f} at {tiou:g}" for tiou, value in zip(result["tiou"], result["map"], strict=True)
    )
    click.echo(f"mAP in ten-second bins: {100 * result['average_map']:.2f} % on average ({values})")
    ignored = sum(result["ignored"].values())
    click.echo(
        f"{result['num_predictions']} entries against {result['num_instances']} instances; "
        f"{result['left_out']} entries with errors left out, {ignored} of classes without an instance"
    )
