"""Parts of many shards, read in one process and in several."""

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import joblib
import numpy as np
import pytest

from talstack.io.errors import InputError, StoreError
from talstack.io.shard import OpenShard, Shard, ShardKey
from talstack.io.shard_reader import ShardReader
from talstack.io.store import FeatureStore

NUM_ROWS = 40


def make_key(number: int) -> ShardKey:
    return ShardKey(f"rec-{number}", "front", "rgb", {"kind": "rgb"}, ({"name": str(number)},), NUM_ROWS, 1.0)


def make_shard(number: int) -> Shard:
    features = np.random.default_rng(number).normal(size=(NUM_ROWS, 8)).astype(np.float16)
    valid = np.arange(NUM_ROWS) % 5 != number
    return Shard(features, valid, np.arange(NUM_ROWS) + 0.5, logits=features[:, :3].astype(np.float32), notes=("n",))


KEYS = [make_key(number) for number in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(tmp_path)
    for number, key in enumerate(KEYS):
        store.write(key, make_shard(number))
    return store


def is_right(part: Shard, number: int, start: int, stop: int) -> bool:
    whole = make_shard(number)
    return all(np.array_equal(part.arrays[name], array[start:stop]) for name, array in whole.arrays.items())


def read_all(reader: ShardReader) -> tuple[int, int, bool]:
    """Return the process, how many files it has open, and whether every part was right."""
    right = [is_right(reader.rows(key, 7, 19), number, 7, 19) for number, key in enumerate(KEYS)]
    return os.getpid(), reader.num_open, all(right)


def test_only_the_rows_asked_for_are_read(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardReader(store) as reader:
        assert reader.num_rows(KEYS[1]) == NUM_ROWS
        assert is_right(reader.rows(KEYS[1], 0, 1), 1, 0, 1)  # the first time all of it is checked
        asked = []
        real = h5py.Dataset.__getitem__
        monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, at: asked.append(at) or real(self, at))
        assert is_right(reader.rows(KEYS[1], 3, 5), 1, 3, 5)
        assert asked == [slice(3, 5)] * 4
        assert is_right(reader.rows(KEYS[1]), 1, 0, NUM_ROWS)
        assert len(reader.rows(KEYS[1], 4, 4).features) == 0
        assert reader.rows(KEYS[1], 4, 6).notes == ("n",)
        for start, stop in ((-1, 3), (3, 2), (0, NUM_ROWS + 1)):
            with pytest.raises(InputError, match="were asked for, it has 40"):
                reader.rows(KEYS[1], start, stop)


def test_few_files_stay_open_and_each_is_checked_once(
    store: FeatureStore, open_below: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    real = OpenShard.check_content
    monkeypatch.setattr(OpenShard, "check_content", lambda self: checked.append(self.path) or real(self))
    reader = ShardReader(store, max_open=2)
    for _ in range(3):
        assert read_all(reader)[1:] == (2, True)
    assert len(open_below(store.root)) == 2
    assert sorted(checked) == sorted(store.path_of(key) for key in KEYS)
    reader.close()
    assert open_below(store.root) == []
    with pytest.raises(InputError, match="max_open must be at least 1, got 0"):
        ShardReader(store, max_open=0)


def test_a_damaged_missing_failed_or_foreign_shard_is_refused(store: FeatureStore) -> None:
    with ShardReader(store) as reader:
        assert read_all(reader)[2]
        content = bytearray(store.path_of(KEYS[0]).read_bytes())
        content[content.index(make_shard(0).features.tobytes())] ^= 1
        store.path_of(KEYS[0]).write_bytes(content)  # while it is open
        with pytest.raises(StoreError, match="does not match its checksum"):
            reader.rows(KEYS[0], 30, 31)  # a row that is sound
        store.path_of(KEYS[1]).unlink()
        with pytest.raises(StoreError, match="rec-1 front/rgb: no features at"):
            reader.rows(KEYS[1])
        store.record_failure(KEYS[1], "moov atom missing")
        with pytest.raises(StoreError, match="extraction failed: moov atom missing"):
            reader.rows(KEYS[1])
        store.path_of(KEYS[3]).rename(store.path_of(KEYS[2]))
        with pytest.raises(StoreError, match="holds another shard"):
            reader.rows(KEYS[2])


def test_a_fork_opens_its_own_files_even_while_the_parent_reads(store: FeatureStore) -> None:
    reader = ShardReader(store)
    assert read_all(reader)[2]
    held = reader._of_this_process().lock
    with held:  # another thread of the parent is in the middle of a read
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if reader.num_open == 0 and read_all(reader)[1:] == (6, True) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read_all(reader)[1:] == (6, True), "the parent's files are still open"
    reader.close()


def test_a_pickled_reader_arrives_with_nothing_open(store: FeatureStore) -> None:
    with ShardReader(store, max_open=3) as reader:
        read_all(reader)
        copy = pickle.loads(pickle.dumps(reader))
        assert (copy.num_open, copy.max_open) == (0, 3)
        assert read_all(copy)[2]
        copy.close()


def test_loky_workers_read_the_same(store: FeatureStore) -> None:
    with ShardReader(store, max_open=4) as reader:
        read_all(reader)
        # a method, because the workers cannot import this module
        tasks = (joblib.delayed(reader.rows)(key, 7, 19) for key in KEYS)
        results = joblib.Parallel(n_jobs=2, backend="loky")(tasks)
        assert reader.num_open == 4, "the workers opened files of their own"
    assert all(is_right(rows, number, 7, 19) for number, rows in enumerate(results))


def test_threads_share_a_reader(store: FeatureStore) -> None:
    results = []
    with ShardReader(store, max_open=2) as reader:
        threads = [threading.Thread(target=lambda: results.append(read_all(reader)[2])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 4
