"""Shards damaged after their commit are refused or read as the same values; none reads as zeros. Prints counts."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.io.errors import StoreError
from talstack.io.extraction import Extraction, FeatureSet, shard_keys
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard, ShardKey, read_shard, write_shard
from talstack.io.store import ClipHashes, FeatureStore

KEY = ShardKey("rec-1", "front", "rgb", {"kind": "rgb"}, ({"name": "c", "sha256": "0" * 64},), 4.0, 1.0)
NEW = Shard(
    np.random.default_rng(1).normal(size=(4, 8)).astype(np.float16),
    np.array([1, 1, 0, 1], bool), np.arange(4) + 0.5, notes=("row 2 damaged",),
)  # fmt: skip


def damages(content: bytes, bits: Iterator[tuple[int, int]]) -> Iterator[bytes]:
    for position, bit in bits:
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        yield bytes(flipped)


def count_outcomes(path: Path, damaged: Iterator[bytes]) -> Counter[str]:
    """Return how many are refused and how many read as the same values; anything else fails."""
    seen: Counter[str] = Counter()
    for content in damaged:
        path.write_bytes(content)
        try:
            back = read_shard(path, KEY)
        except StoreError:
            seen["refused"] += 1
            continue
        assert (back.aligned, back.notes) == (NEW.aligned, NEW.notes)
        assert set(back.arrays) == set(NEW.arrays)
        assert all(np.array_equal(back.arrays[name], array) for name, array in NEW.arrays.items())
        seen["value-identical"] += 1
    return seen


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_every_nth_byte_and_every_nth_truncation(tmp_path: Path, step: int) -> None:
    path = tmp_path / "shard.h5"
    write_shard(path, KEY, NEW)
    content = path.read_bytes()
    flips = count_outcomes(path, damages(content, ((at, at * 5 % 8) for at in range(0, len(content), step))))
    cuts = count_outcomes(path, (content[:size] for size in range(0, len(content), step)))
    print(f"\nshard of {len(content)} bytes; a bit of every {step}. flipped: {dict(flips)}; cut short: {dict(cuts)}")
    assert flips["refused"] > len(content) // step // 8
    assert cuts["refused"] == cuts.total() == len(range(0, len(content), step)), "no part of a shard is a shard"


def test_a_heap_on_which_hdf5_never_ends_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    write_shard(path, KEY, NEW)
    content = bytearray(path.read_bytes())
    start = content.index(b"GCOL")
    at, end = start + 16, start + int.from_bytes(content[start + 8 : start + 16], "little")
    while content[at : at + 2] != b"\0\0":  # over the strings to the free rest
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    assert int.from_bytes(content[at + 8 : at + 16], "little") == end - at
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="heap at byte .* is damaged"):
        read_shard(path, KEY)


@pytest.mark.slow
def test_every_bit_flipped(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    write_shard(path, KEY, NEW)
    content = path.read_bytes()
    flips = count_outcomes(path, damages(content, itertools.product(range(len(content)), range(8))))
    print(f"\nshard of {len(content)} bytes, every bit flipped: {dict(flips)}")
    assert flips.total() == 8 * len(content)


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    """Return the features of a data set of two sensors, stored."""
    rows = {"recordings": [("a", 4.0, None, "train"), ("b", 4.0, None, "train")],
            "features": [("a", "imu", "a.npz"), ("b", "imu", "b.npz")]}  # fmt: skip
    tables = {name: pl.DataFrame(rows.get(name, []), schema=SCHEMAS[name], orient="row") for name in SCHEMAS}
    for name in ("a.npz", "b.npz"):
        (tmp_path / name).write_bytes(name.encode())
    manifest = Manifest(name="toy", media_root=tmp_path, actions=("x",), scenes=(), **tables)
    extraction = Extraction("toy", 1.0, {"imu": {"kind": "external"}}, ())
    store = FeatureStore(tmp_path / "store")
    for key in shard_keys(manifest, extraction, ClipHashes(store.root)):
        store.write(key, NEW)
    extraction.save(store.root)
    return FeatureSet.open(manifest, store.root)


def test_a_missing_or_damaged_shard_never_reads_as_zeros(features: FeatureSet, tmp_path: Path) -> None:
    assert np.array_equal(features.read("a", "external", "imu").features, NEW.features)
    (path,) = (tmp_path / "store").rglob("a/*.h5")
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[: len(content) // 2], bytes(len(content))):
        path.write_bytes(damaged)
        with pytest.raises(StoreError):
            features.read("a", "external", "imu")
    path.unlink()  # after the set was opened
    with pytest.raises(StoreError, match="no features under these settings"):
        features.read("a", "external", "imu")
    again = FeatureSet.open(features.manifest, tmp_path / "store")
    assert [key.recording for key in again.missing] == ["a"]
    assert again.read("a", "external", "imu") is None, "absent, and said to be"
    assert np.array_equal(again.read("b", "external", "imu").features, NEW.features)
