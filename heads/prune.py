"""What heads and ablations of the past left in a run's folder, and its removal.

Heads of other settings stay where they are, so that going back fits nothing; in a month of ablations they fill a disk.
In use is what RUN/heads.json names, or the heads.json of an ablation's part. Everything else can be made again from
the store.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from talstack.io.errors import InputError, MissingInputError, WriteError
from talstack.io.files import TEMPORARY_PREFIX, read_json

Reason = Literal["heads of other settings", "components of other settings", "ablation", "temporary"]
DAY_S = 86400.0
_CARD, _DONE = "heads.json", "ablation.json"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Files that nothing refers to.

    Attributes:
        path: a folder, or a file (with its card, for components).
        reason: what it is.
        size_bytes: of all that goes with it.
        changed_s: when the last of it was written, seconds since 1970.
    """

    path: Path
    reason: Reason
    size_bytes: int
    changed_s: float


def find_leftovers(
    run: Path, *, older_than_days: float = 1.0, ablations: bool = False, now_s: float | None = None
) -> tuple[list[Leftover], int]:
    """Return what in a run's folder is not in use, sorted by path, and how much of that is too recent to be listed.

    Args:
        run: the folder that `talstack heads` and `talstack ablate` write.
        older_than_days: only what was last written longer ago.
        ablations: ablations that old are not in use either, and so the heads that they alone use.
        now_s: seconds since 1970; now by default.

    Raises:
        MissingInputError: RUN/heads.json is missing, so nothing says what is in use.
        InputError: a heads.json is not one.
    """
    if not (run / _CARD).is_file():
        raise MissingInputError(f"{run / _CARD}: no such file, so nothing says what is in use; run `talstack heads`")
    limit_s = (time.time() if now_s is None else now_s) - older_than_days * DAY_S
    parts = [
        part for path in sorted((run / "ablation").glob("*/")) if _is_part(path) for part in _there(path, "ablation")
    ]
    given_up = [part for part in parts if ablations and part.changed_s < limit_s]
    records = [run / _CARD, *(path / _CARD for path in sorted((run / "ablation").glob("*/")))]
    gone = {part.path for part in given_up}
    used = _in_use([path for path in records if path.is_file() and path.parent not in gone])
    found = [*given_up, *_unused(run, used)]
    old = sorted((one for one in found if one.changed_s < limit_s), key=lambda one: one.path)
    return old, len(found) - len(old)


def remove(leftovers: Sequence[Leftover]) -> None:
    """Remove what `find_leftovers` found; not while `talstack heads` or `ablate` are at work in the run.

    Raises:
        WriteError: something cannot be removed.
    """
    for one in leftovers:
        try:
            if one.path.is_dir():
                shutil.rmtree(one.path)
            else:
                one.path.unlink(missing_ok=True)
                one.path.with_suffix(".json").unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(f"{one.path}: cannot be removed ({error})") from error


def _in_use(records: Sequence[Path]) -> set[Path]:
    """Return the folders of heads and the files of components that the records name."""
    used = set()
    for path in records:
        record = read_json(path)
        models = record.get("models") if isinstance(record, dict) else None
        if not isinstance(models, list) or not all(isinstance(m, dict) and "card" in m for m in models):
            raise InputError(f"{path}: does not say which files its heads use; run `talstack heads` or `ablate` again")
        for model in models:
            used.add((path.parent / model["card"]).resolve().parent)
            # a record of before names none: they can be made again at any time
            used |= {(path.parent / name).resolve() for name in model.get("components", ())}
    return used


def _unused(run: Path, used: set[Path]) -> Iterator[Leftover]:
    for group in sorted((run / "heads").glob("*/")):
        for folder in sorted(group.glob("*/")):
            if folder.name != "components" and folder.resolve() not in used:
                yield from _there(folder, "heads of other settings")
        for path in sorted((group / "components").glob("*.safetensors")):
            if not path.name.startswith(TEMPORARY_PREFIX) and path.resolve() not in used:
                yield from _there(path, "components of other settings")
        for path in sorted(group.rglob(f"{TEMPORARY_PREFIX}*")):
            yield from _there(path, "temporary")


def _is_part(folder: Path) -> bool:
    return (folder / _CARD).is_file() or (folder / _DONE).is_file()


def _there(path: Path, reason: Reason) -> Iterator[Leftover]:
    """Yield what lies there; nothing where some of it is removed meanwhile: then another process is at work on it."""
    try:
        yield _leftover(path, reason)
    except FileNotFoundError:
        return


def _leftover(path: Path, reason: Reason) -> Leftover:
    files = [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]
    if reason == "components of other settings" and path.with_suffix(".json").is_file():
        files.append(path.with_suffix(".json"))
    stats = [found.stat() for found in files] or [path.stat()]
    return Leftover(path, reason, sum(s.st_size for s in stats if files), max(s.st_mtime for s in stats))


def totals(leftovers: Sequence[Leftover]) -> Mapping[str, Mapping[str, Any]]:
    """Return {reason: {"count", "size_bytes"}}."""
    sums: dict[str, dict[str, Any]] = {}
    for one in leftovers:
        found = sums.setdefault(one.reason, {"count": 0, "size_bytes": 0})
        found["count"] += 1
        found["size_bytes"] += one.size_bytes
    return sums
