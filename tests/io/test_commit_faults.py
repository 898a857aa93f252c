"""A commit under faults: killed, refused by the disk, cut off from power. Prints its counts.

File-system calls of a commit all go through the `os` of `talstack.io.files`, which is replaced here.
"""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from talstack.io.errors import MissingInputError, StoreError, TalstackError, WriteError
from talstack.io.files import TEMPORARY_PREFIX, atomic_path, write_bytes, write_text
from talstack.io.shard import Shard, ShardKey, read_shard, write_shard
from talstack.io.store import FeatureStore

CALLS = frozenset({"mkdir", "open", "write", "fsync", "close", "replace", "unlink"})
KEY = ShardKey("rec-1", "front", "rgb", {"kind": "rgb"}, ({"name": "c", "sha256": "0" * 64},), 4.0, 1.0)
Act = Callable[..., object]


def make_shard(seed: int) -> Shard:
    features = np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float16)
    return Shard(features, np.array([1, 1, 0, 1], bool), np.arange(4) + 0.5, notes=("row 2 damaged",))


OLD, NEW = make_shard(0), make_shard(1)


class WatchedOs:
    """The `os` module, with `act(number, name, real, args)` in place of every call of a commit."""

    def __init__(self, act: Act) -> None:
        self.calls: list[str] = []
        self.act = act

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args: object) -> object:
            self.calls.append(name)
            return self.act(len(self.calls), name, real, args)

        return call


def plainly(number: int, name: str, real: Callable, args: tuple) -> object:
    return real(*args)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], WatchedOs]:
    def install(act: Act) -> WatchedOs:
        watched = WatchedOs(act)
        monkeypatch.setattr("talstack.io.files.os", watched)
        return watched

    return install


def state(path: Path) -> str:
    """Return what a reader finds; anything but nothing, the old or the new shard raises."""
    if not path.exists():
        return "absent"
    features = read_shard(path, KEY).features
    return {OLD.features.tobytes(): "old", NEW.features.tobytes(): "new"}[features.tobytes()]


def temporaries(root: Path) -> list[Path]:
    return list(root.rglob(f"{TEMPORARY_PREFIX}*"))


def stores(tmp_path: Path) -> Iterator[tuple[str, Callable[[], FeatureStore]]]:
    """Yield "absent" and "old", each with a function that makes a fresh store in that state."""
    numbers = itertools.count()

    def fresh(before: str) -> FeatureStore:
        store = FeatureStore(tmp_path / f"store{next(numbers)}")
        store.root.mkdir()
        if before == "old":
            store.write(KEY, OLD)
        return store

    for before in ("absent", "old"):
        yield before, lambda before=before: fresh(before)


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process; return its exit code: 0 where it ended by itself."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ----------------------------------------------------------------------------------------------------------- killed


def killer(at: int, half: bool) -> Act:
    def act(number: int, name: str, real: Callable, args: tuple) -> object:
        if number == at and name == "write" and half:
            real(args[0], bytes(args[1])[: len(args[1]) // 2])
        if number == at:
            os._exit(9)
        return real(*args)

    return act


def test_killed_before_and_inside_every_call(tmp_path: Path, watch: Callable[[Act], WatchedOs]) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for before, fresh in stores(tmp_path):
        store, watched = fresh(), watch(plainly)
        store.write(KEY, NEW)
        calls = list(watched.calls)
        assert {"open", "write", "fsync", "close", "replace"} <= set(calls)
        for at, half in itertools.product(range(1, len(calls) + 1), (False, True)):
            if half and calls[at - 1] != "write":
                continue
            watch(plainly)
            store = fresh()
            watch(killer(at, half))
            assert in_child(lambda store=store: store.write(KEY, NEW)) == 9
            watch(plainly)
            after = state(store.path_of(KEY))
            assert after in (before, "new"), (at, calls[at - 1])
            seen[before, after] += 1
            store.write(KEY, NEW)  # the second run
            assert state(store.path_of(KEY)) == "new"
            assert store.status(KEY) == "done"
        print(f"\nkilled, {before} before: {len(calls)} calls ({' '.join(calls)})")
    print({f"{before} -> {after}": count for (before, after), count in seen.items()})
    assert set(seen) == {("absent", "absent"), ("absent", "new"), ("old", "old"), ("old", "new")}


STRACED = """
import os, sys
from pathlib import Path
import h5py.h5r
sys.path.insert(0, {tests!r})
from test_commit_faults import KEY, NEW, write_shard
write_shard(Path({warm!r}), KEY, NEW)
try:
    os.mkdir("/nowhere/the-commit-starts")
except OSError:
    pass
write_shard(Path({path!r}), KEY, NEW)
"""


@pytest.mark.slow
def test_killed_and_refused_by_the_kernel_at_every_system_call(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; the calls are still faulted from Python")
    names = "openat,write,fsync,rename,close,mkdir,unlink"
    log, path, warm = tmp_path / "log", tmp_path / "store" / "deep" / "shard.h5", tmp_path / "warm" / "shard.h5"
    code = STRACED.format(tests=str(Path(__file__).parent), path=str(path), warm=str(warm))
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def run(*options: str) -> int:
        command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={names}", *options]
        command += [sys.executable, "-P", "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    write_shard(warm, KEY, NEW)  # so that every run does the same calls
    if run() != 0:
        pytest.skip("strace may not trace here; the calls are still faulted from Python")
    assert state(path) == "new"
    counts: Counter[str] = Counter()
    points: list[tuple[str, int]] = []
    started = False
    lines = log.read_text().splitlines()
    for line in lines:
        if line.split()[0] != lines[0].split()[0]:
            continue  # strace counts the calls of every thread by itself
        name = line.split("(")[0].split()[-1]
        counts[name] += 1
        started = started or "the-commit-starts" in line
        if started and " = -1 " not in line:
            points.append((name, counts[name]))
    seen: Counter[str] = Counter()
    faults = ["signal=KILL", "error=EIO"]
    for (name, when), fault in itertools.product(points, faults):
        shutil.rmtree(path.parent.parent)
        code_out = run("-e", f"inject={name}:{fault}:when={when}")
        after = state(path)
        assert after in ("absent", "new"), (name, when, fault)
        if fault != "signal=KILL":
            assert code_out != 0, (name, when, fault)
        seen[f"{fault} {after}"] += 1
        path.parent.parent.mkdir(exist_ok=True)
        write_shard(path, KEY, NEW)
        assert state(path) == "new"
    print(f"\n{len(points)} system calls: {' '.join(name for name, _ in points)}\n{dict(seen)}")
    assert {"signal=KILL absent", "signal=KILL new"} <= set(seen)


# ---------------------------------------------------------------------------------------------- refused by the disk


def refusing(number_from: int, number_to: float, code: int) -> Act:
    def act(number: int, name: str, real: Callable, args: tuple) -> object:
        if not number_from <= number <= number_to:
            return real(*args)
        if name == "close":  # a failing close has closed
            real(*args)
        raise OSError(code, os.strerror(code))

    return act


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=["ENOSPC", "EIO", "EACCES"])
def test_every_call_refused(
    tmp_path: Path, watch: Callable[[Act], WatchedOs], open_below: Callable[[Path], list[str]], code: int
) -> None:
    seen: Counter[str] = Counter()
    for before, fresh in stores(tmp_path):
        watched = watch(plainly)
        path = fresh().path_of(KEY)
        watched.calls.clear()
        write_shard(path, KEY, NEW)
        calls = list(watched.calls)
        for at, for_good in itertools.product(range(1, len(calls) + 1), (False, True)):
            watch(plainly)
            store = fresh()
            path = store.path_of(KEY)
            watch(refusing(at, float("inf") if for_good else at, code))
            with pytest.raises(StoreError, match="rec-1 front/rgb: .*could not be written .*again") as caught:
                write_shard(path, KEY, NEW)
            watch(plainly)
            assert os.strerror(code) in str(caught.value)
            assert caught.value.errno == code
            assert open_below(store.root) == []
            after = state(path)
            seen[f"{before} -> {after}"] += 1
            renamed = "replace" in calls[: at - 1]
            assert after == ("new" if renamed else before), (at, calls[at - 1])
            assert ("a power cut may undo it" in str(caught.value)) == renamed
            if not for_good:  # a disk that refuses everything cannot remove either
                assert temporaries(store.root) == []
            write_shard(path, KEY, NEW)
            assert state(path) == "new"
    print(f"\n{errno.errorcode[code]}: {dict(seen)}")


def test_a_write_of_fewer_bytes_goes_on(tmp_path: Path, watch: Callable[[Act], WatchedOs]) -> None:
    def short(number: int, name: str, real: Callable, args: tuple) -> object:
        return real(args[0], args[1][:1000]) if name == "write" else real(*args)

    watched = watch(short)
    write_shard(tmp_path / "shard.h5", KEY, NEW)
    assert watched.calls.count("write") > 3
    assert state(tmp_path / "shard.h5") == "new"


@pytest.mark.parametrize(("code", "ends"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_folders_that_cannot_be_fsynced(
    tmp_path: Path, watch: Callable[[Act], WatchedOs], code: int, ends: bool
) -> None:
    def act(number: int, name: str, real: Callable, args: tuple) -> object:
        if name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}"):
            raise OSError(code, os.strerror(code))
        return real(*args)

    watch(act)
    if ends:
        write_text(tmp_path / "note.txt", "x")
    else:
        with pytest.raises(WriteError, match="complete, but a power cut may undo it"):
            write_text(tmp_path / "note.txt", "x")
    assert (tmp_path / "note.txt").read_text() == "x"


def test_errors_inside_the_body(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    for raised, expected in (
        (OSError(errno.ENOSPC, "No space left on device"), WriteError),
        (MissingInputError("a talstack error stays what it is"), MissingInputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(expected), atomic_path(target):
            raise raised
        assert list(tmp_path.iterdir()) == []
    assert issubclass(WriteError, TalstackError)
    with pytest.raises(WriteError, match="could not be written"):
        (tmp_path / "file").write_text("")
        write_text(tmp_path / "file" / "below.txt", "x")


def test_colleagues_may_read_what_was_committed(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "note.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o640


# ------------------------------------------------------------------------------------------------------- power cut


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


def cut_everywhere(
    root: Path, watch: Callable[[Act], WatchedOs], *, before: str, lost_fsync: int = 0
) -> tuple[Counter[str], set[str]]:
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
def test_a_power_cut_leaves_old_or_new(
    tmp_path: Path, watch: Callable[[Act], WatchedOs], before: str, num_fsyncs: int
) -> None:
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
