import json

import polars as pl
import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.ground_truth import read_ground_truth
from talstack.io.manifest import Manifest, empty_table


def annotation(subset, *segments):
    return {"subset": subset, "duration": 60.0, "annotations": [{"segment": s, "label": "x"} for s in segments]}


def save(path, database):
    path.write_text(json.dumps({"version": "1", "database": database}), encoding="utf-8")
    return path


@pytest.fixture
def data_folder(tmp_path):
    recordings = pl.DataFrame(
        [("a", 60.0, None, "train"), ("b", 60.0, "park", "test"), ("c", 50.0, None, "test")],
        schema={"recording": pl.String, "duration_s": pl.Float64, "scene": pl.String, "split": pl.String},
        orient="row",
    )
    rows = [("a", 1.0, 2.0, "run"), ("b", 3.0, 4.0, "sit")]
    instances = pl.DataFrame(rows, schema=empty_table("instances").schema, orient="row")
    manifest = Manifest("set", tmp_path, ("run", "sit"), ("park",), recordings, empty_table("clips"), instances)
    manifest.save(tmp_path / "data")
    return tmp_path / "data"


def test_data_folder_defaults_to_the_test_split(data_folder):
    truth = read_ground_truth(data_folder)
    assert truth.instances.rows() == [("b", 3.0, 4.0, "sit")]
    assert truth.recordings == ("b", "c")
    assert truth.class_ids == {1: "run", 2: "sit"}
    assert read_ground_truth(data_folder, split="train").instances.rows() == [("a", 1.0, 2.0, "run")]


def test_data_folder_knows_durations_and_scenes(data_folder):
    truth = read_ground_truth(data_folder)
    assert (truth.durations_s, truth.scenes, truth.scene_names) == ({"b": 60.0, "c": 50.0}, {"b": "park"}, ("park",))


def test_data_folder_refuses_an_unknown_or_empty_split(data_folder):
    with pytest.raises(InputError, match="split 'testing'; expected one of train, val, test"):
        read_ground_truth(data_folder, split="testing")
    with pytest.raises(InputError, match="no recording is in split 'val'"):
        read_ground_truth(data_folder, split="val")


def test_activitynet_lists_recordings_without_instances(tmp_path):
    path = save(tmp_path / "g.json", {"b": annotation("validation"), "a": annotation("validation", [1, 2], [-1, 2])})
    truth = read_ground_truth(path)
    assert truth.instances.rows() == [("a", 1.0, 2.0, "x"), ("a", -1.0, 2.0, "x")]
    assert truth.recordings == ("a", "b")
    assert truth.warnings == ("1 of 2 intervals start before second 0; they are kept as they are",)


def test_activitynet_durations(tmp_path):
    database = {"b": annotation("val"), "a": {"subset": "val", "annotations": []}}
    assert read_ground_truth(save(tmp_path / "g.json", database)).durations_s == {"b": 60.0}
    for bad in ("long", int("9" * 400), 2e12):
        database["a"]["duration"] = bad
        with pytest.raises(InputError, match="recording 'a': duration must be a positive number of seconds, at most"):
            read_ground_truth(save(tmp_path / "g.json", database))


def test_activitynet_subsets_need_a_choice(tmp_path):
    path = save(tmp_path / "g.json", {"a": annotation("training", [1, 2]), "b": annotation("testing", [3, 4])})
    with pytest.raises(InputError, match="several subsets, choose one with --subset: testing, training"):
        read_ground_truth(path)
    for name in ("testing", "test"):
        assert read_ground_truth(path, split=name).recordings == ("b",)
    with pytest.raises(InputError, match="no subset 'val'; found testing, training"):
        read_ground_truth(path, split="val")


def test_activitynet_subset_is_a_text(tmp_path):
    with pytest.raises(InputError, match=r"recording 'a': subset must be a text, got \[1\]"):
        read_ground_truth(save(tmp_path / "g.json", {"a": {"subset": [1], "annotations": []}}))


def test_white_space_around_a_name_is_no_part_of_it(tmp_path):
    padded = {" a ": {"duration": 9, "annotations": [{"segment": [1, 2], "label": " x"}]}}
    truth = read_ground_truth(save(tmp_path / "g.json", padded))
    assert truth.instances.rows() == [("a", 1.0, 2.0, "x")]
    assert (truth.recordings, truth.durations_s) == (("a",), {"a": 9.0})
    with pytest.raises(InputError, match="only white space tells these recordings apart: ' a ', 'a'"):
        read_ground_truth(save(tmp_path / "g.json", {**padded, "a": {"annotations": []}}))
    with pytest.raises(InputError, match="row 0 .*: the label is an empty text"):
        read_ground_truth(
            save(
                tmp_path / "g.json", {"a": annotation(None), "b": {"annotations": [{"segment": [1, 2], "label": " "}]}}
            )
        )


def test_zero_length_instances_are_dropped_with_a_count_and_reversed_ones_refused(tmp_path):
    path = save(tmp_path / "g.json", {"a": annotation("val", [1, 1], [1, 2])})
    truth = read_ground_truth(path)
    assert (truth.instances.height, truth.dropped) == (1, {"zero length": 1})
    with pytest.raises(InputError, match="end_s must be after start_s"):
        read_ground_truth(save(path, {"a": annotation("val", [2, 1])}))


def test_csv(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("recording,start_s,end_s,label\nb,1,2,x\na,3,4,y\n")
    truth = read_ground_truth(path)
    assert truth.instances.rows() == [("b", 1.0, 2.0, "x"), ("a", 3.0, 4.0, "y")]
    assert truth.recordings == ("a", "b")
    with pytest.raises(InputError, match="a CSV has no splits"):
        read_ground_truth(path, split="test")


def test_what_is_no_ground_truth(tmp_path):
    with pytest.raises(MissingInputError, match="no such ground truth"):
        read_ground_truth(tmp_path / "none.json")
    with pytest.raises(MissingInputError, match="not a talstack data folder"):
        read_ground_truth(tmp_path)
    (tmp_path / "g.txt").touch()
    with pytest.raises(InputError, match="must be a .json or .csv file or a data folder"):
        read_ground_truth(tmp_path / "g.txt")
    (tmp_path / "g.json").write_text('{"database": {"a": []}}')
    with pytest.raises(InputError, match="expected ActivityNet annotations"):
        read_ground_truth(tmp_path / "g.json")
