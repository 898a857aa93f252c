"""An extraction: which recipe made each modality of a data set, and so which shards belong to it.

`talstack extract` writes one record per extraction; stage two finds its features through it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.errors import ConfigError, InputError, MissingInputError, StoreError
from talstack.io.files import read_json, write_json
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest
from talstack.io.shard import EXTERNAL_VIEW, Shard, ShardKey
from talstack.io.shard_reader import ShardReader
from talstack.io.store import ClipHashes, FeatureStore
from talstack.io.view_names import split_view

PICTURES = ("rgb", "rgbdiff")  # kinds of recipes that are made from pictures


@dataclass(frozen=True, slots=True)
class Extraction:
    """What one `talstack extract` made.

    Attributes:
        name: by default the data set's name.
        segment_s: length of a segment, seconds.
        recipes: settings by modality; a modality of an external feature file has its own name.
        views: the cameras taken.
        seen: recordings that the backbone was fine-tuned on; their features are optimistic.
        derived: views cut from another one's picture, {name: what the recipes of rgb and rgbdiff say of it besides};
            see `talstack.io.view_names`.
        imported: sources of the features that `talstack cache import` brought in, by modality, view and recording.
            The data folder does not know them; their recipes stand among the others.
    """

    name: str
    segment_s: float
    recipes: Mapping[str, Mapping[str, Any]]
    views: tuple[str, ...]
    seen: tuple[str, ...] = ()
    derived: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    imported: Mapping[str, Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]] = field(default_factory=dict)

    def save(self, store_root: Path) -> None:
        """Write the record into the store; what was imported under its name before stays in it."""
        write_json(_record_path(store_root, self.name), asdict(self._with_earlier_imports(store_root)))

    def _with_earlier_imports(self, store_root: Path) -> "Extraction":
        if not _record_path(store_root, self.name).is_file():
            return self
        before = Extraction.load(store_root, self.name)
        kept = {modality: views for modality, views in before.imported.items() if modality not in self.recipes}
        recipes = {modality: before.recipes[modality] for modality in kept}
        return replace(self, recipes={**self.recipes, **recipes}, imported={**self.imported, **kept})

    @property
    def all_recipes(self) -> tuple[Mapping[str, Any], ...]:
        """The recipe of every shard it may have: those of the modalities, and of pieces of pictures."""
        pictures = [recipe for recipe in self.recipes.values() if recipe["kind"] in PICTURES]
        return (
            *self.recipes.values(), *({**recipe, **piece} for recipe in pictures for piece in self.derived.values())
        )  # fmt: skip

    @classmethod
    def load(cls, store_root: Path, name: str) -> "Extraction":
        """Read a record.

        Raises:
            MissingInputError: nothing of this name was extracted; the message lists what was.
        """
        path = _record_path(store_root, name)
        if not path.is_file():
            there = sorted(p.stem for p in path.parent.glob("*.json"))
            raise MissingInputError(
                f"{store_root}: no extraction named {name!r} (there: {', '.join(there) or 'none'}); "
                "run `talstack extract`"
            )
        values = read_json(path)
        values["views"], values["seen"] = tuple(values["views"]), tuple(values["seen"])
        return cls(**values)


def _record_path(store_root: Path, name: str) -> Path:
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"extraction name {name!r}: use a plain file name")
    return store_root / "extractions" / f"{name}.json"


def shard_keys(manifest: Manifest, extraction: Extraction, hashes: ClipHashes) -> list[ShardKey]:
    """Return the key of every (recording, view, modality) that the data set can have, in a stable order.

    Audio is asked for where a clip has sound or could not be probed; external modalities where there is a file.
    """
    durations = dict(manifest.recordings.select("recording", "duration_s").iter_rows())
    keys = []
    for (recording, view), clips in manifest.clips.sort("recording", "view", "clip").group_by(
        ["recording", "view"], maintain_order=True
    ):
        sources: tuple[dict[str, Any], ...] | None = None
        for name, modality, recipe in _recipes_of_view(extraction, str(view), clips):
            sources = sources or _clip_sources(manifest, clips, hashes)
            keys.append(
                ShardKey(
                    str(recording), name, modality, recipe, sources, durations[recording], extraction.segment_s
                )
            )  # fmt: skip
    for row in manifest.features.sort("recording", "modality").iter_rows(named=True):
        if row["modality"] in extraction.recipes:
            path = manifest.media_path(row["path"])
            source = {"name": row["path"], "sha256": hashes.sha256(path), "offset_s": 0.0}
            keys.append(
                ShardKey(
                    row["recording"], EXTERNAL_VIEW, row["modality"], extraction.recipes[row["modality"]], (source,),
                    durations[row["recording"]], extraction.segment_s,
                )
            )  # fmt: skip
    return keys + _imported_keys(extraction, durations)


def _recipes_of_view(
    extraction: Extraction, view: str, clips: pl.DataFrame
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (view, modality, recipe) of everything that is made from one view's clips, pieces of its picture too."""
    own = [view] if view in extraction.views else []
    pieces = [name for name in extraction.derived if split_view(name)[0] == view]
    for modality, recipe in extraction.recipes.items():
        if recipe["kind"] == "audio" and _may_have_audio(clips):
            yield from ((name, modality, recipe) for name in own)
        if recipe["kind"] in PICTURES:
            yield from ((name, modality, recipe) for name in own)
            yield from ((name, modality, {**recipe, **extraction.derived[name]}) for name in pieces)


def _imported_keys(extraction: Extraction, durations: Mapping[str, float]) -> list[ShardKey]:
    """Return the keys of the imported features of the recordings that the data set still has."""
    return [
        ShardKey(
            recording, view, modality, extraction.recipes[modality], tuple(sources), durations[recording],
            extraction.segment_s,
        )
        for modality, views in sorted(extraction.imported.items())
        for view, recordings in sorted(views.items())
        for recording, sources in sorted(recordings.items())
        if recording in durations
    ]  # fmt: skip


def _may_have_audio(clips: pl.DataFrame) -> bool:
    return bool((clips["has_audio"].fill_null(True)).any())


def _clip_sources(manifest: Manifest, clips: pl.DataFrame, hashes: ClipHashes) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "name": row["clip"],
            "sha256": hashes.sha256(manifest.media_path(row["path"])),
            "offset_s": row["offset_s"],
        }
        for row in clips.iter_rows(named=True)
    )


class FeatureSet:
    """Read access to the features of one extraction of one data set.

    Attributes:
        manifest, extraction: what it reads.
        groups: the (view, modality) pairs that have at least one shard, sorted.
    """

    def __init__(self, manifest: Manifest, store: FeatureStore, extraction: Extraction) -> None:
        self.manifest, self.extraction, self._store = manifest, extraction, store
        hashes = ClipHashes(store.root)
        keys = shard_keys(manifest, extraction, hashes)
        hashes.save()
        self._keys = {(k.recording, k.view, k.modality): k for k in keys if store.status(k) == "done"}
        self.missing = [k for k in keys if store.status(k) == "missing"]
        self.failed = [k for k in keys if store.status(k) == "failed"]
        self.groups = sorted({(k.view, k.modality) for k in self._keys.values()})
        self._reader = ShardReader(store, max_open=1)

    @classmethod
    def open(cls, manifest: Manifest, store_root: Path, name: str | None = None) -> "FeatureSet":
        """Return the features of the named extraction (by default the data set's name).

        Raises:
            MissingInputError: there is no such extraction.
            StoreError: it has no shard at all.
        """
        extraction = Extraction.load(store_root, name or manifest.name)
        features = cls(manifest, FeatureStore(store_root), extraction)
        if not features.groups:
            raise StoreError(
                f"{store_root}: extraction {extraction.name!r} has no shards; run `talstack extract` again"
            )
        return features

    @property
    def seen(self) -> frozenset[str]:
        """Recordings that the backbone was fine-tuned on."""
        return frozenset(self.extraction.seen)

    @property
    def segment_s(self) -> float:
        """Length of a segment, seconds."""
        return self.extraction.segment_s

    def grid(self, recording: str) -> SegmentGrid:
        """Return the recording's segment grid."""
        return SegmentGrid(self.manifest.duration_s(recording), self.segment_s)

    def read(self, recording: str, view: str, modality: str) -> Shard | None:
        """Return the shard, or None where this recording lacks the view or its extraction failed.

        Raises:
            StoreError: the shard is there but damaged.
        """
        key = self._keys.get((recording, view, modality))
        return None if key is None else self._store.read(key)

    def num_rows(self, recording: str, view: str, modality: str) -> int | None:
        """Return how many rows the shard has, from its header alone; None as `read`.

        Raises:
            StoreError: the shard is there but cannot be opened.
        """
        key = self._keys.get((recording, view, modality))
        return None if key is None else self._reader.num_rows(key)

    def rows(self, recording: str, view: str, modality: str, start: int = 0, stop: int | None = None) -> Shard | None:
        """Return rows start to stop of a shard as a shard of their own; None as `read`.

        The content of the whole shard is checked before the first of its rows is served. One file at a time stays
        open; safe in forked and other worker processes (`talstack.io.shard_reader`).

        Raises:
            StoreError: the shard is there but damaged.
        """
        key = self._keys.get((recording, view, modality))
        return None if key is None else self._reader.rows(key, start, stop)

    def close(self) -> None:
        """Close the file that is open; reading opens it again."""
        self._reader.close()

    def fingerprints(self, view: str, modality: str, recordings: Sequence[str]) -> list[str]:
        """Return the fingerprints of the group's shards, in the order of `recordings`; "" where there is none."""
        found = [self._keys.get((recording, view, modality)) for recording in recordings]
        return [key.fingerprint if key is not None else "" for key in found]


def check_views(manifest: Manifest, views: Sequence[str]) -> tuple[str, ...]:
    """Return the views to extract: those asked for, or all of the data set.

    Raises:
        InputError: a view that no clip has.
    """
    there = sorted(manifest.clips["view"].unique().to_list())
    unknown = [view for view in views if view not in there]
    if unknown:
        raise InputError(f"view {unknown[0]!r} is not in {manifest.name}; views: {', '.join(there)}")
    return tuple(sorted(set(views))) if views else tuple(there)
