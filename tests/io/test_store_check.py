"""Every way in which a file of a store can be wrong is found, named, and moved out of the way on demand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from talstack.io.extraction import Extraction
from talstack.io.files import canonical_json
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore, failure_path
from talstack.io.store_check import StoreCheck, check_store, quarantine
from talstack.io.store_contents import scan_store


def make_key(**changes: object) -> ShardKey:
    values = {
        "recording": "rec-1", "view": "front", "modality": "rgb", "recipe": {"kind": "rgb"},
        "sources": ({"name": "clip", "sha256": "0" * 64, "offset_s": 0.0},), "duration_s": 3.0, "segment_s": 1.0,
    }  # fmt: skip
    return ShardKey(**{**values, **changes})


def make_shard() -> Shard:
    rng = np.random.default_rng(0)
    return Shard(rng.normal(size=(3, 500)).astype(np.float16), np.ones(3, bool), np.arange(3) + 0.5)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(tmp_path / "store")
    for i in range(1, 4):
        store.write(make_key(recording=f"rec-{i}"), make_shard())
    store.record_failure(make_key(recording="rec-9"), "moov atom missing")
    Extraction("toy", 1.0, {"rgb": {"kind": "rgb"}}, ("front",)).save(store.root)
    return store


def check(store: FeatureStore, *, deep: bool = False) -> StoreCheck:
    return check_store(scan_store(store.root), deep=deep, jobs=2)


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_store_has_nothing_bad(store: FeatureStore, deep: bool) -> None:
    found = check(store, deep=deep)
    assert found.bad == () and found.other_format == ()
    assert found.num_checked == {"shard": 3, "failure": 1, "recipe": 1, "extraction": 1, "hashes": 0}


def truncate(store: FeatureStore, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def swap(store: FeatureStore, path: Path) -> None:
    path.write_bytes(store.path_of(make_key(recording="rec-2")).read_bytes())


def other_name(store: FeatureStore, path: Path) -> None:
    path.rename(path.with_name("front-rgb-0123456789abcdef.h5"))


def edit_identity(store: FeatureStore, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["identity"] = str(file.attrs["identity"]).replace('"segment_s":1.0', '"segment_s":0.5')


def drop_array(store: FeatureStore, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["valid"]


def longer(store: FeatureStore, path: Path) -> None:
    shard = Shard(np.ones((7, 2), np.float16), np.ones(7, bool), np.arange(7) + 0.5)
    store.write(make_key(), shard)


def other_recipe(store: FeatureStore, path: Path) -> None:
    (path.parents[1] / "recipe.json").write_text('{"kind": "audio"}')


def bad_failure(store: FeatureStore, path: Path) -> None:
    failed = failure_path(store.path_of(make_key(recording="rec-9")))
    record = json.loads(failed.read_text())
    failed.write_text(json.dumps({**record, "key": {**record["key"], "recording": "rec-8"}}))


SHALLOW = {
    truncate: "lies outside|not a readable|outside the file", swap: "was made for rec-2", other_name: "belongs at",
    edit_identity: "belongs at", drop_array: "valid", longer: "7 rows", other_recipe: "does not hold the settings",
    bad_failure: "was made for rec-8",
}  # fmt: skip


@pytest.mark.parametrize("damage", SHALLOW, ids=lambda damage: damage.__name__)
def test_a_shallow_check_finds(store: FeatureStore, damage: Callable[[FeatureStore, Path], None]) -> None:
    damage(store, store.path_of(make_key()))
    (bad,) = check(store).bad
    assert bad.movable
    assert any(text in bad.reason for text in SHALLOW[damage].split("|")), bad.reason


def test_only_a_deep_check_finds_a_flipped_bit_in_the_features(store: FeatureStore) -> None:
    path = store.path_of(make_key())
    content = bytearray(path.read_bytes())
    content[content.find(make_shard().features.tobytes()[:64])] ^= 1
    path.write_bytes(bytes(content))
    assert check(store).bad == ()
    (bad,) = check(store, deep=True).bad
    assert "checksum" in bad.reason


def off_grid(shard: Shard) -> Shard:
    return replace(shard, times_s=np.array([0.5, 1.7, 2.5]))


def not_a_time(shard: Shard) -> Shard:
    return replace(shard, times_s=np.array([0.5, np.nan, 2.5]), aligned=False)


def masked_data(shard: Shard) -> Shard:
    return replace(shard, valid=np.array([True, False, True]))


DEEP = {off_grid: "row 1 lies at 1.7 s", not_a_time: "NaN", masked_data: "row 1 is marked as not valid"}


@pytest.mark.parametrize("change", DEEP, ids=lambda change: change.__name__)
def test_a_deep_check_finds_sound_files_with_wrong_content(
    store: FeatureStore, change: Callable[[Shard], Shard]
) -> None:
    store.write(make_key(), change(make_shard()))
    assert check(store).bad == ()
    (bad,) = check(store, deep=True).bad
    assert DEEP[change] in bad.reason


def test_a_deep_check_finds_features_that_are_not_finite(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = make_shard()
    shard.features[0, 0] = np.nan  # behind the back of the check that a shard does when it is made
    store.write(make_key(), shard)
    assert check(store).bad == ()
    (bad,) = check(store, deep=True).bad
    assert "NaN or infinity" in bad.reason


def test_every_bad_file_is_listed_and_moved_out_so_that_it_is_made_again(store: FeatureStore) -> None:
    keys = [make_key(recording=f"rec-{i}") for i in (1, 2)]
    for key in keys:
        truncate(store, store.path_of(key))
    contents = scan_store(store.root)
    damaged = {store.path_of(key): store.path_of(key).read_bytes() for key in keys}
    moved = quarantine(contents, check(store).bad)
    assert [item.moved_to.read_bytes() for item in moved] == [damaged[item.path] for item in moved]
    assert [store.status(key) for key in keys] == ["missing", "missing"]
    assert check(store).bad == ()
    store.write(keys[0], make_shard())
    truncate(store, store.path_of(keys[0]))
    (again,) = quarantine(scan_store(store.root), check(store).bad)
    assert again.moved_to.name == f"{again.path.name}.1"
    print(f"{len(damaged)} of {len(damaged)} bad shards moved and missing, none overwritten in quarantine")


def test_a_damaged_record_of_an_extraction_is_bad_but_stays(store: FeatureStore) -> None:
    record = store.root / "extractions" / "toy.json"
    record.write_text("{")
    (bad,) = quarantine(scan_store(store.root), check(store).bad)
    assert bad.moved_to is None and record.is_file()


def test_a_shard_of_another_format_is_neither_judged_nor_moved(store: FeatureStore) -> None:
    path = store.path_of(make_key())
    with h5py.File(path, "r+") as file:
        identity = json.loads(file.attrs["identity"])
        file.attrs["identity"] = canonical_json({**identity, "format_version": 99})
    found = check(store)
    assert found.bad == ()
    assert [item.reason for item in found.other_format] == ["format version 99, this talstack knows 1"]
