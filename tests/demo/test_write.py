import json
from dataclasses import replace

import av
import numpy as np
import polars as pl
import pytest

from talstack.demo import write as write_module
from talstack.demo.render import render_view
from talstack.demo.world import FPS, MONOCULAR, PANORAMIC, Instance, plan_recordings
from talstack.demo.write import DemoSummary, clip_paths, via_annotation, write_demo, write_recording
from talstack.io.errors import InputError

SMALL = {"num_recordings": 6, "duration_s": 8.0}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small data set on disk, with the plans it was made from."""
    out = tmp_path_factory.mktemp("demo") / "set"
    calls = []
    summary = write_demo(out, **SMALL, progress=lambda done, total: calls.append((done, total)))
    return out, plan_recordings(6, duration_s=8.0), summary, calls


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def snapshot(folder):
    return {name: ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) for name in files(folder)}


def test_layout_is_the_challenge_s(demo):
    out, recordings, summary, calls = demo
    expected = {"offsets.csv", "splits.csv", "README.md", "demo.json"}
    for r in recordings:
        expected |= {f"TAL_annotations/{r.id}.json", f"label/{r.id}/label.json"}
        expected |= {f"{view}/{r.id}.mp4" for view in r.views if view != MONOCULAR}
        expected |= {f"monocular/{r.id}/{c.name}.mp4" for c in r.ego_clips}
    assert files(out) == expected
    assert len([r for r in recordings if len(r.views) == 2]) == 2
    num_instances = sum(len(r.instances) for r in recordings)
    assert summary == DemoSummary(6, sum(name.endswith(".mp4") for name in expected), num_instances, written=True)
    assert calls == [(done, 6) for done in range(7)]


def test_clips_have_their_length_size_and_sound(demo):
    out, recordings, *_ = demo
    for recording in recordings[:2]:
        ego = {c.name: c for c in recording.ego_clips}
        for view, clip, relative in clip_paths(recording):
            with av.open(str(out / relative)) as container:
                stream = container.streams.video[0]
                assert container.streams.audio
                length_s = ego[clip].duration_s if view == MONOCULAR else 8.0
                assert stream.frames == length_s * FPS
                ratio = {"panoramic": 2.0, "third_person": 4 / 3, "monocular": 1.0}[view]
                assert stream.width / stream.height == pytest.approx(ratio)


def test_both_spellings_say_what_was_planned(demo):
    out, recordings, *_ = demo
    spellings = set()
    for recording in recordings:
        entries = json.loads((out / "TAL_annotations" / f"{recording.id}.json").read_text())["metadata"].values()
        read = []
        for entry in entries:
            spellings.add(tuple(entry))
            times, labels = (entry["duration"], entry["action"]) if "action" in entry else (entry["z"], entry["av"])
            read.append(Instance(labels["1"], *times))
        assert tuple(read) == recording.instances
        assert (out / "label" / recording.id / "label.json").read_text() == recording.scene
    assert spellings == {("duration", "action"), ("vid", "flg", "z", "xy", "av")}


def test_tables_say_where_clips_lie_and_how_recordings_are_split(demo):
    out, recordings, *_ = demo
    offsets = pl.read_csv(out / "offsets.csv")
    assert offsets.rows() == [(r.id, "monocular", c.name, c.offset_s) for r in recordings for c in r.ego_clips]
    assert offsets.columns == ["recording", "view", "clip", "offset_s"]
    splits = pl.read_csv(out / "splits.csv")
    assert splits.rows() == [(r.id, r.split) for r in recordings]
    assert splits.columns == ["recording", "split"]


def test_egocentric_frames_lie_at_their_offset(tmp_path):
    plan = plan_recordings(6, duration_s=8.0)[3]
    recording = replace(plan, instances=(Instance("pushing", 0.5, 7.5),))
    write_recording(tmp_path, recording)
    assert len(recording.ego_clips) == 2
    for clip in recording.ego_clips:
        with av.open(str(tmp_path / MONOCULAR / recording.id / f"{clip.name}.mp4")) as container:
            frames = [(f.time, f.to_ndarray(format="rgb24").astype(int)) for f in container.decode(video=0)]
        times_s = np.array([time for time, _ in frames])
        loss = {}
        for lag in (-1, 0, 1):
            rendered = list(render_view(recording, MONOCULAR, clip.offset_s + times_s + lag / FPS))
            loss[lag] = np.mean([np.abs(r - pixels).mean() for r, (_, pixels) in zip(rendered, frames, strict=True)])
        assert loss[0] < 0.5 * min(loss[-1], loss[1]), loss


def flash_edges_s(path, offset_s):
    with av.open(str(path)) as container:
        frames = [(f.time + offset_s, f.to_ndarray(format="gray").mean()) for f in container.decode(video=0)]
    light = np.array([value for _, value in frames])
    return np.array([frames[i][0] for i in np.flatnonzero(np.diff(light) > 40) + 1])


def test_views_show_one_moment_at_one_time(tmp_path):
    recording = replace(plan_recordings(6, duration_s=8.0)[3], instances=(Instance("flashing", 1.9, 7.5),))
    write_recording(tmp_path, recording)
    still = flash_edges_s(tmp_path / PANORAMIC / f"{recording.id}.mp4", 0.0)
    num_compared = 0
    for clip in recording.ego_clips:
        moving = flash_edges_s(tmp_path / MONOCULAR / recording.id / f"{clip.name}.mp4", clip.offset_s)
        for edge_s in moving:
            assert np.abs(still - edge_s).min() <= 1 / FPS
            num_compared += 1
    assert num_compared >= 3


def test_the_same_recording_gives_the_same_bytes(demo, tmp_path):
    out, recordings, *_ = demo
    write_recording(tmp_path, recordings[3])
    for name in files(tmp_path):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_processes_give_the_same_bytes_as_none(demo, tmp_path):
    out, *_ = demo
    write_demo(tmp_path, **SMALL, jobs=2)
    assert {n: b for n, (b, _) in snapshot(tmp_path).items()} == {n: b for n, (b, _) in snapshot(out).items()}


def test_a_finished_set_is_left_alone(demo):
    out, *_ = demo
    before = snapshot(out)
    summary = write_demo(out, **SMALL, progress=lambda *_: pytest.fail("rendered again"))
    assert not summary.written
    assert snapshot(out) == before


def test_an_interrupted_run_is_completed_without_rendering_again(tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(write_module, "write_video", lambda path, frames, **_: fake_video(path, rendered))
    stop = RuntimeError("stopped")

    def interrupt(done, total):
        if done == 2:
            raise stop

    with pytest.raises(RuntimeError, match="stopped"):
        write_demo(tmp_path, **SMALL, progress=interrupt)
    assert not (tmp_path / "demo.json").exists()
    (tmp_path / PANORAMIC / ".tmp-left.mp4").write_bytes(b"half")
    write_demo(tmp_path, **SMALL)
    assert len(rendered) == len(set(rendered))
    assert (tmp_path / "demo.json").exists()
    assert not any(".tmp-" in name or "unfinished" in name for name in files(tmp_path))


def fake_video(path, rendered):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    rendered.append(path)


def test_other_parameters_are_refused_unless_forced(tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "write_video", lambda path, frames, **_: fake_video(path, []))
    write_demo(tmp_path, **SMALL)
    first = files(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"made with .*'seed': 0.* asked for .*'seed': 1.*--force"):
        write_demo(tmp_path, **SMALL, seed=1)
    assert files(tmp_path) == first | {"notes.txt"}
    write_demo(tmp_path, **SMALL, seed=1, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not any(r.id in name for r in plan_recordings(6, duration_s=8.0) for name in files(tmp_path))
    assert json.loads((tmp_path / "demo.json").read_text())["seed"] == 1


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path, force):
    (tmp_path / "panoramic").mkdir()
    (tmp_path / "panoramic" / "film.mp4").write_bytes(b"real")
    with pytest.raises(InputError, match="not an empty folder and holds no sample data set"):
        write_demo(tmp_path, **SMALL, force=force)
    assert files(tmp_path) == {"panoramic/film.mp4"}


def test_annotation_keys_are_unique():
    recording = plan_recordings()[0]
    assert len(via_annotation(recording)["metadata"]) == len(recording.instances)
