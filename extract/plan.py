"""The plan of an extraction: which shards there are to make, and by what.

Needs no torch, so that running over a finished store starts and ends at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import joblib

from talstack.extract.card import BackboneCard, BackboneSource, load_card
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.recipes import RGB, build_recipes
from talstack.extract.status import StatusRow
from talstack.extract.workers import Workers, choose_workers, count_gpus, process_bytes
from talstack.io.errors import ConfigError
from talstack.io.extraction import Extraction, check_views, shard_keys
from talstack.io.manifest import Manifest
from talstack.io.shard import ShardKey
from talstack.io.store import ClipHashes, FeatureStore

if TYPE_CHECKING:
    from talstack.extract.engine import ExtractionItem


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """What to extract.

    Attributes:
        extraction: the record that stage two will read.
        keys: every shard, in a stable order.
        store: where they go.
        manifest_folder, source, batch_segments: what the workers need.
        hang_s: how long a worker may go without progress, seconds; 0 = for ever.
    """

    extraction: Extraction
    keys: tuple[ShardKey, ...]
    store: FeatureStore
    manifest_folder: Path
    source: BackboneSource | None
    batch_segments: int
    hang_s: float = 0.0

    def part(self, part: tuple[int, int]) -> list[ShardKey]:
        """Return the i-th of n parts (1-based) of the shards."""
        return list(self.keys[part[0] - 1 :: part[1]])

    def missing(self, keys: Sequence[ShardKey]) -> list[ShardKey]:
        """Return the shards that are neither done nor recorded as failed."""
        return [key for key in keys if self.store.status(key) == "missing"]

    def finished_rows(self, keys: Sequence[ShardKey]) -> list[StatusRow]:
        """Return a status row for every shard that is done or recorded as failed."""
        rows = []
        for key in keys:
            status = self.store.status(key)
            if status == "done":
                rows.append(StatusRow(key.recording, key.view, key.modality, "cached"))
            elif status == "failed":
                reason = self.store.failure(key) or ""
                rows.append(StatusRow(key.recording, key.view, key.modality, "failed", reason=reason))
        return rows

    def forget_failures(self) -> None:
        """Make every recorded failure a missing shard again."""
        for key in self.keys:
            self.store.forget_failure(key)

    def workers(self, keys: Sequence[ShardKey], jobs: int = 0) -> Workers:
        """Return the worker processes of this machine that these shards are for; `jobs` 0 chooses how many."""
        if self.source is None or not any("backbone" in key.recipe for key in keys):
            return choose_workers(len(keys), jobs=jobs)
        card = self.source.card
        pixels = self.batch_segments * card.frames_per_segment * card.frame_size**2
        return choose_workers(len(keys), jobs=jobs, num_gpus=count_gpus(), process_bytes=process_bytes(pixels=pixels))

    def items(self, keys: Sequence[ShardKey], jobs: int | Workers) -> list["ExtractionItem"]:
        """Return the work of these shards for the engine, with the cores shared out among `jobs` processes."""
        from talstack.extract.engine import ExtractionItem

        threads = jobs.threads if isinstance(jobs, Workers) else max(1, int(joblib.cpu_count()) // jobs)
        return [
            ExtractionItem(key, self.store.root, self.manifest_folder, self.source, self.batch_segments, threads)
            for key in keys
        ]


def plan_extraction(
    data: Path, store_root: Path, *, config: ExtractConfig, sampling: SamplingConfig, backbone: Path | None = None,
    views: Sequence[str] = (), modalities: Sequence[str] = (), name: str | None = None,
) -> ExtractionPlan:  # fmt: skip
    """Return the plan of extracting the manifest folder `data` into the store.

    Args:
        backbone: folder of a fine-tuned backbone; None takes the untrained network of `config`.
        views, modalities: override the configuration's where given.

    Raises:
        InputError: a view or modality that the data set does not have.
        ConfigError: sampling other than the backbone was trained with, or another data set's class list.
    """
    manifest = Manifest.load(data)
    config = replace(config, modalities=tuple(modalities) or config.modalities)
    chosen = check_views(manifest, tuple(views) or config.views) if manifest.clips.height else ()
    wants_rgb = manifest.clips.height > 0 and (not config.modalities or RGB in config.modalities)
    source = _backbone_source(manifest, config, sampling, backbone) if wants_rgb else None
    recipes = build_recipes(manifest, config, sampling=sampling, backbone=source.identity if source else {})
    seen = source.card.seen if source else ()
    extraction = Extraction(name or manifest.name, sampling.segment_s, recipes, chosen, tuple(seen))
    hashes = ClipHashes(store_root)
    keys = shard_keys(manifest, extraction, hashes)
    hashes.save()
    return ExtractionPlan(
        extraction, tuple(keys), FeatureStore(store_root), data, source, config.batch_segments, config.hang_s
    )


def _backbone_source(
    manifest: Manifest, config: ExtractConfig, sampling: SamplingConfig, folder: Path | None
) -> BackboneSource:
    if folder is None:
        card = BackboneCard(
            arch=config.init_arch, shift=False, segment_s=sampling.segment_s,
            frames_per_segment=sampling.frames_per_segment, frame_size=sampling.frame_size,
            actions=manifest.actions, scenes=manifest.scenes,
        )  # fmt: skip
        return BackboneSource(card, None, config.init == "imagenet")
    card = load_card(folder)
    for field in ("segment_s", "frames_per_segment", "frame_size"):
        if getattr(card, field) != getattr(sampling, field):
            raise ConfigError(
                f"sampling.{field} is {getattr(sampling, field)}, but the backbone in {folder} was trained with "
                f"{getattr(card, field)}; use the configuration it was trained with"
            )
    return BackboneSource(card, folder)
