from dataclasses import replace

import av
import numpy as np
import pytest

from talstack.demo.actors import BAND, COLUMN, Stage, draw_looks, paint_action
from talstack.demo.encode import write_video
from talstack.demo.render import CAMERAS, render_view
from talstack.demo.scenery import furnish, paint
from talstack.demo.world import FPS, MONOCULAR, SCENES, Instance, plan_recording

VIEWS = tuple(CAMERAS)


def recording_with(*instances, index=0, seed=0):
    return replace(plan_recording(index, duration_s=8.0, seed=seed), instances=instances)


def render(recording, view, times_s):
    return np.array(list(render_view(recording, view, np.asarray(times_s))))


def decoded_grey_64(path, recording, view):
    """Return frames as a network would see them: through the encoder, 64x64, 8 frames per second."""
    times_s = 1.0 + np.arange(2 * FPS) / FPS
    write_video(path, render_view(recording, view, times_s), fps=FPS)
    with av.open(str(path)) as container:
        frames = [f.reformat(64, 64, "gray").to_ndarray() for f in container.decode(video=0)]
    return np.array(frames[::2], dtype=np.float64)


def part_of(frames, view, box):
    """Return the piece of 64x64 frames that shows a box of the stage."""
    camera = CAMERAS[view]
    left, top = (camera.width - camera.stage_width) / 2, (camera.height - camera.stage_height) / 2
    cols = [round((left + u * camera.stage_width) / camera.width * 64) for u in box[:2]]
    rows = [round((top + v * camera.stage_height) / camera.height * 64) for v in box[2:]]
    return frames[:, max(0, rows[0]) : rows[1], max(0, cols[0]) : cols[1]]


def displacement(frames, axis, limit=6):
    """Return the median displacement between consecutive frames in pixels, by phase correlation along one axis."""
    taper = np.hanning(frames.shape[axis + 1])  # against the still borders of the window
    moving = (frames - frames.mean(axis=0)) * (taper[:, None] if axis == 0 else taper)
    shifts = []
    for before, after in zip(moving, moving[1:], strict=False):
        cross = np.conj(np.fft.fft(before, axis=axis)) * np.fft.fft(after, axis=axis)
        # whitened by the root only: full whitening lifts the noise between the harmonics of a periodic pattern
        surface = np.fft.ifft(cross / np.sqrt(np.abs(cross) + 1.0), axis=axis).real.sum(axis=1 - axis)
        shifts.append(np.argmax([surface[shift] for shift in range(-limit, limit + 1)]) - limit)
    return np.median(shifts)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("forth", "back", "axis"), [("pouring", "smoking", 0), ("pushing", "moving things", 1)])
def test_direction_tells_a_pair_apart_in_every_view(tmp_path, view, forth, back, axis):
    frames = {
        label: decoded_grey_64(tmp_path / f"{axis}.mp4", recording_with(Instance(label, 0.5, 7.5)), view)
        for label in (forth, back)
    }
    box = (COLUMN, BAND)[axis]
    assert displacement(part_of(frames[forth], view, box), axis) >= 2
    assert displacement(part_of(frames[back], view, box), axis) <= -2
    # what a frame by itself has to tell is the same for both
    assert abs(frames[forth].mean() - frames[back].mean()) < 1.0
    assert abs(frames[forth].std(axis=(1, 2)).mean() - frames[back].std(axis=(1, 2)).mean()) < 1.0


@pytest.mark.parametrize(("forth", "back"), [("pouring", "smoking"), ("pushing", "moving things")])
def test_every_frame_of_one_direction_is_a_frame_of_the_other(forth, back):
    look = draw_looks(np.random.default_rng(3), 1)[0]
    stage = Stage(4.3, 3.2, 88.0, 88.0)
    steps = 12
    frames = {label: np.zeros((steps, 96, 96, 3), dtype=np.float32) for label in (forth, back)}
    for label in frames:
        for step in range(steps):
            paint_action(frames[label][step], label, look, stage, step / steps / look.speed)
    np.testing.assert_allclose(frames[forth][1:], frames[back][:0:-1], atol=0.5)
    assert np.abs(frames[forth][1] - frames[forth][2]).mean() > 1.0


def test_looks_do_not_depend_on_labels():
    first = recording_with(Instance("pouring", 1.0, 3.0), Instance("pushing", 4.0, 6.0))
    second = recording_with(Instance("smoking", 1.0, 3.0), Instance("moving things", 4.0, 6.0))
    for view in VIEWS:
        np.testing.assert_array_equal(render(first, view, [1.0, 4.0]), render(second, view, [1.0, 4.0]))


@pytest.mark.parametrize("view", VIEWS)
def test_only_the_egocentric_camera_sees_the_phone(view):
    times_s = np.arange(1.0, 7.0, 0.25)
    nothing = render(recording_with(), view, times_s).astype(int)
    phone = render(recording_with(Instance("operating phone", 2.0, 6.0)), view, times_s).astype(int)
    changed = (np.abs(phone - nothing) > 60).any(axis=3).mean(axis=(1, 2))
    expected = (view == MONOCULAR) & (times_s >= 2.0) & (times_s < 6.0)
    np.testing.assert_array_equal(changed > 0.05, expected)
    np.testing.assert_array_equal(changed[~expected], 0.0)


@pytest.mark.parametrize("view", VIEWS)
def test_speaking_changes_no_pixel(view):
    times_s = np.arange(1.0, 7.0, 0.5)
    nothing = render(recording_with(), view, times_s)
    np.testing.assert_array_equal(nothing, render(recording_with(Instance("speaking", 2.0, 6.0)), view, times_s))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("label", ["pouring", "smoking", "pushing", "moving things", "dancing"])
def test_an_action_shows_from_its_start_to_its_end(view, label):
    times_s = np.array([1.99, 2.0, 3.9, 4.0])
    nothing = render(recording_with(), view, times_s).astype(int)
    action = render(recording_with(Instance(label, 2.0, 4.0)), view, times_s).astype(int)
    share = (np.abs(action - nothing) > 25).any(axis=3).mean(axis=(1, 2))
    np.testing.assert_array_equal(share > 0.03, [False, True, True, False])


@pytest.mark.parametrize("view", VIEWS)
def test_flashing_lights_the_whole_picture_twice_a_second(view):
    times_s = 2.05 + np.arange(8) / 8
    light = render(recording_with(Instance("flashing", 2.0, 6.0)), view, times_s).mean(axis=(1, 2, 3))
    dark = render(recording_with(), view, times_s).mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(light - dark > 40, [True, True, False, False] * 2)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    for view in VIEWS:
        frames = render(plan_recording(0, duration_s=8.0, seed=0), view, [1.0, 2.0])
        np.testing.assert_array_equal(frames, render(plan_recording(0, duration_s=8.0, seed=0), view, [1.0, 2.0]))
        assert (frames != render(plan_recording(0, duration_s=8.0, seed=1), view, [1.0, 2.0])).any()
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (CAMERAS[view].height, CAMERAS[view].width, 3)


def test_the_egocentric_camera_sways_and_the_others_stand_still():
    times_s = np.arange(2.0, 6.0, 0.25)
    restless = {
        view: np.abs(np.diff(render(recording_with(), view, times_s).mean(axis=3), axis=0)).mean() for view in VIEWS
    }
    assert restless[MONOCULAR] > 1.5 * max(value for view, value in restless.items() if view != MONOCULAR)


def test_scenes_differ_more_than_the_variants_of_one():
    azimuth, elevation = np.linspace(0, 1, 64, endpoint=False), np.linspace(0, 0.99, 32)
    colours = {
        scene: np.array(
            [paint(furnish(scene, np.random.default_rng(i)), azimuth, elevation).mean(axis=1) for i in range(4)]
        )
        for scene in SCENES
    }
    within = max(np.abs(c - c.mean(axis=0)).mean() for c in colours.values())
    between = min(
        np.abs(colours[a].mean(axis=0) - colours[b].mean(axis=0)).mean() for a in SCENES for b in SCENES if a < b
    )
    assert between > 2 * within
    assert within > 1.0


def test_the_world_closes_after_a_full_turn():
    for scene in SCENES:
        shapes = furnish(scene, np.random.default_rng(0))
        elevation = np.linspace(0, 0.99, 32)
        seam = paint(shapes, np.array([1 - 1e-6, 0.0]), elevation)
        assert np.abs(seam[:, 0] - seam[:, 1]).mean() < 8.0
