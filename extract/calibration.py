"""The int8 networks of an extraction: which segments show what ranges values have, and where the networks lie.

    STORE/calibration/<name>-<modality>.onnx

One is made for each modality, data set (by its name), backbone and sampling, before the first worker starts. It then
stays: all workers, resumed runs and array jobs compute with the same file, and its hash is part of the recipe. A data
set that grows keeps its network. Needs no torch where the networks are there.
"""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from talstack.extract.card import BackboneSource
from talstack.extract.config import ExtractConfig
from talstack.extract.frames import PictureTask, read_segments
from talstack.extract.item import QuantizedNetwork
from talstack.extract.layout import ClipSegments, ViewLayout, lay_out_view
from talstack.io.errors import MediaError
from talstack.io.extraction import PICTURES
from talstack.io.files import TEMPORARY_PREFIX, canonical_json, sha256_file, sha256_text, write_bytes
from talstack.io.manifest import Manifest
from talstack.io.store import NETWORK_FOLDER

CODE_VERSION = 1  # raise when the same pictures give another network
NUM_VIEWS, SEGMENTS_PER_VIEW = 16, 2


def quantized_networks(
    manifest: Manifest, config: ExtractConfig, *, store_root: Path, source: BackboneSource, modalities: Sequence[str]
) -> tuple[QuantizedNetwork, ...]:
    """Return the int8 network of each modality that is made from pictures; one that is not in the store is made.

    Raises:
        MediaError: no clip of the data set gives a segment to find ranges with.
    """
    runtime = "openvino" if config.runtime == "openvino" else "onnxruntime"
    found = []
    for modality in (name for name in modalities if name in PICTURES):
        path = store_root / NETWORK_FOLDER / f"{_name(manifest, source)}-{modality}.onnx"
        if not path.is_file():
            _publish(path, _make(manifest, source, modality))
        found.append(QuantizedNetwork(modality, path, sha256_file(path), runtime))
    return tuple(found)


def with_quantized(
    recipes: Mapping[str, Mapping[str, Any]], networks: Sequence[QuantizedNetwork]
) -> dict[str, dict[str, Any]]:
    """Return the recipes, with the network in those whose numbers come from one."""
    told = {network.modality: {"int8": {"sha256": network.sha256, "runtime": network.runtime}} for network in networks}
    return {modality: {**recipe, **told.get(modality, {})} for modality, recipe in recipes.items()}


def choose_views(manifest: Manifest) -> list[tuple[str, str]]:
    """Return every (recording, view), those to find ranges with first.

    Views take turns, recordings come in an order that has nothing to do with their names, and those of the test split
    are left out where there are others.
    """
    test = manifest.recordings.filter(pl.col("split") == "test")["recording"]
    clips = manifest.clips.filter(~pl.col("recording").is_in(test.implode()))
    rows = (clips if clips.height else manifest.clips).select("recording", "view").unique().iter_rows()
    by_view: dict[str, list[tuple[str, str]]] = {}
    for recording, view in sorted(rows, key=lambda row: sha256_text(canonical_json(row))):
        by_view.setdefault(view, []).append((recording, view))
    turns = [(turn, pair) for pairs in by_view.values() for turn, pair in enumerate(pairs)]
    return [pair for _, pair in sorted(turns, key=lambda entry: (entry[0], entry[1][1]))]


def calibration_batches(manifest: Manifest, source: BackboneSource, modality: str) -> Iterator[np.ndarray]:
    """Yield pixels of segments of the first views that can be read, as runtimes take them.

    Raises:
        MediaError: there is none.
    """
    card, num_read = source.card, 0
    task = PictureTask(card.frames_per_segment, card.frame_size, modality == "rgbdiff")
    for recording, view in choose_views(manifest):
        with suppress(MediaError, FileNotFoundError):  # the extraction itself says what is wrong with it
            layout = _some_segments(lay_out_view(manifest, recording, view, segment_s=card.segment_s))
            for chunk in read_segments(layout, [task], segment_s=card.segment_s, chunk=SEGMENTS_PER_VIEW):
                pixels = chunk.pixels[0][0][chunk.valid[0]]
                if len(pixels):
                    num_read += 1
                    yield pixels
        if num_read == NUM_VIEWS:
            return
    if not num_read:
        raise MediaError(f"{manifest.name}: no clip gives a segment to find the ranges of int8 with; use float32")


def _some_segments(layout: ViewLayout) -> ViewLayout:
    """Return the layout with a few segments of its longest clip, evenly spaced."""
    clip = max((clip for clip in layout.clips if all(clip.picture)), key=lambda clip: len(clip.rows), default=None)
    if clip is None:
        return replace(layout, clips=())
    number = min(SEGMENTS_PER_VIEW, len(clip.rows))
    at = ((np.arange(number) + 0.5) / max(number, 1) * len(clip.rows)).astype(int)
    return replace(layout, clips=(ClipSegments(clip.path, clip.rows[at], clip.start_s[at], clip.end_s, clip.picture),))


def _name(manifest: Manifest, source: BackboneSource) -> str:
    card = source.card
    shape = [card.segment_s, card.frames_per_segment, card.frame_size, len(card.actions), len(card.scenes)]
    return sha256_text(canonical_json([CODE_VERSION, manifest.name, source.identity, shape]))[:16]


def _make(manifest: Manifest, source: BackboneSource, modality: str) -> bytes:
    from talstack.extract.int8 import quantize
    from talstack.extract.motion import motion_backbone
    from talstack.extract.weights import load_source

    model = load_source(source)
    model = motion_backbone(model) if modality == "rgbdiff" else model
    return quantize(model, calibration_batches(manifest, source, modality), frame_size=source.card.frame_size)


def _publish(path: Path, graph: bytes) -> None:
    """Write the file unless another process has; of several that are made at once the first stays."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.onnx")
    write_bytes(temporary, graph)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a disk without hard links
        os.replace(temporary, path)
    temporary.unlink(missing_ok=True)
