"""`talstack import`."""

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.import_ import command
from talstack.io.errors import MissingInputError, TalstackError
from talstack.io.manifest import Manifest


@pytest.fixture
def media(tmp_path, write_clip) -> Path:
    """Return a folder with the clips of recordings a and b."""
    for name in "ab":
        write_clip(tmp_path / "media" / f"{name}.mp4")
    return tmp_path / "media"


@pytest.fixture
def annotations(tmp_path) -> Path:
    """Return ActivityNet annotations of a, b and c, which has no clip; one instance is too long."""
    entries = [{"label": "wave", "segment": [0.5, 1.0]}, {"label": "clap", "segment": [1.0, 7.0]}]
    database = {
        "a": {"subset": "training", "duration": 2.0, "annotations": entries},
        "b": {"subset": "training", "duration": 2.0, "annotations": []},
        "c": {"subset": "testing", "duration": 2.0, "annotations": []},
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"database": database}))
    return path


def run(*arguments: object):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_activitynet_is_written_and_summed_up(tmp_path, media, annotations):
    out = tmp_path / "data"
    result = run("activitynet", annotations, "--media", media, "--out", out, "--folds", 2)
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.splitlines()
    assert first == f"{out}: 2 recordings (2 train), 2 clips, 2 instances, 0.00 h"
    assert [line.split() for line in rest[:2]] == [
        ["1", "clipped", "to", "the", "recording"],
        ["1", "no", "media"],
    ]
    assert rest[2].endswith(f"2, listed in {out / 'skipped.parquet'}")
    manifest = Manifest.load(out)
    assert manifest.instances.height == 2 and manifest.folds["fold"].n_unique() == 2
    assert pl.read_parquet(out / "skipped.parquet").height == 2


def test_csv_and_its_options(tmp_path, media):
    (media / "recordings.csv").write_text("recording,scene,split\na,gym,train\nb,gym,test\n")
    (media / "clips.csv").write_text("recording,view,clip,path,offset_s\na,front,,a.mp4,0\nb,front,,b.mp4,0\n")
    (media / "instances.csv").write_text("recording,start_s,end_s,label\na,0,1,wave\n")
    result = run("csv", media, "--out", tmp_path / "data", "--quiet")
    assert result.exit_code == 0, result.output
    # nothing was skipped: one line, and nothing on stderr
    assert result.stdout == f"{tmp_path / 'data'}: 2 recordings (1 test, 1 train), 2 clips, 1 instances, 0.00 h\n"
    assert result.stderr == ""


def test_groups_are_counted_and_one_in_two_splits_is_warned_of(tmp_path, media):
    (media / "recordings.csv").write_text("recording,scene,split,person\na,gym,train,p\nb,gym,test,p\n")
    (media / "clips.csv").write_text("recording,view,clip,path,offset_s\na,front,,a.mp4,0\nb,front,,b.mp4,0\n")
    (media / "instances.csv").write_text("recording,start_s,end_s,label\na,0,1,wave\n")
    result = run("csv", media, "--out", tmp_path / "data", "--quiet", "--group-column", "person")
    assert result.exit_code == 0, result.output
    assert "2 recordings (1 test, 1 train), 1 groups, 2 clips" in result.stdout
    assert result.stderr == "warning: group 'p' lies in the splits test and train: scores will flatter\n"


def test_binego360_and_its_test_fraction(tmp_path, media):
    root = tmp_path / "binego"
    (root / "panoramic").mkdir(parents=True)
    (root / "TAL_annotations").mkdir()
    for name in "ab":
        (media / f"{name}.mp4").rename(root / "panoramic" / f"{name}.mp4")
        (root / "TAL_annotations" / f"{name}.json").write_text('{"metadata": {}}')
    for fraction, split in ((0, "train"), (1, "test")):
        result = run("binego360", root, "--out", tmp_path / "data", "--test-fraction", fraction)
        assert result.exit_code == 0, result.output
        assert f"2 recordings (2 {split})" in result.stdout


def test_wrong_input_reaches_the_group_as_an_error(tmp_path, media, annotations):
    result = run(
        "activitynet", annotations, "--media", media, "--classes", tmp_path / "gone.txt", "--out", tmp_path / "d"
    )
    assert isinstance(result.exception, MissingInputError) and isinstance(result.exception, TalstackError)
    assert not (tmp_path / "d").exists()


def test_help_says_what_the_folders_must_look_like():
    assert "binego360" in run("--help").stdout
    assert "TAL_annotations/<id>.json" in run("binego360", "--help").stdout
    assert '"subset": "training"' in run("activitynet", "--help").stdout
    assert "recording, view, clip, path, offset_s" in run("csv", "--help").stdout
    # usage errors are click's, with its exit code
    assert run("csv", "somewhere").exit_code == 2
    assert run("csv", "somewhere", "--out", "data", "--folds", 1).exit_code == 2
