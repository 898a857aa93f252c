"""What a shard's file must look like: inspected before any of its data is read.

A store may come from a stranger. HDF5 can point into other files, name objects that run code paths nobody tests, and
declare a petabyte in a few bytes; and data that was never written reads as zeros. So only what `write_shard` makes is
let through, compressed or not: five known data sets of known types, wholly written, inside the file.
"""

import math
import mmap
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5s, h5t, h5z

from talstack.io.errors import StoreError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ATTRIBUTES = ("identity", "checksum", "aligned", "notes")
DATASETS: Mapping[str, tuple[int, np.dtype]] = {
    "features": (2, np.dtype("<f2")),
    "valid": (1, np.dtype(bool)),
    "times_s": (1, np.dtype("<f8")),
    "logits": (2, np.dtype("<f4")),
    "scene_logits": (2, np.dtype("<f4")),
}
OPTIONAL = frozenset({"logits", "scene_logits"})
HEAP_START = b"GCOL\x01\x00\x00\x00"  # signature, version and reserved bytes of what holds the attributes' strings
MAX_STRING_BYTES = 1 << 24
# what h5py ships and any HDF5 library reads; the number behind each is how much smaller it can make data
FILTERS = {h5z.FILTER_DEFLATE: 1032, h5z.FILTER_SHUFFLE: 1, h5z.FILTER_FLETCHER32: 1}


def check_before_opening(path: Path) -> None:
    """Check what can be told without HDF5.

    Raises:
        StoreError: no regular file, a symbolic link, or one that does not start with HDF5's signature (damaged, or
            with a user block).
        OSError: it cannot be opened.
    """
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise StoreError(f"{path}: is a symbolic link, which may lead out of the store; put the shard itself there")
    if not stat.S_ISREG(mode):
        raise StoreError(f"{path}: is no regular file; remove it and extract again")
    with open(path, "rb") as file:
        start = file.read(len(SIGNATURE))
        if start != SIGNATURE:
            raise StoreError(f"{path}: does not start as an HDF5 file, got {start!r}; remove it and extract again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_heaps(path, content)


def _check_heaps(path: Path, content: mmap.mmap) -> None:
    """Walk every heap of strings as HDF5 will: on a free object of size 0, one flipped bit away, HDF5 2.0 never ends.

    A heap is its start, its size (8 bytes), then objects: index, references (2 bytes each), 4 reserved bytes, size (8
    bytes), content padded to 8 bytes. Index 0 is the free rest, whose size counts its own header.
    """
    start = content.find(HEAP_START)
    while start >= 0:
        size = struct.unpack_from("<Q", content, start + 8)[0] if start + 16 <= len(content) else 0
        at, end = start + 16, start + size
        while size >= 16 and end <= len(content) and at + 16 <= end:
            index, object_bytes = struct.unpack_from("<HxxxxxxQ", content, at)
            step = object_bytes if index == 0 else 16 + (object_bytes + 7) // 8 * 8
            if step < 16:
                break
            at += step
        if not (size >= 16 and end <= len(content) and end - 16 < at <= end):
            raise StoreError(f"{path}: its heap at byte {start} is damaged; remove it and extract again")
        start = content.find(HEAP_START, start + 1)


def check_structure(file: h5py.File, file_bytes: int) -> None:
    """Check everything the file declares, without reading any data or following any link.

    Args:
        file: open for reading.
        file_bytes: its size; nothing may lie outside it.

    Raises:
        StoreError: anything that `write_shard` would not have made; the message names it.
        KeyError, RuntimeError, ...: as h5py, where HDF5 itself cannot make sense of the file.
    """
    where = file.filename
    if file.userblock_size:
        raise StoreError(f"{where}: has a user block of {file.userblock_size} bytes, expected none")
    _check_attributes(file)
    _check_names(file)
    stored = sum(_check_dataset(file, name, file_bytes=file_bytes) for name in file)
    if stored > file_bytes:
        raise StoreError(f"{where}: its data sets store {stored} bytes in a file of {file_bytes}: they overlap")
    rows = {name: h5d.open(file.id, name.encode()).shape[0] for name in file}
    if len(set(rows.values())) != 1:
        raise StoreError(f"{where}: data sets differ in their number of rows: {rows}")


def _check_attributes(file: h5py.File) -> None:
    if h5a.get_num_attrs(file.id) != len(ATTRIBUTES):
        raise StoreError(f"{file.filename}: has {h5a.get_num_attrs(file.id)} attributes, expected {ATTRIBUTES}")
    for name in ATTRIBUTES:
        attribute = h5a.open(file.id, name.encode())
        kind = attribute.get_type()
        if name == "aligned":
            plain = kind.equal(h5t.py_create(np.dtype(bool), logical=True))
        else:
            plain = isinstance(kind, h5t.TypeStringID) and (
                kind.is_variable_str() or kind.get_size() <= MAX_STRING_BYTES
            )
        if not plain or kind.committed() or attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
            expected = "one truth value" if name == "aligned" else "one string"
            raise StoreError(f"{file.filename}: attribute {name} is not plain, expected {expected}")


def _check_names(file: h5py.File) -> None:
    where, num_links = file.filename, file.id.get_num_objs()
    if num_links > len(DATASETS):
        raise StoreError(f"{where}: holds {num_links} objects, expected at most {len(DATASETS)}: {', '.join(DATASETS)}")
    names = set(file)  # lists the links, follows none
    unknown, absent = sorted(names - set(DATASETS)), sorted(set(DATASETS) - OPTIONAL - names)
    if unknown or absent:
        what = f"unknown data set {unknown[0]!r}" if unknown else f"no data set {absent[0]!r}"
        raise StoreError(f"{where}: {what}, expected {', '.join(DATASETS)}")
    for name in names:
        if file.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
            raise StoreError(f"{where}: {name} is a link; shards hold plain data sets only")
        if h5o.get_info(file.id, name.encode()).type != h5o.TYPE_DATASET:
            raise StoreError(f"{where}: {name} is a group or a named type; shards hold plain data sets only")


def _check_dataset(file: h5py.File, name: str, *, file_bytes: int) -> int:
    """Return how many bytes of the file the data set takes, after checking that it is what its name says."""
    where, dataset = f"{file.filename}: {name}", h5d.open(file.id, name.encode())
    num_axes, dtype = DATASETS[name]
    # before the shape is asked for: that of a virtual data set is worked out by opening other files
    made = dataset.get_create_plist()
    if made.get_layout() == h5d.VIRTUAL:
        raise StoreError(f"{where} is a virtual data set; shards hold plain data sets only")
    if made.get_external_count():
        raise StoreError(f"{where} lies in external files; shards hold plain data sets only")
    if h5a.get_num_attrs(dataset):
        raise StoreError(f"{where} has attributes, expected none")
    kind = dataset.get_type()
    if kind.committed() or not kind.equal(h5t.py_create(dtype, logical=True)):
        raise StoreError(f"{where} is of another type, expected plain {dtype.name}")
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5s.SIMPLE or len(dataset.shape) != num_axes:
        raise StoreError(f"{where} has shape {dataset.shape}, expected {num_axes} axes")
    if space.get_simple_extent_dims(True) != dataset.shape:
        raise StoreError(f"{where} can be resized, expected a fixed shape")
    smallest = _smallest_ratio(made, where)
    declared = math.prod(dataset.shape) * dtype.itemsize
    if declared > smallest * file_bytes:
        raise StoreError(f"{where} declares {dataset.shape}, {declared} bytes, in a file of {file_bytes}")
    if made.get_layout() == h5d.CHUNKED:
        return _check_chunks(dataset, made, where=where, file_bytes=file_bytes)
    return _check_block(dataset, declared, where=where, file_bytes=file_bytes)


def _smallest_ratio(made: h5py.h5p.PropDCID, where: str) -> int:
    """Return how many times smaller than its content the stored data set can be, by its filters."""
    ratio = 1
    for number in range(made.get_nfilters()):
        code, _, _, label = made.get_filter(number)
        if code not in FILTERS:
            raise StoreError(f"{where} needs filter {code} ({label.decode(errors='replace')}), expected gzip or none")
        ratio *= FILTERS[code]
    if ratio > max(FILTERS.values()):
        raise StoreError(f"{where} is compressed more than once, expected at most one gzip filter")
    return ratio


def _check_block(dataset: h5d.DatasetID, declared: int, *, where: str, file_bytes: int) -> int:
    """Check a data set that lies in one piece; return its size."""
    stored = int(dataset.get_storage_size())
    offset = dataset.get_offset()  # None: inside the header, or never written
    if stored != declared or (offset or 0) + stored > file_bytes:
        raise StoreError(f"{where} declares {declared} bytes, but {stored} are in the file: the rest would be made up")
    return stored


def _check_chunks(dataset: h5d.DatasetID, made: h5py.h5p.PropDCID, *, where: str, file_bytes: int) -> int:
    """Check a data set that lies in chunks: all written, none larger than it; return what they take together."""
    chunk_shape, shape = made.get_chunk(), dataset.shape
    if any(chunk > axis for chunk, axis in zip(chunk_shape, shape, strict=True)):
        raise StoreError(f"{where} has chunks of {chunk_shape}, larger than its shape {shape}")
    expected = math.prod(-(-axis // chunk) for axis, chunk in zip(shape, chunk_shape, strict=True))
    if expected > file_bytes or int(dataset.get_num_chunks()) != expected:
        raise StoreError(f"{where} has {dataset.get_num_chunks()} chunks of {expected}: the rest would be made up")
    chunks: list[h5d.StoreInfo] = []
    dataset.chunk_iter(chunks.append)  # one pass; asking for chunk i looks through all before it
    if any(chunk.byte_offset is None or chunk.byte_offset + chunk.size > file_bytes for chunk in chunks):
        raise StoreError(f"{where} has a chunk outside the file")
    return sum(int(chunk.size) for chunk in chunks)
