"""Files for people who look read back as the same intervals, whatever the labels hold."""

import html
import re
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from talstack.io.label_files import audacity_text, eaf_text, file_name, vtt_text

SCHEMA = {"start_s": pl.Float64, "end_s": pl.Float64, "label": pl.String, "score": pl.Float64}
LABELS = ["run", "cut <em>&amp;</em>", "a --> b", "día\tdel\nsol", "走る", "\"'", "run (2)"]


def table(*rows) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def one_line(label: str) -> str:
    return " ".join(label.split())


def read_vtt(text: str) -> list[tuple[float, float, str, float]]:
    header, *cues = text.rstrip("\n").split("\n\n")
    assert header == "WEBVTT"
    rows = []
    for cue in cues:
        name, times, label = cue.split("\n")
        found = re.fullmatch(r"(\d\d+):([0-5]\d):([0-5]\d\.\d{3}) --> (\d\d+):([0-5]\d):([0-5]\d\.\d{3})", times)
        assert found, times
        assert "<" not in label
        assert "-->" not in name + label
        start, end = (3600 * int(h) + 60 * int(m) + float(s) for h, m, s in (found.groups()[:3], found.groups()[3:]))
        rows.append((start, end, html.unescape(label), float(name.split(" score ")[1])))
    return rows


def read_audacity(text: str) -> list[tuple[float, float, str]]:
    rows = [line.split("\t") for line in text.split("\n")[:-1]]
    return [(float(start), float(end), label) for start, end, label in rows]


def read_eaf(text: str) -> list[tuple[float, float, str, float]]:
    root = ElementTree.fromstring(text)
    order = ["HEADER", "TIME_ORDER", *["TIER"] * len(root.findall("TIER")), "LINGUISTIC_TYPE"]
    assert [child.tag for child in root] == order, "the order that the schema wants"
    slots = {slot.attrib["TIME_SLOT_ID"]: int(slot.attrib["TIME_VALUE"]) for slot in root.iter("TIME_SLOT")}
    assert list(slots.values()) == sorted(set(slots.values()))
    ids = [item.attrib["ANNOTATION_ID"] for item in root.iter("ALIGNABLE_ANNOTATION")]
    names = [tier.attrib["TIER_ID"] for tier in root.iter("TIER")]
    assert len(set(ids)) == len(ids)
    assert len(set(names)) == len(names)
    types = {kind.attrib["LINGUISTIC_TYPE_ID"] for kind in root.iter("LINGUISTIC_TYPE")}
    rows = []
    for tier in root.iter("TIER"):
        assert tier.attrib["LINGUISTIC_TYPE_REF"] in types
        spans = []
        for item in tier.iter("ALIGNABLE_ANNOTATION"):
            start, end = (slots[item.attrib[f"TIME_SLOT_REF{i}"]] for i in (1, 2))
            spans.append((start, end))
            value = item.find("ANNOTATION_VALUE").text
            rows.append((start / 1000, end / 1000, tier.attrib["TIER_ID"], float(value)))
        assert all(one[1] <= two[0] for one, two in zip(spans, spans[1:], strict=False)), "overlap within a tier"
    return rows


row = st.tuples(st.floats(0, 9000), st.floats(1e-5, 500), st.sampled_from(LABELS[:-1]), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=12))
@example([(0.0, 1e-5, "run", 0.5), (3599.9996, 0.1, "run", 0.5)])
def test_every_format_gives_the_intervals_back(rows) -> None:
    found = table(*[(start, start + length, label, score) for start, length, label, score in rows])
    want = found.sort("start_s", "end_s", "label", "score").rows()
    for got, precision in ((read_vtt(vtt_text(found)), 2e-3), (read_audacity(audacity_text(found)), 2e-6)):
        assert all(end > start for start, end, *_ in got)
        for one, two in zip(got, want, strict=True):
            assert one[2] == one_line(two[2])
            assert one[:2] == pytest.approx(two[:2], abs=precision)
    tiers = defaultdict(list)
    for start, end, tier, _ in read_eaf(eaf_text(found, [], folder=Path("/out"))):
        label = next(label for label in LABELS[:-1] if re.fullmatch(re.escape(label) + r"( \(\d+\))?", tier))
        tiers[label].append((round(1000 * start), round(1000 * end)))
    for label in set(found["label"]):
        spans = [(round(1000 * start), round(1000 * end)) for start, end, name, _ in want if name == label]
        assert sorted(tiers[label]) == sorted((start, max(end, start + 1)) for start, end in spans)


def test_files_to_the_letter() -> None:
    found = table((61.5, 3723.25, "b & c", 0.25), (0.0, 1.0, "a", 0.5))
    assert vtt_text(found) == (
        "WEBVTT\n\n1 score 0.500\n00:00:00.000 --> 00:00:01.000\na\n\n"
        "2 score 0.250\n00:01:01.500 --> 01:02:03.250\nb &amp; c\n"
    )
    assert audacity_text(found) == "0.000000\t1.000000\ta\n61.500000\t3723.250000\tb & c\n"


def test_nothing_found_is_still_a_file() -> None:
    assert vtt_text(table()) == "WEBVTT\n"
    assert audacity_text(table()) == ""
    assert read_eaf(eaf_text(table(), [], folder=Path("/out"))) == []


def test_overlapping_annotations_of_a_class_lie_in_tiers_of_their_own_names() -> None:
    found = table((0, 4, "run", 0.9), (2, 6, "run", 0.8), (5, 7, "run", 0.7), (0, 1, "run (2)", 0.6))
    tiers = {(tier, start) for start, _, tier, _ in read_eaf(eaf_text(found, [], folder=Path("/out")))}
    assert tiers == {("run", 0), ("run", 5), ("run (2)", 2), ("run (2) (2)", 0)}


def test_media_are_named_with_their_place_on_the_clock(tmp_path) -> None:
    clips = [(tmp_path / "media" / "päno 1.mp4", 0.0), (tmp_path / "media" / "ego.mp4", 3.7004)]
    text = eaf_text(table((0, 1, "run", 0.5)), clips, folder=tmp_path / "out")
    first, second = (dict(item.attrib) for item in ElementTree.fromstring(text).iter("MEDIA_DESCRIPTOR"))
    assert unquote(first["RELATIVE_MEDIA_URL"]) == "../media/päno 1.mp4"
    assert first["MEDIA_URL"] == (tmp_path / "media" / "päno 1.mp4").as_uri()
    assert first["MIME_TYPE"] == "video/mp4"
    assert "TIME_ORIGIN" not in first
    assert second["TIME_ORIGIN"] == "-3700"


def test_odd_characters_do_not_break_the_documents() -> None:
    found = table((0, 1, "a\x00\x01b", 0.5))
    assert read_vtt(vtt_text(found))[0][2] == "a\ufffd\x01b"
    assert read_eaf(eaf_text(found, [], folder=Path("/out")))[0][2] == "a\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("recording", "name"),
    [("r 1", "r 1.vtt"), ("../up", "%2E.%2Fup.vtt"), (".", "%2E.vtt"), ('a:"b"', "a%3A%22b%22.vtt"), ("é", "é.vtt")],
)
def test_file_names_stay_in_their_folder(recording, name) -> None:
    assert file_name(recording, "vtt") == name
    assert unquote(name) == recording + ".vtt"
