"""Import of BinEgo-360 from both layouts."""

import json
from pathlib import Path

import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.import_binego360 import import_binego360
from talstack.io.manifest import Manifest

A, B, C = (f"{n}0000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3))


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write_clip) -> bytes:
    """Return a clip of 2 s."""
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4").read_bytes()


def put(path: Path, content: bytes | str | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps({"metadata": content})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def short(label, start, end) -> dict:
    return {"duration": [start, end], "action": {"1": label}}


def full(label, start, end) -> dict:
    return {"vid": "1", "flg": 0, "z": [start, end], "xy": [], "av": {"1": label}}


@pytest.fixture
def challenge(tmp_path, clip) -> Path:
    """Return three recordings in the challenge layout: all views; no egocentric; no annotations."""
    root = tmp_path / "binego"
    for recording in (A, B, C):
        put(root / "panoramic" / f"{recording}.mp4", clip)
        put(root / "third_person" / f"{recording}.mp4", clip)
    put(root / "monocular" / A / "clip0.mp4", clip)
    put(root / "monocular" / A / "clip1.mp4", clip)
    put(root / "binocular" / A / "clip0.mp4", clip)
    put(root / "TAL_annotations" / f"{A}.json", {"1_a": short("walking", 0.25, 1.0), "1_b": short("eating", 0.5, 1.5)})
    put(root / "TAL_annotations" / f"{B}.json", {"1_a": full("running", 1.0, 2.0)})
    put(root / "label" / A / "label.json", "Kitchen")
    put(root / B / "label.json", "Indoor Shops & Retail& Commercial\n")
    return root


def noted(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    return [(Path(file).name, where, rec, why) for file, where, rec, why in manifest.skipped.rows()]


def test_the_challenge_layout(challenge):
    manifest = import_binego360(challenge, test_fraction=0)
    assert manifest.recordings.select("recording", "scene", "split").rows() == [
        (A, "Kitchen", "train"), (B, "Indoor Shops & Retail& Commercial", "train"), (C, None, "test"),
    ]  # fmt: skip
    clips = manifest.clips.filter(manifest.clips["recording"] == A).select("view", "clip", "path", "offset_s").rows()
    assert clips == [
        ("binocular", "clip0", f"binocular/{A}/clip0.mp4", None),
        ("monocular", "clip0", f"monocular/{A}/clip0.mp4", None),
        ("monocular", "clip1", f"monocular/{A}/clip1.mp4", None),
        ("panoramic", A, f"panoramic/{A}.mp4", 0.0),
        ("third_person", A, f"third_person/{A}.mp4", 0.0),
    ]
    assert manifest.clips.height == 9
    # both spellings of the annotations
    assert manifest.instances.rows() == [
        (A, 0.25, 1.0, "walking"), (A, 0.5, 1.5, "eating"), (B, 1.0, 2.0, "running"),
    ]  # fmt: skip
    assert len(manifest.actions) == 34 and len(manifest.scenes) == 28 and manifest.first_action_id == 1
    assert manifest.folds["recording"].to_list() == [A, B]
    assert manifest.skipped.height == 0


def test_the_development_kit_layout(tmp_path, clip):
    root = tmp_path / "kit"
    put(root / A / "360" / "360_panoramic.mp4", clip)
    put(root / A / "360" / "front_view.mp4", clip)
    put(root / A / "Snapchat" / "clip1" / "mono.mp4", clip)
    put(root / A / "Snapchat" / "clip1" / "stereo.mp4", clip)
    put(root / A / "Snapchat" / "clip1" / "raw_stereo.mp4", clip)
    put(root / A / f"{A}.json", {"1_a": full("walking", 0.25, 1.0)})
    put(root / A / "label.json", '"Nature"')
    put(root / B / "360" / "360_panoramic.mp4", clip)
    put(root / "x360dataset_annotation" / B / "export.json", {"1_a": short("eating", 0.25, 1.0)})
    manifest = import_binego360(root, test_fraction=0)
    assert manifest.clips.select("recording", "view", "clip", "offset_s").rows() == [
        (A, "binocular", "clip1", None), (A, "monocular", "clip1", None), (A, "panoramic", A, 0.0),
        (A, "third_person", A, 0.0), (B, "panoramic", B, 0.0),
    ]  # fmt: skip
    assert manifest.instances.rows() == [(A, 0.25, 1.0, "walking"), (B, 0.25, 1.0, "eating")]
    assert manifest.recordings["scene"].to_list() == ["Nature", None]


def test_entries_that_say_nothing_are_counted(challenge):
    put(
        challenge / "TAL_annotations" / f"{A}.json",
        {
            "ok": short("walking", 0.25, 1.0),
            "no_one": {"duration": [0.1, 0.2], "action": {"2": "walking"}},
            "no_action": {"duration": [0.1, 0.2]},
            "empty_z": {"z": [], "av": {"1": "eating"}},
            "point": {"z": [1.0], "av": {"1": "eating"}},
            "text": {"z": ["a", "b"], "av": {"1": "eating"}},
            "unknown": short("flying", 0.1, 0.2),
            "reversed": short("walking", 1.0, 0.5),
            "late": short("walking", 2.5, 3.0),
            "long": short("eating", 1.0, 9.0),
            "number": 5,
        },
    )
    manifest = import_binego360(challenge, test_fraction=0)
    assert manifest.instances.filter(manifest.instances["recording"] == A).rows() == [
        (A, 0.25, 1.0, "walking"), (A, 1.0, 2.0, "eating"),
    ]  # fmt: skip
    found = {where: why.split(":")[0] for file, where, rec, why in noted(manifest) if (file, rec) == (f"{A}.json", A)}
    assert found == {
        "no_one": "no action", "no_action": "no action", "empty_z": "empty interval", "point": "not an interval",
        "text": "not an interval", "unknown": "unknown label", "reversed": "start not before end",
        "late": "outside the recording", "long": "clipped to the recording", "number": "not an entry",
    }  # fmt: skip


def test_invalid_bytes_are_tolerated(challenge):
    raw = json.dumps({"metadata": {"1_a": short("walking", 0.25, 1.0)}, "x": "@"}).encode().replace(b"@", b"\xff\xfe")
    put(challenge / "TAL_annotations" / f"{A}.json", raw)
    put(challenge / "label" / A / "label.json", b"\xff\xfeKitchen")
    manifest = import_binego360(challenge, test_fraction=0)
    assert (A, 0.25, 1.0, "walking") in manifest.instances.rows()
    assert manifest.recordings["scene"][0] is None
    assert [(rec, why[:14]) for *_, rec, why in noted(manifest)] == [(A, "unknown scene:")]


def test_broken_annotation_files_are_refused(challenge):
    put(challenge / "TAL_annotations" / f"{A}.json", '{"metadata": {')
    with pytest.raises(InputError, match=rf"{A}\.json: not valid JSON, line 1"):
        import_binego360(challenge)
    put(challenge / "TAL_annotations" / f"{A}.json", '{"entries": {}}')
    with pytest.raises(InputError, match=rf"expected VIA annotations, .* of recording '{A}'"):
        import_binego360(challenge)


def test_tables_at_the_root(challenge):
    put(challenge / "scenes.csv", f"recording,scene\n{A},Nature\n{C},Campus\n{B},\nunknown,Campus\n")
    put(challenge / "splits.csv", f"recording,split\n{A},val\n{B},train\n{C},train\n")
    put(challenge / "offsets.csv", f"recording,view,clip,offset_s\n{A},monocular,clip1,3.5\n{A},monocular,clip9,1\n")
    manifest = import_binego360(challenge)
    assert manifest.recordings.select("scene", "split").rows() == [
        ("Nature", "val"), (None, "train"), ("Campus", "train"),
    ]  # fmt: skip
    offsets = manifest.clips.filter((manifest.clips["recording"] == A) & (manifest.clips["view"] == "monocular"))
    assert offsets["offset_s"].to_list() == [None, 3.5]
    # the recording is as long as its panoramic clip, however late an egocentric one ends
    assert manifest.duration_s(A) == pytest.approx(2.0, abs=0.01)
    assert [(file, where, why.split(":")[0]) for file, where, _, why in noted(manifest)] == [
        ("offsets.csv", "line 3", "offset of an unknown clip"), ("scenes.csv", "line 5", "unknown recording"),
        ("scenes.csv", "line 4", "no scene"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("scenes.csv", f"recording,scene\n{A},Nature\n{A},Campus\n", r"scenes\.csv, line 3: .* twice; see .*line 2"),
        ("splits.csv", f"recording,split\n{A},train\n{B},train\n{C},dev\n", r"splits\.csv, line 4: .*split 'dev'"),
        ("splits.csv", f"recording,split\n{A},train\n{B},train\n{C},\n", r"splits\.csv, line 4: .*split ''"),
        ("splits.csv", f"recording,split\n{A},train\n", rf"splits\.csv: no row for recording '{B}' \(2 in all\)"),
        ("splits.csv", f"id,split\n{A},train\n", r"splits\.csv: missing column recording; found id, split"),
        (
            "offsets.csv",
            f"recording,view,clip,offset_s\n{A},monocular,clip1,1\n{A},monocular,clip1,2\n",
            r"offsets\.csv, line 3: clip .*/monocular/clip1 stands there twice",
        ),
    ],
)
def test_tables_that_contradict_themselves_name_the_line(challenge, name, text, message):
    put(challenge / name, text)
    with pytest.raises(InputError, match=message):
        import_binego360(challenge)


def test_splits_without_a_table_follow_the_ids_alone(challenge, clip):
    ids = [f"{n:08d}-0000-0000-0000-000000000000" for n in range(60)]
    for recording in ids:
        put(challenge / "third_person" / f"{recording}.mp4", clip)
        put(challenge / "TAL_annotations" / f"{recording}.json", {})
    splits = dict(import_binego360(challenge).recordings.select("recording", "split").rows())
    test = [recording for recording in ids if splits[recording] == "test"]
    assert 5 <= len(test) <= 20 and splits[C] == "test"
    # half of the others taken away, the rest stays where it was
    for recording in ids[:30]:
        (challenge / "third_person" / f"{recording}.mp4").unlink()
        (challenge / "TAL_annotations" / f"{recording}.json").unlink()
    fewer = dict(import_binego360(challenge).recordings.select("recording", "split").rows())
    assert all(fewer[recording] == splits[recording] for recording in ids[30:])
    every = import_binego360(challenge, test_fraction=1).recordings["split"]
    assert set(every) == {"test"}


def test_stray_files_are_counted_and_hidden_ones_are_nothing(challenge, clip):
    put(challenge / "panoramic" / f"._{A}.mp4", b"Mac OS X")
    put(challenge / "panoramic" / ".DS_Store", b"")
    put(challenge / "panoramic" / "notes.txt", b"")
    put(challenge / "monocular" / "loose.mp4", clip)
    put(challenge / "TAL_annotations" / "unknown.json", {})
    put(challenge / "demo.json", "{}")
    put(challenge / A / f"{A}.json", {"1_a": short("pushing", 0.25, 1.0)})
    manifest = import_binego360(challenge, test_fraction=0)
    assert manifest.recordings.height == 3
    assert {(file, why.split(":")[0]) for file, _, _, why in noted(manifest)} == {
        ("notes.txt", "not a media file"), ("loose.mp4", "not in a recording's folder"),
        ("unknown.json", "unknown recording"), (f"{A}.json", "second file of this kind"),
    }  # fmt: skip


def test_a_broken_clip_stays_and_is_listed(challenge):
    put(challenge / "panoramic" / f"{A}.mp4", b"no video" * 99)
    manifest = import_binego360(challenge, test_fraction=0)
    row = manifest.clips.filter((manifest.clips["recording"] == A) & (manifest.clips["view"] == "panoramic"))
    assert row["duration_s"].to_list() == [None] and row["has_audio"].to_list() == [None]
    assert manifest.duration_s(A) == pytest.approx(2.0, abs=0.01)
    assert [(file, rec, why.split(":")[0]) for file, _, rec, why in noted(manifest)] == [(f"{A}.mp4", A, "unreadable")]


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match="no clips found; expected panoramic"):
        import_binego360(tmp_path)
    with pytest.raises(MissingInputError, match="no such folder"):
        import_binego360(tmp_path / "gone")
    with pytest.raises(InputError, match="test fraction: expected 0 to 1"):
        import_binego360(tmp_path, test_fraction=2)


def test_the_real_clips(shared_data):
    manifest = import_binego360(shared_data / "x360")
    assert manifest.recordings.height == 20 and manifest.clips.height == 60 and manifest.instances.height == 0
    assert manifest.recordings["scene"].null_count() == 1
    assert manifest.clips["view"].value_counts().sort("view").rows() == [
        ("binocular", 20), ("panoramic", 20), ("third_person", 20),
    ]  # fmt: skip
    assert manifest.clips["has_audio"].all() and manifest.clips["duration_s"].sum() == pytest.approx(608, abs=3)
    assert manifest.clips.filter(manifest.clips["view"] == "binocular")["offset_s"].null_count() == 20
    assert set(manifest.recordings["split"]) == {"test"} and manifest.folds.height == 0
