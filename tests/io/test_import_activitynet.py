"""Import of ActivityNet JSON."""

import json
from pathlib import Path

import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.import_activitynet import import_activitynet


@pytest.fixture(scope="module")
def media(tmp_path_factory, write_clip) -> Path:
    """Return a folder with the clips of recordings a and b (the latter as v_b), and a second one of a."""
    root = tmp_path_factory.mktemp("media")
    write_clip(root / "a.mp4")
    write_clip(root / "v_b.mkv", sound_rate=16000, num_frames=30)
    return root


def entry(subset="training", *annotations, duration=2.0) -> dict:
    return {
        "subset": subset, "duration": duration,
        "annotations": [{"label": label, "segment": [start, end]} for label, start, end in annotations],
    }  # fmt: skip


def annotate(folder: Path, **database) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps({"version": "x", "database": database}), encoding="utf-8")
    return path


def test_subsets_and_clips_by_name(tmp_path, media):
    path = annotate(
        tmp_path, a=entry("training", ("wave", 0.5, 1.0), ("clap", 1.0, 1.5)),
        b=entry("validation", ("wave", 0.1, 0.9), duration=1.0), c=entry("testing"),
    )  # fmt: skip
    manifest = import_activitynet(path, media=media)
    assert manifest.recordings.rows() == [("a", 2.0, None, "train"), ("b", 1.0, None, "val")]
    assert manifest.clips.select("recording", "view", "path", "offset_s").rows() == [
        ("a", "main", "a.mp4", 0.0), ("b", "main", "v_b.mkv", 0.0),
    ]  # fmt: skip
    assert manifest.instances.rows() == [("a", 0.5, 1.0, "wave"), ("a", 1.0, 1.5, "clap"), ("b", 0.1, 0.9, "wave")]
    assert manifest.actions == ("clap", "wave")
    assert manifest.folds.height == 2
    # c has no file
    assert manifest.skipped.select("where", "recording", "reason").rows() == [
        ("database.c", "c", "no media: the recording is left out")
    ]


def test_tables_add_views_scenes_and_recordings(tmp_path, media):
    path = annotate(tmp_path, a=entry("training", ("wave", 0.5, 1.0)), b=entry("testing", duration=None))
    (tmp_path / "clips.csv").write_text(
        "recording,view,clip,path,offset_s,fps\na,front,f,a.mp4,0,30\na,ego,e,v_b.mkv,1.5,30\nb,ego,e,v_b.mkv,,30\n"
        "new,front,f,a.mp4,0,30\n"
    )
    (tmp_path / "recordings.csv").write_text(
        "recording,subject,scene,split\na,s1,gym,val\nb,s2,,test\nnew,s3,hall,test\n"
    )
    manifest = import_activitynet(
        path, media=media, clips=tmp_path / "clips.csv", recordings=tmp_path / "recordings.csv"
    )
    assert "group" not in manifest.recordings.columns
    grouped = import_activitynet(
        path, media=media, clips=tmp_path / "clips.csv", recordings=tmp_path / "recordings.csv", group_column="subject"
    )
    assert grouped.recordings["group"].to_list() == ["s1", "s2", "s3"]
    with pytest.raises(InputError, match="group column 'subject': there is no table of recordings"):
        import_activitynet(path, media=media, group_column="subject")
    rows = manifest.recordings.rows()
    assert [(r[0], r[2], r[3]) for r in rows] == [("a", "gym", "val"), ("b", None, "test"), ("new", "hall", "test")]
    # b's JSON gives no length, so its clip does
    assert [r[1] for r in rows] == pytest.approx([2.0, 1.0, 2.0], abs=0.01)
    assert manifest.clips.select("recording", "view", "offset_s").rows() == [
        ("a", "ego", 1.5), ("a", "front", 0.0), ("b", "ego", None), ("new", "front", 0.0),
    ]  # fmt: skip
    # the table's split goes before the subset, and that is said
    assert manifest.skipped.select("where", "recording", "reason").rows() == [
        ("line 2", "a", "split of the table used: val instead of train")
    ]


def test_the_order_of_classes(tmp_path, media):
    path = annotate(tmp_path, a=entry("training", ("wave", 0.5, 1.0)))
    (tmp_path / "other.txt").write_text("jump\nwave\n")
    assert import_activitynet(path, media=media, classes=tmp_path / "other.txt").actions == ("jump", "wave")
    (tmp_path / "classes.txt").write_text("wave\njump\n")
    assert import_activitynet(path, media=media).actions == ("wave", "jump")
    (tmp_path / "classes.txt").write_text("jump\n")
    with pytest.raises(
        InputError, match=r"annotations\.json, database\.a\.annotations\[0\]: recording 'a' has label 'wave'"
    ):
        import_activitynet(path, media=media)


def test_instances_beyond_the_end_are_counted(tmp_path, media):
    path = annotate(tmp_path, a=entry("training", ("wave", 1.0, 5.0), ("wave", 3.0, 4.0)))
    manifest = import_activitynet(path, media=media)
    assert manifest.instances.rows() == [("a", 1.0, 2.0, "wave")]
    noted = manifest.skipped.select("where", "reason").rows()
    assert noted[0] == ("database.a.annotations[0]", "clipped to the recording: [1.0, 5.0] wave")
    assert noted[1][0] == "database.a.annotations[1]" and noted[1][1].startswith("outside the recording: ")


@pytest.mark.parametrize(
    ("entry_a", "message"),
    [
        (entry("trainig"), r"database\.a: subset 'trainig'; expected training, validation, testing"),
        (entry(duration="long"), r"database\.a: duration: expected a number of seconds, got 'long'"),
        (entry(duration=-3), r"recording 'a' has length -3"),
        ("nothing", r"database\.a: expected an object"),
        (entry("training", ("wave", "0", 1)), r"annotations\[0\]: segment: expected a number of seconds, got '0'"),
        ({"subset": "training", "annotations": [{"label": "wave"}]}, r"annotations\[0\]: expected segment"),
        ({"subset": "training", "annotations": [{"segment": [0, 1]}]}, r"annotations\[0\]: expected segment"),
    ],
)
def test_entries_that_cannot_be_used_are_named(tmp_path, media, entry_a, message):
    with pytest.raises(InputError, match=message):
        import_activitynet(annotate(tmp_path, a=entry_a), media=media)


def test_a_recording_that_stands_twice_is_refused(tmp_path, media):
    path = tmp_path / "annotations.json"
    one = json.dumps(entry())
    path.write_text(f'{{"database": {{"a": {one}, "b": {one}, "a": {one}}}}}')
    with pytest.raises(InputError, match=r"annotations\.json: 'a' stands there twice"):
        import_activitynet(path, media=media)


def test_files_that_are_not_there_or_not_json(tmp_path, media):
    with pytest.raises(MissingInputError, match=r"gone\.json: no such file"):
        import_activitynet(tmp_path / "gone.json", media=media)
    path = annotate(tmp_path, a=entry())
    with pytest.raises(MissingInputError, match="no such media folder"):
        import_activitynet(path, media=tmp_path / "gone")
    with pytest.raises(MissingInputError, match=r"gone\.csv: no such file"):
        import_activitynet(path, media=media, clips=tmp_path / "gone.csv")
    path.write_text('{"database":\n {"a": }}')
    with pytest.raises(InputError, match="not valid JSON, line 2 column 8"):
        import_activitynet(path, media=media)
    path.write_text('{"results": {}}')
    with pytest.raises(InputError, match="expected ActivityNet annotations"):
        import_activitynet(path, media=media)


def test_paths_stay_inside_the_media_folder(tmp_path, media):
    (tmp_path / "outside.mp4").write_bytes(b"")
    absolute = annotate(tmp_path, **{str(tmp_path / "outside"): entry()})
    with pytest.raises(InputError, match="leads out of the data root"):
        import_activitynet(absolute, media=media)


def test_the_real_stitched_set(shared_data):
    root = shared_data / "mhad"
    manifest = import_activitynet(
        root / "annotations.json", media=root, clips=root / "clips.csv", recordings=root / "recordings.csv",
        features=root / "features.csv",
    )  # fmt: skip
    assert manifest.recordings["split"].value_counts().sort("split").rows() == [("test", 8), ("train", 24), ("val", 8)]
    assert (manifest.clips.height, manifest.instances.height, manifest.features.height) == (74, 420, 80)
    assert len(manifest.actions) == 21 and manifest.actions[0] == "swipe_right" and len(manifest.scenes) == 4
    assert manifest.clips["duration_s"].null_count() == 0 and manifest.skipped.height == 0
    assert manifest.clips["offset_s"].filter(manifest.clips["offset_s"] > 0).len() == 6
    assert manifest.folds.height == 32 and manifest.folds["fold"].n_unique() == 5
