"""A commit cut off from power at any moment, on a model of a disk. Prints its counts."""

import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from talstack.io.files import write_bytes

Act = Callable[..., object]
Watch = Callable[[Act], Any]


class ModelDisk:
    """What a disk may hold after a power cut.

    Content of a file is safe once the file was fsynced, names of a folder once the folder was. Until then the disk may
    have kept any of them: every subset of the changed names, and of a file all, half, zeros or what was safe.

    Attributes:
        safe, live: content by file number.
        names: safe names of a folder; `changes`: those not yet safe, in order, None for a name that was removed.
    """

    def __init__(self, root: Path) -> None:
        self.safe: dict[int, bytes] = {}
        self.live: dict[int, bytes] = {}
        self.names: dict[Path, dict[str, object]] = {root: {}}
        self.changes: dict[Path, list[tuple[str, object]]] = {root: []}
        self.handles: dict[int, object] = {}
        self.root = root

    def _now(self, folder: Path) -> dict[str, object]:
        return {**self.names[folder], **dict(self.changes[folder])}

    def act(self, number: int, name: str, real: Callable, args: tuple) -> object:
        """Do the call and note what it does to the disk."""
        result = real(*args)
        if name == "mkdir":
            self.names[args[0]], self.changes[args[0]] = {}, []
            self.changes[args[0].parent].append((args[0].name, args[0]))
        elif name == "open":
            self.handles[result] = self._opened(args[0], args[1])
        elif name == "write":
            self.live[self.handles[args[0]]] += bytes(args[1])[:result]
        elif name == "fsync" and isinstance(self.handles[args[0]], Path):
            folder = self.handles[args[0]]
            self.names[folder], self.changes[folder] = self._now(folder), []
        elif name == "fsync":
            self.safe[self.handles[args[0]]] = self.live[self.handles[args[0]]]
        elif name == "replace":
            moved = self._now(args[0].parent)[args[0].name]
            self.changes[args[1].parent] += [(args[1].name, moved)]
        elif name == "unlink":
            self.changes[args[0].parent].append((args[0].name, None))
        return result

    def _opened(self, path: Path, flags: int) -> object:
        if path in self.names:
            return path
        if flags & os.O_CREAT:
            number = len(self.live)
            self.live[number] = self.safe[number] = b""
            self.changes[path.parent].append((path.name, number))
            return number
        return self._now(path.parent)[path.name]

    def after_a_cut(self, path: Path) -> set[bytes | None]:
        """Return everything that may lie at `path` after a power cut now; None is nothing."""
        found: set[bytes | None] = set()
        pending = [(folder, change) for folder, changes in self.changes.items() for change in changes]
        for kept in itertools.product((False, True), repeat=len(pending)):
            names = {folder: dict(safe) for folder, safe in self.names.items()}
            for (folder, (name, number)), is_kept in zip(pending, kept, strict=True):
                if is_kept:
                    names[folder][name] = number
            at: object = self.root
            for part in path.relative_to(self.root).parts:
                at = names[at].get(part) if isinstance(at, Path) else None
            found |= {None} if at is None else self._contents(at)
        return found

    def _contents(self, number: int) -> set[bytes | None]:
        safe, live = self.safe[number], self.live[number]
        return {safe} if safe == live else {safe, live, live[: len(live) // 2], bytes(len(live))}


def cut_everywhere(root: Path, watch: Watch, *, before: str, lost_fsync: int = 0) -> tuple[Counter[str], set[str]]:
    """Commit on a model disk; return what cuts after each call leave, and what one after the commit leaves.

    Args:
        lost_fsync: number of the fsync that does nothing; 0: all work.
    """
    root.mkdir()
    disk, path = ModelDisk(root), root / "recipe" / "rec-1" / "shard.h5"
    names: dict[bytes | None, str] = {None: "absent"}
    if before == "old":
        watch(disk.act)
        write_bytes(path, b"old " * 100)
        names[b"old " * 100] = "old"
    names[b"new " * 100] = "new"
    seen: Counter[str] = Counter()
    fsyncs = itertools.count(1)

    def act(number: int, name: str, real: Callable, args: tuple) -> object:
        lost = name == "fsync" and next(fsyncs) == lost_fsync
        result = real(*args) if lost else disk.act(number, name, real, args)
        seen.update(names.get(content, "torn") for content in disk.after_a_cut(path))
        return result

    watch(act)
    write_bytes(path, b"new " * 100)
    return seen, {names.get(content, "torn") for content in disk.after_a_cut(path)}


@pytest.mark.parametrize(("before", "num_fsyncs"), [("absent", 4), ("old", 2)])
def test_a_power_cut_leaves_old_or_new(tmp_path: Path, watch: Watch, before: str, num_fsyncs: int) -> None:
    during, after = cut_everywhere(tmp_path / "disk", watch, before=before)
    print(f"\npower cut, {before} before: {dict(during)}; after the commit: {after}")
    assert set(during) == {before, "new"}
    assert after == {"new"}, "what was committed stays"
    for lost in range(1, num_fsyncs + 1):
        during, after = cut_everywhere(tmp_path / f"disk{lost}", watch, before=before, lost_fsync=lost)
        print(f"  without fsync {lost}: {dict(during)}; after: {after}")
        assert "torn" in during or after != {"new"}, f"fsync {lost} of {num_fsyncs} is not needed, or not tested"
    during, after = cut_everywhere(tmp_path / "none", watch, before=before, lost_fsync=num_fsyncs + 1)
    assert "torn" not in during, "there are no more fsyncs than these"
