import re

import numpy as np
import pytest

from talstack.demo.world import ACTIONS, FPS, MONOCULAR, PLACES, SCENES, THIRD_PERSON, plan_recording, plan_recordings
from talstack.io.errors import InputError
from talstack.io.labels import BINEGO360_ACTIONS, BINEGO360_SCENES


@pytest.fixture(scope="module")
def recordings():
    return plan_recordings()


def active(recording, step_s=0.01):
    """Return how many actions are under way at each step."""
    times_s = np.arange(0, recording.duration_s, step_s)
    return sum(((times_s >= i.start_s) & (times_s < i.end_s)).astype(int) for i in recording.instances)


def test_labels_are_published_ones():
    assert set(ACTIONS) <= set(BINEGO360_ACTIONS)
    assert set(SCENES) <= set(BINEGO360_SCENES)


def test_ids_are_unique_and_have_the_published_form(recordings):
    assert len({r.id for r in recordings}) == 32
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", r.id) for r in recordings)


def test_a_quarter_is_test_and_every_scene_is_in_both_splits(recordings):
    assert [r.split for r in recordings].count("test") == 8
    for split in ("train", "test"):
        assert {r.scene for r in recordings if r.split == split} == set(SCENES)


def test_every_action_is_in_both_splits(recordings):
    for split in ("train", "test"):
        assert {i.label for r in recordings if r.split == split for i in r.instances} == set(ACTIONS)


def test_one_view_is_missing_in_each_split(recordings):
    lacking = [(r.split, set(recordings[0].views) - set(r.views)) for r in recordings if len(r.views) < 3]
    assert lacking == [("train", {MONOCULAR}), ("test", {THIRD_PERSON})]
    assert [bool(r.ego_clips) for r in recordings] == [MONOCULAR in r.views for r in recordings]


def test_actions_last_two_to_six_seconds_inside_the_recording(recordings):
    for recording in recordings:
        for i in recording.instances:
            assert 0.0 < i.start_s < i.end_s < recording.duration_s
            assert 1.99 < i.end_s - i.start_s < 6.01
    starts = [i.start_s for r in recordings for i in r.instances]
    assert np.mean(np.mod(np.multiply(starts, FPS), 1) < 1e-6) < 0.2  # continuous times, not frames


def test_background_overlap_and_count_are_as_stated(recordings):
    background = np.mean([(active(r) == 0).mean() for r in recordings])
    overlap = np.mean([(active(r) > 1).sum() / (active(r) > 0).sum() for r in recordings])
    count = np.mean([len(r.instances) for r in recordings])
    assert 0.40 < background < 0.50
    assert 0.20 < overlap < 0.30
    assert 8 < count < 12


def test_actions_at_one_place_never_overlap(recordings):
    for recording in recordings:
        for place in set(PLACES.values()):
            spans = sorted((i.start_s, i.end_s) for i in recording.instances if PLACES[i.label] == place)
            assert all(earlier[1] < later[0] for earlier, later in zip(spans, spans[1:], strict=False))


def test_frequencies_depend_on_the_scene_without_deciding_it():
    counts = {scene: dict.fromkeys(ACTIONS, 0) for scene in SCENES}
    for recording in plan_recordings(300):
        for i in recording.instances:
            counts[recording.scene][i.label] += 1
    kitchen, park = counts["Kitchen"], counts["Parks & Recreational Areas"]
    assert 0.55 < kitchen["pouring"] / (kitchen["pouring"] + kitchen["smoking"]) < 0.75
    assert 0.25 < park["pouring"] / (park["pouring"] + park["smoking"]) < 0.45
    assert min(min(of_scene.values()) for of_scene in counts.values()) > 0


def test_egocentric_clips_start_late_and_lie_apart(recordings):
    clips = [r.ego_clips for r in recordings if r.ego_clips]
    assert {len(c) for c in clips} == {1, 2}
    for recording_clips in clips:
        assert 1.0 <= recording_clips[0].offset_s <= 6.0
        assert recording_clips[-1].offset_s + recording_clips[-1].duration_s <= 36.0
        assert all(c.duration_s * FPS % 1 == 0 and c.duration_s > 2 for c in recording_clips)
    for first, second in (c for c in clips if len(c) == 2):
        assert second.offset_s - first.offset_s - first.duration_s >= 0.49


def test_a_recording_depends_on_seed_and_index_alone():
    assert plan_recordings(12)[4] == plan_recordings(32)[4] == plan_recording(4, duration_s=36.0, seed=0)
    assert plan_recordings(12, seed=1)[4].id != plan_recordings(12)[4].id
    assert plan_recordings(12, seed=1)[4].instances != plan_recordings(12)[4].instances


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_recordings": 5}, "5 recordings asked for; at least 6"),
        ({"duration_s": 7.0}, r"duration 7.0 s; at least 8.0 s"),
        ({"duration_s": 9.01}, "multiple of 1/16 s"),
        ({"duration_s": float("nan")}, "duration nan s"),
        ({"seed": -1}, "seed -1; a number >= 0"),
    ],
)
def test_parameters_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        plan_recordings(**arguments)
