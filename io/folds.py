"""Folds by recording or group of recordings, assigned once and shared by fine-tuning, heads and stacker."""

import numpy as np
import polars as pl

from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest


def assign_folds(manifest: Manifest, num_folds: int, *, seed: int = 0) -> pl.DataFrame:
    """Return the fold table (recording, fold) of all train and val recordings.

    Recordings are dealt out scene by scene, so every fold gets its share of each scene where there are enough.
    Recordings of one group stay together, and the largest groups are dealt out first; each goes to the fold with the
    fewest recordings of its scenes. The same input and seed give the same folds whatever the row order.

    Raises:
        InputError: fewer than two folds, or fewer groups of recordings than folds.
    """
    rows = manifest.recordings.filter(pl.col("split") != "test").sort("recording")
    numbers = manifest.groups
    rows = rows.with_columns(pl.Series("number", [numbers[name] for name in rows["recording"]], dtype=pl.Int64))
    num_groups = rows["number"].n_unique()
    if num_folds < 2 or num_groups < num_folds:
        raise InputError(
            f"folds: {num_folds} folds over {rows.height} train and val recordings in {num_groups} groups; "
            "need 2 <= folds <= groups"
        )
    rng = np.random.default_rng(seed)
    shuffled = rows[rng.permutation(rows.height)]
    # largest groups and scenes first, so that the remainders fill up the folds evenly
    dealt = shuffled.with_columns(pl.len().over("number").alias("together"), pl.len().over("scene").alias("size")).sort(
        ["together", "size", "scene"], descending=[True, True, False], nulls_last=True, maintain_order=True
    )
    fold_of = _deal(dealt, num_folds)
    folds = [fold_of[number] for number in dealt["number"]]
    return pl.DataFrame({"recording": dealt["recording"], "fold": folds}, schema=SCHEMAS["folds"]).sort("recording")


def _deal(rows: pl.DataFrame, num_folds: int) -> dict[int, int]:
    """Return {number of a group: its fold}; groups in the order of their first rows."""
    scenes = {scene: column for column, scene in enumerate(rows["scene"].unique(maintain_order=True))}
    counts = np.zeros((num_folds, len(scenes)), dtype=np.int64)
    fold_of: dict[int, int] = {}
    for number, group in rows.group_by("number", maintain_order=True):
        own = np.bincount([scenes[scene] for scene in group["scene"]], minlength=len(scenes))
        # alike recordings first, then all; of equal folds the first: single recordings are dealt out in turn
        fold = int(np.lexsort((counts.sum(axis=1), counts @ own))[0])
        counts[fold] += own
        fold_of[int(str(number[0]))] = fold
    return fold_of


def groups_in_several_splits(manifest: Manifest) -> dict[str, list[str]]:
    """Return {group: its splits} of the named groups that lie in more than one split, sorted."""
    if "group" not in manifest.recordings.columns:
        return {}
    table = manifest.recordings.drop_nulls("group").group_by("group").agg(pl.col("split").unique().sort())
    return {name: splits for name, splits in table.sort("group").iter_rows() if len(splits) > 1}
