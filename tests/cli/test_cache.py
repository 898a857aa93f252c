"""`talstack cache ls | verify | explain | gc` as a user runs them."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.cache import SUBCOMMANDS
from talstack.cli.main import main
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.plan import plan_extraction
from talstack.io.extraction import Extraction
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard
from talstack.io.store import FeatureStore


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return two recordings, each with a silent clip and a sensor; no file is ever decoded."""
    media = tmp_path / "media"
    media.mkdir()
    for name in "ab":
        (media / f"{name}.mp4").write_bytes(name.encode())
        (media / f"{name}.npz").write_bytes(name.encode())
    tables = {
        "recordings": [(name, 3.0, None, "train") for name in "ab"],
        "clips": [(name, "front", "c", f"{name}.mp4", 0.0, 3.0, 30.0, 8, 8, False) for name in "ab"],
        "instances": [],
        "features": [(name, "sensor", f"{name}.npz") for name in "ab"],
    }
    frames = {name: pl.DataFrame(rows, schema=SCHEMAS[name], orient="row") for name, rows in tables.items()}
    Manifest(name="toy", media_root=media, actions=("x",), scenes=(), **frames).save(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def store(data: Path, tmp_path: Path) -> FeatureStore:
    """Return a store that holds everything the default settings ask for."""
    plan = plan_extraction(data, tmp_path / "store", config=ExtractConfig(), sampling=SamplingConfig())
    num_rows = max(1, round(3.0 / plan.extraction.segment_s))
    times_s = (np.arange(num_rows) + 0.5) * plan.extraction.segment_s
    for key in plan.keys:
        plan.store.write(key, Shard(np.ones((num_rows, 2), np.float16), np.ones(num_rows, bool), times_s))
    plan.extraction.save(plan.store.root)
    return plan.store


def invoke(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["cache", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def as_json(*arguments: object, code: int = 0) -> dict:
    return json.loads(invoke(*arguments, "--json", code=code).stdout)


def test_every_subcommand_is_listed_and_has_help() -> None:
    listed = invoke("--help").stdout
    for name in SUBCOMMANDS:
        assert f"  {name} " in listed
        assert "STORE" in invoke(name, "--help").stdout
    assert "No such command" in invoke("nothing", code=2).stderr


def test_ls(store: FeatureStore) -> None:
    found = as_json("ls", store.root, "--shards")
    by_kind = {recipe["kind"]: recipe for recipe in found["recipes"]}
    assert by_kind["rgb"]["groups"] == {"front/rgb": 2}
    assert by_kind["external"]["groups"] == {"external/sensor": 2}
    assert by_kind["rgb"]["extractions"] == ["toy"]
    assert [shard["recording"] for shard in by_kind["rgb"]["shards"]] == ["a", "b"]
    lines = invoke("ls", store.root, "--shards").stdout.splitlines()
    # the recipe of audio has no shard: the clips are silent
    assert lines[-1].startswith(f"{store.root}: 2 recipes, 4 shards, 0 recorded failures")
    assert len([line for line in lines if line.startswith("done: ")]) == 4
    assert any("front/rgb 2" in line and "toy" in line for line in lines)


def test_index_is_written_and_used(store: FeatureStore) -> None:
    before = as_json("ls", store.root, "--shards")
    made = as_json("index", store.root)
    assert (made["done"], made["failed"], made["unreadable"], made["num_read"]) == (4, 0, 0, 4)
    assert "4 rows (4 done, 0 failed, 0 unreadable); 0 files were read" in invoke("index", store.root).stdout
    assert as_json("index", store.root, "--rebuild")["num_read"] == 4
    after = as_json("ls", store.root, "--shards")
    assert after["recipes"] == before["recipes"] and after["leftovers"] == before["leftovers"]
    (store.root / "index.parquet").write_bytes(b"PAR1 nonsense PAR1")
    assert as_json("ls", store.root, "--shards", "--rebuild") == after
    assert as_json("verify", store.root, "--deep")["foreign"] == []


def test_gc_removes_journals_of_the_past(store: FeatureStore) -> None:
    folder, day_s = store.root / "journal", 86400
    folder.mkdir()
    start = json.dumps({"event": "start", "task": "t", "shards": [], "at_s": 1.0})
    end = json.dumps({"event": "end", "task": "t", "rows": [], "at_s": 2.0})
    ages = {"done-1-a": (2, f"{start}\n{end}\n"), "new-2-b": (0.5, ""), "open-3-c": (2, start), "dead-4-d": (8, start)}
    for name, (days, text) in ages.items():
        (folder / f"{name}.jsonl").write_text(text)
        written_s = time.time() - days * day_s
        os.utime(folder / f"{name}.jsonl", (written_s, written_s))
    removed = as_json("gc", store.root, "--delete", "--older-than", 0)["removed_by_reason"]
    assert removed["journal of the past"]["files"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["new-2-b.jsonl", "open-3-c.jsonl"]


def test_verify_lists_bad_files_and_moves_them_out(store: FeatureStore) -> None:
    path = sorted(store.root.rglob("*.h5"))[0]
    assert as_json("verify", store.root, "--deep", "--jobs", 2)["bad"] == []
    path.write_bytes(path.read_bytes()[:-50])
    (bad,) = as_json("verify", store.root, code=1)["bad"]
    assert bad["path"] == str(path.relative_to(store.root)) and bad["moved_to"] is None
    line = invoke("verify", store.root, "--quarantine", code=1).stdout.splitlines()[0]
    assert line.startswith(f"bad: {bad['path']}: ") and f"moved to quarantine/{bad['path']}" in line
    assert "nothing to object to" in invoke("verify", store.root).stdout
    assert (store.root / "quarantine" / bad["path"]).is_file()


def test_explain_names_the_setting_that_made_a_miss(store: FeatureStore, data: Path, tmp_path: Path) -> None:
    (served,) = as_json("explain", store.root, data, "a", "front")["shards"]
    assert (served["modality"], served["outcome"]) == ("rgb", "served")
    (tmp_path / "c.toml").write_text("[sampling]\nframe_size = 112\n")
    arguments = ("explain", store.root, data, "a", "front", "--config", tmp_path / "c.toml")
    (missed,) = as_json(*arguments, code=1)["shards"]
    assert [item["field"] for item in missed["differences"]] == ["recipe.sampling.frame_size"]
    assert missed["nearest"] == served["path"]
    default = SamplingConfig().frame_size
    assert f"recipe.sampling.frame_size: stored {default}, wanted 112" in invoke(*arguments, code=1).stdout


def test_explain_names_a_replaced_file(store: FeatureStore, data: Path, tmp_path: Path) -> None:
    (tmp_path / "media" / "a.npz").write_bytes(b"measured again")
    (missed,) = as_json("explain", store.root, data, "a", "external", code=1)["shards"]
    assert [item["field"] for item in missed["differences"]] == ["sources[0].sha256"]


def test_explain_knows_what_was_imported(store: FeatureStore, data: Path) -> None:
    source = {"name": "a.npy", "sha256": "0" * 64, "offset_s": 0.0}
    before = Extraction.load(store.root, "toy")
    imported = {"i3d": {"front": {"a": [source]}}}
    recipes = {**before.recipes, "i3d": {"kind": "imported"}}
    Extraction("toy", before.segment_s, recipes, before.views, imported=imported).save(store.root)
    (found,) = as_json("explain", store.root, data, "a", "front", "--modality", "i3d", code=1)["shards"]
    assert (found["modality"], found["outcome"]) == ("i3d", "missing")


def test_explain_refuses_what_the_data_do_not_have(store: FeatureStore, data: Path) -> None:
    assert "they ask for: external/sensor, front/rgb" in invoke("explain", store.root, data, "a", "ego", code=2).stderr
    unknown = invoke("explain", store.root, data, "nobody", "front", code=2).stderr
    assert "ask for nothing of recording 'nobody'; is the name right?" in unknown
    assert "recording 'c'" in invoke("explain", store.root, data, "c", "front", code=2).stderr


def test_gc_shows_first_and_removes_on_demand(store: FeatureStore, tmp_path: Path) -> None:
    record = store.root / "extractions" / "toy.json"
    kept = json.loads(record.read_text())
    del kept["recipes"]["rgb"]
    record.write_text(json.dumps(kept))
    for path in store.root.rglob("*.*"):
        os.utime(path, (1e6, 1e6))
    shown = as_json("gc", store.root)
    assert shown["dry_run"] and shown["removed"] is None
    assert shown["garbage_by_reason"]["no extraction names its recipe"]["files"] == 3
    assert len(list(store.root.rglob("*.h5"))) == 4
    done = invoke("gc", store.root, "--delete").stdout.splitlines()
    assert done[-1].startswith(f"{store.root}: removed 3 files")
    assert len(list(store.root.rglob("*.h5"))) == 2
    assert as_json("gc", store.root)["garbage"] == []


def test_gc_empties_the_quarantine(store: FeatureStore) -> None:
    (store.root / "quarantine" / "x").mkdir(parents=True)
    (store.root / "quarantine" / "x" / "bad.h5").write_bytes(b"bad")
    assert as_json("gc", store.root, "--delete")["removed"] == []  # put there a moment ago
    assert len(as_json("gc", store.root, "--delete", "--older-than", 0)["removed"]) == 1
    assert not (store.root / "quarantine").exists()


def test_gc_refuses_a_run_of_another_store(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "heads.json").write_text('{"extraction": "toy"}')
    invoke("gc", store.root, "--run", tmp_path / "run")
    (tmp_path / "run" / "heads.json").write_text('{"extraction": "other"}')
    assert "made from extraction 'other'" in invoke("gc", store.root, "--run", tmp_path / "run", code=2).stderr


def test_extract_is_recorded_before_it_looks_what_is_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, keys: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("talstack.extract.plan.ExtractionPlan.finished_rows", stop)
    CliRunner().invoke(main, ["extract", str(data), "--store", str(tmp_path / "new"), "--jobs", "1"])
    assert Extraction.load(tmp_path / "new", "toy").name == "toy"
