import polars as pl
import pytest
from matplotlib import rcParams

from talstack.evaluate.calibration import reliability
from talstack.evaluate.diagnosis import diagnose
from talstack.evaluate.plots import (
    FIGURES,
    plot_class_ap,
    plot_error_impact,
    plot_false_negatives,
    plot_false_positives,
    plot_scene_confusion,
    plot_score_reliability,
    plot_segment_reliability,
    plot_sensitivity,
    save_figure,
    save_plots,
)
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA
from talstack.io.errors import InputError
from talstack.io.ground_truth import GroundTruth


@pytest.fixture(scope="module")
def found():
    instances = pl.DataFrame(
        [("a", 0.0, 10.0, "run"), ("a", 20.0, 30.0, "pay $5 or $6"), ("b", 0.0, 4.0, "run")],
        schema=INSTANCE_SCHEMA,
        orient="row",
    )
    rows = [("a", 0.0, 10.0, "run", 0.9), ("a", 0.0, 9.0, "run", 0.8), ("a", 20.0, 26.0, "pay $5 or $6", 0.35)]
    detections = pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")
    truth = GroundTruth(instances, ("a", "b"), {}, (), {}, {"a": 60.0, "b": 50.0})
    return diagnose(detections, truth, tiou_thresholds=(0.5, 0.75))


def texts(figure):
    import matplotlib.text

    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_false_positives(found):
    figure = plot_false_positives(found.false_positive_profile, tiou=0.5, about="some data")
    shown = texts(figure)
    assert "False positives by kind: what the best detections are, tIoU 0.5" in shown
    assert {"some data", "true positive", "double detection", "background", "n = 3", "100 %"} <= set(shown)
    assert len(figure.axes[0].containers) == 6
    assert not any("10. G" in text for text in shown)  # no class has that many detections


def test_error_impact_is_sorted_and_missed_instances_cannot_be_removed(found):
    figure = plot_error_impact(found.error_impact, tiou_thresholds=(0.5, 0.75))
    shown = texts(figure)
    kinds = [label.get_text().split("\n")[0] for label in figure.axes[0].get_yticklabels()]
    order = found.costliest()["kind"].to_list()
    assert kinds == order[::-1]
    assert sum(text.endswith("if removed") for text in shown) == 5
    assert sum(text.endswith("if corrected") for text in shown) == 6


def test_groups_have_bars_and_a_line_for_all(found):
    for figure in (
        plot_sensitivity(found.sensitivity, tiou_thresholds=(0.5, 0.75)),
        plot_false_negatives(found.false_negatives, tiou=0.5),
    ):
        groups = found.sensitivity.filter(pl.col("characteristic") != "all")
        assert sum(len(axes.patches) for axes in figure.axes) == groups.height
        assert all(len(axes.lines) == 1 for axes in figure.axes)
        assert any(text.startswith("all instances") for text in texts(figure))


def class_frame(count):
    return pl.DataFrame(
        {
            "label": [f"class {i:03d}" for i in range(count)],
            "num_instances": [3] * count,
            "num_detections": [5] * count,
            "average_ap": [i / count for i in range(count)],
        }
    )


def test_classes_are_sorted_and_two_hundred_become_the_best_and_the_worst_forty():
    few = plot_class_ap(class_frame(80), tiou_thresholds=(0.5,))
    assert len(few.axes[0].patches) == 80
    many = plot_class_ap(class_frame(200), tiou_thresholds=(0.5,))
    names = [label.get_text() for label in many.axes[0].get_yticklabels()]
    assert (names[0], names[39], names[40], names[-1], len(names)) == (
        "class 199 (3)", "class 160 (3)", "class 039 (3)", "class 000 (3)", 80,
    )  # fmt: skip
    assert "120 classes between these are left out" in texts(many)
    assert any(text.startswith("mean of all classes 49.8") for text in texts(many))


def test_dollars_are_no_formula(found):
    assert any(r"\$5" in text for text in texts(plot_class_ap(found.per_class, tiou_thresholds=(0.5,))))


def test_reliability_of_scores_inside_and_outside_of_the_unit_interval(found):
    inside = plot_score_reliability(found.score_reliability)
    assert len(inside.axes[0].lines) == 3  # two thresholds and the diagonal
    values = pl.Series([-2.0, 1.0, 5.0, 9.0]).to_numpy()
    curve = reliability(values, values > 2).curve.select(pl.lit(0.5).alias("tiou"), pl.all())
    outside = plot_score_reliability(curve)
    assert len(outside.axes[0].lines) == 1
    assert outside.axes[0].get_xlim()[1] > 8


def test_one_panel_per_head():
    values = pl.Series([0.1, 0.4, 0.8, 0.9]).to_numpy()
    measured = reliability(values, values > 0.5)
    names = [("v", "rgb", f"action-{i}") for i in range(5)]
    columns = [[pl.lit(v).alias(n) for v, n in zip(row, ("view", "modality", "head"), strict=True)] for row in names]
    curve, summary = (pl.concat(f.select(*c, pl.all()) for c in columns) for f in (measured.curve, measured.summary))
    figure = plot_segment_reliability(curve, summary)
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == 5
    ece = summary.filter(binning="equal_width")["ece"][0]
    assert visible[4].get_title() == f"v / rgb\naction-4\nECE {100 * ece:.2f} %"


def test_scene_confusion_counts_and_has_a_column_for_missing_predictions():
    rows = [("kitchen", "kitchen", 3), ("kitchen", "street", 1), ("street", None, 2)]
    frame = pl.DataFrame(rows, schema={"scene": pl.String, "predicted": pl.String, "count": pl.Int64}, orient="row")
    figure = plot_scene_confusion(frame)
    assert {"3", "1", "2", "(no prediction)", "Scenes: 3 of 6 recordings right"} <= set(texts(figure))
    shares = figure.axes[0].images[0].get_array()
    assert shares.tolist() == [[75.0, 25.0, 0.0], [0.0, 0.0, 100.0]]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_bytes_for_the_same_numbers(found, tmp_path, suffix):
    before = dict(rcParams)
    paths = [tmp_path / f"{i}.{suffix}" for i in (1, 2)]
    for path in paths:
        save_figure(plot_error_impact(found.error_impact, tiou_thresholds=(0.5, 0.75)), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert b"<dc:date>" not in first
    assert dict(rcParams) == before


def test_save_plots_writes_what_there_is_and_removes_old_figures(found, tmp_path):
    (tmp_path / "scene_confusion.png").write_text("old")
    (tmp_path / "mine.png").write_text("stays")
    paths = save_plots(found, tmp_path, format="svg", about="data")
    assert [path.name for path in paths] == [f"{name}.svg" for name in FIGURES[:6]]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths} | {"mine.png"}
    with pytest.raises(InputError, match="format 'pdf'; expected one of png, svg"):
        save_plots(found, tmp_path, format="pdf")


def test_no_detection_and_no_error(found, tmp_path):
    nothing = plot_error_impact(
        found.error_impact.with_columns(gain_removed=pl.lit(0.0), gain_corrected=pl.lit(0.0)), tiou_thresholds=(0.5,)
    )
    assert nothing.axes[0].get_xlim() == (0.0, 1.0)
    empty = plot_false_positives(
        found.false_positive_profile.with_columns(count=pl.lit(0), share=pl.lit(0.0)), tiou=0.5
    )
    save_figure(empty, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_long_names_are_wrapped_and_stay_inside(found):
    figure = plot_score_reliability(found.score_reliability, about="a rather long name " * 12)
    figure.draw_without_rendering()
    assert figure.texts[1].get_text().count("\n") >= 2
    for text in figure.texts:
        box = text.get_window_extent().transformed(figure.transFigure.inverted())
        assert box.x0 >= 0
        assert box.x1 <= 1
    lowest = figure.texts[1].get_window_extent().y0
    assert figure.axes[0].get_window_extent().y1 <= lowest
