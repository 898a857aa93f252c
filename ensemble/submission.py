"""Submission files: detections as competition CSV, ActivityNet JSON or plain CSV, and the scene track's CSV.

Every file covers exactly the recordings of one split, in sorted order, those without a detection too where the
format can say so. `talstack.io.detections.read_predictions` reads all of the detection formats back.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from talstack.io.bins import bin_detections, bin_of, format_prediction, num_bins, row_id
from talstack.io.detections import sort_detections, validate_detections, write_activitynet, write_csv, write_parquet
from talstack.io.errors import InputError
from talstack.io.files import atomic_path
from talstack.io.manifest import Manifest

FORMATS = ("binego360", "activitynet", "csv", "parquet")


def write_submission(detections: pl.DataFrame, manifest: Manifest, *, split: str, format: str, out: Path) -> None:
    """Write the detections of one split's recordings.

    Args:
        detections: table (recording, start_s, end_s, label, score); rows of other splits are left out.
        manifest: names the recordings, their lengths, the classes and the first class id.
        split: train, val or test.
        format: one of `FORMATS`.
        out: the file.

    Raises:
        InputError: an unknown format, an empty split, a detection that `validate_detections` refuses, whose
            recording or label the manifest does not have, or that starts after its recording's end.
    """
    if format not in FORMATS:
        raise InputError(f"submission format {format!r}; expected one of {', '.join(FORMATS)}")
    recordings = _recordings_of(manifest, split)
    detections = validate_detections(detections, where="submission")
    _check_against(detections, manifest)
    detections = detections.filter(pl.col("recording").is_in(recordings))
    if format == "binego360":
        _write_table(binego360_rows(detections, manifest, recordings=recordings), out)
    elif format == "activitynet":
        write_activitynet(detections, out, recordings=recordings)
    elif format == "csv":
        write_csv(detections, out)
    else:
        write_parquet(detections, out)


def binego360_rows(detections: pl.DataFrame, manifest: Manifest, *, recordings: Sequence[str]) -> pl.DataFrame:
    """Return the competition's table (id, prediction): one row per recording and ten-second bin.

    Pieces are in descending score, scores in full precision; a bin with nothing is `[]`.
    """
    class_ids = {label: index for index, label in enumerate(manifest.actions, start=manifest.first_action_id)}
    pieces: dict[str, list[tuple[int, float, float, float]]] = {
        row_id(recording, index): []
        for recording in recordings
        for index in range(num_bins(manifest.duration_s(recording)))
    }
    for recording, start, end, label, score in sort_detections(bin_detections(detections)).iter_rows():
        row = pieces.get(row_id(recording, bin_of(start)))
        if row is not None:  # the last segment may reach past the recording's end, into a bin that has no row
            row.append((class_ids[label], start, end, score))
    texts = [format_prediction(row) for row in pieces.values()]
    return pl.DataFrame({"id": list(pieces), "prediction": texts}, schema={"id": pl.String, "prediction": pl.String})


def write_scene_submission(probs: pl.DataFrame, manifest: Manifest, *, split: str, out: Path) -> None:
    """Write the scene track's CSV: id, then one probability column per scene, numbered from 0.

    Args:
        probs: `recording` and one column per scene of the manifest, by name; rows of other splits are left out.
        manifest: names the recordings and the ordered scenes.
        split: train, val or test.
        out: the file.

    Raises:
        InputError: an empty split, a missing column, a recording of the split without exactly one row, or a value
            that is not finite.
    """
    recordings = _recordings_of(manifest, split)
    missing = [name for name in ("recording", *manifest.scenes) if name not in probs.columns]
    if missing:
        raise InputError(f"scene submission: missing column {missing[0]!r}; expected recording and one per scene")
    rows = probs.filter(pl.col("recording").is_in(recordings)).sort("recording")
    if rows["recording"].to_list() != recordings:
        counts = dict(rows["recording"].value_counts().iter_rows())
        wrong = next(recording for recording in recordings if counts.get(recording) != 1)
        raise InputError(f"scene submission: recording {wrong!r} has {counts.get(wrong, 0)} rows, expected one")
    numbered = [pl.col(name).cast(pl.Float64).alias(str(index)) for index, name in enumerate(manifest.scenes)]
    table = rows.select(pl.col("recording").alias("id"), *numbered)
    bad = table.filter(~pl.all_horizontal(pl.exclude("id").is_finite().fill_null(False)))
    if bad.height:
        raise InputError(f"scene submission: recording {bad['id'][0]!r} has a probability that is not finite")
    _write_table(table, out)


def _recordings_of(manifest: Manifest, split: str) -> list[str]:
    recordings = manifest.recordings_of([split])
    if not recordings:
        raise InputError(f"submission: no recording of {manifest.name!r} is in split {split!r}")
    return recordings


def _check_against(detections: pl.DataFrame, manifest: Manifest) -> None:
    """Raise InputError for a detection that the manifest contradicts."""
    joined = detections.join(manifest.recordings.select("recording", "duration_s"), on="recording", how="left")
    rules = [
        (pl.col("duration_s").is_null(), "the data set has no such recording"),
        (~pl.col("label").is_in(manifest.actions), "the data set has no such action"),
        (pl.col("start_s") >= pl.col("duration_s"), "it starts after its recording's end"),
    ]
    for condition, message in rules:
        bad = joined.filter(condition)
        if bad.height:
            raise InputError(f"submission: {message}; {bad.height} detection(s), the first: {bad.row(0, named=True)}")


def _write_table(table: pl.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.write_csv(temporary)
