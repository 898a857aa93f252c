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
from typing import Any

import numpy as np
import pytest

from talstack.io.errors import MissingInputError, StoreError, TalstackError, WriteError
from talstack.io.files import TEMPORARY_PREFIX, atomic_path, write_text
from talstack.io.shard import Shard, ShardKey, read_shard, write_shard
from talstack.io.store import FeatureStore

KEY = ShardKey("rec-1", "front", "rgb", {"kind": "rgb"}, ({"name": "c", "sha256": "0" * 64},), 4.0, 1.0)
Act = Callable[..., object]
Watch = Callable[[Act], Any]


def make_shard(seed: int) -> Shard:
    features = np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float16)
    return Shard(features, np.array([1, 1, 0, 1], bool), np.arange(4) + 0.5, notes=("row 2 damaged",))


OLD, NEW = make_shard(0), make_shard(1)


def plainly(number: int, name: str, real: Callable, args: tuple) -> object:
    return real(*args)


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


def test_killed_before_and_inside_every_call(tmp_path: Path, watch: Watch) -> None:
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
def test_every_call_refused(tmp_path: Path, watch: Watch, open_below: Callable[[Path], list[str]], code: int) -> None:
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


def test_a_write_of_fewer_bytes_goes_on(tmp_path: Path, watch: Watch) -> None:
    def short(number: int, name: str, real: Callable, args: tuple) -> object:
        return real(args[0], args[1][:1000]) if name == "write" else real(*args)

    watched = watch(short)
    write_shard(tmp_path / "shard.h5", KEY, NEW)
    assert watched.calls.count("write") > 3
    assert state(tmp_path / "shard.h5") == "new"


@pytest.mark.parametrize(("code", "ends"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_folders_that_cannot_be_fsynced(tmp_path: Path, watch: Watch, code: int, ends: bool) -> None:
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
