import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talstack.ensemble.submission import FORMATS, binego360_rows, write_scene_submission, write_submission
from talstack.io.bins import bin_detections
from talstack.io.detections import DETECTION_SCHEMA, read_predictions, sort_detections
from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table

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


interval = st.tuples(st.floats(0, 24.9), st.floats(0.01, 25)).map(lambda pair: (pair[0], min(sum(pair), 25.0)))


@given(st.lists(st.tuples(interval, st.sampled_from(["run", "sit"]), st.floats(0, 1)), max_size=12))
def test_reading_back_gives_the_binned_detections(manifest, tmp_path_factory, rows):
    found = table(*(("b", start, end, label, score) for (start, end), label, score in rows if end > start))
    path = tmp_path_factory.mktemp("round") / "s.csv"
    write_submission(found, manifest, split="test", format="binego360", out=path)
    back = read_predictions(path, class_ids=CLASS_IDS)
    assert back.binned
    assert sort_detections(back.detections).equals(sort_detections(bin_detections(found)))


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
    ):
        with pytest.raises(InputError, match=message):
            write_scene_submission(rows, manifest, split="test", out=tmp_path / "scene.csv")
