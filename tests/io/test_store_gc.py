"""Only what nothing refers to is removed, and nothing that a running extraction needs."""

import os
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.io import store_gc
from talstack.io.errors import InputError
from talstack.io.extraction import Extraction, shard_keys
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import ClipHashes, FeatureStore
from talstack.io.store_contents import scan_store
from talstack.io.store_gc import check_runs, collect_garbage, plan_gc, put_back, restore_interrupted

OLD_S = 1_000_000.0
NEW, DROPPED = {"kind": "rgb", "code": 2}, {"kind": "rgb", "code": 1}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "media").mkdir()
    for name in "ab":
        (tmp_path / "media" / f"{name}.mp4").write_bytes(name.encode())
    tables = {
        "recordings": [(name, 3.0, None, "train") for name in "ab"],
        "clips": [(name, "front", "c", f"{name}.mp4", 0.0, 3.0, 30.0, 8, 8, False) for name in "ab"],
        "instances": [],
    }
    frames = {name: pl.DataFrame(rows, schema=SCHEMAS[name], orient="row") for name, rows in tables.items()}
    return Manifest(name="toy", media_root=tmp_path / "media", actions=("x",), scenes=(), **frames)


@pytest.fixture
def store(tmp_path: Path, manifest: Manifest) -> FeatureStore:
    """Return a store with the shards of a recorded extraction and those of one whose record is gone, all old."""
    store = FeatureStore(tmp_path / "store")
    for recipe in (DROPPED, NEW):
        extraction = Extraction("toy", 1.0, {"rgb": recipe}, ("front",))
        for key in keys_of(store, manifest, recipe):
            store.write(key, make_shard())
    extraction.save(store.root)
    make_old(store)
    return store


def keys_of(store: FeatureStore, manifest: Manifest, recipe: dict) -> list[ShardKey]:
    return shard_keys(manifest, Extraction("toy", 1.0, {"rgb": recipe}, ("front",)), ClipHashes(store.root))


def make_shard() -> Shard:
    return Shard(np.ones((3, 2), np.float16), np.ones(3, bool), np.arange(3) + 0.5)


def make_old(store: FeatureStore) -> None:
    for path in store.root.rglob("*"):
        if path.is_file():
            os.utime(path, (OLD_S, OLD_S))


def files(store: FeatureStore) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()}


def test_a_recipe_that_no_record_names_goes_and_the_others_stay(store: FeatureStore, manifest: Manifest) -> None:
    before, contents = files(store), scan_store(store.root)
    plan = plan_gc(contents)
    assert {item.reason for item in plan.garbage} == {"no extraction names its recipe"}
    assert files(store) == before  # a plan removes nothing
    removed = collect_garbage(contents, plan)
    assert len(removed) == 3  # two shards and recipe.json
    assert all(store.status(key) == "done" for key in keys_of(store, manifest, NEW))
    assert not store.recipe_folder(DROPPED).exists()
    print(f"{len(removed)} of {len(before)} files removed, {plan.size_bytes} bytes; no file of a named recipe")


def test_pieces_of_a_recorded_extraction_stay(store: FeatureStore, manifest: Manifest) -> None:
    piece = {"front@left": {"picture": {"side": "left"}}}
    extraction = Extraction("pieces", 1.0, {"rgb": NEW, "sound": {"kind": "audio"}}, (), derived=piece)
    keys = shard_keys(manifest, extraction, ClipHashes(store.root))
    for key in keys:
        store.write(key, make_shard())
    extraction.save(store.root)
    make_old(store)
    contents = scan_store(store.root)
    collect_garbage(contents, plan_gc(contents))
    assert [(key.view, store.status(key)) for key in keys] == [("front@left", "done")] * 2


def test_what_was_written_lately_stays(store: FeatureStore, manifest: Manifest) -> None:
    key = keys_of(store, manifest, DROPPED)[0]
    os.utime(store.path_of(key))
    plan = plan_gc(scan_store(store.root), older_than_days=1.0)
    assert plan.garbage == ()
    assert plan.kept_recipes[store.recipe_folder(DROPPED).name] == "named by no extraction, but written to recently"
    assert len(plan_gc(scan_store(store.root), now_s=time.time() + 2 * store_gc.DAY_S).garbage) == 3


def test_without_any_record_no_recipe_is_garbage(store: FeatureStore) -> None:
    (store.root / "extractions" / "toy.json").unlink()
    plan = plan_gc(scan_store(store.root), older_than_days=0.0)
    assert plan.garbage == () and len(plan.kept_recipes) == 2


def test_a_damaged_record_stops_everything(store: FeatureStore) -> None:
    (store.root / "extractions" / "other.json").write_text("{")
    with pytest.raises(InputError, match="not a readable record"):
        plan_gc(scan_store(store.root))


def test_superseded_shards_go_only_with_the_data_and_only_where_the_new_one_is_there(
    store: FeatureStore, manifest: Manifest
) -> None:
    old = keys_of(store, manifest, NEW)
    for name in "ab":
        (manifest.media_root / f"{name}.mp4").write_bytes(b"cut anew")
    new = keys_of(store, manifest, NEW)
    store.write(new[0], make_shard())  # recording b is not extracted again yet
    assert not any(item.reason == "superseded" for item in plan_gc(scan_store(store.root)).garbage)
    plan = plan_gc(scan_store(store.root), [manifest])
    assert [item.file.path for item in plan.garbage if item.reason == "superseded"] == [store.path_of(old[0])]
    assert plan.num_unjudged == 1
    collect_garbage(scan_store(store.root), plan)
    assert [store.status(key) for key in (*old, *new)] == ["missing", "done", "done", "missing"]


def test_temporary_files_go_when_a_day_old_whatever_is_asked(store: FeatureStore, manifest: Manifest) -> None:
    folder = store.path_of(keys_of(store, manifest, NEW)[0]).parent
    (folder / ".tmp-old.h5").write_bytes(b"half")
    os.utime(folder / ".tmp-old.h5", (OLD_S, OLD_S))
    (folder / ".tmp-in-use.h5").write_bytes(b"half")
    (store.root / "mine" / "x").mkdir(parents=True)
    (store.root / "mine" / "x" / ".tmp-mine").write_bytes(b"not talstack's")
    contents = scan_store(store.root)
    collect_garbage(contents, plan_gc(contents, older_than_days=0.0))
    assert sorted(path.name for path in store.root.rglob(".tmp-*")) == [".tmp-in-use.h5", ".tmp-mine"]


def test_files_of_an_unknown_kind_stay_even_in_a_recipe_that_goes(store: FeatureStore) -> None:
    note = store.recipe_folder(DROPPED) / "a" / "note.txt"
    note.write_text("mine")
    os.utime(note, (OLD_S, OLD_S))
    contents = scan_store(store.root)
    plan = plan_gc(contents)
    assert plan.foreign == (note,)
    collect_garbage(contents, plan)
    assert [path.name for path in store.recipe_folder(DROPPED).rglob("*") if path.is_file()] == ["note.txt"]
    assert scan_store(store.root).interrupted == ()


def test_an_extraction_that_starts_after_the_plan_keeps_its_shards(store: FeatureStore, manifest: Manifest) -> None:
    contents = scan_store(store.root)
    plan = plan_gc(contents)
    Extraction("again", 1.0, {"rgb": DROPPED}, ("front",)).save(store.root)
    assert collect_garbage(contents, plan) == []
    assert all(store.status(key) == "done" for key in keys_of(store, manifest, DROPPED))


def test_an_extraction_that_starts_at_any_moment_loses_nothing_it_was_told_is_there(
    store: FeatureStore, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let an extraction save its record and look, as the engine does, before every step of a removal."""
    keys, steps = keys_of(store, manifest, DROPPED), 0
    lost = trials = 0
    while True:
        (store.root / "extractions" / "again.json").unlink(missing_ok=True)
        for key in keys:
            store.write(key, make_shard())
        make_old(store)
        told: list[str] = []
        calls = iter(range(1000))

        def step(told: list[str] = told, calls=calls, at: int = steps) -> None:
            if next(calls) == at:
                Extraction("again", 1.0, {"rgb": DROPPED}, ("front",)).save(store.root)
                told += [store.status(key) for key in keys]

        contents = scan_store(store.root)
        plan = plan_gc(contents)
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "rmdir", "scandir"):
                patch.setattr(os, name, before(step, getattr(os, name)))
            collect_garbage(contents, plan)
        if not told:
            break
        trials, steps = trials + 1, steps + 1
        lost += sum(state == "done" and store.status(key) != "done" for state, key in zip(told, keys, strict=True))
    print(f"{trials} moments of a removal, {lost} shards lost that a starting extraction had found")
    assert trials >= 5 and lost == 0


def before(step, call):
    """Return the call with `step` done first; calls that `step` makes itself are left alone."""
    busy = []

    def stepped(*args, **kwargs):
        if not busy:
            busy.append(True)
            step()
            busy.clear()
        return call(*args, **kwargs)

    return stepped


def test_a_removal_that_was_killed_is_put_back_and_judged_anew(store: FeatureStore, manifest: Manifest) -> None:
    home = store.recipe_folder(DROPPED)
    aside = home.with_name(f".gc-{home.name}")
    before_kill = files(store)
    home.rename(aside)
    store.write(keys_of(store, manifest, DROPPED)[0], make_shard())  # made again meanwhile
    contents = scan_store(store.root)
    assert contents.interrupted == (aside,)
    assert restore_interrupted(contents) == 1
    assert files(store) == before_kill and not aside.exists()
    with pytest.raises(InputError, match="not a folder that gc was removing"):
        put_back(home)


def test_putting_back_overwrites_nothing(store: FeatureStore) -> None:
    home = store.recipe_folder(DROPPED)
    aside = home.with_name(f".gc-{home.name}")
    for folder, text in ((aside, "mine"), (home, "mine as well")):
        folder.mkdir(exist_ok=True)
        (folder / "note.txt").write_text(text)
    restore_interrupted(scan_store(store.root))
    assert [(folder / "note.txt").read_text() for folder in (aside, home)] == ["mine", "mine as well"]


def test_a_run_whose_extraction_is_not_recorded_here_is_refused(store: FeatureStore) -> None:
    check_runs(scan_store(store.root), [(Path("run"), "toy")])
    with pytest.raises(InputError, match=r"'other', which .* has no record of \(there: toy\)"):
        check_runs(scan_store(store.root), [(Path("run"), "other")])
