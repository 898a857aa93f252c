"""The pixels: three cameras look at one stage in one world.

The panoramic camera sees the whole turn and the stage small, turned by an angle of its own in each recording; the
third-person camera sees the stage from the front; the egocentric camera is closer and sways with the hand that
holds it, and is the only one that sees the phone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from talstack.demo.actors import Look, Stage, draw_looks, paint_action
from talstack.demo.scenery import furnish, paint
from talstack.demo.world import MONOCULAR, PANORAMIC, THIRD_PERSON, Recording

STAGE_TURNS = 0.46  # width of the stage in the world, in turns; it is centred at half a turn
STAGE_TOP, STAGE_BOTTOM = 0.05, 0.97

_LOOK_STREAM, _SCENERY_STREAM, _CAMERA_STREAM = 10, 11, 12
_NUM_NOISE_FIELDS = 24  # reused in random order: fresh noise for every frame would cost more than the scene


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera: the size of its picture and of the stage in it, in pixels.

    Attributes:
        wander: standard deviation of where the stage's centre lies, in pixels, once per recording.
        sway: amplitude of the movement of the hand that holds it, in pixels.
        noise: standard deviation of the sensor noise, in grey levels.
    """

    width: int
    height: int
    stage_width: float
    stage_height: float
    wander: float
    sway: float
    noise: float
    sees_phone: bool = False


CAMERAS = {
    PANORAMIC: Camera(192, 96, stage_width=88, stage_height=88, wander=4.0, sway=0.0, noise=3.0),
    THIRD_PERSON: Camera(128, 96, stage_width=98, stage_height=92, wander=2.0, sway=0.0, noise=3.0),
    MONOCULAR: Camera(112, 112, stage_width=116, stage_height=116, wander=2.0, sway=3.0, noise=4.0, sees_phone=True),
}


def render_view(recording: Recording, view: str, times_s: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the (H, W, 3) uint8 RGB frame of one view at each time, seconds on the recording's clock."""
    camera = CAMERAS[view]
    rng = recording.rng(_CAMERA_STREAM + list(CAMERAS).index(view))
    stages = _stages(camera, rng, times_s)
    background = _Background(recording, camera)
    looks = instance_looks(recording)
    exposure = rng.uniform(0.9, 1.1) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    fields = rng.normal(0.0, camera.noise, (_NUM_NOISE_FIELDS, camera.height, camera.width, 3)).astype(np.float32)
    order = rng.integers(_NUM_NOISE_FIELDS, size=len(times_s))
    for time_s, stage, field in zip(times_s, stages, order, strict=True):
        frame = background.at(stage)
        for instance, look in zip(recording.instances, looks, strict=True):
            seen = camera.sees_phone or instance.label != "operating phone"
            if seen and instance.start_s <= time_s < instance.end_s:
                paint_action(frame, instance.label, look, stage, time_s - instance.start_s)
        frame *= exposure
        frame += fields[field]
        yield np.clip(frame, 0.0, 255.0).astype(np.uint8)


def instance_looks(recording: Recording) -> list[Look]:
    """Return the look of every instance of the recording; one look serves all views."""
    return draw_looks(recording.rng(_LOOK_STREAM), len(recording.instances))


def _stages(camera: Camera, rng: np.random.Generator, times_s: np.ndarray) -> list[Stage]:
    """Return where the stage lies in each frame: a place of its own per recording, plus the sway of the hand."""
    limit = 2 * camera.wander
    home = np.clip(rng.normal(0.0, camera.wander, 2) * (1.0, 0.25), -limit, limit)
    hertz, phases = rng.uniform(0.2, 0.9, (2, 3)), rng.uniform(0, 2 * np.pi, (2, 3))
    waves = np.sin(2 * np.pi * hertz[:, :, None] * np.asarray(times_s) + phases[:, :, None]).mean(axis=1)
    lefts = (camera.width - camera.stage_width) / 2 + home[0] + camera.sway * waves[0]
    tops = (camera.height - camera.stage_height) / 2 + home[1] + camera.sway * waves[1]
    return [
        Stage(left, top, camera.stage_width, camera.stage_height)
        for left, top in zip(lefts.tolist(), tops.tolist(), strict=True)
    ]


class _Background:
    """The scenery as one camera sees it, painted once with a margin and cut out for every frame."""

    def __init__(self, recording: Recording, camera: Camera) -> None:
        self._camera = camera
        self._margin = int(np.ceil(2 * camera.wander + camera.sway)) + 1
        # pixel 0 of the canvas is `margin` pixels left of and above the frame that has its stage centred
        left = (camera.width - camera.stage_width) / 2 + self._margin
        top = (camera.height - camera.stage_height) / 2 + self._margin
        u = (np.arange(camera.width + 2 * self._margin) + 0.5 - left) / camera.stage_width
        v = (np.arange(camera.height + 2 * self._margin) + 0.5 - top) / camera.stage_height
        self._canvas = paint(
            furnish(recording.scene, recording.rng(_SCENERY_STREAM)),
            (0.5 + (u - 0.5) * STAGE_TURNS) % 1.0,
            np.clip(STAGE_TOP + v * (STAGE_BOTTOM - STAGE_TOP), 0.0, 1.0 - 1e-9),
        )

    def at(self, stage: Stage) -> np.ndarray:
        """Return a fresh (H, W, 3) float32 frame without actors, with the stage where it is given."""
        camera = self._camera
        col = self._margin + (camera.width - camera.stage_width) / 2 - stage.left
        row = self._margin + (camera.height - camera.stage_height) / 2 - stage.top
        rows = _shifted(self._canvas, row, camera.height)
        return _shifted(rows.swapaxes(0, 1), col, camera.width).swapaxes(0, 1)


def _shifted(picture: np.ndarray, start: float, length: int) -> np.ndarray:
    """Return `length` rows from a fractional start, linearly interpolated."""
    first = int(np.floor(start))
    rest = np.float32(start - first)
    return picture[first : first + length] * (1 - rest) + picture[first + 1 : first + 1 + length] * rest
