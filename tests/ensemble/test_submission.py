import json
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from talstack.ensemble.submission import (
    FORMATS,
    LABEL_FORMATS,
    binego360_rows,
    label_files,
    write_scene_submission,
    write_submission,
)
from talstack.evaluate.map import evaluate_detections
from talstack.io.bins import bin_detections, bin_instances, num_bins
from talstack.io.detections import DETECTION_SCHEMA, read_predictions, sort_detections
from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.submission_check import check_submission

CLASS_IDS = {3: "run", 4: "sit"}


def table(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    rows = [("b", 25.0, "park", "test"), ("a", 10.0, "street", "test"), ("t", 30.0, "park", "train")]
    recordings = pl.DataFrame(rows, schema=SCHEMAS["recordings"], orient="row")
    return Manifest(
        "set", tmp_path_factory.mktemp("media"), tuple(CLASS_IDS.values()), ("street", "park"), recordings,
        empty_table("clips"), empty_table("instances"), first_action_id=3,
    )  # fmt: skip


def test_competition_file_to_the_letter(manifest, tmp_path):
    found = table(("b", 8.04, 12.96, "sit", 0.25), ("b", 1.0, 9.0, "run", 0.125), ("b", 0.0, 10.0, "run", 0.75))
    write_submission(found, manifest, split="test", format="binego360", out=tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == (
        "id,prediction\n"
        "a_0_10,[]\n"
        'b_0_10,"[[3, 0.0, 10.0, 0.75], [4, 8.0, 10.0, 0.25], [3, 1.0, 9.0, 0.125]]"\n'
        'b_10_20,"[[4, 10.0, 13.0, 0.25]]"\n'
        "b_20_30,[]\n"
    )


def manifest_of(folder, *recordings, actions=("run", "sit"), scenes=()):
    rows = [(name, duration_s, None, "test") for name, duration_s in recordings]
    table = pl.DataFrame(rows, schema=SCHEMAS["recordings"], orient="row")
    return Manifest("set", folder, tuple(actions), scenes, table, empty_table("clips"), empty_table("instances"))


ODD_NAMES = ("r_1_0_10", 'with, "both"', "two\nlines", "it's;", "é_", "#")
name = st.one_of(st.sampled_from(ODD_NAMES), st.text(min_size=1, max_size=8)).filter(
    lambda text: text == text.strip() and "\0" not in text
)
span = st.tuples(st.floats(0, 24.9), st.one_of(st.floats(0.01, 60), st.sampled_from([0.04, 0.5, 9.96, 10.0])))
score = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-300, 1e-7, 1.0]))


@st.composite
def detection_rows(draw, recordings, labels, *, starts_below=None):
    spans = draw(st.lists(span, max_size=12))
    scores = draw(st.lists(score, min_size=len(spans), max_size=len(spans), unique=True))
    return [
        (recording, start, start + length, draw(st.sampled_from(labels)), value)
        for (start, length), value in zip(spans, scores, strict=True)
        for recording in [draw(st.sampled_from(recordings))]
        if start + length > start and (starts_below is None or start < starts_below[recording])
    ]


@st.composite
def submissions(draw):
    names = draw(st.lists(name, min_size=1, max_size=3, unique=True))
    lengths = {recording: draw(st.sampled_from([24.9, 25.0, 30.0, 30.04])) for recording in names}
    return lengths, draw(detection_rows(names, ["run", "sit"], starts_below=lengths))


@settings(max_examples=50, deadline=None)
@given(submissions())
@example(({"r_x": 24.98}, [("r_x", 24.97, 27.0, "run", 0.5)]))
@example(({"r_x": 25.0}, [("r_x", 5.0, 1e12, "run", 0.5)]))
def test_the_competition_file_reads_back_as_the_binned_detections_and_nothing_is_found_in_it(tmp_path_factory, case):
    lengths, rows = case
    folder = tmp_path_factory.mktemp("round")
    manifest = manifest_of(folder, *lengths.items())
    write_submission(table(*rows), manifest, split="test", format="binego360", out=folder / "s.csv")

    back = read_predictions(folder / "s.csv", class_ids={1: "run", 2: "sit"})
    cut = [(r, s, min(e, 10.0 * num_bins(lengths[r])), label, value) for r, s, e, label, value in rows]
    assert back.binned
    assert sort_detections(back.detections).equals(sort_detections(bin_detections(table(*cut))))
    check = check_submission(folder / "s.csv", manifest, track="tal")
    assert check.findings == ()
    assert sort_detections(check.usable).equals(sort_detections(back.detections))


@settings(max_examples=50, deadline=None)
@given(st.data(), st.lists(name, min_size=1, max_size=3, unique=True))
def test_the_other_formats_read_back_exactly(tmp_path_factory, data, labels):
    folder = tmp_path_factory.mktemp("round")
    manifest = manifest_of(folder, *((recording, 25.0) for recording in ODD_NAMES), actions=labels)
    found = table(*data.draw(detection_rows(ODD_NAMES, labels)))
    for format, file in (("csv", "s.csv"), ("parquet", "s.parquet"), ("activitynet", "s.json")):
        write_submission(found, manifest, split="test", format=format, out=folder / file)
        back = read_predictions(folder / file).detections
        assert sort_detections(back).equals(sort_detections(found)), format


@given(st.lists(st.lists(st.floats(0.001, 1), min_size=3, max_size=3, unique=True), min_size=1, max_size=4))
def test_nothing_is_found_in_a_scene_file_even_of_weights_that_do_not_sum_to_one(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("round")
    names = [f"r_{i}" for i in range(len(weights))]
    manifest = manifest_of(folder, *((recording, 25.0) for recording in names), scenes=("a", "b", "c"))
    probs = pl.DataFrame(weights, schema=["a", "b", "c"], orient="row").with_columns(recording=pl.Series(names))
    write_scene_submission(probs, manifest, split="test", out=folder / "s.csv")
    check = check_submission(folder / "s.csv", manifest, track="scene")
    assert [found for found in check.findings if found.kind != "tie at the top"] == []
    back = check.usable.sort("recording").drop("recording")
    for got, given_row in zip(back.rows(), weights, strict=True):
        assert got == pytest.approx([value / sum(given_row) for value in given_row])


gaps = st.lists(st.tuples(st.floats(0.2, 30), st.floats(0.01, 40)), min_size=1, max_size=8)


def pieces_of(spans, *, longer_than_s):
    """Return instances of one class with those gaps and lengths, cut into bins; only the pieces that are longer."""
    rows, at = [], 0.0
    for gap, length in spans:
        rows.append(("b", at + gap, at + gap + length, "run"))
        at += gap + length
    pieces, _ = bin_instances(pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row"))
    return pieces.filter(pl.col("end_s") - pl.col("start_s") > longer_than_s)


@given(gaps)
def test_cutting_at_the_bins_edges_costs_nothing(spans):
    whole = pieces_of(spans, longer_than_s=0.0)
    if whole.height:
        perfect = whole.with_columns(score=pl.lit(0.5))
        result = evaluate_detections(perfect, bin_instances(whole)[0], tiou_thresholds=(0.5, 0.75, 0.95))
        assert result.map == (1.0, 1.0, 1.0)


@given(gaps, st.sampled_from([(0.5001, (0.5, 0.75)), (2.0001, (0.5, 0.75, 0.95))]))
def test_rounding_to_tenths_costs_nothing_but_at_095_for_pieces_under_two_seconds(tmp_path_factory, spans, case):
    longer_than_s, thresholds = case
    truth = pieces_of(spans, longer_than_s=longer_than_s)
    if truth.is_empty():
        return
    folder = tmp_path_factory.mktemp("perfect")
    manifest = manifest_of(folder, ("b", 600.0))
    perfect = truth.with_columns(score=pl.lit(0.5))
    write_submission(perfect, manifest, split="test", format="binego360", out=folder / "s.csv")
    back = read_predictions(folder / "s.csv", class_ids={1: "run", 2: "sit"}).detections
    assert evaluate_detections(back, truth, tiou_thresholds=thresholds).average_map == 1.0


def test_rounding_costs_a_short_piece_its_match_at_095():
    truth = pl.DataFrame([("b", 1.05001, 1.94999, "run")], schema=SCHEMAS["instances"], orient="row")
    found = bin_detections(truth.with_columns(score=pl.lit(0.5)))
    result = evaluate_detections(found, truth, tiou_thresholds=(0.5, 0.75, 0.95))
    assert found.select("start_s", "end_s").rows() == [(1.1, 1.9)]  # 0.8 of 0.9 s
    assert result.map == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("bad", [" a", "a\t", "", "a\0b"])
def test_refuses_names_that_a_csv_does_not_bring_back(tmp_path, bad):
    found = table(("r", 1.0, 2.0, bad, 0.5))
    with pytest.raises(InputError, match="a CSV cannot carry the name"):
        write_submission(
            found, manifest_of(tmp_path, ("r", 9.0), actions=[bad]), split="test", format="csv", out=tmp_path / "s.csv"
        )
    write_submission(
        found,
        manifest_of(tmp_path, ("r", 9.0), actions=[bad]),
        split="test",
        format="parquet",
        out=tmp_path / "s.parquet",
    )
    assert pl.read_parquet(tmp_path / "s.parquet").equals(found)
    if bad:  # readers of every format take white space around a name away, and refuse an empty one
        assert read_predictions(tmp_path / "s.parquet").detections["label"].to_list() == [bad.strip()]
    with pytest.raises(InputError, match="a CSV cannot carry the name"):
        write_submission(
            table(), manifest_of(tmp_path, (bad, 9.0)), split="test", format="binego360", out=tmp_path / "s.csv"
        )


def test_a_piece_past_the_last_bin_has_no_row(manifest):
    rows = binego360_rows(table(("a", 8.0, 11.0, "run", 0.5)), manifest, recordings=["a"])
    assert rows.rows() == [("a_0_10", "[[3, 8.0, 10.0, 0.5]]")]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_split_and_reads_back(manifest, tmp_path, name):
    found = table(("b", 2.0, 9.0, "sit", 0.25), ("t", 1.0, 9.0, "run", 0.5))
    path = tmp_path / {"activitynet": "s.json", "parquet": "s.parquet"}.get(name, "s.csv")
    write_submission(found, manifest, split="test", format=name, out=path)
    assert read_predictions(path, class_ids=CLASS_IDS).detections.rows() == [("b", 2.0, 9.0, "sit", 0.25)]
    if name == "activitynet":
        assert json.loads(path.read_text())["results"]["a"] == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("nowhere", 0.0, 1.0, "run", 0.5), "the data set has no such recording.*'nowhere'"),
        (("a", 0.0, 1.0, "fly", 0.5), "the data set has no such action.*'fly'"),
        (("a", 10.0, 11.0, "run", 0.5), "it starts after its recording's end"),
        (("a", -1.0, 1.0, "run", 0.5), "must not be negative"),
        (("a", 0.0, 1.0, "run", float("nan")), "must be finite"),
    ],
)
def test_refuses_detections_that_the_data_set_contradicts(manifest, tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        write_submission(table(row), manifest, split="test", format="csv", out=tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_refuses_an_unknown_format_and_an_empty_split(manifest, tmp_path):
    with pytest.raises(InputError, match="format 'xml'; expected one of binego360"):
        write_submission(table(), manifest, split="test", format="xml", out=tmp_path / "s")
    with pytest.raises(InputError, match="no recording of 'set' is in split 'val'"):
        write_submission(table(), manifest, split="val", format="csv", out=tmp_path / "s")


def test_scene_file_numbers_the_scenes_in_the_manifest_s_order(manifest, tmp_path):
    probs = pl.DataFrame({"recording": ["t", "b", "a"], "park": [1.0, 0.75, 0.5], "street": [0.0, 0.25, 0.5]})
    write_scene_submission(probs, manifest, split="test", out=tmp_path / "scene.csv")
    assert (tmp_path / "scene.csv").read_text() == "id,0,1\na,0.5,0.5\nb,0.25,0.75\n"


def test_scene_file_needs_every_recording_once_and_every_scene(manifest, tmp_path):
    probs = pl.DataFrame({"recording": ["b"], "park": [0.75], "street": [0.25]})
    for rows, message in (
        (probs, "recording 'a' has 0 rows"),
        (pl.concat([probs, probs, probs.with_columns(recording=pl.lit("a"))]), "recording 'b' has 2 rows"),
        (probs.drop("park"), "missing column 'park'"),
        (
            probs.with_columns(recording=pl.lit("a"), park=pl.lit(float("nan"))).vstack(probs),
            "recording 'a' has a prob",
        ),
        (
            probs.with_columns(recording=pl.lit("a"), park=pl.lit(-0.1)).vstack(probs),
            "recording 'a' has a negative prob",
        ),
        (
            probs.with_columns(recording=pl.lit("a"), park=pl.lit(0.0), street=pl.lit(0.0)).vstack(probs),
            "recording 'a' has only zeros",
        ),
    ):
        with pytest.raises(InputError, match=message):
            write_scene_submission(rows, manifest, split="test", out=tmp_path / "scene.csv")


@pytest.mark.parametrize("format", LABEL_FORMATS)
def test_people_get_a_file_per_recording_even_without_a_detection(manifest, tmp_path, format):
    found = table(("b", 2.0, 9.0, "sit", 0.25), ("b", 3.0, 4.0, "run", 0.1), ("t", 1.0, 9.0, "run", 0.5))
    files = label_files(found, manifest, split="test", format=format, out=tmp_path, min_score=0.2)
    assert sorted(path.stem for path in files) == ["a", "b"]
    texts = {path.stem: text for path, text in files.items()}
    assert "sit" in texts["b"]
    assert "run" not in texts["b"] + texts["a"]
    assert label_files(found, manifest, split="test", format=format, out=tmp_path)[tmp_path / next(
        path.name for path in files if path.stem == "b"
    )].count("run") == 1  # fmt: skip


def test_single_recording_may_be_one_file_several_may_not(manifest, tmp_path):
    found = table(("t", 1.0, 9.0, "run", 0.5))
    assert list(label_files(found, manifest, split="train", format="vtt", out=tmp_path / "x.vtt")) == [
        tmp_path / "x.vtt"
    ]
    assert list(label_files(found, manifest, split="train", format="vtt", out=tmp_path / "x")) == [
        tmp_path / "x" / "t.vtt"
    ]
    with pytest.raises(InputError, match="one file per recording, 2 for split 'test'; name a folder"):
        label_files(found, manifest, split="test", format="vtt", out=tmp_path / "x.vtt")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name a folder"):
        label_files(found, manifest, split="test", format="eaf", out=tmp_path / "file")


def test_elan_gets_the_clips_whose_place_is_known(manifest, tmp_path):
    clips = [("b", "ego", name, f"{name}.mp4", offset_s, 20.0, 30.0, 4, 4, False)
             for name, offset_s in (("late", 3.5), ("unknown", None), ("first", 0.0))]  # fmt: skip
    filmed = replace(manifest, clips=pl.DataFrame(clips, schema=SCHEMAS["clips"], orient="row"))
    text = label_files(table(), filmed, split="test", format="eaf", out=tmp_path)[tmp_path / "b.eaf"]
    assert text.index("first.mp4") < text.index("late.mp4")
    assert 'TIME_ORIGIN="-3500"' in text
    assert "unknown.mp4" not in text
