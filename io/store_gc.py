"""What in a store nothing can refer to any more, and its removal while others work in the store.

Kept: every recipe that the record of an extraction names. Garbage: recipes that no record names; within a kept
recipe, shards superseded by others of the same recording, view and modality, as far as the data folders given tell;
temporary files of killed workers; journals of workers that are done; the quarantine. Only what was written long enough
ago is garbage, and no file whose kind is not known is ever removed.

No lock is needed beside a running `talstack extract`, which saves its record before it looks which shards are there.
A recipe's folder is first renamed, then the records are read again: a record that came before the rename is seen now
and the folder goes back; one that comes later belongs to an extraction that finds the shards missing and makes them.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from talstack.io.errors import InputError, StoreError
from talstack.io.extraction import Extraction, shard_keys
from talstack.io.journal import read_journal
from talstack.io.manifest import Manifest
from talstack.io.store import ClipHashes, FeatureStore, failure_path
from talstack.io.store_contents import (
    QUARANTINE,
    REMOVAL_PREFIX,
    StoreContents,
    StoreFile,
    is_removal,
    read_entry,
    read_extractions,
    recipe_names,
    scan_store,
)

Reason = Literal["no extraction names its recipe", "superseded", "temporary", "quarantined", "journal of the past"]
DAY_S = 86400.0
MIN_TEMPORARY_S = DAY_S  # whoever writes a temporary file renames it within minutes
MIN_OPEN_S = 7 * DAY_S  # a journal whose last task has no end: by then its worker is dead


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that nothing refers to, and why."""

    file: StoreFile
    reason: Reason


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What can be removed from a store.

    Attributes:
        garbage: what can, sorted by path.
        kept_recipes: recipe folders that stay, with the reason.
        num_young: files that nothing refers to but that were written too recently.
        num_unjudged: shards and failures of kept recipes that no data folder given speaks of.
        foreign: files that no talstack puts there; they stay.
    """

    garbage: tuple[Garbage, ...]
    kept_recipes: dict[str, str]
    num_young: int
    num_unjudged: int
    foreign: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """How much space the garbage takes."""
        return sum(item.file.size_bytes for item in self.garbage)


def plan_gc(
    contents: StoreContents, manifests: Sequence[Manifest] = (), *, older_than_days: float = 1.0,
    now_s: float | None = None,
) -> GcPlan:  # fmt: skip
    """Return what can be removed.

    Args:
        manifests: every data set whose features are in the store; a shard is superseded if none of them asks for it
            and the one that is asked for in its stead is there. None: no shard is taken for superseded.
        older_than_days: files written later than this are never garbage; temporary files and journals have a day at
            least.
        now_s: the time, seconds since 1970.

    Raises:
        InputError: the record of an extraction cannot be read, so what it refers to is not known.
    """
    extractions = read_extractions(contents)
    now_s = time.time() if now_s is None else now_s
    before_s = now_s - older_than_days * DAY_S
    kept = _kept_recipes(contents, extractions, before_s)
    superseded, num_unjudged = _superseded(contents, extractions, manifests)
    found = [Garbage(file, reason) for file in contents.files if (reason := _reason(file, kept, superseded))]
    old = [item for item in found if item.file.changed_s < min(before_s, now_s - _min_age_s(item))]
    foreign = tuple(file.path for file in contents.of_kind("foreign"))
    return GcPlan(tuple(old), kept, len(found) - len(old), num_unjudged, foreign)


def _min_age_s(item: Garbage) -> float:
    """Return how old a file must be at least, since a newer one may be in use."""
    if item.reason == "temporary":
        return MIN_TEMPORARY_S
    if item.reason == "journal of the past":
        attempts = read_journal(item.file.path)
        return MIN_OPEN_S if attempts and attempts[-1].is_open else MIN_TEMPORARY_S
    return 0.0


def _kept_recipes(contents: StoreContents, extractions: Sequence[Extraction], before_s: float) -> dict[str, str]:
    users: dict[str, list[str]] = {}
    for extraction in extractions:
        for name in recipe_names(extraction):
            users.setdefault(name, []).append(extraction.name)
    kept = {name: f"named by extraction {', '.join(users[name])}" for name in contents.recipes if name in users}
    for name in set(contents.recipes) - set(users):
        if not extractions:
            kept[name] = "the store has no record of any extraction, so nothing says what is in use"
        elif any(file.changed_s >= before_s for file in contents.files if file.recipe == name):
            kept[name] = "named by no extraction, but written to recently"
    return dict(sorted(kept.items()))


def _reason(file: StoreFile, kept: dict[str, str], superseded: set[Path]) -> Reason | None:
    if file.kind == "temporary":
        return "temporary"
    if file.kind == "quarantined":
        return "quarantined"
    if file.kind == "journal":
        return "journal of the past"
    if file.recipe and file.kind in ("shard", "failure", "recipe") and file.recipe not in kept:
        return "no extraction names its recipe"
    return "superseded" if file.path in superseded else None


def _superseded(
    contents: StoreContents, extractions: Sequence[Extraction], manifests: Sequence[Manifest]
) -> tuple[set[Path], int]:
    """Return the files whose place was taken by another shard, and how many files nothing speaks of."""
    recipes = {name for extraction in extractions for name in recipe_names(extraction)}
    made = [file for file in contents.of_kind("shard", "failure") if file.recipe in recipes]
    if not manifests:
        return set(), len(made)
    store, hashes = FeatureStore(contents.root), ClipHashes(contents.root)
    wanted: set[Path] = set()
    there: set[tuple[str, tuple[str, str, str], float]] = set()
    for manifest in manifests:
        for extraction in extractions:
            for key in shard_keys(manifest, extraction, hashes):
                path = store.path_of(key)
                wanted |= {path, failure_path(path)}
                if path.is_file():
                    there.add((path.parts[-3], (key.recording, key.view, key.modality), float(key.segment_s)))
    hashes.save()
    superseded, num_unjudged = set(), 0
    for file in made:
        if file.path in wanted:
            continue
        entry = read_entry(file)
        segment_s = float(entry.identity["grid"]["segment_s"]) if entry.identity else 0.0
        if entry.group is not None and (file.recipe, entry.group, segment_s) in there:
            superseded.add(file.path)
        else:
            num_unjudged += 1
    return superseded, num_unjudged


def check_runs(contents: StoreContents, runs: Iterable[tuple[Path, str]]) -> None:
    """Check that the store still has the record of the extraction that each run was made from.

    Args:
        runs: (folder of the run, name of its extraction).

    Raises:
        InputError: one is missing, so that gc cannot tell what the run needs.
    """
    there = {file.path.stem for file in contents.of_kind("extraction")}
    for run, name in runs:
        if name not in there:
            raise InputError(
                f"{run}: was made from extraction {name!r}, which {contents.root} has no record of (there: "
                f"{', '.join(sorted(there)) or 'none'}); name the right store, or run that `talstack extract` again"
            )


def collect_garbage(contents: StoreContents, plan: GcPlan) -> list[Garbage]:
    """Remove what the plan names, and return what was removed: less than planned where it came into use meanwhile.

    Raises:
        StoreError: something cannot be removed.
        InputError: the record of an extraction cannot be read.
    """
    removed: list[Garbage] = []
    whole: dict[str, list[Garbage]] = {}
    for item in plan.garbage:
        if item.reason == "no extraction names its recipe":
            whole.setdefault(item.file.recipe, []).append(item)
        elif _remove(item.file.path):
            removed.append(item)
    for recipe, items in whole.items():
        removed += _remove_recipe(contents.root, recipe, items)
    return removed


def _remove_recipe(root: Path, recipe: str, items: list[Garbage]) -> list[Garbage]:
    """Remove the files of a recipe that still no extraction names once its folder is out of sight."""
    home, aside = root / recipe, root / f"{REMOVAL_PREFIX}{recipe}"
    try:
        os.rename(home, aside)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{home}: could not be removed ({error.strerror or error})") from error
    try:
        named = {name for extraction in read_extractions(scan_store(root)) for name in recipe_names(extraction)}
        if recipe in named:
            return []
        return [item for item in items if _remove(aside / item.file.path.relative_to(home))]
    finally:
        put_back(aside)


def restore_interrupted(contents: StoreContents) -> int:
    """Put back what a killed `gc` was removing, so that it is judged anew; return how many folders there were."""
    for aside in contents.interrupted:
        put_back(aside)
    return len(contents.interrupted)


def put_back(aside: Path) -> None:
    """Move what is left in a folder that was being removed to where it came from; empty folders go.

    Where a running extraction has made the same file again, that one stays. A file of an unknown kind whose place is
    taken stays in the folder that was being removed.
    """
    if not is_removal(aside.name):
        raise InputError(f"{aside}: not a folder that gc was removing")
    home = aside.with_name(aside.name.removeprefix(REMOVAL_PREFIX))
    for folder, _, names in os.walk(aside, topdown=False):
        for name in names:
            source = Path(folder) / name
            target = home / source.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.rename(source, target)
            elif target.read_bytes() == source.read_bytes():
                source.unlink()
        with contextlib.suppress(OSError):  # not empty: something in it could not be put back
            os.rmdir(folder)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:  # somebody else removed it
        return False
    except OSError as error:
        raise StoreError(f"{path}: could not be removed ({error.strerror or error})") from error
    return True


def remove_empty_quarantine(root: Path) -> None:
    """Remove the folders of an emptied quarantine; nobody but `verify --quarantine` writes there."""
    folder = root / QUARANTINE
    if folder.is_dir() and not any(path.is_file() or path.is_symlink() for path in folder.rglob("*")):
        shutil.rmtree(folder)
