"""The extraction engine: fills the feature store with every (recording, view, modality), resumably.

One idempotent call per shard: what is done is skipped, what cannot be done is recorded with its reason, and only
status rows travel between processes. `schedule` decides which process makes which call.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from talstack.extract import audio, external
from talstack.extract.backbone import BackboneOutput, TSMBackbone, normalise, pick_device
from talstack.extract.card import BackboneSource
from talstack.extract.frames import read_ahead, read_segments
from talstack.extract.layout import ViewLayout, lay_out_view
from talstack.extract.status import StatusRow
from talstack.extract.weights import load_source
from talstack.io.errors import InputError, MediaError, TalstackError
from talstack.io.files import canonical_json
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest
from talstack.io.media import read_audio
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore


@dataclass(frozen=True, slots=True)
class ExtractionItem:
    """One shard to make, with all that a worker process needs."""

    key: ShardKey
    store_root: Path
    manifest_folder: Path
    backbone: BackboneSource | None
    batch_segments: int
    threads: int


def extract_clip_group(item: ExtractionItem) -> StatusRow:
    """Make one shard unless it is there; return what became of it.

    A media or feature file that cannot be used becomes a recorded failure. Errors of another kind (a full disk, a
    broken backbone) are raised: they are not the recording's fault.
    """
    key, store = item.key, FeatureStore(item.store_root)
    row = StatusRow(key.recording, key.view, key.modality, "cached")
    status = store.status(key)
    if status == "done":
        return row
    if status == "failed":
        return replace(row, outcome="failed", reason=store.failure(key) or "")
    torch.set_num_threads(item.threads)
    manifest = _load_manifest(item.manifest_folder)
    if item.backbone is not None and key.recipe["kind"] == "rgb":
        _network(item.backbone)  # outside the try: weights that are missing are not the recording's failure
    make = {"rgb": _rgb_shard, "audio": _audio_shard, "external": _external_shard}[key.recipe["kind"]]
    try:
        shard = make(item, manifest)
        if not shard.valid.any():
            raise MediaError(f"no segment could be decoded ({'; '.join(shard.notes) or 'too short'})")
    except (MediaError, InputError, FileNotFoundError) as error:
        store.record_failure(key, str(error))
        return replace(row, outcome="failed", reason=str(error))
    store.write(key, shard)
    masked = "; ".join(shard.notes) if not shard.valid.all() else ""
    return replace(row, outcome="done", num_segments=len(shard.valid), num_valid=int(shard.valid.sum()), reason=masked)


@lru_cache(maxsize=2)
def _load_manifest(folder: Path) -> Manifest:
    return Manifest.load(folder)


_NETWORKS: dict[str, TSMBackbone] = {}  # one per process: loading costs more than a short clip


def _network(source: BackboneSource) -> TSMBackbone:
    card = source.card  # an untrained network's identity says nothing of its classifiers: they give no feature
    shape = [card.frames_per_segment, len(card.actions), len(card.scenes)]
    name = f"{source.folder} {canonical_json(source.identity)} {shape}"
    if name not in _NETWORKS:
        _NETWORKS.clear()
        # TF32 would move features by 1e-3; without it a GPU's agree with a CPU's, and one store may hold both
        torch.backends.cudnn.allow_tf32 = False
        _NETWORKS[name] = load_source(source).to(pick_device()).to(memory_format=torch.channels_last)
    return _NETWORKS[name]


def _rgb_shard(item: ExtractionItem, manifest: Manifest) -> Shard:
    key, source = item.key, item.backbone
    if source is None:
        raise TalstackError(f"{key}: rgb features need a backbone")
    layout = lay_out_view(manifest, key.recording, key.view, segment_s=key.segment_s)
    model, card, device = _network(source), source.card, pick_device()
    num_rows = len(layout.times_s)
    features = np.zeros((num_rows, model.feature_dim), dtype=np.float16)
    logits = np.zeros((num_rows, len(card.actions) + 1), dtype=np.float32)
    scene_logits = np.zeros((num_rows, max(len(card.scenes), 1)), dtype=np.float32)
    valid = np.zeros(num_rows, dtype=bool)
    notes = dict.fromkeys(layout.notes)  # an ordered set
    chunks = read_segments(
        layout, num_frames=card.frames_per_segment, frame_size=card.frame_size, segment_s=key.segment_s,
        chunk=item.batch_segments,
    )  # fmt: skip
    with torch.inference_mode():
        for chunk in read_ahead(chunks):
            pixels = torch.from_numpy(chunk.pixels).to(device)  # uint8 travels, floats are made there
            out = BackboneOutput(*(tensor.cpu() for tensor in model(normalise(pixels))))
            rows = chunk.rows[chunk.valid]
            good = torch.from_numpy(chunk.valid)
            features[rows] = out.features[good].numpy().astype(np.float16)
            logits[rows], scene_logits[rows] = out.logits[good].numpy(), out.scene_logits[good].numpy()
            valid[rows] = True
            if chunk.note:
                notes[chunk.note] = None
    trained = source.folder is not None
    return Shard(
        features, valid, layout.times_s, aligned=layout.aligned, notes=tuple(notes),
        logits=logits if trained else None, scene_logits=scene_logits if trained and card.scenes else None,
    )  # fmt: skip


def _audio_shard(item: ExtractionItem, manifest: Manifest) -> Shard:
    key = item.key
    layout = lay_out_view(manifest, key.recording, key.view, segment_s=key.segment_s)
    num_mels, rate = int(key.recipe["mels"]), int(key.recipe["rate"])
    features = np.zeros((len(layout.times_s), audio.NUM_STATISTICS * num_mels), dtype=np.float16)
    valid = np.zeros(len(layout.times_s), dtype=bool)
    notes = dict.fromkeys(layout.notes)
    for rows, values, good, note in _clip_audio(layout, num_mels=num_mels, rate=rate, segment_s=key.segment_s):
        features[rows[good]], valid[rows[good]] = values[good].astype(np.float16), True
        if note:
            notes[note] = None
    return Shard(features, valid, layout.times_s, aligned=layout.aligned, notes=tuple(notes))


def _clip_audio(
    layout: ViewLayout, *, num_mels: int, rate: int, segment_s: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, str | None]]:
    """Yield rows, statistics, validity and a note for every clip; a clip without sound has no valid row."""
    for clip in layout.clips:
        try:
            sound = read_audio(clip.path, rate=rate)
        except MediaError as error:
            yield clip.rows, np.zeros((len(clip.rows), 1)), np.zeros(len(clip.rows), dtype=bool), str(error)
            continue
        spectrogram = audio.log_mel(sound.samples, rate=rate, num_mels=num_mels)
        starts_s = clip.start_s - sound.start_s
        yield clip.rows, *audio.segment_statistics(spectrogram, starts_s, segment_s=segment_s), None


def _external_shard(item: ExtractionItem, manifest: Manifest) -> Shard:
    key = item.key
    grid = SegmentGrid(key.duration_s, key.segment_s)
    values, times_s = external.load_series(manifest.media_path(str(key.sources[0]["name"])))
    features, valid = external.pool_series(values, times_s, grid)
    largest = np.abs(features).max(initial=0)
    if largest > np.finfo(np.float16).max:
        raise InputError(f"{key}: values up to {largest:.3g} do not fit float16 (65504); rescale the series")
    return Shard(features.astype(np.float16), valid, grid.centres_s)
