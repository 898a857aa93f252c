"""Folds by recording, assigned once and shared by fine-tuning, heads and stacker."""

import numpy as np
import polars as pl

from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest


def assign_folds(manifest: Manifest, num_folds: int, *, seed: int = 0) -> pl.DataFrame:
    """Return the fold table (recording, fold) of all train and val recordings.

    Recordings are dealt out scene by scene, so every fold gets its share of each scene where there are enough;
    the same input and seed give the same folds whatever the row order.

    Raises:
        InputError: fewer than two folds, or fewer recordings than folds.
    """
    rows = manifest.recordings.filter(pl.col("split") != "test").sort("recording")
    if num_folds < 2 or rows.height < num_folds:
        raise InputError(
            f"folds: {num_folds} folds over {rows.height} train and val recordings; need 2 <= folds <= recordings"
        )
    rng = np.random.default_rng(seed)
    shuffled = rows[rng.permutation(rows.height)]
    # longest scenes first, so that the remainders of small scenes fill up the folds evenly
    dealt = shuffled.with_columns(pl.len().over("scene").alias("size")).sort(
        ["size", "scene"], descending=[True, False], nulls_last=True, maintain_order=True
    )
    return pl.DataFrame(
        {"recording": dealt["recording"], "fold": np.arange(dealt.height, dtype=np.int64) % num_folds},
        schema=SCHEMAS["folds"],
    ).sort("recording")
