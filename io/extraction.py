"""An extraction: which recipe made each modality of a data set, and so which shards belong to it.

`talstack extract` writes one record per extraction; stage two finds its features through it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from talstack.io.errors import ConfigError, InputError, MissingInputError, StoreError
from talstack.io.files import canonical_json, read_json, sha256_text, write_json
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest
from talstack.io.members import Link, Member, choose_members, mean_shard, members_of_view
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
        recipes: settings by modality; a modality of an external feature file has its own name. Where there are
            members, each puts its own backbone into the recipes of pictures.
        views: the cameras taken.
        seen: recordings that the backbone was fine-tuned on or stopped early by; their features are optimistic.
        derived: views cut from another one's picture, {name: what the recipes of rgb and rgbdiff say of it besides};
            see `talstack.io.view_names`.
        imported: sources of the features that `talstack cache import` brought in, by modality, view and recording.
            The data folder does not know them; their recipes stand among the others.
        members: the backbones, where there is one per view or per fold.
        link: between the backbone's action logits and probabilities.
    """

    name: str
    segment_s: float
    recipes: Mapping[str, Mapping[str, Any]]
    views: tuple[str, ...]
    seen: tuple[str, ...] = ()
    derived: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    imported: Mapping[str, Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    link: Link = "softmax"

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
        others = [recipe for recipe in self.recipes.values() if recipe["kind"] not in PICTURES]
        pictures += [{**recipe, **piece} for recipe in pictures for piece in self.derived.values()]
        return (*others, *(own for recipe in pictures for own in self.recipes_of(recipe, self.members)))

    def recipes_of(self, recipe: Mapping[str, Any], members: Sequence[Member]) -> tuple[Mapping[str, Any], ...]:
        """Return a recipe of pictures with the backbone of each of the members; as it is where there are none."""
        if not self.members:
            return (recipe,)
        made = [{**recipe, "backbone": dict(member.backbone)} for member in members]
        return tuple(own for i, own in enumerate(made) if own not in made[:i])  # equal weights make one shard

    def members_for(self, view: str, fold: int | None) -> tuple[Member, ...]:
        """Return the members that make the features of a recording of this fold; none where there is one backbone."""
        return choose_members(self.members, view, fold)

    def recipe_hash(self, view: str, modality: str) -> str:
        """Return a hash of all that makes these features, but for the recordings: equal ones mean the same."""
        recipe = self.recipes[modality]
        made: Sequence[Mapping[str, Any]] = (recipe,)
        if recipe["kind"] in PICTURES:
            whole = {**recipe, **self.derived.get(view, {})}
            made = self.recipes_of(whole, members_of_view(self.members, view))
        content = {"segment_s": self.segment_s, "link": self.link, "recipes": [dict(own) for own in made]}
        return sha256_text(canonical_json(content))

    def seen_among(self, manifest: Manifest) -> frozenset[str]:
        """Return the recordings of a data set that a backbone which makes some of their features knows."""
        if not self.members:
            return frozenset(self.seen)
        folds = dict(manifest.folds.iter_rows())
        pairs = manifest.clips.select("recording", "view").unique().iter_rows()
        return frozenset(
            recording
            for recording, view in pairs
            for name in self.pictured(view)
            if any(recording in member.known for member in self.members_for(name, folds.get(recording)))
        )

    def pictured(self, view: str) -> list[str]:
        """Return the views that are made from the pictures of one: itself and its pieces, as far as they are taken."""
        pieces = [name for name in self.derived if split_view(name)[0] == view]
        return [view, *pieces] if view in self.views else pieces

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
        values["members"] = tuple(_member(member) for member in values.get("members", ()))
        return cls(**values)


def _member(values: Mapping[str, Any]) -> Member:
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Member(**{**values, **lists})


def _record_path(store_root: Path, name: str) -> Path:
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"extraction name {name!r}: use a plain file name")
    return store_root / "extractions" / f"{name}.json"


def shard_keys(manifest: Manifest, extraction: Extraction, hashes: ClipHashes) -> list[ShardKey]:
    """Return the key of every (recording, view, modality) that the data set can have, in a stable order.

    Audio is asked for where a clip has sound or could not be probed; external modalities where there is a file.
    """
    durations = dict(manifest.recordings.select("recording", "duration_s").iter_rows())
    folds = dict(manifest.folds.iter_rows())
    keys = []
    for (recording, view), clips in manifest.clips.sort("recording", "view", "clip").group_by(
        ["recording", "view"], maintain_order=True
    ):
        sources: tuple[dict[str, Any], ...] | None = None
        for name, modality, recipe in _recipes_of_view(extraction, str(view), clips, fold=folds.get(recording)):
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
    extraction: Extraction, view: str, clips: pl.DataFrame, *, fold: int | None
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (view, modality, recipe) of everything that is made from one view's clips, pieces of its picture too."""
    for modality, recipe in extraction.recipes.items():
        if recipe["kind"] == "audio" and _may_have_audio(clips) and view in extraction.views:
            yield view, modality, recipe
        if recipe["kind"] in PICTURES:
            for name in extraction.pictured(view):
                whole = {**recipe, **extraction.derived.get(name, {})}
                for own in extraction.recipes_of(whole, extraction.members_for(name, fold)):
                    yield name, modality, own


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
        missing, failed: shards that are not there, and those that cannot be made.
        groups: the (view, modality) pairs that have at least one shard, sorted.
    """

    def __init__(self, manifest: Manifest, store: FeatureStore, extraction: Extraction) -> None:
        self.manifest, self.extraction, self._store = manifest, extraction, store
        hashes = ClipHashes(store.root)
        keys = shard_keys(manifest, extraction, hashes)
        hashes.save()
        status = [store.status(key) for key in keys]
        self.missing = [key for key, found in zip(keys, status, strict=True) if found == "missing"]
        self.failed = [key for key, found in zip(keys, status, strict=True) if found == "failed"]
        incomplete = {(key.recording, key.view, key.modality) for key in (*self.missing, *self.failed)}
        self._keys: dict[tuple[str, str, str], list[ShardKey]] = {}
        for key in keys:
            if (name := (key.recording, key.view, key.modality)) not in incomplete:
                self._keys.setdefault(name, []).append(key)
        self.groups = sorted({(view, modality) for _, view, modality in self._keys})
        self._reader = ShardReader(store, max_open=8)

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
    def store_root(self) -> Path:
        """Return the folder of the store."""
        return self._store.root

    @property
    def seen(self) -> frozenset[str]:
        """Recordings some of whose features come from a backbone that was fine-tuned on them or stopped early by."""
        return self.extraction.seen_among(self.manifest)

    @property
    def link(self) -> Link:
        """What is between the backbone's action logits and probabilities."""
        return self.extraction.link

    @property
    def comparable(self) -> bool:
        """Whether the features of every group come from one network; else `read` gives logits alone for some."""
        return all(self.is_comparable(*group) for group in self.groups)

    def is_comparable(self, view: str, modality: str) -> bool:
        """Return whether all recordings' features of a group come from one network, so that columns mean the same."""
        pictures = self.extraction.recipes[modality]["kind"] in PICTURES
        return not pictures or len(members_of_view(self.extraction.members, view)) < 2

    @property
    def segment_s(self) -> float:
        """Length of a segment, seconds."""
        return self.extraction.segment_s

    def grid(self, recording: str) -> SegmentGrid:
        """Return the recording's segment grid."""
        return SegmentGrid(self.manifest.duration_s(recording), self.segment_s)

    def read(self, recording: str, view: str, modality: str) -> Shard | None:
        """Return the shard, or None where this recording lacks the view or its extraction failed.

        Where features are not comparable it has no feature columns, and the mean of its members' log-probabilities as
        logits.

        Raises:
            StoreError: the shard is there but damaged.
        """
        keys = self._keys.get((recording, view, modality))
        if keys is None:
            return None
        if self.is_comparable(view, modality):
            return self._store.read(keys[0])
        return mean_shard([self._store.read(key) for key in keys], link=self.link)

    def num_rows(self, recording: str, view: str, modality: str) -> int | None:
        """Return how many rows the shard has, from its header alone; None as `read`.

        Raises:
            StoreError: the shard is there but cannot be opened.
        """
        keys = self._keys.get((recording, view, modality))
        return None if keys is None else self._reader.num_rows(keys[0])

    def rows(self, recording: str, view: str, modality: str, start: int = 0, stop: int | None = None) -> Shard | None:
        """Return rows start to stop of a shard as a shard of their own; None as `read`.

        The content of the whole shard is checked before the first of its rows is served. One file at a time stays
        open; safe in forked and other worker processes (`talstack.io.shard_reader`).

        Raises:
            StoreError: the shard is there but damaged.
        """
        keys = self._keys.get((recording, view, modality))
        if keys is None:
            return None
        if self.is_comparable(view, modality):
            return self._reader.rows(keys[0], start, stop)
        return mean_shard([self._reader.rows(key, start, stop) for key in keys], link=self.link)

    def close(self) -> None:
        """Close the file that is open; reading opens it again."""
        self._reader.close()

    def fingerprints(self, view: str, modality: str, recordings: Sequence[str]) -> list[str]:
        """Return the fingerprints of the group's shards, in the order of `recordings`; "" where there is none.

        Those of several members are joined by "+".
        """
        found = [self._keys.get((recording, view, modality), []) for recording in recordings]
        return ["+".join(key.fingerprint for key in keys) for keys in found]


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
