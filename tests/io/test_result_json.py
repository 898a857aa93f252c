import gc
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.io import result_json
from talstack.io.errors import InputError, MissingInputError
from talstack.io.result_json import activitynet_columns, read_result_json, record_columns

number = st.one_of(st.integers(0, 9), st.floats(0, 9), st.sampled_from([None, math.nan, math.inf, "x", True, 10**400]))
good_number = st.one_of(st.integers(0, 9), st.floats(0, 9))
label = st.one_of(st.sampled_from(["run", "", "sit"]), st.sampled_from([None, 3, ["run"]]))
good_entry = st.fixed_dictionaries(
    {"segment": st.tuples(good_number, good_number).map(sorted), "label": st.sampled_from(["run", ""])},
    optional={"note": st.none()},
).flatmap(lambda entry: good_number.map(lambda score: {**entry, "score": score}))
any_entry = st.one_of(
    st.fixed_dictionaries({"segment": st.lists(number, min_size=1, max_size=3), "label": label, "score": number}),
    st.sampled_from([{}, None, [], {"segment": [0, 1], "label": "run"}]),
)
results = st.dictionaries(st.sampled_from("abcd"), st.lists(st.one_of(good_entry, good_entry, any_entry), max_size=4))


def is_number(value):
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    )


def is_good(entry):
    """The form of an entry, said once more and one entry at a time."""
    if not isinstance(entry, dict) or not {"segment", "label", "score"} <= entry.keys():
        return False
    segment = entry["segment"]
    ordered = len(segment) == 2 and all(map(is_number, segment)) and segment[0] <= segment[1]
    return ordered and isinstance(entry["label"], str) and is_number(entry["score"])


@settings(max_examples=400, deadline=None)
@given(results)
def test_columns_hold_every_entry_or_name_the_first_bad_one(content):
    flat = [(recording, index, entry) for recording, entries in content.items() for index, entry in enumerate(entries)]
    bad = [(recording, index) for recording, index, entry in flat if not is_good(entry)]
    try:
        table = activitynet_columns(content.items(), keys=("label", "score"), where=Path("f.json"))
    except InputError as error:
        assert str(error).startswith("f.json, recording {!r}, entry {}: ".format(*bad[0]))
    else:
        assert not bad
        assert table.rows() == [(r, *map(float, e["segment"]), e["label"], float(e["score"])) for r, _, e in flat]


def test_a_list_is_expected_for_a_recording():
    with pytest.raises(InputError, match=r"f\.json, recording 'b': expected a list of entries, got 7"):
        activitynet_columns([("a", []), ("b", 7)], keys=("label",), where=Path("f.json"))


def test_records_by_name_and_by_class_id():
    records = [
        {"video_id": "b", "t_start": 1, "t_end": 2.5, "label": 4, "score": 0.5},
        {"video_id": "a", "t_start": 0, "t_end": 1, "label": "run", "score": 1},
    ]
    table, warnings = record_columns(records, class_ids={4: "eat"}, where=Path("f.json"))
    assert table.rows() == [("b", 1.0, 2.5, "eat", 0.5), ("a", 0.0, 1.0, "run", 1.0)]
    assert warnings == ()
    with pytest.raises(InputError, match="entry 0: class id 4 is not one of 1..3"):
        record_columns(records, class_ids=dict.fromkeys(range(1, 4), "x"), where=Path("f.json"))


def test_records_without_scores_are_all_one_and_said_to_be_unranked():
    records = [{"video_id": "a", "t_start": 0, "t_end": 1, "label": "run"}]
    table, warnings = record_columns(records, class_ids={}, where=Path("f.json"))
    assert table["score"].to_list() == [1.0]
    assert len(warnings) == 1
    assert "ranking, on which mAP rests, is undefined" in warnings[0]
    assert record_columns([], class_ids={}, where=Path("f.json"))[1] == ()


def test_reading_leaves_the_collector_as_it_was_and_refuses_repeated_recordings(tmp_path):
    path = tmp_path / "r.json"
    entry = json.dumps({"segment": [0, 1], "label": "segment", "score": 1})
    path.write_text(f'{{"results": {{"a": [{entry}], "b": [{entry}]}}}}')
    assert list(read_result_json(path)["results"]) == ["a", "b"]  # a label that is called "segment" is no repeat
    path.write_text(f'{{"results": {{"a": [{entry}], "a": [{entry}]}}}}')
    with pytest.raises(InputError, match="'a' stands there twice"):
        read_result_json(path)
    assert gc.isenabled()
    with pytest.raises(MissingInputError, match="no such file"):
        read_result_json(tmp_path / "none.json")


def test_unrepeated_results_are_parsed_once(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"results": {"a": [{"segment": [0, 1], "label": "x", "score": 1}], "b": []}}))
    monkeypatch.setattr(result_json, "_loads_unique", lambda *arguments: pytest.fail("parsed twice"))
    assert len(read_result_json(path)["results"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"results": {"a": [{"segment": [0, 1], "label": "x", "label": "y", "score": 1}]}}',
        '{"results": {"a": [{"segment": [0, 1], "label": "x", "score": 1, "score": 2, "note": "6: 1"}]}}',
        '{"results": {"a": []}, "results" : {}}',
        '[{"video_id": "a", "t_start": 0, "t_start": 1, "t_end": 2, "label": "x"}]',
        '{"database": {"a": {"annotations": [{"segment": [0, 1], "label": "x", "label"\n: "y"}]}}}',
    ],
)
def test_a_key_that_stands_twice_in_one_object_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"r\.json: '\w+' stands there twice in one object"):
        read_result_json(path)


json_text = st.text(st.sampled_from('a":{, \\'), max_size=4)
json_value = st.recursive(
    st.one_of(st.none(), json_text), lambda v: st.one_of(st.lists(v), st.dictionaries(json_text, v)), max_leaves=8
)


@settings(deadline=None)
@given(json_value)
def test_whatever_has_no_key_twice_is_read(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "r.json"
    path.write_text(json.dumps(value))
    assert read_result_json(path) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "caf\xe9"}', "byte 0xe9 at offset 10 is not UTF-8"),
        (b'\xef\xbb\xbf{"a": "caf\xe9"}', "byte 0xe9 at offset 13 is not UTF-8"),
        (b'{"a": %s}' % (b"9" * 5000), "a number that cannot be read"),
        (b'{"results": {"r\\ud8001": []}}', r"half a character \(a lone surrogate\) in .*ud8001"),
        (b'{"a": 1', "not valid JSON, line 1 column 8"),
    ],
)
def test_what_no_table_can_hold_is_refused(tmp_path, content, message):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match=r"r\.json: .*" + message):
        read_result_json(tmp_path / "r.json")
    (tmp_path / "r.json").write_bytes(rb'{"a": "\ud83d\ude00"}')  # a whole pair
    assert read_result_json(tmp_path / "r.json") == {"a": "\U0001f600"}
