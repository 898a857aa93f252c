"""The index of a store: what it tells, when it is not believed, and that nothing depends on it."""

import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.io.journal import JournalWriter, shard_names
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore
from talstack.io.store_contents import read_entry, scan_store
from talstack.io.store_index import SCHEMA, index_path, indexed_entries, read_index, update_index

RGB = {"kind": "rgb", "backbone": {"arch": "resnet18", "weights_sha256": "ab" * 32}}


def make_key(recording: str) -> ShardKey:
    source = {"name": "clip", "sha256": "0" * 64, "offset_s": 0.0}
    return ShardKey(recording, "front", "rgb", RGB, (source,), 3.0, 1.0)


def make_shard(value: float = 1.0) -> Shard:
    features = np.full((3, 2), value, np.float16)
    features[2] = 0
    return Shard(features, np.array([True, True, False]), np.arange(3) + 0.5)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Return a store with two shards, one of which a journal speaks of, a failure, and a damaged shard."""
    store = FeatureStore(tmp_path / "store")
    for name in ("r1", "r2", "r4"):
        store.write(make_key(name), make_shard())
    store.record_failure(make_key("r3"), "moov atom missing")
    store.path_of(make_key("r4")).write_bytes(b"half a shard")
    journal = JournalWriter(store.root, "run")
    journal.start("task", shard_names([make_key("r1")]))
    journal.end("task", [{"recording": "r1", "view": "front", "modality": "rgb", "outcome": "done"}])
    journal.close()
    return store


def entries(store: FeatureStore) -> list[dict]:
    contents = scan_store(store.root)
    read = indexed_entries(contents)
    return [asdict(read(file)) for file in contents.of_kind("shard", "failure")]


def opened(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the recordings whose files are opened for a look at the store."""
    names = []

    def look(file):
        names.append(file.path.parent.name)
        return read_entry(file)

    monkeypatch.setattr("talstack.io.store_index.read_entry", look)
    entries(store)
    return names


def test_the_table_tells_what_there_is(store: FeatureStore) -> None:
    made = update_index(scan_store(store.root))
    assert (made.num_read, dict(made.table.schema)) == (4, dict(SCHEMA))
    rows = {row["path"].split("/")[1]: row for row in made.table.iter_rows(named=True)}
    assert [rows[name]["outcome"] for name in ("r1", "r2", "r3", "r4")] == ["done", "done", "failed", "unreadable"]
    assert (rows["r1"]["rows"], rows["r1"]["valid"], rows["r3"]["reason"]) == (3, 2, "moov atom missing")
    assert rows["r1"]["fingerprint"] == make_key("r1").fingerprint
    assert rows["r1"]["worker"].endswith(f"-{os.getpid()}") and rows["r2"]["worker"] is None
    assert read_index(store.root).equals(made.table)


def test_what_it_knows_is_not_opened_and_reads_the_same(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    without = entries(store)
    update_index(scan_store(store.root))
    assert entries(store) == without
    assert opened(store, monkeypatch) == ["r4"], "what cannot be read is looked at again"


def test_a_file_that_changed_is_read_again(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    update_index(scan_store(store.root))
    store.write(make_key("r2"), make_shard(2.0))
    store.write(make_key("r5"), make_shard())
    os.utime(store.path_of(make_key("r1")), ns=(1, 1))
    assert opened(store, monkeypatch) == ["r1", "r2", "r4", "r5"]
    assert update_index(scan_store(store.root)).num_read == 3  # the row that says "unreadable" still holds


def test_losing_it_loses_nothing(store: FeatureStore) -> None:
    first = update_index(scan_store(store.root)).table
    index_path(store.root).unlink()
    assert update_index(scan_store(store.root)).table.equals(first)
    assert update_index(scan_store(store.root), rebuild=True).num_read == 4
    shutil.rmtree(store.root / "journal")
    assert update_index(scan_store(store.root)).table["worker"].to_list() == [None] * 4


def test_a_damaged_index_is_never_believed(store: FeatureStore) -> None:
    expected = entries(store)
    update_index(scan_store(store.root))
    whole, rng = index_path(store.root).read_bytes(), random.Random(0)
    for length in range(0, len(whole), 211):
        index_path(store.root).write_bytes(whole[:length])
        assert entries(store) == expected
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        index_path(store.root).write_bytes(flipped)
        assert entries(store) == expected


def test_an_index_with_other_columns_or_values_is_not_believed(store: FeatureStore) -> None:
    expected, table = entries(store), update_index(scan_store(store.root)).table
    for other in (table.drop("check"), table.with_columns(rows=pl.lit(7, pl.Int64)), pl.DataFrame({"a": [1]})):
        other.write_parquet(index_path(store.root))
        assert entries(store) == expected


def test_a_false_index_serves_nothing(store: FeatureStore) -> None:
    update_index(scan_store(store.root))
    store.path_of(make_key("r1")).unlink()
    assert store.status(make_key("r1")) == "missing"
    assert [entry["file"]["path"].parent.name for entry in entries(store)] == ["r2", "r3", "r4"]
