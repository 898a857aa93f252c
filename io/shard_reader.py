"""Rows of many shards: for training loops and worker processes that need a part of each at a time.

Files are opened when they are first needed, in each process for itself, and only so many stay open. A reader may be
forked or pickled at any time: neither handles nor locks travel. See docs/decisions/0008-reading-shards.md.
"""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from talstack.io.errors import InputError, StoreError
from talstack.io.shard import OpenShard, Shard, ShardKey
from talstack.io.store import FeatureStore

Stamp = tuple[int, int, int, int]


class ShardReader:
    """Read access to parts of shards.

    A shard is checked whole, against its key and its checksum, before the first of its rows is served; again when
    the file has changed on disk (device, inode, size or modification time). Safe to use from several threads.

    Attributes:
        store: what it reads.
        max_open: how many files one process keeps open.
    """

    def __init__(self, store: FeatureStore, *, max_open: int = 32) -> None:
        if max_open < 1:
            raise InputError(f"ShardReader: max_open must be at least 1, got {max_open}")
        self.store, self.max_open = store, max_open
        self._here = _OfThisProcess({})

    def rows(self, key: ShardKey, start: int = 0, stop: int | None = None) -> Shard:
        """Return rows start to stop of the shard as a shard of their own; no others are kept in memory.

        Raises:
            InputError: rows that the shard does not have.
            StoreError: it is missing, damaged, or of other settings; a recorded failure is quoted.
        """
        here = self._of_this_process()
        with here.lock:
            opened, stamp = self._opened(here, key)
            if here.checked.get(opened.path) == stamp:
                return opened.rows(start, stop)
            try:
                if start == 0 and stop in (None, opened.num_rows):  # read once for both
                    found = opened.read()
                else:
                    opened.check_content()
                    found = opened.rows(start, stop)
            except StoreError:
                _forget(here, opened.path)
                raise
            here.checked[opened.path] = stamp
            return found

    def num_rows(self, key: ShardKey) -> int:
        """Return how many rows the shard has, as its header says; its content is not looked at. Raises as `rows`."""
        here = self._of_this_process()
        with here.lock:
            return self._opened(here, key)[0].num_rows

    @property
    def num_open(self) -> int:
        """How many files this process has open."""
        return len(self._of_this_process().files)

    def close(self) -> None:
        """Close this process's files; the next read opens them again."""
        here = self._of_this_process()
        with here.lock:
            while here.files:
                here.files.popitem()[1][1].close()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "max_open": self.max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.store, self.max_open = state["store"], state["max_open"]
        self._here = _OfThisProcess({})  # another machine may see other files: nothing counts as checked there

    def _of_this_process(self) -> "_OfThisProcess":
        if self._here.pid != os.getpid():  # forked: handles and lock belong to the parent, what was checked still holds
            self._here = _OfThisProcess(self._here.checked)
        return self._here

    def _opened(self, here: "_OfThisProcess", key: ShardKey) -> tuple[OpenShard, Stamp]:
        """Return the shard of the key, open and the youngest of those open, and its file's stamp."""
        path = self.store.path_of(key)
        try:
            stamp = _stamp(path)
        except OSError as error:
            _forget(here, path)
            reason = self.store.failure(key)
            why = f"extraction failed: {reason}" if reason is not None else f"no features at {path} ({error.strerror})"
            raise StoreError(f"{key}: {why}; run `talstack extract`") from error
        if path in here.files and here.files[path][0] == stamp:
            here.files.move_to_end(path)
        else:
            _forget(here, path)
            while len(here.files) >= self.max_open:
                here.files.popitem(last=False)[1][1].close()
            here.files[path] = (stamp, _open(path, key))
        return here.files[path][1], stamp


class _OfThisProcess:
    """What must not be shared between processes.

    Attributes:
        pid: the process.
        lock: held while a file is opened, read or closed.
        files: open files by path with the stamp they were opened under, longest unused first.
        checked: stamps under which whole files were checked, by path.
    """

    def __init__(self, checked: dict[Path, Stamp]) -> None:
        self.pid, self.lock = os.getpid(), threading.Lock()
        self.files: OrderedDict[Path, tuple[Stamp, OpenShard]] = OrderedDict()
        self.checked = dict(checked)


def _stamp(path: Path) -> Stamp:
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _forget(here: _OfThisProcess, path: Path) -> None:
    if path in here.files:
        here.files.pop(path)[1].close()


def _open(path: Path, key: ShardKey) -> OpenShard:
    opened = OpenShard(path)
    try:
        opened.check_key(key)
    except BaseException:
        opened.close()
        raise
    return opened
