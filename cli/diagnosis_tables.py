"""How `talstack diagnose` shows a diagnosis on the terminal: one small table per question."""

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from talstack.evaluate.diagnosis import Diagnosis

NUM_WORST = 10


def print_diagnosis(diagnosis: "Diagnosis") -> None:
    """Print the headline and the tables, widest figures first; figures are never cut to the terminal's width."""
    click.echo(headline(diagnosis))
    _print(impact_table(diagnosis))
    _print(kinds_table(diagnosis))
    _print(groups_table(diagnosis))
    _print(classes_table(diagnosis))
    _print(score_table(diagnosis))
    if diagnosis.segment_calibration is not None and diagnosis.segment_calibration.height:
        _print(heads_table(diagnosis.segment_calibration))
    if diagnosis.per_scene.height:
        _print(scenes_table(diagnosis))
    if diagnosis.scene is not None:
        scene = diagnosis.scene
        click.echo(
            f"scene: top-1 {_percent(scene.top1)} %, top-5 {_percent(scene.top5)} %, {scene.num_recordings} recordings"
        )
    if diagnosis.scene_models is not None:
        _print(scene_models_table(diagnosis.scene_models))


def headline(diagnosis: "Diagnosis") -> str:
    """Return the average mAP and which kind of error costs most of it."""
    result = diagnosis.result
    worst = diagnosis.costliest().row(0, named=True)
    start = (
        f"average mAP {_percent(result.average_map)} % ({result.num_predictions} detections, "
        f"{result.num_instances} instances, {len(result.ap)} classes)"
    )
    if not worst["gain_corrected"]:
        return f"{start}; no kind of error, mended alone, would gain anything"
    removed = "" if worst["gain_removed"] is None else f", removing them {_points(worst['gain_removed'])}"
    name = "missed instances" if worst["kind"] == "missed" else f"{worst['kind']} errors"
    return f"{start}; {name} cost most: correcting them gains {_points(worst['gain_corrected'])} points{removed}"


def impact_table(diagnosis: "Diagnosis") -> "Table":
    """Return what each kind of error costs, most first."""
    from rich.table import Table

    table = Table(title="what each kind of error costs: average mAP gained, points", title_justify="left")
    table.add_column("kind")
    for name in ("number, average", "if corrected", "if removed"):
        table.add_column(name, justify="right")
    for row in diagnosis.costliest().iter_rows(named=True):
        gains = [_points(row[name]) for name in ("gain_corrected", "gain_removed")]
        table.add_row(row["kind"], f"{row['count']:,.1f}", *gains)
    return table


def kinds_table(diagnosis: "Diagnosis") -> "Table":
    """Return how the detections divide into kinds, best-ranked first."""
    import polars as pl
    from rich.table import Table

    profile = diagnosis.false_positive_profile.filter(pl.col("count").sum().over("multiple") > 0)
    multiples = profile["multiple"].unique().sort().to_list()
    title = f"detections by kind at tIoU {diagnosis.tiou_threshold:g}, % of each portion of G (a class's instances)"
    table = Table(title=title, title_justify="left")
    table.add_column("kind")
    for multiple in multiples:
        table.add_column(f"{multiple}. G", justify="right")
    table.add_column("number", justify="right")
    totals = dict(diagnosis.classified.group_by(pl.col("kind").cast(pl.String)).len().iter_rows())
    for kind in profile["kind"].unique(maintain_order=True):
        shares = profile.filter(pl.col("kind") == kind).sort("multiple")["share"]
        table.add_row(kind, *map(_percent, shares), f"{totals.get(kind, 0):,}")
    return table


def groups_table(diagnosis: "Diagnosis") -> "Table":
    """Return missed instances and normalised mAP by group of instances."""
    from rich.table import Table

    from talstack.evaluate.diagnosis import range_text

    tiou = diagnosis.tiou_threshold
    table = Table(title="instances by coverage, length and number in the recording", title_justify="left")
    for name in ("characteristic", "group", "range"):
        table.add_column(name)
    for name in ("instances", f"missed at {tiou:g}, %", "normalised mAP, %", "change, %"):
        table.add_column(name, justify="right")
    columns = ["characteristic", "group"]
    missed = diagnosis.false_negatives.select(*columns, "share")
    rows = diagnosis.sensitivity.join(missed, on=columns, how="left", maintain_order="left")
    before = None
    for row in rows.iter_rows(named=True):
        if before not in (None, row["characteristic"]):
            table.add_section()
        before = row["characteristic"]
        change = "" if row["change"] is None else f"{100 * row['change']:+.1f}"
        shown = range_text(row["characteristic"], row["low"], row["high"])
        figures = (str(row["num_instances"]), _percent(row["share"]), _percent(row["ap_n"]), change)
        table.add_row(row["characteristic"], row["group"], shown, *figures)
    return table


def classes_table(diagnosis: "Diagnosis") -> "Table":
    """Return the classes of the lowest average precision."""
    from rich.table import Table

    rows = diagnosis.per_class.sort("average_ap", "label")
    shown = rows.head(NUM_WORST)
    table = Table(title=f"worst classes, {shown.height} of {rows.height}: AP, %", title_justify="left")
    table.add_column("class")
    for name in ("instances", "detections", *(f"{tiou:.2f}" for tiou in diagnosis.result.tiou), "average"):
        table.add_column(name, justify="right")
    for label, num_instances, num_detections, *values in shown.iter_rows():
        table.add_row(_plain(label), str(num_instances), str(num_detections), *map(_percent, values))
    return table


def score_table(diagnosis: "Diagnosis") -> "Table":
    """Return whether scores say how often a detection is right, at each tIoU."""
    return _calibration_table(
        diagnosis.score_calibration,
        ["tiou"],
        title="calibration of the detections' scores: is a score the share of true positives?",
    )


def heads_table(summary: "pl.DataFrame") -> "Table":
    """Return whether the heads' probabilities say how often a class happens in a segment."""
    return _calibration_table(
        summary, ["view", "modality", "head"], title="calibration of the heads' segment probabilities"
    )


def scenes_table(diagnosis: "Diagnosis") -> "Table":
    """Return mAP, and how often the scene is recognised, over each scene's recordings."""
    from rich.table import Table

    table = Table(title="scenes: mAP over their recordings alone, %", title_justify="left")
    table.add_column("scene")
    names = (f"{tiou:.2f}" for tiou in diagnosis.result.tiou)
    for name in ("recordings", "instances", "classes", *names, "average", "scene recall, %"):
        table.add_column(name, justify="right")
    recall = diagnosis.scene_recall
    recalls = {} if recall is None else dict(recall.select("scene", "recall").iter_rows())
    for scene, recordings, instances, classes, *values in diagnosis.per_scene.iter_rows():
        counts = (str(count) for count in (recordings, instances, classes))
        table.add_row(_plain(scene), *counts, *map(_percent, values), _percent(recalls.get(scene)))
    return table


def scene_models_table(models: "pl.DataFrame") -> "Table":
    """Return the accuracy of every scene head over the recordings that it predicts."""
    from rich.table import Table

    table = Table(title="scene heads, each on the recordings that it predicts", title_justify="left")
    for name in ("view", "modality", "head"):
        table.add_column(name)
    for name in ("predicted", "of", "top-1, %", "top-5, %"):
        table.add_column(name, justify="right")
    for row in models.iter_rows(named=True):
        counts = (str(row["num_predicted"]), str(row["num_recordings"]))
        names = (_plain(row[name]) for name in ("view", "modality", "head"))
        table.add_row(*names, *counts, _percent(row["top1"]), _percent(row["top5"]))
    return table


def _calibration_table(summary: "pl.DataFrame", source: list[str], *, title: str) -> "Table":
    import polars as pl
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in source:
        table.add_column("tIoU" if name == "tiou" else name)
    for name in ("count", "mean prob, %", "frequency, %", "ECE, %", "ECE equal mass, %", "MCE, %", "Brier"):
        table.add_column(name, justify="right")
    masses = summary.filter(pl.col("binning") == "equal_mass")
    widths = summary.filter(pl.col("binning") == "equal_width")
    for mass, width in zip(masses.iter_rows(named=True), widths.iter_rows(named=True), strict=True):
        names = [f"{mass[name]:.2f}" if name == "tiou" else _plain(mass[name]) for name in source]
        brier = "" if mass["brier"] is None else f"{mass['brier']:.4f}"
        errors = (_percent(width["ece"]), _percent(mass["ece"]), _percent(width["mce"]), brier)
        is_score = mass["reason"] is not None and mass["mean_prob"] is not None
        said = f"score {mass['mean_prob']:.3g}" if is_score else _percent(mass["mean_prob"])
        table.add_row(*names, f"{mass['count']:,}", said, _percent(mass["frequency"]), *errors)
    reasons = summary["reason"].drop_nulls().unique().sort()
    if len(reasons):
        table.caption = f"where ECE is empty: {', '.join(reasons)}"
    return table


def _print(table: "Table") -> None:
    """Print the table at the width it needs: rich would cut figures to 80 columns where stdout is no terminal."""
    from rich.console import Console

    for column in table.columns:
        column.no_wrap = True
    wide = Console(width=10_000)
    Console(width=max(Console().width, wide.measure(table).maximum)).print(table)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _plain(text: Any) -> str:
    from rich.markup import escape

    return escape(str(text))
