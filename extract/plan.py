"""The plan of an extraction: which shards there are to make, and by what.

Needs no torch, so that running over a finished store starts and ends at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import joblib

from talstack.extract.backbone_set import BackboneSet
from talstack.extract.card import BackboneCard, BackboneSource
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.derived_views import Piece, choose_views, derive_views
from talstack.extract.item import ExtractionItem, NetworkOrder, QuantizedNetwork
from talstack.extract.recipes import AUDIO, RGB, RGBDIFF, build_recipes
from talstack.extract.rgbdiff import NUM_FRAMES
from talstack.extract.runtime_choice import with_fastest_runtime
from talstack.extract.status import StatusRow
from talstack.extract.workers import Workers, choose_workers, count_gpus, process_bytes
from talstack.io.errors import ConfigError, InputError
from talstack.io.extraction import PICTURES, Extraction, shard_keys
from talstack.io.manifest import Manifest
from talstack.io.shard import ShardKey
from talstack.io.store import ClipHashes, FeatureStore
from talstack.io.view_names import split_view


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """What to extract.

    Attributes:
        extraction: the record that stage two will read.
        keys: every shard, in a stable order.
        store: where they go.
        manifest_folder, sources, config: what the workers need; a source per backbone.
        quantized: the int8 networks, where the precision is that.
    """

    extraction: Extraction
    keys: tuple[ShardKey, ...]
    store: FeatureStore
    manifest_folder: Path
    sources: tuple[BackboneSource, ...]
    config: ExtractConfig
    quantized: tuple[QuantizedNetwork, ...] = ()

    def part(self, part: tuple[int, int]) -> list[ShardKey]:
        """Return the i-th of n parts (1-based) of the shards; what is made together stays together."""
        return [key for group in _groups(self.keys)[part[0] - 1 :: part[1]] for key in group]

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

    def forget_failures(self, keys: Sequence[ShardKey]) -> None:
        """Make the recorded failures among these a missing shard again."""
        for key in keys:
            self.store.forget_failure(key)

    def workers(self, keys: Sequence[ShardKey], jobs: int = 0) -> Workers:
        """Return the worker processes of this machine that these shards are for; `jobs` 0 chooses how many."""
        num_items = len(_groups(keys))
        if not self.sources or not any("backbone" in key.recipe for key in keys):
            return choose_workers(num_items, jobs=jobs)
        card = self.sources[0].card
        pixels = self.config.batch_segments * card.frames_per_segment * card.frame_size**2
        pictures = max(sum(map(_num_pictures, group)) for group in _groups(keys))
        num_gpus = 0 if self.config.precision == "int8" else count_gpus()
        # one network is in the figure; of a further one there are its file and what a runtime makes of it
        others = sum(2 * source.size_bytes for source in self.sources[1:])
        needed = process_bytes(pixels=pixels, pictures=pictures) + others
        return choose_workers(num_items, jobs=jobs, num_gpus=num_gpus, process_bytes=needed)

    def items(self, keys: Sequence[ShardKey], jobs: int | Workers, *, here: bool = True) -> list[ExtractionItem]:
        """Return the work of these shards for the engine, with the cores shared out among `jobs` processes.

        Shards that are made from the same pictures are one item, so that every frame is decoded once.

        Args:
            here: the work is done on this machine, so the fastest runtime is looked for here, before it begins.
        """
        threads = jobs.threads if isinstance(jobs, Workers) else max(1, int(joblib.cpu_count()) // jobs)
        networks = self._networks(threads, here=here) if any("backbone" in key.recipe for key in keys) else ()
        return [
            ExtractionItem(
                tuple(group), self.store.root, self.manifest_folder, networks, self.config.batch_segments, threads
            )
            for group in _groups(keys)
        ]  # fmt: skip

    def _networks(self, threads: int, *, here: bool) -> tuple[NetworkOrder, ...]:
        config = self.config
        orders = [NetworkOrder(one, config.runtime, config.precision, threads, self.quantized) for one in self.sources]
        return tuple(with_fastest_runtime(order) if here else order for order in orders)


def _groups(keys: Sequence[ShardKey]) -> list[list[ShardKey]]:
    """Return the keys in groups that are made together: all from the pictures of one view, or one of another kind."""
    groups: dict[tuple[str, ...], list[ShardKey]] = {}
    for key in keys:
        what = "pictures" if key.recipe["kind"] in PICTURES else key.modality
        groups.setdefault((what, key.recording, split_view(key.view)[0]), []).append(key)
    kinds = list(dict.fromkeys(what for what, *_ in groups))
    # by kind, so that the parts of an array job get alike shares of what is costly
    return [groups[name] for name in sorted(groups, key=lambda name: kinds.index(name[0]))]


def _num_pictures(key: ShardKey) -> int:
    """Return how many pictures a shard needs for each of its moments; those of several networks are the same."""
    if key.recipe["kind"] not in PICTURES:
        return 0
    return (NUM_FRAMES if key.recipe["kind"] == RGBDIFF else 1) * max(1, len(Piece.of_recipe(key.recipe).cameras))


def plan_extraction(
    data: Path, store_root: Path, *, config: ExtractConfig, sampling: SamplingConfig, backbone: Path | None = None,
    views: Sequence[str] = (), modalities: Sequence[str] = (), name: str | None = None,
) -> ExtractionPlan:  # fmt: skip
    """Return the plan of extracting the manifest folder `data` into the store.

    Args:
        backbone: folder of a fine-tuned backbone or a set of them; None takes the untrained network of `config`.
        views, modalities: override the configuration's where given.

    Raises:
        InputError: a view or modality that the data set does not have.
        ConfigError: sampling other than the backbone was trained with, or another data set's class list.
        LeakError: the folds are not those that a set of backbones was trained with.
        ModelError: no backbone of a set is for one of the views.
    """
    manifest = Manifest.load(data)
    config = replace(config, modalities=tuple(modalities) or config.modalities)
    derived = derive_views(manifest, config) if manifest.clips.height else {}
    chosen, pieces = (
        choose_views(manifest, tuple(views) or config.views, derived) if manifest.clips.height else ((), {})
    )
    wants_pictures = manifest.clips.height > 0 and (not config.modalities or {RGB, RGBDIFF} & set(config.modalities))
    found = _backbones(manifest, config, sampling, backbone) if wants_pictures else None
    identity = found.members[0].backbone if found is not None and found.is_single else {}
    recipes = build_recipes(manifest, config, sampling=sampling, backbone=identity)
    quantized: tuple[QuantizedNetwork, ...] = ()
    if config.precision == "int8" and found is not None:
        if not found.is_single:
            raise ConfigError("extract.precision = int8 is for one backbone; with a set of them take float32")
        from talstack.extract.calibration import quantized_networks, with_quantized

        quantized = quantized_networks(
            manifest, config, store_root=store_root, source=found.sources[0], modalities=tuple(recipes)
        )
        recipes = with_quantized(recipes, quantized)
    extraction = Extraction(
        name or manifest.name, sampling.segment_s, recipes, chosen, derived={n: pieces[n] for n in sorted(pieces)}
    )
    extraction = extraction if found is None else _with_backbones(extraction, found, manifest)
    hashes = ClipHashes(store_root)
    keys = shard_keys(manifest, extraction, hashes)
    hashes.save()
    if not keys and manifest.clips.height and (views or modalities):
        raise InputError(_why_nothing(views or chosen, tuple(recipes)))
    sources = found.sources if found else ()
    return ExtractionPlan(extraction, tuple(keys), FeatureStore(store_root), data, sources, config, quantized)


def _why_nothing(views: Sequence[str], modalities: Sequence[str]) -> str:
    what = f"nothing to extract: no {' or '.join(modalities)} of {', '.join(views)}"
    parents = sorted({split_view(view)[0] for view in views if split_view(view)[1]})
    if parents and AUDIO in modalities:
        return f"{what}; the sound of a piece is that of its view: take --view {' --view '.join(parents)}"
    return f"{what}; the clips of these views have none"


def _with_backbones(extraction: Extraction, found: BackboneSet, manifest: Manifest) -> Extraction:
    """Return the record with what the backbones know of the data set, and with those of a set."""
    if found.is_single:
        return replace(extraction, link=found.card.link, seen=found.members[0].known)
    found.check(manifest, [*extraction.views, *extraction.derived])
    return replace(extraction, link=found.card.link, members=found.members)


def _backbones(manifest: Manifest, config: ExtractConfig, sampling: SamplingConfig, folder: Path | None) -> BackboneSet:
    if folder is None:
        card = BackboneCard(
            arch=config.init_arch, shift=False, segment_s=sampling.segment_s,
            frames_per_segment=sampling.frames_per_segment, frame_size=sampling.frame_size,
            actions=manifest.actions, scenes=manifest.scenes,
        )  # fmt: skip
        if config.init_weights:
            from talstack.extract.weights import checkpoint_source  # noqa: PLC0415 - torch, to look into the file

            return BackboneSet.of(checkpoint_source(card, Path(config.init_weights).expanduser()))
        return BackboneSet.of(BackboneSource(card, None, config.init == "imagenet"))
    found = BackboneSet.load(folder)
    card = found.card
    for field in ("segment_s", "frames_per_segment", "frame_size"):
        if getattr(card, field) != getattr(sampling, field):
            raise ConfigError(
                f"sampling.{field} is {getattr(sampling, field)}, but the backbone in {folder} was trained with "
                f"{getattr(card, field)}; use the configuration it was trained with"
            )
    return found
