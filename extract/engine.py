"""The extraction engine: fills the feature store with every (recording, view, modality), resumably.

One idempotent call per group of shards that are made from the same clips: what is done is skipped, what cannot be done
is recorded with its reason, and only status rows travel between processes. `schedule` decides which process makes
which call.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from talstack.extract import external
from talstack.extract.audio_shard import make_audio_shard
from talstack.extract.item import ExtractionItem
from talstack.extract.layout import lay_out_view
from talstack.extract.networks import runtime_of
from talstack.extract.runtimes import Runtime
from talstack.extract.shards import Spent, make_picture_shards
from talstack.extract.status import StatusRow
from talstack.io.errors import InputError, MediaError
from talstack.io.extraction import PICTURES
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore
from talstack.io.view_names import split_view


def extract_clip_group(item: ExtractionItem) -> list[StatusRow]:
    """Make the item's shards, but those that are there; return what became of each.

    A media or feature file that cannot be used becomes a recorded failure. Errors of another kind (a full disk, a
    broken backbone) are raised: they are not the recording's fault.
    """
    store = FeatureStore(item.store_root)
    known = [_known(key, store) for key in item.keys]
    missing = [key for key, row in zip(item.keys, known, strict=True) if row is None]
    if missing:
        torch.set_num_threads(item.threads)
    made = iter(_make(missing, item, store) if missing else ())
    return [next(made) if row is None else row for row in known]


def probe_network(item: ExtractionItem) -> list[StatusRow]:
    """Build the item's networks in this process, which computes a random segment by each; nothing is stored."""
    torch.set_num_threads(item.threads)
    for modality in sorted({str(key.recipe["kind"]) for key in item.keys} & set(PICTURES)):
        for network in item.networks:
            runtime_of(network, modality, among=item.networks)
    return []


def _known(key: ShardKey, store: FeatureStore) -> StatusRow | None:
    """Return the row of a shard that is done or recorded as failed, else None."""
    row = StatusRow(key.recording, key.view, key.modality, "cached")
    status = store.status(key)
    if status == "failed":
        return replace(row, outcome="failed", reason=store.failure(key) or "")
    return row if status == "done" else None


def _make(keys: Sequence[ShardKey], item: ExtractionItem, store: FeatureStore) -> list[StatusRow]:
    kind = str(keys[0].recipe["kind"])
    if kind in PICTURES:
        for key in keys:
            _runtime(key, item)  # outside the try: missing weights are not the recording's failure
    make = _MAKERS[kind]
    try:
        shards, spent = make(keys, item, _load_manifest(item.manifest_folder))
    except (MediaError, InputError, FileNotFoundError) as error:
        return [_failed(key, str(error), store) for key in keys]
    rows = [_commit(key, shard, store) for key, shard in zip(keys, shards, strict=True)]
    decode_s, compute_s = spent.decode_s / len(keys), spent.compute_s / len(keys)
    names = spent.runtimes or ("",) * len(keys)
    return [
        replace(row, decode_s=decode_s, compute_s=compute_s, runtime=name)
        for row, name in zip(rows, names, strict=True)
    ]


def _commit(key: ShardKey, shard: Shard, store: FeatureStore) -> StatusRow:
    if not shard.valid.any():
        return _failed(key, f"no segment could be decoded ({'; '.join(shard.notes) or 'too short'})", store)
    started = time.perf_counter()
    store.write(key, shard)
    masked = "; ".join(shard.notes) if not shard.valid.all() else ""
    return StatusRow(
        key.recording, key.view, key.modality, "done", num_segments=len(shard.valid), num_valid=int(shard.valid.sum()),
        reason=masked, store_s=time.perf_counter() - started,
    )  # fmt: skip


def _failed(key: ShardKey, reason: str, store: FeatureStore) -> StatusRow:
    store.record_failure(key, reason)
    return StatusRow(key.recording, key.view, key.modality, "failed", reason=reason)


@lru_cache(maxsize=2)
def _load_manifest(folder: Path) -> Manifest:
    return Manifest.load(folder)


def _picture_shards(keys: Sequence[ShardKey], item: ExtractionItem, manifest: Manifest) -> tuple[list[Shard], Spent]:
    source, view = item.network_of(keys[0]).source, split_view(keys[0].view)[0]
    return make_picture_shards(
        keys, lay_out_view(manifest, keys[0].recording, view, segment_s=keys[0].segment_s), card=source.card,
        trained=source.folder is not None, runtime_of=lambda key: _runtime(key, item),
        batch_segments=item.batch_segments,
    )  # fmt: skip


def _runtime(key: ShardKey, item: ExtractionItem) -> Runtime:
    return runtime_of(item.network_of(key), str(key.recipe["kind"]), among=item.networks)


def _audio_shards(keys: Sequence[ShardKey], item: ExtractionItem, manifest: Manifest) -> tuple[list[Shard], Spent]:
    started = time.perf_counter()
    shards = [
        make_audio_shard(key, lay_out_view(manifest, key.recording, key.view, segment_s=key.segment_s)) for key in keys
    ]
    return shards, Spent(decode_s=time.perf_counter() - started)


def _external_shards(keys: Sequence[ShardKey], item: ExtractionItem, manifest: Manifest) -> tuple[list[Shard], Spent]:
    return [_external_shard(key, manifest) for key in keys], Spent()


_MAKERS: dict[str, Callable[[Sequence[ShardKey], ExtractionItem, Manifest], tuple[list[Shard], Spent]]] = {
    "rgb": _picture_shards, "rgbdiff": _picture_shards, "audio": _audio_shards, "external": _external_shards,
}  # fmt: skip


def _external_shard(key: ShardKey, manifest: Manifest) -> Shard:
    grid = SegmentGrid(key.duration_s, key.segment_s)
    values, times_s = external.load_series(manifest.media_path(str(key.sources[0]["name"])))
    features, valid = external.pool_series(values, times_s, grid)
    largest = np.abs(features).max(initial=0)
    if largest > np.finfo(np.float16).max:
        raise InputError(f"{key}: values up to {largest:.3g} do not fit float16 (65504); rescale the series")
    return Shard(features.astype(np.float16), valid, grid.centres_s)
