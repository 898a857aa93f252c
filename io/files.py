"""Whole-file writes that a crash cannot leave half done, and content hashes.

A commit: temporary file in the folder of the target, written, fsynced, renamed over the target, folder fsynced. Until
the rename the target is what it was, after it the new content; a power cut can only choose between the two. A process
that is killed may leave its temporary file behind: names that start with `TEMPORARY_PREFIX` are never a result.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talstack.io.errors import InputError, MissingInputError, TalstackError, WriteError

TEMPORARY_PREFIX = ".tmp-"

_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EACCES: "check the permissions of the folder",
    errno.EPERM: "check the permissions of the folder",
    errno.EROFS: "the disk is mounted read-only",
    errno.EIO: "the disk may be failing",
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is fsynced and renamed to `path`.

    Missing folders are made. On an exception the temporary file is removed and `path` is as it was.

    Raises:
        WriteError: the disk is full, failing or not writable; an OSError of the body is taken for that as well.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{path.suffix}")
    try:
        _make_folders(path.parent)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # the umask applies
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what went wrong first is what the caller must hear
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, TalstackError):
            raise _write_error(path, error) from error
        raise
    try:
        _fsync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error, outcome="complete, but a power cut may undo it") from error


def _make_folders(folder: Path) -> None:
    """Make the folder and its missing parents; a power cut cannot lose them afterwards."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process made it meanwhile
            os.mkdir(made)
        _fsync_folder(made.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_folder(folder: Path) -> None:
    try:
        _fsync(folder)
    except OSError as error:
        # SMB and some FUSE file systems know no fsync of a folder; there is nothing better to do on them
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _write_error(path: Path, error: OSError, *, outcome: str = "unchanged") -> WriteError:
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "check that disk and folder can be written to")
    made = WriteError(f"{path}: could not be written ({reason}); it is {outcome}; {remedy} and run the command again")
    made.errno = error.errno
    return made


def write_bytes(path: Path, data: bytes) -> None:
    """Write the bytes, atomically; see `atomic_path`."""
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY)
        try:
            view = memoryview(data)
            while view:  # a nearly full disk or a signal may take fewer bytes than it was given
                view = view[os.write(handle, view) :]
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write the text as UTF-8, atomically; see `atomic_path`."""
    write_bytes(path, text.encode())


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write the value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the parsed JSON file.

    Raises:
        MissingInputError: there is no such file.
        InputError: it is not JSON; the message gives line and column.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error


def sha256_text(text: str) -> str:
    """Return the SHA-256 of the text as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file's content as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
