"""Journals of the workers that fill a store: what each began and what became of it, one line of JSON per event.

    STORE/journal/<host>-<pid>-<run>.jsonl

Only the worker writes its file, each line with a single write to a file opened for appending, so that the last line
is all that a kill can cut. Python's own report of a crash or a hang goes into the same file, after the start of what
caused it. A line that is no event is skipped by readers. Journals tell what happened; whether a shard is there is
never decided by one, so losing them loses no feature.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from talstack.io.errors import WriteError
from talstack.io.shard import ShardKey

JOURNAL_FOLDER = "journal"
_SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One task that a worker began.

    Attributes:
        task: its name.
        shards: what it makes: (recording, view, modality, first 16 digits of the fingerprint) each.
        worker: host and process, such as "node7-4711".
        started_s, ended_s: when, seconds since 1970; `ended_s` is None where nothing was written after the start.
        rows: what became of the shards, one dict each; empty where the task raised an error.
        last_words: what the process wrote when it crashed or hung; "" otherwise.
    """

    task: str
    shards: tuple[tuple[str, str, str, str], ...]
    worker: str
    started_s: float
    ended_s: float | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    last_words: str = field(default="", repr=False)

    @property
    def is_open(self) -> bool:
        """Whether it was begun and not ended: it is running, or its worker is dead."""
        return self.ended_s is None


class JournalWriter:
    """The journal of this process in one run."""

    def __init__(self, store_root: Path, run: str) -> None:
        host = socket.gethostname().split(".")[0] or "host"
        self.path = store_root / JOURNAL_FOLDER / f"{host}-{os.getpid()}-{run}{_SUFFIX}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise _write_error(self.path, error) from error

    def fileno(self) -> int:
        """Return the file's descriptor, for the reports that the interpreter writes by itself."""
        return self._handle

    def start(self, task: str, shards: Iterable[Sequence[str]]) -> None:
        """Write that a task begins."""
        self._write({"event": "start", "task": task, "shards": [list(shard) for shard in shards]})

    def end(self, task: str, rows: Iterable[Mapping[str, Any]], *, error: str = "") -> None:
        """Write what became of the task's shards, or the error that it raised."""
        self._write({"event": "end", "task": task, "rows": [dict(row) for row in rows], "error": error})

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        os.close(self._handle)

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({**event, "at_s": time.time()}, allow_nan=False) + "\n"
        try:
            os.write(self._handle, line.encode())
        except OSError as error:
            raise _write_error(self.path, error) from error


def shard_names(keys: Iterable[ShardKey]) -> tuple[tuple[str, str, str, str], ...]:
    """Return the names of shards as journals write them."""
    return tuple((key.recording, key.view, key.modality, key.fingerprint[:16]) for key in keys)


def journal_paths(store_root: Path, run: str = "") -> list[Path]:
    """Return the journals of a run, or of all runs, sorted."""
    return sorted((store_root / JOURNAL_FOLDER).glob(f"*-{run or '*'}{_SUFFIX}"))


def read_journals(store_root: Path, run: str = "") -> list[Attempt]:
    """Return every attempt of a run, or of all runs, in the order in which they began."""
    found = [attempt for path in journal_paths(store_root, run) for attempt in read_journal(path)]
    return sorted(found, key=lambda attempt: attempt.started_s)


def read_journal(path: Path) -> list[Attempt]:
    """Return the attempts of one worker, in order; a file that is gone or cannot be read has none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    worker = path.name.removesuffix(_SUFFIX).rpartition("-")[0]
    attempts: list[Attempt] = []
    for line in lines:
        event = _parse(line)
        if event is None:
            if attempts and attempts[-1].is_open and not line.startswith("{"):
                attempts[-1] = replace(attempts[-1], last_words=f"{attempts[-1].last_words}{line}\n")
        elif event["event"] == "start":
            shards = tuple((str(a), str(b), str(c), str(d)) for a, b, c, d in event["shards"])
            attempts.append(Attempt(event["task"], shards, worker, event["at_s"]))
        elif attempts and attempts[-1].is_open and attempts[-1].task == event["task"]:
            attempts[-1] = replace(attempts[-1], ended_s=event["at_s"], rows=tuple(event["rows"]))
    return attempts


def _parse(line: str) -> dict[str, Any] | None:
    """Return the event of a line, or None where the line is cut or is something else."""
    try:
        event = json.loads(line)
        is_event = isinstance(event["task"], str) and isinstance(event["at_s"], int | float)
        if event["event"] == "start":
            is_event = is_event and all(len(shard) == 4 for shard in event["shards"])
        else:
            is_event = is_event and event["event"] == "end" and all(isinstance(row, dict) for row in event["rows"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return event if is_event else None


def _write_error(path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    made = WriteError(f"{path}: the worker's journal cannot be written ({reason}); free space or check permissions")
    made.errno = error.errno
    return made
