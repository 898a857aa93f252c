"""A feature store at a glance: what each recipe made, how large and how old it is, and which extractions use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from talstack.io.store_contents import (
    ShardEntry,
    StoreContents,
    StoreFile,
    read_entry,
    read_extractions,
    recipe_names,
)

Read = Callable[[StoreFile], ShardEntry]


@dataclass(frozen=True, slots=True)
class RecipeSummary:
    """What was made by one recipe.

    Attributes:
        recipe: name of its folder.
        kind: rgb, audio, external, ...; "?" where nothing in the folder says.
        backbone: the network and its weights, in short; "" without one.
        segment_s: lengths of the segments, seconds; more than one where extractions of several lengths share it.
        groups: number of shards by "view/modality".
        shards: every readable shard and failure, and every one that cannot be read.
        size_bytes: of everything in the folder.
        oldest_s, newest_s: when shards were written, seconds since 1970; None without shards.
        extractions: names of the recorded extractions that use it.
    """

    recipe: str
    kind: str
    backbone: str
    segment_s: tuple[float, ...]
    groups: Mapping[str, int]
    shards: tuple[ShardEntry, ...]
    size_bytes: int
    oldest_s: float | None
    newest_s: float | None
    extractions: tuple[str, ...]

    @property
    def num_shards(self) -> int:
        """How many shards there are, readable or not."""
        return sum(entry.file.kind == "shard" for entry in self.shards)

    @property
    def num_failures(self) -> int:
        """How many recorded failures there are."""
        return len(self.shards) - self.num_shards

    @property
    def num_unreadable(self) -> int:
        """How many shards and failures cannot be read."""
        return sum(entry.identity is None for entry in self.shards)


def summarise(contents: StoreContents, *, read: Read = read_entry) -> list[RecipeSummary]:
    """Return one summary per recipe folder, sorted by kind and name.

    Args:
        read: gives what a shard or failure was made from.

    Raises:
        InputError: the record of an extraction cannot be read.
    """
    users: dict[str, list[str]] = {}
    for extraction in read_extractions(contents):
        for name in recipe_names(extraction):
            users.setdefault(name, []).append(extraction.name)
    made = [_summary(contents, name, tuple(sorted(users.get(name, ()))), read=read) for name in contents.recipes]
    return sorted(made, key=lambda summary: (summary.kind, summary.recipe))


def _summary(contents: StoreContents, recipe: str, extractions: tuple[str, ...], *, read: Read) -> RecipeSummary:
    files = [file for file in contents.files if file.recipe == recipe]
    entries = tuple(read(file) for file in files if file.kind in ("shard", "failure"))
    known = [entry.identity for entry in entries if entry.identity is not None]
    groups: dict[str, int] = {}
    for entry in entries:
        if entry.identity is not None and entry.file.kind == "shard":
            group = f"{entry.identity['view']}/{entry.identity['modality']}"
            groups[group] = groups.get(group, 0) + 1
    settings: Mapping[str, Any] = known[0]["recipe"] if known else {}
    segment_s = tuple(sorted({float(identity["grid"]["segment_s"]) for identity in known}))
    written_s = [entry.file.changed_s for entry in entries if entry.file.kind == "shard"]
    return RecipeSummary(
        recipe=recipe, kind=str(settings.get("kind", "?")), backbone=_backbone(settings),
        segment_s=segment_s,
        groups=dict(sorted(groups.items())), shards=entries, size_bytes=sum(file.size_bytes for file in files),
        oldest_s=min(written_s, default=None), newest_s=max(written_s, default=None), extractions=extractions,
    )  # fmt: skip


def _backbone(settings: Mapping[str, Any]) -> str:
    """Return the network of a recipe in a few words: its architecture and where its weights come from."""
    network = settings.get("backbone")
    if not isinstance(network, dict):
        return ""
    weights = network.get("weights_sha256")
    origin = str(weights)[:8] if weights else str(network.get("init", "")).split(",")[0]
    return " ".join(part for part in (str(network.get("arch", "?")), origin) if part)
