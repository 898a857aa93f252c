"""Ends a worker process that makes no progress, even one that hangs in C code and holds Python's lock.

The timer is the interpreter's own (`faulthandler`): a C thread that needs no lock, writes where every thread stands,
and ends the process. It is set only in a process that was made a worker by `allow`: nothing here ever ends the
process of the command itself.

    with watched(300) as beat:      # or `beat()` of this module, from any thread
        for chunk in chunks:
            beat()
"""

import faulthandler
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath

SLACK = 0.05  # share of the limit within which beats are not passed on: setting the timer starts a thread

_FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>\S+)')


class _Timer:
    """The one timer of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.file: int | None = None  # where the report goes; None: this process may not be ended
        self.limits_s: list[float] = []  # innermost last
        self.set_s = 0.0

    def set(self, *, at_once: bool) -> None:
        """Start anew; without `at_once`, only where the last start is long enough ago."""
        with self.lock:
            if self.file is None or not self.limits_s:
                return
            limit_s, now_s = self.limits_s[-1], time.monotonic()
            if at_once or now_s - self.set_s > SLACK * limit_s:
                self.set_s = now_s
                faulthandler.dump_traceback_later(limit_s * (1 + SLACK), exit=True, file=self.file)

    def enter(self, limit_s: float) -> None:
        with self.lock:
            self.limits_s.append(limit_s)
        self.set(at_once=True)

    def leave(self) -> None:
        with self.lock:
            self.limits_s.pop()
            if self.file is not None:
                faulthandler.cancel_dump_traceback_later()
        self.set(at_once=True)


_TIMER = _Timer()


def allow(file: int | None) -> None:
    """Let this process be ended, with a report into the file of this descriptor; None forbids it again."""
    with _TIMER.lock:
        _TIMER.file = file


@contextmanager
def watched(limit_s: float) -> Iterator[Callable[[], None]]:
    """Yield the function to call on progress: a worker in which it is not called for `limit_s` seconds is ended.

    Args:
        limit_s: 0 sets no limit. Inside of another `watched` this limit holds until the block ends.
    """
    if limit_s <= 0 or _TIMER.file is None:
        yield beat
        return
    _TIMER.enter(limit_s)
    try:
        yield beat
    finally:
        _TIMER.leave()


def beat() -> None:
    """Say that there was progress; does nothing where nobody watches."""
    _TIMER.set(at_once=False)


def places(report: str) -> list[str]:
    """Return where the threads of a report stood, such as "frames_at (media.py line 12)", one per thread.

    Of each thread the innermost frame counts that is not the standard library's.
    """
    found: list[str] = []
    for thread in re.split(r"^(?:Current thread|Thread) ", report, flags=re.MULTILINE)[1:]:
        for match in _FRAME.finditer(thread):
            parts = PurePath(match["file"]).parts
            is_library = any(part.startswith("python3") for part in parts) and "site-packages" not in parts
            if is_library or parts[-1] in ("watchdog.py", "worker.py") or "joblib" in parts:
                continue
            found.append(f"{match['function']} ({parts[-1]} line {match['line']})")
            break
    return list(dict.fromkeys(found))
