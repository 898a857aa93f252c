"""Import of plain CSV tables, and what every importer shares."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.import_csv import import_csv
from talstack.io.manifest import Manifest


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write_clip) -> Path:
    """Return a clip of 2 s."""
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4")


@pytest.fixture
def folder(tmp_path, clip) -> Path:
    """Return a data set of three recordings: two views, a late clip, a clip at an unknown time, one feature file."""
    root = tmp_path / "set"
    (root / "clips").mkdir(parents=True)
    for name in ("r1_front", "r1_ego", "r2_front", "r3_ego"):
        (root / "clips" / f"{name}.mp4").symlink_to(root / "clips" / "real.mp4")
    (root / "clips" / "real.mp4").write_bytes(clip.read_bytes())
    np.savez(root / "r1.npz", values=np.zeros((10, 2)), times_s=np.arange(10) / 5)
    write(root, "recordings.csv", "recording,scene,split", "r1,gym,train", "r2,hall,train", "r3,,test")
    write(
        root, "clips.csv", "recording,view,clip,path,offset_s,fps", "r1,front,,clips/r1_front.mp4,0,30",
        "r1,ego,late,clips/r1_ego.mp4,0.5,30", "r2,front,,clips/r2_front.mp4,0,30", "r3,ego,,clips/r3_ego.mp4,,30",
    )  # fmt: skip
    write(root, "instances.csv", "recording,start_s,end_s,label", "r1,0.5,1.0,wave", "r2,0.25,2.0,clap")
    write(root, "features.csv", "recording,modality,path", "r1,imu,r1.npz")
    return root


def write(root: Path, name: str, *lines: str) -> None:
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def add(root: Path, name: str, *lines: str) -> None:
    with (root / name).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def reasons(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    return [(Path(file).name, where, rec, why) for file, where, rec, why in manifest.skipped.rows()]


def test_a_whole_set(folder):
    manifest = import_csv(folder)
    assert manifest.name == "set" and manifest.media_root == folder.resolve()
    assert manifest.recordings.select("recording", "scene", "split").rows() == [
        ("r1", "gym", "train"), ("r2", "hall", "train"), ("r3", None, "test"),
    ]  # fmt: skip
    assert manifest.recordings["duration_s"].to_list() == pytest.approx([2.0, 2.0, 2.0])
    clips = manifest.clips.select("recording", "view", "clip", "path", "offset_s", "fps", "width", "has_audio")
    assert clips.rows()[:2] == [
        ("r1", "ego", "late", "clips/r1_ego.mp4", 0.5, 30.0, 160, False),
        ("r1", "front", "r1_front", "clips/r1_front.mp4", 0.0, 30.0, 160, False),
    ]
    assert clips["offset_s"].to_list() == [0.5, 0.0, 0.0, None]
    assert manifest.instances.rows() == [("r1", 0.5, 1.0, "wave"), ("r2", 0.25, 2.0, "clap")]
    assert manifest.features.rows() == [("r1", "imu", "r1.npz")]
    assert manifest.actions == ("clap", "wave") and manifest.scenes == ("gym", "hall")
    assert manifest.skipped.height == 0


def test_it_survives_saving(folder, tmp_path):
    manifest = import_csv(folder)
    manifest.save(tmp_path / "data")
    loaded = Manifest.load(tmp_path / "data")
    assert loaded.clips.equals(manifest.clips) and loaded.skipped.equals(manifest.skipped)
    assert loaded.media_path("clips/r1_ego.mp4").is_file()


def test_folds_cover_train_and_val_and_never_exceed_them(folder):
    assert import_csv(folder).folds.rows() == [("r1", 0), ("r2", 1)] or import_csv(folder).folds.rows() == [
        ("r1", 1), ("r2", 0),
    ]  # fmt: skip
    write(folder, "recordings.csv", "recording,scene,split", "r1,,train", "r2,,test", "r3,,test")
    assert import_csv(folder).folds.height == 0


def test_listed_classes_keep_their_order(folder):
    write(folder, "classes.txt", "wave", "", "clap", "jump")
    write(folder, "scenes.txt", "hall", "gym")
    manifest = import_csv(folder)
    assert manifest.actions == ("wave", "clap", "jump") and manifest.scenes == ("hall", "gym")
    write(folder, "classes.txt", "wave", "jump")
    with pytest.raises(
        InputError, match=r"instances\.csv, line 3: recording 'r2' has label 'clap'.*not in the class list"
    ):
        import_csv(folder)
    write(folder, "classes.txt", "wave", "jump", "wave")
    with pytest.raises(InputError, match=r"classes\.txt, line 3: 'wave' stands there twice; see line 1"):
        import_csv(folder)


def test_clips_that_cannot_be_read_stay_and_are_listed(folder):
    (folder / "clips" / "r1_ego.mp4").unlink()
    (folder / "clips" / "broken.mp4").write_bytes(b"no video" * 100)
    add(folder, "clips.csv", "r2,ego,x,clips/broken.mp4,0,30")
    manifest = import_csv(folder)
    rows = (
        manifest.clips.filter(pl.col("duration_s").is_null()).select("recording", "clip", "width", "has_audio").rows()
    )
    assert rows == [("r1", "late", None, None), ("r2", "x", None, None)]
    noted = reasons(manifest)
    assert [row[:3] for row in noted] == [("clips.csv", "line 3", "r1"), ("clips.csv", "line 6", "r2")]
    assert noted[0][3].startswith("unreadable: ") and "No such file" in noted[0][3]
    assert "broken.mp4: cannot be opened" in noted[1][3]


def test_a_recording_without_a_readable_clip_is_left_out(folder):
    (folder / "clips" / "r2_front.mp4").unlink()
    add(folder, "recordings.csv", "r4,gym,train")
    manifest = import_csv(folder)
    assert manifest.recordings["recording"].to_list() == ["r1", "r3"]
    assert manifest.instances["recording"].to_list() == ["r1"]
    noted = {(file, rec, why.split(":")[0]) for file, _, rec, why in reasons(manifest)}
    assert noted == {
        ("clips.csv", "r2", "unreadable"), ("recordings.csv", "r2", "unknown length"),
        ("recordings.csv", "r4", "no media"), ("instances.csv", "r2", "instance of a recording that is left out"),
    }  # fmt: skip


def test_lengths_come_from_the_table_the_clips_or_the_features(folder):
    write(
        folder,
        "recordings.csv",
        "recording,scene,split,duration_s",
        "r1,,train,7.5",
        "r2,,train,",
        "r3,,train,",
        "r4,,test,",
    )
    write(
        folder, "clips.csv", "recording,view,path,offset_s", "r1,front,clips/r1_front.mp4,0",
        "r2,ego,clips/r2_front.mp4,3", "r3,front,clips/r1_front.mp4,0", "r3,ego,clips/r3_ego.mp4,9",
    )  # fmt: skip
    write(folder, "features.csv", "recording,modality,path", "r4,imu,r1.npz")
    # late clips alone: where the last one ends; beside a clip from the start that one counts; a series to its end
    durations = dict(import_csv(folder).recordings.select("recording", "duration_s").rows())
    assert durations == pytest.approx({"r1": 7.5, "r2": 5.0, "r3": 2.0, "r4": 2.0}, abs=0.01)


def test_instances_that_do_not_fit_are_counted(folder):
    add(
        folder, "instances.csv", "r1,1.5,9.0,wave", "r1,2.5,3.0,wave", "r1,1.0,1.0,wave", "r1,1.5,1.0,wave",
        "r1,nan,1.0,wave", "r9,0,1,wave", "r1,-1.0,0.5,clap", "r1,1.9,2.0005,clap",
    )  # fmt: skip
    manifest = import_csv(folder)
    kept = manifest.instances.filter(pl.col("recording") == "r1").select("start_s", "end_s", "label").rows()
    # the end that is past by half a millisecond is rounding
    assert kept == [(0.0, 0.5, "clap"), (0.5, 1.0, "wave"), (1.5, 2.0, "wave"), (1.9, 2.0, "clap")]
    noted = [(where, rec, why.split(":")[0]) for _, where, rec, why in reasons(manifest)]
    assert sorted(noted) == [
        ("line 10", "r1", "clipped to the recording"), ("line 4", "r1", "clipped to the recording"),
        ("line 5", "r1", "outside the recording"), ("line 6", "r1", "start not before end"),
        ("line 7", "r1", "start not before end"), ("line 8", "r1", "not an interval"),
        ("line 9", "r9", "unknown recording"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("recordings.csv", "r1,gym,train", r"recordings\.csv, line 5: recording 'r1' stands there twice; see .*line 2"),
        ("recordings.csv", "r4,gym,trian", r"recordings\.csv, line 5: recording 'r4' has split 'trian'"),
        ("clips.csv", "r1,front,r1_front,clips/real.mp4,0,30", r"clips\.csv, line 6: clip r1/front/r1_front .*twice"),
        (
            "clips.csv",
            "r1,top,,../../etc/passwd,0,30",
            r"clips\.csv, line 6: recording 'r1': .*leads out of the data root",
        ),
        (
            "clips.csv",
            "r1,top,,clips/real.mp4,soon,30",
            r"clips\.csv, line 6, column offset_s: expected Float64, got 'soon'",
        ),
        ("features.csv", "r1,imu,r1.npz", r"features\.csv, line 3: features r1/imu stand there twice"),
        ("instances.csv", "r1,0,1,", r"instances\.csv, line 4, column label: .*an empty value"),
    ],
)
def test_contradictions_name_file_and_line(folder, name, line, message):
    add(folder, name, line)
    with pytest.raises(InputError, match=message):
        import_csv(folder)


def test_a_missing_column_or_table_is_named(folder, tmp_path):
    write(folder, "instances.csv", "recording,start,end,label")
    with pytest.raises(
        InputError, match=r"instances\.csv: missing column start_s, end_s; found recording, start, end, label"
    ):
        import_csv(folder)
    (folder / "instances.csv").unlink()
    with pytest.raises(MissingInputError, match=r"instances\.csv: no such file"):
        import_csv(folder)
    with pytest.raises(MissingInputError, match=r"no such folder; expected one with recordings\.csv"):
        import_csv(tmp_path / "nowhere")


def test_missing_features_and_unknown_recordings_are_counted(folder):
    add(folder, "features.csv", "r2,imu,gone.npz", "r9,imu,r1.npz")
    add(folder, "clips.csv", "r9,front,,clips/real.mp4,0,30")
    noted = [(file, where, rec, why.split(":")[0]) for file, where, rec, why in reasons(import_csv(folder))]
    assert sorted(noted) == [
        ("clips.csv", "line 6", "r9", "unknown recording"), ("features.csv", "line 3", "r2", "missing feature file"),
        ("features.csv", "line 4", "r9", "unknown recording"),
    ]  # fmt: skip


def test_progress_counts_the_clips(folder):
    calls = []
    import_csv(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_set_in_which_nothing_can_be_read_is_refused(folder):
    for path in (folder / "clips").iterdir():
        path.unlink()
    (folder / "features.csv").unlink()
    with pytest.raises(InputError, match=r"set: no recording is left, .*unreadable"):
        import_csv(folder)


def test_groups_come_from_their_column_or_the_one_that_is_named(folder):
    write(
        folder, "recordings.csv", "recording,scene,split,group,house", "r1,gym,train,,h", "r2,,train,p,h", "r3,,test,p,"
    )
    manifest = import_csv(folder)
    assert manifest.recordings["group"].to_list() == [None, "p", "p"]
    assert manifest.folds.height == 2
    houses = import_csv(folder, group_column="house")
    assert houses.recordings["group"].to_list() == ["h", "h", None]
    assert houses.folds.is_empty(), "one house cannot be spread over two folds"
    with pytest.raises(InputError, match="missing column person"):
        import_csv(folder, group_column="person")
    with pytest.raises(InputError, match="cannot be grouped by their column 'split'"):
        import_csv(folder, group_column="split")
    assert import_csv(folder, group_column="scene").recordings["group"].to_list() == ["gym", None, None]
