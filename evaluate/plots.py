"""Static figures of a diagnosis through matplotlib: PNG or SVG, the same bytes for the same numbers.

Figure objects only, never pyplot: nothing is shared between calls. Colours are Okabe and Ito's, which people with
colour-blindness can tell apart. Every `plot_...` takes a frame of `talstack.evaluate.diagnosis` and returns a
matplotlib Figure; `about` says which data and system it shows.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from talstack.evaluate.diagnosis import costliest_first, range_text
from talstack.evaluate.sensitivity import ALL
from talstack.io.errors import InputError
from talstack.io.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from talstack.evaluate.diagnosis import Diagnosis

FORMATS = ("png", "svg")
FIGURES = (
    "false_positives",
    "error_impact",
    "class_ap",
    "sensitivity",
    "false_negatives",
    "score_reliability",
    "segment_reliability",
    "scene_confusion",
)
COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "true positive": "#009E73",
        "double detection": "#56B4E9",
        "wrong label": "#E69F00",
        "localization": "#0072B2",
        "confusion": "#D55E00",
        "background": "#BBBBBB",
        "missed": "#CC79A7",
    }
)
INK, PALE, LINE = "#222222", "#707070", "#D0D0D0"
MAX_CLASSES = 80
PANELS_PER_ROW = 4
DPI = 160
NO_PREDICTION = "(no prediction)"
HALO = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # keeps a figure legible where a line crosses it
TITLES = {
    "coverage": "coverage: share\nof the recording",
    "length": "length",
    "num_instances": "instances of the class\nin the recording",
}


def save_plots(diagnosis: "Diagnosis", folder: Path, *, format: str = "png", about: str = "") -> list[Path]:
    """Write every figure that the diagnosis has data for and return the files; the folder is created.

    Args:
        diagnosis: what to show.
        folder: where to write.
        format: png or svg.
        about: which data and system, for the line under each title.

    Raises:
        InputError: an unknown format.
    """
    if format not in FORMATS:
        raise InputError(f"figures: format {format!r}; expected one of {', '.join(FORMATS)}")
    for old in (folder / f"{name}.{suffix}" for name in FIGURES for suffix in FORMATS):
        old.unlink(missing_ok=True)  # what an earlier diagnosis left there would show other figures
    paths = []
    for name, figure in _figures(diagnosis, about):
        paths.append(folder / f"{name}.{format}")
        save_figure(figure, paths[-1])
    return paths


def save_figure(figure: "Figure", path: Path) -> None:
    """Write the figure as its suffix says, without a date, a version or anything random in it."""
    import matplotlib

    metadata = {"Date": None, "Creator": "talstack"} if path.suffix == ".svg" else {"Software": "talstack"}
    with matplotlib.rc_context({"svg.hashsalt": "talstack", "svg.fonttype": "path"}), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata=metadata, facecolor="white")


def _figures(diagnosis: "Diagnosis", about: str) -> Iterator[tuple[str, "Figure"]]:
    """Yield the name and the figure of everything that has rows."""
    tiou, thresholds = diagnosis.tiou_threshold, diagnosis.result.tiou
    profile, impact = diagnosis.false_positive_profile, diagnosis.error_impact
    yield "false_positives", plot_false_positives(profile, tiou=tiou, about=about)
    yield "error_impact", plot_error_impact(impact, tiou_thresholds=thresholds, about=about)
    yield "class_ap", plot_class_ap(diagnosis.per_class, tiou_thresholds=thresholds, about=about)
    if diagnosis.sensitivity.height:
        yield "sensitivity", plot_sensitivity(diagnosis.sensitivity, tiou_thresholds=thresholds, about=about)
    if diagnosis.false_negatives.height:
        yield "false_negatives", plot_false_negatives(diagnosis.false_negatives, tiou=tiou, about=about)
    if diagnosis.score_reliability.height:
        yield "score_reliability", plot_score_reliability(diagnosis.score_reliability, about=about)
    segments = diagnosis.segment_reliability
    if segments is not None and segments.height:
        yield "segment_reliability", plot_segment_reliability(segments, diagnosis.segment_calibration, about=about)
    if diagnosis.scene_confusion is not None:
        yield "scene_confusion", plot_scene_confusion(diagnosis.scene_confusion, about=about)


def plot_false_positives(profile: pl.DataFrame, *, tiou: float, about: str = "") -> "Figure":
    """Return stacked bars: of each next G detections (G: a class's instances), the share of every kind."""
    profile = profile.filter(pl.col("count").sum().over("multiple") > 0)
    figure, axes = _figure(9.0, 5.0, f"False positives by kind: what the best detections are, tIoU {tiou:g}", about)
    multiples = profile["multiple"].unique().sort().to_list()
    bottom = np.zeros(len(multiples))
    for kind, colour in COLOURS.items():
        share = 100 * profile.filter(pl.col("kind") == kind).sort("multiple")["share"].to_numpy()
        if not share.size:
            continue
        bars = axes.bar(multiples, share, bottom=bottom, color=colour, width=0.82, label=kind, edgecolor="white")
        texts = [f"{value:.0f}" if value >= 4 else "" for value in share]
        dark = kind in ("true positive", "localization", "confusion")
        axes.bar_label(bars, texts, label_type="center", fontsize=9, color="white" if dark else INK)
        bottom += share
    counts = profile.group_by("multiple").agg(pl.col("count").sum()).sort("multiple")["count"]
    for multiple, count in zip(multiples, counts, strict=True):
        axes.annotate(f"n = {count:,}", (multiple, 101), ha="center", va="bottom", fontsize=7.5, color=PALE)
    axes.set(xlabel="detections of each class by descending score, in portions of its number of instances G")
    axes.set(ylim=(0, 107), xticks=multiples, xticklabels=[_portion(k) for k in multiples])
    _percent(axes.yaxis, "share of the portion")
    axes.set_yticks(range(0, 101, 20))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    return figure


def plot_error_impact(impact: pl.DataFrame, *, tiou_thresholds: Sequence[float], about: str = "") -> "Figure":
    """Return pairs of bars: average mAP gained if all errors of a kind were removed, and if they were corrected."""
    rows = costliest_first(impact).reverse()
    title = f"What each kind of error costs, average mAP at tIoU {_span(tiou_thresholds)}"
    figure, axes = _figure(9.0, 1.6 + 0.62 * rows.height, title, about)
    places = np.arange(rows.height)
    for column, shift, alpha, name in (
        ("gain_corrected", 0.2, 1.0, "corrected"),
        ("gain_removed", -0.2, 0.45, "removed"),
    ):
        gains = 100 * rows[column].fill_null(np.nan).to_numpy()
        colours = [COLOURS.get(kind, PALE) for kind in rows["kind"]]
        bars = axes.barh(places + shift, np.nan_to_num(gains), 0.38, color=colours, alpha=alpha)
        texts = ["" if np.isnan(gain) else f" +{gain:.1f} if {name}" for gain in gains]
        axes.bar_label(bars, texts, fontsize=8.5, color=INK)
    axes.set_yticks(places, [f"{kind}\n{count:,.0f} on average" for kind, count in rows.select("kind", "count").rows()])
    axes.set(xlabel="gain in average mAP, percentage points")
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    if not rows.height or not np.nanmax([rows["gain_corrected"].max() or 0, rows["gain_removed"].max() or 0]):
        axes.set_xlim(0, 1)
    return figure


def plot_class_ap(per_class: pl.DataFrame, *, tiou_thresholds: Sequence[float], about: str = "") -> "Figure":
    """Return bars of every class's average AP, best first; of more than 80 classes the best and the worst 40."""
    rows = per_class.sort(["average_ap", "label"], descending=[True, False])
    mean, total, left_out = 100 * float(rows["average_ap"].to_numpy().mean()), rows.height, 0
    if rows.height > MAX_CLASSES:
        left_out = rows.height - MAX_CLASSES
        rows = pl.concat([rows.head(MAX_CLASSES // 2), rows.tail(MAX_CLASSES // 2)])
    title = f"Average precision of {total} classes, averaged over tIoU {_span(tiou_thresholds)}"
    figure, axes = _figure(9.0, 1.8 + 0.2 * (rows.height + bool(left_out)), title, about)
    values = 100 * rows["average_ap"].to_numpy()
    places = np.arange(rows.height) + np.where(np.arange(rows.height) >= MAX_CLASSES // 2, bool(left_out), 0)
    bars = axes.barh(places, values, 0.75, color=COLOURS["localization"])
    axes.bar_label(bars, [f"{value:.1f}" for value in values], fontsize=8, color=INK, padding=3, bbox=HALO)
    names = [f"{_text(label)} ({count:,})" for label, count in rows.select("label", "num_instances").rows()]
    axes.set_yticks(places, names, fontsize=8)
    if left_out:
        text = f"{left_out} classes between these are left out"
        axes.annotate(text, (1, MAX_CLASSES // 2), va="center", fontsize=8, color=PALE, style="italic", bbox=HALO)
    axes.axvline(mean, color=COLOURS["confusion"], linestyle="--", zorder=0, label=f"mean of all classes {mean:.1f}")
    axes.set(xlim=(0, max(10.0, 1.1 * values.max(initial=0.0))), ylim=(places.max(initial=0) + 0.7, -0.7))
    _percent(axes.xaxis, "average precision (number of instances in brackets)")
    figure.legend(loc="outside lower right", frameon=False, fontsize=8.5)
    return figure


def plot_sensitivity(sensitivity: pl.DataFrame, *, tiou_thresholds: Sequence[float], about: str = "") -> "Figure":
    """Return bars of the normalised AP of every group of instances, and the figure of all instances as a line."""
    title = f"Sensitivity: normalised mAP by kind of instance, average over tIoU {_span(tiou_thresholds)}"
    return _by_group(sensitivity, "ap_n", title=title, about=about, colour=COLOURS["localization"])


def plot_false_negatives(false_negatives: pl.DataFrame, *, tiou: float, about: str = "") -> "Figure":
    """Return bars of the share of missed instances of every group, and of all instances as a line."""
    title = f"False negatives: share of instances that are missed, tIoU {tiou:g}"
    return _by_group(false_negatives, "share", title=title, about=about, colour=COLOURS["missed"])


def plot_score_reliability(curve: pl.DataFrame, *, about: str = "") -> "Figure":
    """Return, for the scores of detections, mean score against the share of true positives at each tIoU."""
    is_probability = (curve["binning"] == "equal_width").any()
    rows = curve.filter(pl.col("binning") == ("equal_width" if is_probability else "equal_mass"))
    figure, (axes, below) = _figure(6.4, 6.6, "Reliability of the detections' scores", about, heights=(4, 1))
    thresholds = rows["tiou"].unique().sort().to_list()
    shown = sorted({thresholds[0], thresholds[len(thresholds) // 2], thresholds[-1]})
    for place, (threshold, colour) in enumerate(zip(shown, _ramp(len(shown)), strict=True)):
        one = rows.filter(pl.col("tiou") == threshold).sort("mean_prob")
        # equal curves lie on each other: the thicker one shows through
        axes.plot(one["mean_prob"], 100 * one["frequency"], color=colour, linewidth=2.6 - 0.9 * place, alpha=0.5)
        size = (1.6 - 0.3 * place) * _dot_sizes(one["count"])
        axes.scatter(
            one["mean_prob"], 100 * one["frequency"], size, color=colour, label=f"tIoU {threshold:g}", zorder=3
        )
    if is_probability:
        _diagonal(axes)
    first = rows.filter(pl.col("tiou") == thresholds[0])
    below.bar(first["low"], first["count"], first["high"] - first["low"], align="edge", color=LINE, edgecolor="white")
    below.set(yscale="log", xlim=axes.get_xlim())
    below.set_ylim(bottom=0.5)
    below.set_xlabel("score", fontsize=9, color=INK)
    below.set_ylabel("detections", fontsize=9, color=INK)
    axes.set_ylim(-3, 103)
    _percent(axes.yaxis, "detections that are true positives")
    axes.legend(loc="upper left", frameon=False, fontsize=8.5)
    return figure


def plot_segment_reliability(curve: pl.DataFrame, summary: pl.DataFrame | None = None, *, about: str = "") -> "Figure":
    """Return one panel per head: mean probability against how often the class happens; dots grow with the count."""
    names = ["view", "modality", "head"]
    models = curve.select(names).unique().sort(names).rows()
    num_rows = -(-len(models) // PANELS_PER_ROW)
    title = "Reliability of the heads' segment probabilities"
    figure, grid = _figure(11.0, 1.0 + 2.9 * num_rows, title, about, heights=(1,) * num_rows, columns=PANELS_PER_ROW)
    panels = list(np.ravel(grid))
    for axes, model in zip(panels, models, strict=False):
        _panel(axes, curve, summary, dict(zip(names, model, strict=True)))
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    figure.supxlabel("mean probability", fontsize=10, color=INK)
    figure.supylabel("frequency of the class in the segments", fontsize=10, color=INK)
    return figure


def plot_scene_confusion(confusion: pl.DataFrame, *, about: str = "") -> "Figure":
    """Return the confusion matrix of the scenes that occur: counts, shaded by the share of the true scene's row."""
    predicted = pl.col("predicted").fill_null(NO_PREDICTION)
    rows = confusion.with_columns(predicted)
    names = list(dict.fromkeys([*rows["scene"], *rows["predicted"].sort()]))
    columns = sorted(set(names), key=lambda name: (name == NO_PREDICTION, names.index(name)))
    actual = list(dict.fromkeys(rows["scene"]))
    counts = np.zeros((len(actual), len(columns)), dtype=np.int64)
    for scene, guess, count in rows.select("scene", "predicted", "count").iter_rows():
        counts[actual.index(scene), columns.index(guess)] += count
    right = sum(count for scene, guess, count in rows.select("scene", "predicted", "count").rows() if scene == guess)
    title = f"Scenes: {right} of {counts.sum()} recordings right"
    figure, axes = _figure(4.6 + 0.42 * len(columns), 4.0 + 0.36 * len(actual), title, about)
    share = 100 * counts / counts.sum(axis=1, keepdims=True)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.argwhere(counts):
        colour = "white" if share[row, column] > 55 else INK
        axes.annotate(str(counts[row, column]), (column, row), ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(columns)), [_text(name) for name in columns], rotation=45, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(actual)), [_text(name) for name in actual], fontsize=8.5)
    axes.set(xlabel="predicted scene", ylabel="true scene")
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(actual)) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color=LINE, linewidth=0.5)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=range(0, 101, 25))
    _percent(bar.ax.yaxis, "share of the scene's recordings")
    bar.outline.set_visible(False)
    return figure


def _by_group(frame: pl.DataFrame, column: str, *, title: str, about: str, colour: str) -> "Figure":
    """Return one panel per characteristic with a bar per group; the row `all` is a line through all of them."""
    whole = frame.filter(pl.col("characteristic") == ALL)
    parts = frame.filter(pl.col("characteristic") != ALL).partition_by("characteristic", maintain_order=True)
    sizes = [max(part.height, 2) for part in parts]
    top = 100 * max(0.1, 1.15 * frame[column].fill_null(0.0).to_numpy().max(initial=0.0))
    figure, grid = _figure(max(8.0, 2.0 + 0.9 * sum(sizes)), 4.6, title, about, widths=sizes)
    for axes, part in zip(np.ravel(grid), parts, strict=True):
        values = 100 * part[column].fill_null(np.nan).to_numpy()
        bars = axes.bar(range(part.height), np.nan_to_num(values), 0.75, color=colour)
        axes.bar_label(
            bars, ["none" if np.isnan(v) else f"{v:.1f}" for v in values], fontsize=8.5, padding=3, bbox=HALO
        )
        names = [_group_name(row) for row in part.iter_rows(named=True)]
        axes.set_xticks(range(part.height), names, fontsize=8)
        axes.set(xlim=(-0.6, part.height - 0.4), ylim=(0, top), xlabel=TITLES[part["characteristic"][0]])
        if whole.height:
            mean = 100 * whole[column][0]
            axes.axhline(mean, color=INK, linestyle="--", linewidth=1.0, label=f"all instances {mean:.1f}", zorder=0)
    _percent(np.ravel(grid)[0].yaxis, "share of instances" if column == "share" else "normalised mAP")
    if whole.height:
        figure.legend(*np.ravel(grid)[0].get_legend_handles_labels(), loc="outside lower right", frameon=False)
    return figure


def _group_name(row: Mapping[str, Any]) -> str:
    shown = range_text(row["characteristic"], row["low"], row["high"])
    return "\n".join([row["group"], *([shown] if shown else []), f"n = {row['num_instances']:,}"])


def _panel(axes: "Axes", curve: pl.DataFrame, summary: pl.DataFrame | None, model: dict[str, str]) -> None:
    rows = curve.filter(**model)
    binning = "equal_width" if (rows["binning"] == "equal_width").any() else "equal_mass"
    rows = rows.filter(pl.col("binning") == binning).sort("mean_prob")
    _diagonal(axes)
    axes.plot(rows["mean_prob"], 100 * rows["frequency"], color=COLOURS["localization"], linewidth=1.2)
    axes.scatter(
        rows["mean_prob"], 100 * rows["frequency"], _dot_sizes(rows["count"]), color=COLOURS["localization"], zorder=3
    )
    error = None if summary is None else summary.filter(binning=binning, **model)["ece"][0]
    text = f"\nECE {100 * error:.2f} %" if error is not None else ""
    axes.set_title(f"{_text(model['view'])} / {_text(model['modality'])}\n{_text(model['head'])}{text}", fontsize=8.5)
    axes.set(ylim=(-4, 104), xticks=(0, 0.5, 1) if binning == "equal_width" else axes.get_xticks())
    axes.set_yticks((0, 50, 100))
    _percent(axes.yaxis, "")


def _figure(
    width: float,
    height: float,
    title: str,
    about: str,
    *,
    heights: Sequence[float] = (1,),
    widths: Sequence[float] = (1,),
    columns: int = 1,
) -> tuple["Figure", Any]:
    """Return a figure (inches) with title and subtitle, and its axes: one, or an array where there are several."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    lines = wrap(about, int(12.5 * width)) or [""]  # characters of this size per inch
    top = 1 - (0.45 + 0.17 * len(lines)) / height
    figure.get_layout_engine().set(rect=(0.0, 0.0, 1.0, top), w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    figure.text(0.12 / width, 1 - 0.1 / height, _text(title), va="top", fontsize=12, weight="bold", color=INK)
    figure.text(0.12 / width, 1 - 0.36 / height, _text("\n".join(lines)), va="top", fontsize=9, color=PALE)
    widths = widths if columns == 1 else (1,) * columns
    share: Any = {"sharey": True} if len(widths) > 1 else {"sharex": True}
    axes = figure.subplots(len(heights), len(widths), height_ratios=heights, width_ratios=widths, **share)
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(LINE)
        one.tick_params(color=LINE, labelcolor=INK, labelsize=8.5)
        one.set_axisbelow(True)
    return figure, axes


def _diagonal(axes: "Axes") -> None:
    axes.plot((0, 1), (0, 100), color=PALE, linestyle="--", linewidth=1, zorder=1)
    axes.set_xlim(-0.03, 1.03)


def _dot_sizes(counts: pl.Series) -> np.ndarray:
    """Return the areas of dots that grow with the root of their counts, so that bins of few stand back."""
    values = counts.to_numpy()
    return np.asarray(6 + 60 * np.sqrt(values / values.max(initial=1)))


def _percent(axis: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axis.set_label_text(label, color=INK, fontsize=9)


def _ramp(count: int) -> list[tuple[float, ...]]:
    """Return colours from dark to light that stay apart in grey as well."""
    from matplotlib import colormaps

    return [tuple(colormaps["viridis"](place)) for place in np.linspace(0.0, 0.85, max(count, 1))][:count]


def _portion(multiple: int) -> str:
    return "first G" if multiple == 1 else f"{multiple}. G"


def _span(thresholds: Sequence[float]) -> str:
    shown = [f"{threshold:g}" for threshold in thresholds]
    return ", ".join(shown) if len(shown) <= 4 else f"{shown[0]} to {shown[-1]}"


def _text(text: str) -> str:
    """Return the text with dollar signs escaped, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")
