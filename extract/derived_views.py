"""Views cut from another view's picture: a panorama's perspective cameras, a binocular picture's lenses.

A piece is described by what stands in its recipe under "picture", so that the shard's fingerprint has it, and a worker
needs nothing else to make it. Needs no torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from talstack.extract.config import ExtractConfig
from talstack.extract.lenses import SIDES, Side
from talstack.extract.perspective import Camera, camera_ring, camera_views
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.view_names import derived_view, split_view


@dataclass(frozen=True, slots=True)
class Piece:
    """What of a picture a view shows: what these cameras see of a panorama, one lens's side, or all of it.

    Attributes:
        cameras: without their size, which the sampling gives; the features of several are averaged.
        side: of a binocular picture.
    """

    cameras: tuple[Camera, ...] = ()
    side: Side | None = None

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> "Piece":
        """Return the piece that a recipe describes; a recipe without one takes the whole picture."""
        picture = recipe.get("picture", {})
        return cls(tuple(Camera(**camera) for camera in picture.get("cameras", ())), picture.get("side"))


def derive_views(manifest: Manifest, config: ExtractConfig) -> dict[str, dict[str, Any]]:
    """Return {name of the piece: what its recipes hold besides} of all pieces that the settings ask for.

    Raises:
        InputError: a view that the data set has under the name of a piece, or no view to cut up.
    """
    there = set(manifest.clips["view"].unique().to_list())
    _check_any("cameras", "panoramic", config.panoramic if config.cameras else None, there, manifest)
    _check_any("split_lenses", "binocular", config.binocular if config.split_lenses else None, there, manifest)
    found: dict[str, dict[str, Any]] = {}
    for view in config.panoramic if config.cameras else ():
        if view in there:
            ring = camera_ring(config.cameras, pitch_deg=config.camera_pitch_deg, fov_deg=config.camera_fov_deg)
            named = {derived_view(view, f"ring{len(ring)}"): ring} if config.camera_pool else _one_each(view, ring)
            found |= {name: {"picture": {"cameras": [_direction(c) for c in some]}} for name, some in named.items()}
    for view in config.binocular if config.split_lenses else ():
        if view in there:
            found |= {derived_view(view, side): {"picture": {"side": side, "circle": "inscribed"}} for side in SIDES}
    taken = sorted(there & set(found))
    if taken:
        raise InputError(f"view {taken[0]!r} of {manifest.name} has the name of a piece of another view; rename it")
    return found


def _check_any(
    setting: str, source: str, named: Sequence[str] | None, there: Collection[str], manifest: Manifest
) -> None:
    if named is not None and not set(named) & set(there):
        raise InputError(
            f"extract.{setting} cuts up the views of extract.{source} ({', '.join(named) or 'none'}), but "
            f"{manifest.name} has only {', '.join(sorted(there))}; set extract.{source}, or leave {setting} out"
        )


def _one_each(view: str, ring: Sequence[Camera]) -> dict[str, list[Camera]]:
    return {name: [camera] for name, camera in camera_views(view, ring).items()}


def _direction(camera: Camera) -> dict[str, float]:
    """Return a camera as plain values, rounded so that the same setting is the same text everywhere."""
    return {name: round(float(value), 6) for name, value in asdict(camera).items() if name != "size"}


def choose_views(
    manifest: Manifest, asked: Sequence[str], derived: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[str, ...], dict[str, Mapping[str, Any]]]:
    """Return (views, pieces) to extract: all, or those asked for; a view asked for brings its pieces.

    Raises:
        InputError: a view that is neither the data set's nor a piece that the settings ask for.
    """
    there = sorted(manifest.clips["view"].unique().to_list())
    unknown = [name for name in asked if name not in there and name not in derived]
    if unknown:
        known = ", ".join([*there, *sorted(derived)])
        raise InputError(f"view {unknown[0]!r} is not in {manifest.name}; views: {known}")
    if not asked:
        return tuple(there), dict(derived)
    pieces = {n: values for n, values in derived.items() if n in asked or split_view(n)[0] in asked}
    return tuple(view for view in there if view in asked), pieces
