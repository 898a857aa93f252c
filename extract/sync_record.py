"""What the sound said about each clip: `sync.parquet` beside the manifest, and the manifest's offsets.

Whoever reads the manifest later must be able to tell an offset that was known from one that was estimated, and to see
how sure the estimate was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path

import polars as pl

from talstack.io.errors import InputError
from talstack.io.files import atomic_path
from talstack.io.manifest import Manifest

SYNC_FILE = "sync.parquet"
KEYS = ("recording", "view", "clip")
SYNC_SCHEMA: dict[str, type[pl.DataType]] = {
    "recording": pl.String,
    "view": pl.String,
    "clip": pl.String,
    "outcome": pl.String,
    "known_s": pl.Float64,
    "estimate_s": pl.Float64,
    "confidence": pl.Float64,
    "correlation": pl.Float64,
    "overlap_s": pl.Float64,
    "reference": pl.String,
    "reason": pl.String,
}


@dataclass(frozen=True, slots=True)
class ClipSync:
    """What became of one clip.

    Attributes:
        recording, view, clip: which one.
        outcome: placed; unsure; contradictory (references disagree); still (nothing happens in the sound); no sound;
            no reference; failed. In a check: agrees or differs instead of placed.
        known_s: its offset before, None where unknown.
        estimate_s: where the sound puts it on the recording's clock, None where nothing was compared.
        confidence, correlation, overlap_s: of the estimate; see `LagEstimate`.
        reference: view/clip that it was compared with.
        reason: why it failed, or what else there is to know.
    """

    recording: str
    view: str
    clip: str
    outcome: str
    known_s: float | None = None
    estimate_s: float | None = None
    confidence: float | None = None
    correlation: float | None = None
    overlap_s: float | None = None
    reference: str | None = None
    reason: str = ""


def is_estimate(column: str) -> pl.Expr:
    """Return whether the offset in a column is the one in `estimate_s`; somebody may have set another since."""
    return ((pl.col(column) - pl.col("estimate_s")).abs() < 1e-6).fill_null(False)


def load_record(folder: Path) -> pl.DataFrame:
    """Return what earlier runs found out, one row per clip; without rows where none did.

    Raises:
        InputError: the file is not what talstack wrote.
    """
    path = folder / SYNC_FILE
    if not path.is_file():
        return pl.DataFrame(schema=SYNC_SCHEMA)
    try:
        record = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: not a readable parquet file; remove it, its offsets then count as known") from error
    if dict(record.schema) != SYNC_SCHEMA:
        raise InputError(f"{path}: expected columns {list(SYNC_SCHEMA)}, got {record.columns}")
    return record


def save_offsets(folder: Path, manifest: Manifest, rows: Sequence[ClipSync]) -> None:
    """Write the offsets of the clips that were placed into the manifest, and every row into the record.

    The record goes first: killed in between, a clip is placed again, whereas the other way round its estimate would
    pass for a known offset.
    """
    new = pl.DataFrame(rows, schema=SYNC_SCHEMA)
    old = load_record(folder).join(manifest.clips, on=KEYS, how="semi")
    # an estimate that stays in the manifest stays an estimate
    standing = new.filter(pl.col("outcome") != "placed").select(*KEYS, "known_s")
    standing = old.filter(pl.col("outcome") == "placed").join(standing, on=KEYS, how="inner", suffix="_now")
    standing = standing.filter(is_estimate("known_s_now")).drop("known_s_now")
    new = pl.concat([new.join(standing, on=KEYS, how="anti"), standing])
    with atomic_path(folder / SYNC_FILE) as temporary:
        pl.concat([old.join(new, on=KEYS, how="anti"), new]).sort(KEYS).write_parquet(temporary)
    if any(row.outcome == "placed" for row in rows):
        with_offsets(manifest, rows).save_table(folder, "clips")


def with_offsets(manifest: Manifest, rows: Sequence[ClipSync]) -> Manifest:
    """Return the manifest with the offsets of the clips that were placed."""
    placed = pl.DataFrame([row for row in rows if row.outcome == "placed"], schema=SYNC_SCHEMA)
    clips = manifest.clips.join(placed.select(*KEYS, "estimate_s"), on=KEYS, how="left", maintain_order="left")
    clips = clips.with_columns(offset_s=pl.coalesce("estimate_s", "offset_s")).drop("estimate_s")
    return replaced(manifest, clips=clips)
