"""The backgrounds: three scenes as painted shapes on a 360° world.

World coordinates: azimuth in turns, wrapping at 1, and elevation from 0 (top) to 1 (bottom). Every camera paints
the same shapes at its own pixels, so the views show one place.
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; `azimuth` is its left edge in turns."""

    azimuth: float
    width: float
    top: float
    bottom: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Disc:
    """An ellipse with half-axes in turns and in elevation."""

    azimuth: float
    elevation: float
    half_width: float
    half_height: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Grid:
    """Thin lines every `spacing` between two elevations: tiles, panels."""

    spacing: float
    top: float
    bottom: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Mottle:
    """Soft irregular light and dark between two elevations: grass, carpet, clouds.

    waves is (n, 3): whole turns, rise, phase.
    """

    top: float
    bottom: float
    strength: float
    waves: np.ndarray


Shape = Box | Disc | Grid | Mottle


def furnish(scene: str, rng: np.random.Generator) -> list[Shape]:
    """Return the shapes of one recording's place, in painting order; each recording gets its own variant."""
    return {"Kitchen": _kitchen, "Workspaces": _workspace, "Parks & Recreational Areas": _park}[scene](rng)


def paint(shapes: list[Shape], azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Return the (H, W, 3) float32 picture, 0..255, at azimuths (W,) in turns and elevations (H,)."""
    picture = np.zeros((len(elevation), len(azimuth), 3), dtype=np.float32)
    for shape in shapes:
        _paint(picture, shape, azimuth[None, :], elevation[:, None])
    return picture


def _paint(picture: np.ndarray, shape: Shape, azimuth: np.ndarray, elevation: np.ndarray) -> None:
    match shape:
        case Box():
            inside = (
                ((azimuth - shape.azimuth) % 1.0 < shape.width) & (elevation >= shape.top) & (elevation < shape.bottom)
            )
            picture[inside] = shape.colour
        case Disc():
            across = ((azimuth - shape.azimuth + 0.5) % 1.0 - 0.5) / shape.half_width
            picture[across**2 + ((elevation - shape.elevation) / shape.half_height) ** 2 < 1.0] = shape.colour
        case Grid():
            near = (azimuth % shape.spacing < 0.006) | (elevation % (2 * shape.spacing) < 0.012)
            picture[near & (elevation >= shape.top) & (elevation < shape.bottom)] = shape.colour
        case Mottle():
            light = sum(
                np.sin(2 * np.pi * (turns * azimuth + rise * elevation) + phase) for turns, rise, phase in shape.waves
            )
            band = (elevation >= shape.top) & (elevation < shape.bottom)
            picture += (shape.strength * light * band)[:, :, None].astype(np.float32)


def _vary(rng: np.random.Generator, colour: Colour, spread: float = 12.0) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.uniform(-spread, spread, 3), 0.0, 255.0)
    return float(red), float(green), float(blue)


def _mottle(rng: np.random.Generator, top: float, bottom: float, strength: float) -> Mottle:
    # whole turns, so that the picture closes at azimuth 1
    waves = np.stack([rng.integers(3, 24, 6), rng.uniform(-12, 12, 6), rng.uniform(0, 2 * np.pi, 6)], axis=1)
    return Mottle(top, bottom, strength, waves)


def _row(
    rng: np.random.Generator, count: int, width: tuple[float, float], span: tuple[float, float], colour: Colour
) -> list[Shape]:
    """Return boxes spread around the full turn, each jittered in place, size and colour."""
    boxes: list[Shape] = []
    for number in range(count):
        left = (number + rng.uniform(-0.25, 0.25)) / count
        boxes.append(Box(left, rng.uniform(*width), span[0], span[1] + rng.uniform(-0.03, 0.03), _vary(rng, colour)))
    return boxes


def _kitchen(rng: np.random.Generator) -> list[Shape]:
    counter = rng.uniform(0.58, 0.66)
    return [
        Box(0.0, 1.0, 0.0, 1.0, _vary(rng, (158, 142, 112))),
        Grid(1 / 24, 0.0, counter, _vary(rng, (132, 116, 92))),
        *_row(rng, 6, (0.08, 0.14), (0.0, 0.24), (112, 74, 44)),
        Box(0.0, 1.0, counter, counter + 0.06, _vary(rng, (92, 88, 90))),
        Box(0.0, 1.0, counter + 0.06, 1.0, _vary(rng, (118, 82, 52))),
        *_row(rng, 9, (0.004, 0.006), (counter + 0.06, 1.0), (76, 52, 34)),
        Box(rng.uniform(0, 1), 0.10, 0.15, 0.92, _vary(rng, (150, 154, 156))),
    ]


def _workspace(rng: np.random.Generator) -> list[Shape]:
    desk = rng.uniform(0.60, 0.68)
    return [
        Box(0.0, 1.0, 0.0, 1.0, _vary(rng, (104, 116, 134))),
        *_row(rng, 5, (0.09, 0.13), (0.06, 0.34), (140, 160, 178)),
        *_row(rng, 8, (0.05, 0.08), (desk - 0.18, desk - 0.03), (38, 42, 52)),
        Box(0.0, 1.0, desk, desk + 0.05, _vary(rng, (138, 106, 76))),
        Box(0.0, 1.0, desk + 0.05, 1.0, _vary(rng, (66, 72, 84))),
        _mottle(rng, desk + 0.05, 1.0, 3.0),
    ]


def _park(rng: np.random.Generator) -> list[Shape]:
    horizon = rng.uniform(0.48, 0.58)
    trees: list[Shape] = []
    for number in range(7):
        azimuth, height = (number + rng.uniform(-0.35, 0.35)) / 7, rng.uniform(0.10, 0.18)
        trees.append(Box((azimuth - 0.006) % 1.0, 0.012, horizon - height, horizon + 0.05, _vary(rng, (74, 56, 38))))
        trees.append(Disc(azimuth, horizon - height, rng.uniform(0.035, 0.06), 0.13, _vary(rng, (48, 92, 44))))
    return [
        Box(0.0, 1.0, 0.0, horizon, _vary(rng, (118, 150, 176))),
        _mottle(rng, 0.0, horizon, 4.0),
        Box(0.0, 1.0, horizon, 1.0, _vary(rng, (86, 124, 58))),
        _mottle(rng, horizon, 1.0, 5.0),
        *trees,
        Box(rng.uniform(0, 1), rng.uniform(0.15, 0.3), 0.80, 0.90, _vary(rng, (150, 134, 104))),
    ]
