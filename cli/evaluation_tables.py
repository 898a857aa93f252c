"""What `talstack evaluate` prints: scores with their intervals, classes, recall, scenes."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from talstack.evaluate.bootstrap import Interval, MapIntervals
    from talstack.evaluate.map import MapResult
    from talstack.evaluate.recall import AverageRecall, RecallAtKx
    from talstack.evaluate.scene import SceneResult


def print_map(result: "MapResult", intervals: "MapIntervals | None" = None, *, per_class: bool = False) -> None:
    """Print mAP at each tIoU, with its interval where there is one, and the AP of every class if asked for."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    headers = ["tIoU", "mAP, %"] if intervals is None else ["tIoU", "mAP, %", f"{100 * intervals.level:g} % interval"]
    summary = Table(*headers)
    spread: list[Interval | None] = [None] * len(result.map) if intervals is None else [*intervals.map]
    for threshold, value, interval in zip(result.tiou, result.map, spread, strict=True):
        summary.add_row(_show_tiou(threshold), f"{100 * value:.2f}", *_show_interval(interval))
    summary.add_section()
    average = _show_interval(intervals.average_map if intervals else None)
    summary.add_row("average", f"{100 * result.average_map:.2f}", *average, style="bold")
    console.print(summary)
    if intervals:
        click.echo(f"intervals: {intervals.num_draws} draws of {intervals.num_recordings} recordings")
    rules = f"; rules of {result.compat}" if result.compat else ""
    counts = f"{result.num_predictions} predictions, {result.num_instances} instances, {len(result.ap)} classes"
    click.echo(counts + rules)
    if per_class:
        # rich would cut the figures to fit 80 columns, which is also what it takes a pipe to have
        Console(width=max(console.width, 40 + 10 * len(result.tiou))).print(_class_table(result))


def _class_table(result: "MapResult") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    headers = [_show_tiou(threshold) for threshold in result.tiou]
    table = Table("class", "instances", *headers, "average", title="average precision, %")
    for label, values in result.ap.items():
        percents = [f"{100 * value:.1f}" for value in (*values, sum(values) / len(values))]
        table.add_row(escape(label), str(result.instances_per_class[label]), *percents)
    return table


def print_recall(proposals: "AverageRecall", at_kx: "RecallAtKx") -> None:
    """Print AR at the usual numbers of proposals, and Recall@kx at each threshold."""
    from rich.console import Console
    from rich.table import Table

    points = proposals.to_json()["ar"]
    table = Table(*(f"AR@{number}" for number in points), "AUC", title="recall of proposals, %")
    table.add_row(*(f"{100 * value:.2f}" for value in (*points.values(), proposals.auc)))
    names = [f"Recall@{k}x" for k in at_kx.k]
    second = Table("tIoU", *names, *(f"{name}, pooled" for name in names), title="recall of detections, %")
    for place, threshold in enumerate(at_kx.tiou.tolist()):
        values = (*at_kx.mean[place], *at_kx.pooled[place])
        second.add_row(_show_tiou(threshold), *(f"{100 * value:.2f}" for value in values))
    console = Console(width=max(Console().width, 90))
    console.print(table)
    console.print(second)


def _show_tiou(threshold: float) -> str:
    return f"{threshold:.2f}" if abs(threshold - round(threshold, 2)) < 1e-9 else f"{threshold:g}"


def _show_interval(interval: "Interval | None") -> list[str]:
    return [] if interval is None else [f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"]


def print_scenes(result: "SceneResult") -> None:
    """Print top-1 and top-5, the recall of every scene, and which scenes are taken for which."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    click.echo(
        f"top-1 {100 * result.top1:.2f} %, top-5 {100 * result.top5:.2f} % of {result.num_recordings} recordings"
    )
    table = Table("scene", "recordings", "recall, %", "taken for")
    for row in result.recall.iter_rows(named=True):
        recall = f"{100 * row['recall']:.1f}"
        table.add_row(
            escape(row["scene"]), str(row["num_recordings"]), recall, escape(_taken_for(result, row["scene"]))
        )
    Console(width=max(Console().width, 110)).print(table)


def _taken_for(result: "SceneResult", scene: str) -> str:
    """Return which other scenes its recordings were taken for, the most frequent first."""
    rows = [row for row in result.confusion.iter_rows() if row[0] == scene and row[1] != scene]
    rows.sort(key=lambda row: -row[2])
    return ", ".join(f"{predicted or 'no prediction'} ({count})" for _, predicted, count in rows)
