"""Shards from strangers: whatever `write_shard` would not have made is refused before any data is read."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from talstack.io.errors import StoreError
from talstack.io.shard import OpenShard, Shard, ShardKey, read_shard, write_shard

KEY = ShardKey("rec-1", "front", "rgb", {"kind": "rgb"}, ({"name": "c", "sha256": "0" * 64},), 6.0, 1.0)
FEATURES = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float16)
SHARD = Shard(FEATURES, np.ones(6, bool), np.arange(6) + 0.5, logits=np.zeros((6, 3), np.float32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_shard(tmp_path / "shard.h5", KEY, SHARD)
    return tmp_path / "shard.h5"


@pytest.fixture
def no_data_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every read of a data set fail the test; opening and looking at what it declares is free."""
    reads: list[str] = []

    def read(self: h5py.Dataset, *args: object, **kwargs: object) -> None:
        reads.append(self.name)
        pytest.fail(f"data of {self.name} was read")

    for name in ("__getitem__", "read_direct", "__array__", "astype"):
        monkeypatch.setattr(h5py.Dataset, name, read)
    return reads


def replace(file: h5py.File, name: str, **how: object) -> None:
    del file[name]
    file.create_dataset(name, **how)


def low_level(
    file: h5py.File, name: str, *, shape: tuple[int, ...], kind: object, made: object = None
) -> h5d.DatasetID:
    del file[name]
    return h5d.create(file.id, name.encode(), kind, h5s.create_simple(shape), made)


def soft_link(file: h5py.File) -> None:
    del file["logits"]
    file["logits"] = h5py.SoftLink("/features")


def dangling_soft_link(file: h5py.File) -> None:
    del file["features"]
    file["features"] = h5py.SoftLink("/nowhere")


def external_link(file: h5py.File) -> None:
    del file["logits"]
    file["logits"] = h5py.ExternalLink("elsewhere.h5", "/x")


def external_storage(file: h5py.File) -> None:
    replace(file, "features", shape=(6, 8), dtype="f2", external=[("/etc/passwd", 0, 96)])


def virtual_data_set(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((6, 8), "f2")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "features", shape=(6, 8))
    del file["features"]
    file.create_virtual_dataset("features", layout)


def group(file: h5py.File) -> None:
    del file["logits"]
    file.create_group("logits")


def named_type(file: h5py.File) -> None:
    del file["logits"]
    file["logits"] = np.dtype("f4")


def committed_type_of_data(file: h5py.File) -> None:
    kind = h5t.IEEE_F32LE.copy()
    kind.commit(file.id, b"kind")
    del file["logits"]
    h5d.create(file.id, b"logits", kind, h5s.create_simple((6, 3))).write(h5s.ALL, h5s.ALL, np.zeros((6, 3), "f4"))
    del file["kind"]


def unknown_data_set(file: h5py.File) -> None:
    file["payload"] = np.zeros(3)


def crowd(file: h5py.File) -> None:
    for number in range(1000):
        file.create_dataset(f"d{number}", shape=(), dtype="i1")


def absent_data_set(file: h5py.File) -> None:
    del file["valid"]


def extra_attribute(file: h5py.File) -> None:
    file.attrs["author"] = "x"


def attribute_of_data(file: h5py.File) -> None:
    file["features"].attrs["scale"] = 2.0


def compound_attribute(file: h5py.File) -> None:
    file.attrs["notes"] = np.zeros(1, dtype=[("a", "i4"), ("b", "f8")])[0]


def array_attribute(file: h5py.File) -> None:
    file.attrs["checksum"] = ["a", "b"]


def empty_attribute(file: h5py.File) -> None:
    file.attrs["checksum"] = h5py.Empty("S10")


def reference_attribute(file: h5py.File) -> None:
    file.attrs["notes"] = file["features"].ref


def lzf(file: h5py.File) -> None:
    replace(file, "features", data=FEATURES, compression="lzf")


def scale_offset(file: h5py.File) -> None:
    replace(file, "times_s", data=np.arange(6) + 0.5, scaleoffset=2)


def unheard_of_filter(file: h5py.File) -> None:
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk((6, 8))
    made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    low_level(file, "features", shape=(6, 8), kind=h5t.IEEE_F16LE, made=made)


def gzip_twice(file: h5py.File) -> None:
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk((6, 8))
    made.set_deflate(9)
    made.set_deflate(9)
    low_level(file, "features", shape=(6, 8), kind=h5t.IEEE_F16LE, made=made)


def objects(file: h5py.File) -> None:
    replace(file, "logits", shape=(6, 3), dtype=h5py.ref_dtype)


def variable_length(file: h5py.File) -> None:
    replace(file, "logits", shape=(6, 3), dtype=h5py.vlen_dtype(np.float32))


def strings(file: h5py.File) -> None:
    replace(file, "features", shape=(6, 8), dtype=h5py.string_dtype())


def other_floats(file: h5py.File) -> None:
    replace(file, "features", data=FEATURES.astype(np.float64))


def odd_floats(file: h5py.File) -> None:
    kind = h5t.IEEE_F16LE.copy()
    kind.set_ebias(3)  # h5py calls this float16 as well
    low_level(file, "features", shape=(6, 8), kind=kind).write(h5s.ALL, h5s.ALL, FEATURES)


def integer_mask(file: h5py.File) -> None:
    replace(file, "valid", data=np.full(6, 2, np.int8))


def three_axes(file: h5py.File) -> None:
    replace(file, "features", data=FEATURES.reshape(6, 4, 2))


def scalar(file: h5py.File) -> None:
    replace(file, "times_s", data=1.0)


def no_space(file: h5py.File) -> None:
    replace(file, "times_s", data=h5py.Empty("f8"))


def fewer_rows(file: h5py.File) -> None:
    replace(file, "valid", data=np.ones(5, bool))


def resizable(file: h5py.File) -> None:
    replace(file, "features", data=FEATURES, chunks=(1 << 10, 1 << 10), maxshape=(None, None))


def petabyte(file: h5py.File) -> None:
    replace(file, "features", shape=(10**12, 500), dtype="f2", chunks=(1000, 500))


def petabyte_gzip(file: h5py.File) -> None:
    replace(file, "features", shape=(10**12, 500), dtype="f2", chunks=(1 << 20, 500), compression="gzip")


def petabyte_in_one_piece(file: h5py.File) -> None:
    low_level(file, "features", shape=(10**12, 500), kind=h5t.IEEE_F16LE)  # space is taken only when written


def never_written(file: h5py.File) -> None:
    replace(file, "features", shape=(6, 8), dtype="f2")


def chunk_never_written(file: h5py.File) -> None:
    replace(file, "features", shape=(6, 8), dtype="f2", chunks=(2, 8))
    file["features"][:4] = FEATURES[:4]


def too_many_rows(file: h5py.File) -> None:
    for name, array in SHARD.arrays.items():
        replace(file, name, data=np.repeat(array, 2, axis=0))


STRANGERS: list[tuple[Callable[[h5py.File], None], str]] = [
    (soft_link, "logits is a link"),
    (dangling_soft_link, "features is a link"),
    (external_link, "logits is a link"),
    (external_storage, "features lies in external files"),
    (virtual_data_set, "features is a virtual data set"),
    (group, "logits is a group or a named type"),
    (named_type, "logits is a group or a named type"),
    (committed_type_of_data, "logits is of another type"),
    (unknown_data_set, "unknown data set 'payload'"),
    (crowd, "holds 1004 objects, expected at most 5"),
    (absent_data_set, "no data set 'valid'"),
    (extra_attribute, "has 5 attributes"),
    (attribute_of_data, "features has attributes"),
    (compound_attribute, "attribute notes is not plain"),
    (array_attribute, "attribute checksum is not plain"),
    (empty_attribute, "attribute checksum is not plain"),
    (reference_attribute, "attribute notes is not plain"),
    (lzf, "features needs filter 32000"),
    (scale_offset, "times_s needs filter 6"),
    (unheard_of_filter, "features needs filter 32015"),
    (gzip_twice, "features is compressed more than once"),
    (objects, "logits is of another type, expected plain float32"),
    (variable_length, "logits is of another type"),
    (strings, "features is of another type, expected plain float16"),
    (other_floats, "features is of another type"),
    (odd_floats, "features is of another type"),
    (integer_mask, "valid is of another type, expected plain bool"),
    (three_axes, r"features has shape \(6, 4, 2\), expected 2 axes"),
    (scalar, "times_s has shape"),
    (no_space, "times_s has shape"),
    (fewer_rows, "data sets differ in their number of rows"),
    (resizable, "features can be resized"),
    (petabyte, r"features declares \(1000000000000, 500\), 1000000000000000 bytes, in a file of"),
    (petabyte_gzip, r"features declares \(1000000000000, 500\)"),
    (petabyte_in_one_piece, r"features declares \(1000000000000, 500\)"),
    (never_written, "the rest would be made up"),
    (chunk_never_written, "has 2 chunks of 3: the rest would be made up"),
    (too_many_rows, "has 12 rows, but rec-1 front/rgb has 6 segments"),
]


@pytest.mark.parametrize(("forge", "message"), STRANGERS, ids=[forge.__name__ for forge, _ in STRANGERS])
def test_what_no_shard_holds_is_refused_before_any_data_is_read(
    path: Path, no_data_read: list[str], forge: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(path, "r+") as file:
        forge(file)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=message) as caught:
            read_shard(path, KEY)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "not a readable shard" not in str(caught.value), "refused by the inspection, not by luck"
    assert not no_data_read
    assert peak_bytes < 1 << 21


def test_the_samples_differ_from_a_shard_by_what_was_forged_only(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["features"][0, 0] = FEATURES[0, 0]  # an edit that changes nothing
    assert np.array_equal(read_shard(path, KEY).features, FEATURES)


def test_reading_needs_data_to_be_read(path: Path, no_data_read: list[str]) -> None:
    with pytest.raises(pytest.fail.Exception, match="was read"):
        read_shard(path, KEY)


@pytest.mark.parametrize(
    "how", [{"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"chunks": (4, 5)}]
)
def test_the_filters_that_h5py_ships_are_read(path: Path, how: dict) -> None:
    with h5py.File(path, "r+") as file:
        replace(file, "features", data=FEATURES, **how)
        replace(file, "logits", data=SHARD.logits, **how if "chunks" not in how else {})
    back = read_shard(path, KEY)
    assert np.array_equal(back.features, FEATURES)
    assert np.array_equal(back.logits, SHARD.logits)


def test_gzip_of_constant_rows_is_not_taken_for_a_bomb(tmp_path: Path) -> None:
    key = ShardKey("long", "front", "rgb", {}, (), 20_000.0, 1.0)
    zeros = Shard(np.zeros((20_000, 64), np.float16), np.zeros(20_000, bool), np.arange(20_000) + 0.5)
    write_shard(tmp_path / "zeros.h5", key, zeros)
    with h5py.File(tmp_path / "zeros.h5", "r+") as file:
        data = file["features"][()]
        replace(file, "features", data=data, compression="gzip", chunks=data.shape)
        stored = file["features"].id.get_storage_size()
    assert data.nbytes / stored > 500
    assert read_shard(tmp_path / "zeros.h5", key).features.shape == (20_000, 64)


def test_a_user_block_is_refused(path: Path, no_data_read: list[str]) -> None:
    with h5py.File(path.with_name("block.h5"), "w", userblock_size=512) as copy, h5py.File(path) as file:
        for name in file:
            file.copy(name, copy)
        copy.attrs.update(dict(file.attrs))
    with pytest.raises(StoreError, match="does not start as an HDF5 file"):
        read_shard(path.with_name("block.h5"), KEY)
    assert not no_data_read


def test_links_and_other_files_in_place_of_a_shard_are_refused(path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.h5"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(StoreError, match="symbolic link, which may lead out of the store"):
        read_shard(path, KEY)
    path.unlink()
    os.mkfifo(path)  # opening it would wait for ever
    with pytest.raises(StoreError, match="no regular file"):
        read_shard(path, KEY)
    path.unlink()
    with pytest.raises(StoreError, match="could not be read"):
        read_shard(path, KEY)


def test_a_store_may_lie_behind_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    path.rename(tmp_path / "disk" / "shard.h5")
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    assert np.array_equal(read_shard(tmp_path / "store" / "shard.h5", KEY).features, FEATURES)


def test_the_file_says_what_it_is_of(path: Path) -> None:
    with OpenShard(path) as opened:
        assert json.loads(opened.identity) == json.loads(KEY.identity)
        assert (opened.num_rows, opened.aligned, opened.notes) == (6, True, ())
