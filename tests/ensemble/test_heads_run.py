"""What the ensemble accepts from stage two: predictions that are out of fold, and no others."""

import polars as pl
import pytest

from talstack.ensemble.heads_run import HeadsRun
from talstack.io.errors import InputError, LeakError
from talstack.io.files import read_json, sha256_file, write_json
from talstack.io.manifest import SCHEMAS


def refold(table: pl.DataFrame, recording: str, fold: int | None) -> pl.DataFrame:
    one = pl.when(pl.col("recording") == recording).then(pl.lit(fold, dtype=pl.Int32)).otherwise("fold").alias("fold")
    return table.with_columns(one)


def test_a_row_of_a_model_that_learned_from_its_recording_is_refused(world, write_run) -> None:
    manifest, table = world
    fold = dict(manifest.folds.iter_rows())["rec00"]
    other = (fold + 1) % 4
    with pytest.raises(LeakError, match=f"rec00 was predicted as of fold {other}, but is in fold {fold}"):
        HeadsRun.load(write_run(table=refold(table, "rec00", other)), manifest)
    some = pl.concat([table[:-1], refold(table[-1:], table["recording"][-1], 2)])  # one row of a test recording
    with pytest.raises(LeakError, match="was predicted as of fold 2, but is in fold None"):
        HeadsRun.load(write_run(name="one-row", table=some), manifest)


def test_folds_that_were_dealt_anew_after_the_heads_are_refused(world, write_run) -> None:
    manifest, _ = world
    run = write_run()
    dealt = manifest.folds.with_columns(((pl.col("fold") + 1) % 4).alias("fold"))
    with pytest.raises(LeakError, match="run `talstack heads` again"):
        HeadsRun.load(run, manifest.with_folds(dealt))
    write_json(run / "heads.json", {**read_json(run / "heads.json"), "folds": dict(dealt.iter_rows())})
    with pytest.raises(LeakError, match="the model that predicted it may have learned from it"):
        HeadsRun.load(run, manifest.with_folds(pl.DataFrame(schema=SCHEMAS["folds"])))


def test_a_recording_without_a_fold_that_heads_learned_from_is_refused(world, write_run) -> None:
    manifest, table = world
    run = write_run(table=refold(table, "rec03", None))
    assert HeadsRun.load(run, manifest).table.height, "nothing says that heads learned from it"
    write_json(run / "heads.json", {**read_json(run / "heads.json"), "learned_from": ["rec03", "rec04"]})
    with pytest.raises(LeakError, match="rec03 has no fold, but heads learned from it"):
        HeadsRun.load(run, manifest)


def test_a_table_that_was_edited_is_not_the_one_described(world, write_run) -> None:
    manifest, table = world
    run = write_run()
    digest = sha256_file(run / "oof.parquet")
    write_json(run / "heads.json", {**read_json(run / "heads.json"), "oof_sha256": digest})
    assert HeadsRun.load(run, manifest).sha256 == digest
    table.with_columns(pl.lit(1.0, dtype=pl.Float32).alias("prob")).write_parquet(run / "oof.parquet")
    with pytest.raises(InputError, match=r"not the table that heads.json describes"):
        HeadsRun.load(run, manifest)
