"""A miss is explained by exactly the field that made it one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talstack.io import shard as shard_module
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore
from talstack.io.store_contents import key_of, scan_store
from talstack.io.store_explain import ABSENT, explain

KEY = ShardKey(
    recording="rec-1", view="front", modality="rgb",
    recipe={
        "kind": "rgb", "sampling": {"segment_s": 1.0, "frames_per_segment": 8, "frame_size": 224}, "resize": "squash",
        "backbone": {"arch": "resnet50", "shift": True, "fold_div": 8, "weights_sha256": "a" * 64}, "torch": "2.10.0",
        "code": 1, "decoders": {"av": "14.0", "decord": "3.0"},
    },
    sources=({"name": "c0", "sha256": "0" * 64, "offset_s": 0.0}, {"name": "c1", "sha256": "1" * 64, "offset_s": None}),
    duration_s=3.0, segment_s=1.0,
)  # fmt: skip


def leaves(value: Any, field: str = "") -> list[str]:
    """Return the place of every value within nested dictionaries and lists."""
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in leaves(item, f"{field}.{name}" if field else name)]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, f"{field}[{i}]")]
    return [field]


FIELDS = leaves(json.loads(KEY.identity))


def changed(identity: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return the identity with another value at one place."""
    copy = json.loads(json.dumps(identity))
    *way, last = field.replace("[", ".").replace("]", "").split(".")
    at: Any = copy
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    old = at[last]
    at[last] = (not old) if isinstance(old, bool) else f"{old}x" if isinstance(old, str) else (old or 0.0) + 1
    return copy


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(tmp_path)
    store.write(KEY, Shard(np.ones((3, 2), np.float16), np.ones(3, bool), np.arange(3) + 0.5))
    return store


def ask(store: FeatureStore, key: ShardKey):
    (found,) = explain(scan_store(store.root), [key])
    return found


def test_each_field_changed_alone_is_a_miss_and_is_named(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(store, KEY).outcome == "served"
    stored, named = json.loads(KEY.identity), 0
    for field in FIELDS:
        wanted = changed(stored, field)
        monkeypatch.setattr(shard_module, "FORMAT_VERSION", wanted["format_version"])
        found = ask(store, key_of(wanted))
        assert found.outcome == "missing", field
        assert [item.field for item in found.differences] == [field]
        assert found.differences[0].stored != found.differences[0].wanted
        named += 1
    assert {"format_version", "recording", "sources[0].sha256", "sources[1].offset_s", "grid.segment_s"} <= set(FIELDS)
    print(f"{named} of {len(FIELDS)} fields changed alone: a miss, and explain names exactly that field")


def test_a_clip_more_is_one_difference(store: FeatureStore) -> None:
    more = ({"name": "b", "sha256": "2" * 64, "offset_s": 1.0}, *KEY.sources)
    wanted = ShardKey(KEY.recording, KEY.view, KEY.modality, KEY.recipe, more, KEY.duration_s, KEY.segment_s)
    (difference,) = ask(store, wanted).differences
    assert (difference.field, difference.stored) == ("sources[b]", ABSENT)


def test_a_whole_number_in_place_of_a_fraction_is_named(store: FeatureStore) -> None:
    identity = json.loads(KEY.identity)
    identity["sources"][0]["offset_s"] = 0  # equal in Python, another fingerprint in JSON
    (difference,) = ask(store, key_of(identity)).differences
    assert difference.field == "sources[0].offset_s"


def test_the_shard_that_differs_least_is_the_nearest(store: FeatureStore) -> None:
    far = changed(changed(json.loads(KEY.identity), "recipe.resize"), "recipe.torch")
    store.write(key_of(far), Shard(np.ones((3, 2), np.float16), np.ones(3, bool), np.arange(3) + 0.5))
    found = ask(store, key_of(changed(far, "recipe.code")))
    assert found.nearest.file.path == store.path_of(key_of(far))
    assert [item.field for item in found.differences] == ["recipe.code"]


def test_failed_damaged_and_empty_are_told(store: FeatureStore, tmp_path: Path) -> None:
    other = key_of(changed(json.loads(KEY.identity), "recording"))
    store.record_failure(other, "moov atom missing")
    assert (ask(store, other).outcome, ask(store, other).reason) == ("failed", "moov atom missing")
    path = store.path_of(KEY)
    path.write_bytes(path.read_bytes()[:-50])
    found = ask(store, KEY)
    assert found.outcome == "damaged" and "extract again" in found.reason
    (tmp_path / "empty").mkdir()
    nothing = ask(FeatureStore(tmp_path / "empty"), KEY)
    assert (nothing.outcome, nothing.nearest, nothing.differences) == ("missing", None, ())


def test_unreadable_shards_are_passed_over_and_counted(store: FeatureStore) -> None:
    store.path_of(KEY).write_bytes(b"nothing")
    found = ask(store, key_of(changed(json.loads(KEY.identity), "recipe.torch")))
    assert (found.outcome, found.nearest, found.num_unreadable) == ("missing", None, 1)
