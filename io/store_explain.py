"""Why features are served or missing: the nearest shard that is there, and the fields in which it differs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from talstack.io.errors import StoreError
from talstack.io.shard import ShardKey
from talstack.io.store import FeatureStore
from talstack.io.store_contents import ShardEntry, StoreContents, read_entry

Outcome = Literal["served", "failed", "damaged", "missing"]
ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which what is stored differs from what is wanted.

    Attributes:
        field: its place in the identity, such as `recipe.sampling.segment_s` or `sources[0].sha256`.
        stored, wanted: the values; `ABSENT` where there is no such field.
    """

    field: str
    stored: Any
    wanted: Any


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the store has under a key, and if nothing, what comes nearest.

    Attributes:
        key: what is asked for.
        outcome: served, failed (a recorded failure), damaged (there, but refused on reading) or missing.
        path: where the shard lies or would lie.
        reason: why it failed or is refused; "" otherwise.
        nearest: shard or recorded failure that differs in the fewest fields; None unless missing, or where the store
            has none.
        differences: the fields in which `nearest` differs, sorted.
        num_unreadable: files passed over in the search because they cannot be read.
    """

    key: ShardKey
    outcome: Outcome
    path: Path
    reason: str = ""
    nearest: ShardEntry | None = None
    differences: tuple[Difference, ...] = ()
    num_unreadable: int = 0


def explain(contents: StoreContents, keys: Sequence[ShardKey]) -> list[Explanation]:
    """Return for every key whether the store serves it, and which fields made it a miss.

    The nearest shard is looked for among those of the same recording, view and modality, and where there are none
    among all: a recording may have been renamed.
    """
    store = FeatureStore(contents.root)
    found = [_outcome(store, key) for key in keys]
    return [_with_nearest(item, contents) if item.outcome == "missing" else item for item in found]


def _outcome(store: FeatureStore, key: ShardKey) -> Explanation:
    path, status = store.path_of(key), store.status(key)
    if status == "missing":
        return Explanation(key, "missing", path)
    try:
        if status == "failed":
            return Explanation(key, "failed", path, store.failure(key) or "")
        store.read(key)
    except StoreError as error:
        return Explanation(key, "damaged", path, str(error))
    return Explanation(key, "served", path)


def _with_nearest(missing: Explanation, contents: StoreContents) -> Explanation:
    key, wanted = missing.key, json.loads(missing.key.identity)
    files = contents.of_kind("shard", "failure")
    # a name does not say where the view ends and the modality starts, so what it stands for is read as well
    folder, start = missing.path.parent.name, missing.path.name.removesuffix(f"{key.fingerprint[:16]}.h5")
    near = [file for file in files if file.path.parent.name == folder and file.path.name.startswith(start)]
    entries = [read_entry(file) for file in near]
    candidates = [entry for entry in entries if entry.group == (key.recording, key.view, key.modality)]
    if not candidates:
        entries += [read_entry(file) for file in files if file not in near]
        candidates = [entry for entry in entries if entry.identity is not None]
    num_unreadable = sum(entry.identity is None for entry in entries)
    ranked = [(differences(entry.identity or {}, wanted), entry) for entry in candidates]
    if not ranked:
        return Explanation(key, "missing", missing.path, num_unreadable=num_unreadable)
    # a shard before a failure, the newest first
    found, entry = min(ranked, key=lambda pair: (len(pair[0]), pair[1].file.kind != "shard", -pair[1].file.changed_s))
    return Explanation(
        key, "missing", missing.path, nearest=entry, differences=tuple(found), num_unreadable=num_unreadable
    )


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Difference]:
    """Return the fields in which two identities differ, sorted by field.

    Lists of equal length are compared item by item; clips of lists of other lengths by their names, so that one clip
    more is one difference.
    """
    return sorted(_differences(dict(stored), dict(wanted), ""), key=lambda found: found.field)


def _differences(stored: Any, wanted: Any, field: str) -> Iterator[Difference]:
    if isinstance(stored, list) and isinstance(wanted, list):
        stored, wanted = _by_place_or_name(stored, wanted)
        template = field + "[{}]"
    elif isinstance(stored, dict) and isinstance(wanted, dict):
        template = field + ".{}" if field else "{}"
    else:
        if type(stored) is not type(wanted) or stored != wanted:  # 1 and 1.0 make two fingerprints
            yield Difference(field, stored, wanted)
        return
    for name in stored.keys() | wanted.keys():
        yield from _differences(stored.get(name, ABSENT), wanted.get(name, ABSENT), template.format(name))


def _by_place_or_name(stored: list[Any], wanted: list[Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    if len(stored) != len(wanted):
        named = [{item["name"]: item for item in items if isinstance(item, dict) and "name" in item}
                 for items in (stored, wanted)]  # fmt: skip
        if len(named[0]) == len(stored) and len(named[1]) == len(wanted):
            return named[0], named[1]
    return dict(enumerate(stored)), dict(enumerate(wanted))
