"""Submission files: detections as competition CSV, ActivityNet JSON or plain CSV, and the scene track's CSV.

Every file covers exactly the recordings of one split, in sorted order, those without a detection too where the
format can say so. `talstack.io.detections.read_predictions` reads all of the `FORMATS` back. The `LABEL_FORMATS` are
for people who look at one recording: a file for each, in a folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from talstack.io.bins import BIN_S, bin_detections, bin_of, format_prediction, num_bins, row_id
from talstack.io.detections import sort_detections, validate_detections, write_activitynet, write_csv, write_parquet
from talstack.io.errors import InputError
from talstack.io.files import atomic_path
from talstack.io.label_files import SUFFIXES, audacity_text, eaf_text, file_name, vtt_text
from talstack.io.manifest import SPLITS, Manifest

FORMATS = ("binego360", "activitynet", "csv", "parquet")
LABEL_FORMATS = tuple(SUFFIXES)
SUM_SLACK = 1e-6  # float32 probabilities sum to 1 within this


def write_submission(
    detections: pl.DataFrame, manifest: Manifest, *, split: str | None, format: str, out: Path
) -> None:
    """Write the detections of one split's recordings.

    Args:
        detections: table (recording, start_s, end_s, label, score); rows of other splits are left out.
        manifest: names the recordings, their lengths, the classes and the first class id.
        split: train, val or test; None for all recordings.
        format: one of `FORMATS`.
        out: the file.

    Raises:
        InputError: an unknown format, an empty split, a detection that `validate_detections` refuses, whose
            recording or label the manifest does not have, or that starts after its recording's end; a name that
            a CSV cannot carry.
    """
    if format not in FORMATS:
        raise InputError(f"submission format {format!r}; expected one of {', '.join(FORMATS)}")
    recordings, detections = _of_split(detections, manifest, split)
    if format in ("binego360", "csv"):
        _check_names([*recordings, *(detections["label"].unique().sort() if format == "csv" else ())])
    if format == "binego360":
        _write_table(binego360_rows(detections, manifest, recordings=recordings), out)
    elif format == "activitynet":
        write_activitynet(detections, out, recordings=recordings)
    elif format == "csv":
        write_csv(detections, out)
    else:
        write_parquet(detections, out)


def label_files(
    detections: pl.DataFrame, manifest: Manifest, *, split: str | None, format: str, out: Path, min_score: float = 0.0
) -> dict[Path, str]:
    """Return {file: text} of one split's recordings in a format for people who look.

    Args:
        detections, manifest, split: as of `write_submission`.
        format: one of `LABEL_FORMATS`.
        out: the folder, which gets a file per recording; of a single recording also the file itself, if it has the
            format's suffix.
        min_score: detections below are left out.

    Raises:
        InputError: as `write_submission`; or `out` is a file's name and there are several recordings.
    """
    if format not in LABEL_FORMATS:
        raise InputError(f"label format {format!r}; expected one of {', '.join(LABEL_FORMATS)}")
    recordings, detections = _of_split(detections, manifest, split)
    is_file = out.suffix.lower() == SUFFIXES[format] and not out.is_dir()
    if (is_file and len(recordings) > 1) or out.is_file() > is_file:
        raise InputError(
            f"{out}: {format} writes one file per recording, {len(recordings)} for {_shown(split)}; name a folder"
        )
    detections = detections.filter(pl.col("score") >= min_score)
    files = {}
    for recording in recordings:
        path = out if is_file else out / file_name(recording, format)
        rows = detections.filter(pl.col("recording") == recording)
        if format == "eaf":
            files[path] = eaf_text(rows, _placed_clips(manifest, recording), folder=path.parent)
        else:
            files[path] = vtt_text(rows) if format == "vtt" else audacity_text(rows)
    return files


def _placed_clips(manifest: Manifest, recording: str) -> list[tuple[Path, float]]:
    """Return the media files of a recording that have a place on its clock, and that place, seconds; earliest first.

    ELAN plays the first one and lets the others follow.
    """
    clips = manifest.clips.filter((pl.col("recording") == recording) & pl.col("offset_s").is_not_null())
    rows = clips.sort("offset_s", "view", "clip").select("path", "offset_s").unique(maintain_order=True).iter_rows()
    return [(manifest.media_path(path), offset_s) for path, offset_s in rows]


def _of_split(detections: pl.DataFrame, manifest: Manifest, split: str | None) -> tuple[list[str], pl.DataFrame]:
    """Return the split's recordings, sorted, and the checked detections on them."""
    recordings = _recordings_of(manifest, split)
    detections = validate_detections(detections, where="submission")
    _check_against(detections, manifest)
    return recordings, detections.filter(pl.col("recording").is_in(recordings))


def binego360_rows(detections: pl.DataFrame, manifest: Manifest, *, recordings: Sequence[str]) -> pl.DataFrame:
    """Return the competition's table (id, prediction): one row per recording and ten-second bin.

    Pieces are in descending score, scores in full precision; a bin with nothing is `[]`.
    """
    class_ids = {label: index for index, label in enumerate(manifest.actions, start=manifest.first_action_id)}
    counts = {recording: num_bins(manifest.duration_s(recording)) for recording in recordings}
    pieces: dict[str, list[tuple[int, float, float, float]]] = {
        row_id(recording, index): [] for recording, count in counts.items() for index in range(count)
    }
    inside = _inside_bins(detections, counts)
    for recording, start, end, label, score in sort_detections(bin_detections(inside)).iter_rows():
        pieces[row_id(recording, bin_of(start))].append((class_ids[label], start, end, score))
    texts = [format_prediction(row) for row in pieces.values()]
    return pl.DataFrame({"id": list(pieces), "prediction": texts}, schema={"id": pl.String, "prediction": pl.String})


def _inside_bins(detections: pl.DataFrame, counts: Mapping[str, int]) -> pl.DataFrame:
    """Return the detections cut off where their recording's last bin ends.

    The last segment may reach past the recording's end, into a bin that has no row; and cutting an end of 1e9
    seconds into bins would fill the memory.
    """
    names = pl.Series(list(counts), dtype=pl.String)
    last = pl.DataFrame({"recording": names, "last_s": [count * BIN_S for count in counts.values()]})
    return (
        detections.join(last, on="recording", how="inner")
        .filter(pl.col("start_s") < pl.col("last_s"))
        .with_columns(end_s=pl.min_horizontal("end_s", "last_s"))
        .drop("last_s")
    )


def write_scene_submission(probs: pl.DataFrame, manifest: Manifest, *, split: str, out: Path) -> None:
    """Write the scene track's CSV: id, then one probability column per scene, numbered from 0.

    Args:
        probs: `recording` and one column per scene of the manifest, by name; rows of other splits are left out.
            A row that does not sum to 1 is divided by its sum.
        manifest: names the recordings and the ordered scenes.
        split: train, val or test.
        out: the file.

    Raises:
        InputError: an empty split, a missing column, a recording of the split without exactly one row, a value
            that is not finite or is negative, a row of zeros, or a name that a CSV cannot carry.
    """
    recordings = _recordings_of(manifest, split)
    _check_names(recordings)
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
    _write_table(_as_probabilities(table), out)


def _as_probabilities(table: pl.DataFrame) -> pl.DataFrame:
    """Return the scene rows with a sum of 1; those that have it, to float32's precision, stay as they are."""
    values, total = pl.exclude("id"), pl.sum_horizontal(pl.exclude("id"))
    rules = [
        (
            ~pl.all_horizontal(values.is_finite().fill_null(False)) | total.is_infinite(),
            "has a probability that is not finite",
        ),
        (pl.any_horizontal(values < 0), "has a negative probability"),
        (total <= 0, "has only zeros, so no scene is named"),
    ]
    for condition, message in rules:
        bad = table.filter(condition)
        if bad.height:
            raise InputError(f"scene submission: recording {bad['id'][0]!r} {message}")
    share = pl.when((total - 1).abs() > SUM_SLACK).then(total).otherwise(1.0)
    return table.with_columns(values / share)


def _recordings_of(manifest: Manifest, split: str | None) -> list[str]:
    recordings = manifest.recordings_of(SPLITS if split is None else [split])
    if not recordings:
        raise InputError(f"submission: no recording of {manifest.name!r} is in {_shown(split)}")
    return recordings


def _shown(split: str | None) -> str:
    return "any split" if split is None else f"split {split!r}"


def _check_names(names: Iterable[str]) -> None:
    """Raise InputError for a name that would not come back from a CSV, whose readers strip white space."""
    bad = [name for name in names if name != name.strip() or not name or "\0" in name]
    if bad:
        raise InputError(
            f"submission: a CSV cannot carry the name {bad[0]!r}: it is empty, has white space around it or holds a "
            "zero character; rename it in the data set, or write activitynet or parquet"
        )


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
