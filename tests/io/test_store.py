import dataclasses
import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from talstack.io.errors import InputError, StoreError
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import ClipHashes, FeatureStore


def make_key(**changes: object) -> ShardKey:
    values = {
        "recording": "rec-1", "view": "panoramic", "modality": "rgb", "recipe": {"kind": "rgb", "code": 1},
        "sources": ({"name": "clip", "sha256": "0" * 64, "offset_s": 0.0},), "duration_s": 4.0, "segment_s": 1.0,
    }  # fmt: skip
    return ShardKey(**{**values, **changes})


def make_shard(seed: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(4, 8)).astype(np.float16)
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    return Shard(features, np.array([1, 1, 0, 1], bool), np.arange(4) + 0.5, logits=logits, notes=("row 2 damaged",))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    store, key, shard = FeatureStore(tmp_path), make_key(), make_shard()
    assert store.status(key) == "missing"
    store.write(key, shard)
    back = store.read(key)
    assert store.status(key) == "done"
    assert back.notes == shard.notes
    assert back.scene_logits is None
    for name, array in shard.arrays.items():
        assert np.array_equal(back.arrays[name], array)
        assert back.arrays[name].dtype == array.dtype


def test_equal_shards_are_equal_files(tmp_path: Path) -> None:
    first, second = FeatureStore(tmp_path / "a"), FeatureStore(tmp_path / "b")
    first.write(make_key(), make_shard())
    second.write(make_key(), make_shard())
    assert first.path_of(make_key()).read_bytes() == second.path_of(make_key()).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"recording": "rec-2"}, {"view": "third_person"}, {"modality": "audio"}, {"recipe": {"kind": "rgb", "code": 2}},
        {"sources": ({"name": "clip", "sha256": "1" * 64, "offset_s": 0.0},)},
        {"sources": ({"name": "clip", "sha256": "0" * 64, "offset_s": 0.5},)}, {"duration_s": 5.0}, {"segment_s": 0.5},
    ],
)  # fmt: skip
def test_anything_changed_is_a_miss(tmp_path: Path, changes: dict) -> None:
    store = FeatureStore(tmp_path)
    store.write(make_key(), make_shard())
    assert store.status(make_key(**changes)) == "missing"
    with pytest.raises(StoreError, match="run `talstack extract`"):
        store.read(make_key(**changes))


def test_a_shard_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    store, other = FeatureStore(tmp_path), make_key(duration_s=5.0)
    store.write(make_key(), make_shard())
    store.path_of(make_key()).rename(store.path_of(other))
    with pytest.raises(StoreError, match="holds another shard"):
        store.read(other)


def test_failures_are_recorded_and_withdrawn(tmp_path: Path) -> None:
    store, key = FeatureStore(tmp_path), make_key()
    store.record_failure(key, "moov atom missing")
    assert store.status(key) == "failed"
    with pytest.raises(StoreError, match="moov atom missing"):
        store.read(key)
    store.write(key, make_shard())
    assert store.status(key) == "done"
    assert store.failure(key) is None


@pytest.mark.parametrize("name", ["../escape", "..", "a/b", "C:\\x"])
def test_names_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    path = FeatureStore(tmp_path).path_of(make_key(recording=name, view=name))
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert len(path.relative_to(tmp_path).parts) == 3


def test_zeros_that_look_like_data_are_refused() -> None:
    shard = make_shard()
    features = shard.features.copy()
    features[0, 0] = np.inf
    with pytest.raises(InputError, match="NaN or infinity"):
        dataclasses.replace(shard, features=features)


def test_clip_hashes_follow_content_and_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"one")
    hashes = ClipHashes(tmp_path)
    first = hashes.sha256(clip)
    hashes.save()
    monkeypatch.setattr("talstack.io.store.sha256_file", lambda path: pytest.fail("read again"))
    assert ClipHashes(tmp_path).sha256(clip) == first
    monkeypatch.undo()
    clip.write_bytes(b"three")
    assert ClipHashes(tmp_path).sha256(clip) != first
    assert json.loads((tmp_path / "clip-hashes.json").read_text())[str(clip)][2] == first


@pytest.mark.parametrize(
    ("name", "array"),
    [("valid", np.ones(4, np.int8)), ("times_s", np.ones(4, np.float32)), ("logits", np.ones(4, np.float32))],
)
def test_arrays_of_another_kind_are_refused_before_they_are_written(name: str, array: np.ndarray) -> None:
    with pytest.raises(InputError, match=f"Shard: {name} must be"):
        dataclasses.replace(make_shard(), **{name: array})


def test_a_shard_of_the_first_release_is_served(tmp_path: Path) -> None:
    """As written by 0.1.0: by h5py straight into the file, attributes first."""
    store, key, shard = FeatureStore(tmp_path), make_key(), make_shard()
    notes = '["row 2 damaged"]'
    digest = hashlib.sha256(f"aligned True\nnotes {notes}\n".encode())
    for name, array in sorted(shard.arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    store.path_of(key).parent.mkdir(parents=True)
    with h5py.File(store.path_of(key), "w") as file:
        file.attrs["identity"], file.attrs["checksum"] = key.identity, digest.hexdigest()
        file.attrs["aligned"], file.attrs["notes"] = True, notes
        for name, array in shard.arrays.items():
            file.create_dataset(name, data=array, track_times=False)
    back = store.read(key)
    assert back.notes == shard.notes
    assert all(np.array_equal(back.arrays[name], array) for name, array in shard.arrays.items())
