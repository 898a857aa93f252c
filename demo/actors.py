"""What an action looks like: each painter draws one action into a float32 frame, in place.

The stage is the piece of the world in which things happen; stage coordinates run from 0 to 1, u to the right and
v down. Every camera sees the same stage at its own size, so a motion has one direction in all views.

`pouring` and `smoking` are one lattice of drops that drifts down or up; `pushing` and `moving things` one row of
bars that travels right or left. Drops and bars are mirror-symmetric and periodic, their phase starts at random and
the two speeds are equal, so a single frame of one is a single frame of the other. Colours and spacing belong to the
recording, not to the instance: within a recording nothing but the motion tells two instances apart. At 8 frames per
second the pattern moves 0.25 to 0.31 periods from frame to frame, well below the half at which the direction turns
ambiguous.
"""

from dataclasses import dataclass

import numpy as np

SPEED_PERIODS_PER_S = (2.0, 2.5)
DROP_PERIOD = (0.25, 0.28)  # stage heights
BAR_PERIOD = (0.29, 0.33)  # stage widths
NUM_LANES = 3

# u0, u1, v0, v1 on the stage
COLUMN = (0.02, 0.50, 0.02, 0.64)
FLOOR = (0.53, 0.98, 0.02, 0.66)
BAND = (0.02, 0.98, 0.68, 0.98)

INKS = ((236, 240, 246), (248, 224, 96), (120, 214, 250), (250, 150, 90), (170, 246, 150))
PANELS = ((22, 24, 40), (44, 18, 22), (16, 40, 30), (40, 34, 14))


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the stage lies in a frame, in pixels; left and top may be fractional and outside the frame."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Pattern:
    """Colours and spacing that all instances of one recording share."""

    drop_period: float
    bar_period: float
    lane_phases: tuple[float, ...]
    ink: tuple[int, int, int]
    panel: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Look:
    """How one instance looks, drawn without regard to its label."""

    pattern: Pattern
    phase: float
    speed: float
    beat_hz: float
    screen: np.ndarray  # (64, 4, 3, 3) float32: pictures of the phone, rows, columns, RGB


def draw_looks(rng: np.random.Generator, count: int) -> list[Look]:
    """Return the looks of a recording's instances."""
    pattern = Pattern(
        drop_period=rng.uniform(*DROP_PERIOD),
        bar_period=rng.uniform(*BAR_PERIOD),
        lane_phases=tuple(rng.uniform(0, 1, NUM_LANES)),
        ink=INKS[rng.integers(len(INKS))],
        panel=PANELS[rng.integers(len(PANELS))],
    )
    return [
        Look(
            pattern=pattern,
            phase=rng.uniform(0, 1),
            speed=rng.uniform(*SPEED_PERIODS_PER_S),
            beat_hz=rng.uniform(0.9, 1.3),
            screen=rng.choice([60.0, 255.0], size=(64, 4, 3, 3)).astype(np.float32),
        )
        for _ in range(count)
    ]


def paint_action(frame: np.ndarray, label: str, look: Look, stage: Stage, age_s: float) -> None:
    """Draw one action as it is age_s after its start; `speaking` has nothing to show."""
    match label:
        case "pouring":
            _paint_drops(frame, look, stage, look.phase + look.speed * age_s)
        case "smoking":
            _paint_drops(frame, look, stage, look.phase - look.speed * age_s)
        case "pushing":
            _paint_bars(frame, look, stage, look.phase + look.speed * age_s)
        case "moving things":
            _paint_bars(frame, look, stage, look.phase - look.speed * age_s)
        case "dancing":
            _paint_dancer(frame, look, stage, age_s)
        case "operating phone":
            _paint_phone(frame, look, age_s)
        case "flashing":
            _paint_flash(frame, look, age_s)


def _window(
    frame: np.ndarray, stage: Stage, box: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the part of the frame that shows a box of the stage, with its (1, W) u and (H, 1) v."""
    u0, u1, v0, v1 = box
    cols = np.clip([round(stage.left + u0 * stage.width), round(stage.left + u1 * stage.width)], 0, frame.shape[1])
    rows = np.clip([round(stage.top + v0 * stage.height), round(stage.top + v1 * stage.height)], 0, frame.shape[0])
    u = (np.arange(*cols, dtype=np.float32) + 0.5 - stage.left) / stage.width
    v = (np.arange(*rows, dtype=np.float32) + 0.5 - stage.top) / stage.height
    return frame[slice(*rows), slice(*cols)], u[None, :], v[:, None]


def _blend(part: np.ndarray, cover: np.ndarray, colour: tuple[float, float, float]) -> None:
    """Lay a colour over part of a frame; cover (H, W) is 1 where it hides what was there."""
    part += cover[:, :, None] * (np.asarray(colour, dtype=np.float32) - part)


def _cyclic(position: np.ndarray) -> np.ndarray:
    """Return the distance to the nearest whole number, -0.5 to 0.5."""
    return (position + 0.5) % 1.0 - 0.5


def _paint_drops(frame: np.ndarray, look: Look, stage: Stage, phase: float) -> None:
    part, u, v = _window(frame, stage, COLUMN)
    part[:] = look.pattern.panel
    lane = (u - COLUMN[0]) / (COLUMN[1] - COLUMN[0]) * NUM_LANES
    number = np.clip(lane.astype(int), 0, NUM_LANES - 1)
    across = (lane - number - 0.5) * ((COLUMN[1] - COLUMN[0]) / NUM_LANES * stage.width)
    along = (
        _cyclic(v / look.pattern.drop_period - phase - np.asarray(look.pattern.lane_phases)[number])
        * look.pattern.drop_period
        * stage.height
    )
    radius = 0.30 * look.pattern.drop_period * stage.height
    cover = np.clip(radius + 0.5 - np.hypot(across, along), 0.0, 1.0).astype(np.float32)
    _blend(part, cover, look.pattern.ink)


def _paint_bars(frame: np.ndarray, look: Look, stage: Stage, phase: float) -> None:
    part, u, _ = _window(frame, stage, BAND)
    part[:] = look.pattern.panel
    distance = np.abs(_cyclic(u / look.pattern.bar_period - phase)) * look.pattern.bar_period * stage.width
    cover = np.clip(0.25 * look.pattern.bar_period * stage.width + 0.5 - distance, 0.0, 1.0).astype(np.float32)
    _blend(part, np.broadcast_to(cover, part.shape[:2]), look.pattern.ink)


def _paint_dancer(frame: np.ndarray, look: Look, stage: Stage, age_s: float) -> None:
    part, u, v = _window(frame, stage, FLOOR)
    beat = 2 * np.pi * (look.beat_hz * age_s + look.phase)
    hip = (0.755 + 0.07 * np.sin(beat), 0.40)
    neck = (hip[0] + 0.03 * np.sin(beat + 0.6), 0.19)
    lift = 0.09 * np.sin(beat)
    limbs = (
        (neck, hip, 0.055),
        (hip, (hip[0] - 0.08, 0.62), 0.03),
        (hip, (hip[0] + 0.08, 0.62), 0.03),
        (neck, (neck[0] - 0.12, 0.22 - lift), 0.025),
        (neck, (neck[0] + 0.12, 0.22 + lift), 0.025),
        ((neck[0], 0.10), (neck[0], 0.11), 0.055),
    )
    shirt = (look.pattern.ink[2], 40, look.pattern.ink[0])
    for start, end, thickness in limbs:
        _blend(part, _capsule(u, v, start, end, thickness, stage), shirt)


def _capsule(
    u: np.ndarray, v: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float, stage: Stage
) -> np.ndarray:
    """Return the (H, W) float32 cover of a thick line; coordinates and radius in stage units."""
    du, dv = end[0] - start[0], end[1] - start[1]
    along = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0.0, 1.0)
    distance = np.hypot(u - start[0] - along * du, v - start[1] - along * dv)
    return np.clip((radius - distance) * stage.height + 0.5, 0.0, 1.0).astype(np.float32)


def _paint_phone(frame: np.ndarray, look: Look, age_s: float) -> None:
    """Draw a hand-held phone: fixed to the camera, not to the stage, its screen changing five times a second."""
    height, width = frame.shape[:2]
    sway = 0.012 * np.sin(2 * np.pi * (0.8 * age_s + look.phase))
    top, left = round((0.52 + sway) * height), round(0.60 * width)
    body = frame[top:, left : left + round(0.32 * width)]
    body[:] = (12, 12, 14)
    screen = body[3:, 3:-3]
    picture = look.screen[int(age_s * 5) % len(look.screen)]
    rows = np.arange(screen.shape[0]) * picture.shape[0] // max(1, screen.shape[0])
    cols = np.arange(screen.shape[1]) * picture.shape[1] // max(1, screen.shape[1])
    screen[:] = picture[rows[:, None], cols[None, :]]
    thumb = frame[round(0.86 * height) :, left - 5 : left + 8]
    thumb[:] = (206, 158, 128)


def _paint_flash(frame: np.ndarray, look: Look, age_s: float) -> None:
    if (age_s * 2.0) % 1.0 < 0.5:
        frame += np.asarray((80, 76, 60), dtype=np.float32)
