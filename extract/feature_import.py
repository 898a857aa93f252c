"""Features of other programs become shards: found, read, laid on the segment grid, and entered into an extraction.

What is imported lies in the store as if talstack had extracted it: under a key that holds the settings and the content
hashes of the files, and in the record of an extraction, which is how `talstack heads` finds it. The files themselves
are not needed afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from talstack.extract.config import SamplingConfig
from talstack.extract.feature_rows import ImportSettings, Piece, UnreadableError, read_rows
from talstack.extract.recipes import AUDIO, RGB
from talstack.extract.row_pooling import Rows, pool_rows
from talstack.extract.status import StatusRow
from talstack.io.errors import InputError, MissingInputError
from talstack.io.extraction import Extraction, check_views
from talstack.io.feature_files import FoundFiles, find_feature_files
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest
from talstack.io.shard import EXTERNAL_VIEW, Shard, ShardKey
from talstack.io.store import ClipHashes, FeatureStore

DEFAULT_SEGMENT_S = SamplingConfig().segment_s
SHORT = 0.9  # a file that covers less of its recording is mentioned


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What to import.

    Attributes:
        extraction: the record as it will be once the import is done.
        shards: every key and the files behind it.
        found: files against recordings.
        unaligned: clips whose offset is unknown; they are left out.
    """

    extraction: Extraction
    shards: tuple[tuple[ShardKey, tuple[Piece, ...]], ...]
    found: FoundFiles
    unaligned: tuple[str, ...]
    settings: ImportSettings

    @property
    def recordings_without_file(self) -> tuple[str, ...]:
        """Recordings for which nothing was found."""
        have = {recording for recording, _ in self.found.files}
        return tuple(sorted({recording for recording, _ in self.found.without_file} - have))


def plan_import(
    manifest: Manifest, store_root: Path, folder: Path, *, modality: str, settings: ImportSettings,
    view: str | None = None, pattern: str | None = None, key: str | None = None, segment_s: float | None = None,
    name: str | None = None,
) -> ImportPlan:  # fmt: skip
    """Return which files become which shards.

    Args:
        view: the camera that the features are of: then they lie on the clocks of its clips, at their offsets. Default:
            features of the recording as a whole.
        pattern, key: see `find_feature_files`.
        segment_s: length of a segment; default: that of the extraction, or that of `talstack extract` by default.
        name: of the extraction; default: the data set's.

    Raises:
        InputError: a modality that the data set has already, a view it lacks, no file that fits, another segment_s.
        MissingInputError: there is no such folder.
    """
    extraction = _extraction(store_root, name or manifest.name, segment_s)
    _check_modality(manifest, extraction, modality)
    places, unaligned = _places(manifest, view)
    found = find_feature_files(folder, sorted(places), pattern=pattern, key=key)
    pieces: dict[str, list[Piece]] = {}
    for (recording, clip), file in sorted(found.files.items()):
        pieces.setdefault(recording, []).append(Piece(file, *places[recording, clip]))
    hashes = ClipHashes(store_root)
    sources = {recording: _sources(files, hashes) for recording, files in pieces.items()}
    hashes.save()
    view, recipe = view or EXTERNAL_VIEW, {**settings.recipe, "key": key}
    extraction = _enter(extraction, modality, view, recipe=recipe, sources=sources)
    durations = dict(manifest.recordings.select("recording", "duration_s").iter_rows())
    shards = [
        (ShardKey(r, view, modality, recipe, sources[r], durations[r], extraction.segment_s), tuple(pieces[r]))
        for r in pieces
    ]
    return ImportPlan(extraction, tuple(shards), found, unaligned, settings)


def _extraction(store_root: Path, name: str, segment_s: float | None) -> Extraction:
    """Return the extraction to enter features into: the one of this name, or a new one."""
    try:
        before = Extraction.load(store_root, name)
    except MissingInputError:
        return Extraction(name, segment_s or DEFAULT_SEGMENT_S, {}, ())
    if segment_s not in (None, before.segment_s):
        raise InputError(
            f"extraction {name!r} has segments of {before.segment_s} s, got {segment_s} s; leave the length out, or "
            "give the import another --name"
        )
    return before


def _sources(pieces: Sequence[Piece], hashes: ClipHashes) -> tuple[dict[str, Any], ...]:
    """Return what the numbers of a recording come from, for its key: every file, and those that lie beside it."""
    return tuple(
        {
            "name": piece.file.name + ("" if path == piece.file.path else f" {path.name}"),
            "sha256": hashes.sha256(path),
            "offset_s": piece.offset_s,
        }
        for piece in pieces
        for path in piece.file.files
    )


def _check_modality(manifest: Manifest, extraction: Extraction, modality: str) -> None:
    """Raise InputError where the name would stand for two things."""
    own = {RGB, AUDIO, *manifest.features["modality"].to_list(), *extraction.recipes} - set(extraction.imported)
    if modality in own:
        raise InputError(f"modality {modality!r}: talstack extract makes one of that name; choose another --modality")


def _places(manifest: Manifest, view: str | None) -> tuple[dict[tuple[str, str], tuple[float, float]], tuple[str, ...]]:
    """Return offset and length of every (recording, clip) that may have a file, and clips at unknown offsets."""
    durations = dict(manifest.recordings.select("recording", "duration_s").iter_rows())
    if view is None:
        return {(recording, ""): (0.0, length_s) for recording, length_s in durations.items()}, ()
    check_views(manifest, (view,))
    places, unaligned = {}, []
    for row in manifest.clips.filter(manifest.clips["view"] == view).sort("recording", "clip").iter_rows(named=True):
        if row["offset_s"] is None:
            unaligned.append(f"{row['recording']} {view}/{row['clip']}")
            continue
        length_s = row["duration_s"] or max(durations[row["recording"]] - row["offset_s"], 0.0)
        places[row["recording"], row["clip"]] = (row["offset_s"], length_s)
    return places, tuple(unaligned)


def _enter(
    extraction: Extraction, modality: str, view: str, *, recipe: dict[str, Any], sources: Mapping[str, Sequence[Any]]
) -> Extraction:
    """Return the extraction with these sources; recordings imported before under the same recipe stay.

    Raises:
        InputError: another view of the modality was imported with other settings.
    """
    views = dict(extraction.imported.get(modality, {}))
    same = extraction.recipes.get(modality) == recipe
    if not same and set(views) - {view}:
        other = min(set(views) - {view})
        raise InputError(
            f"modality {modality!r} was imported for view {other!r} with other settings; one modality has one set of "
            "settings: choose another --modality for this view"
        )
    views[view] = {**(views.get(view, {}) if same else {}), **sources}
    return replace(
        extraction,
        recipes={**extraction.recipes, modality: recipe},
        imported={**extraction.imported, modality: views},
    )


def run_import(
    plan: ImportPlan, store_root: Path, report: Callable[[StatusRow], None] = lambda row: None
) -> list[StatusRow]:
    """Write the shards and then the extraction's record; return a status row per recording.

    A file that cannot be read becomes a recorded failure. One that contradicts the settings ends the import: they are
    wrong for the others too. No record is written then, so nothing refers to the shards made before.

    Raises:
        InputError: rows for more time than the recording has, a transposed layout, widths that differ; the message
            names file, got and expected.
    """
    store, rows = FeatureStore(store_root), []
    first: tuple[str, int] | None = None
    for key, pieces in plan.shards:
        row, width = _import_one(store, key, pieces, settings=plan.settings, first=first)
        if width is not None:
            first = first or (key.recording, width)
        rows.append(row)
        report(row)
    plan.extraction.save(store_root)
    return rows


def _import_one(
    store: FeatureStore, key: ShardKey, pieces: Sequence[Piece], *, settings: ImportSettings,
    first: tuple[str, int] | None,
) -> tuple[StatusRow, int | None]:  # fmt: skip
    """Make one shard unless it is there; return what became of it and its width.

    Args:
        first: a recording with these features and its width, which this one must share.
    """
    row = StatusRow(key.recording, key.view, key.modality, "cached")
    cached = store.status(key) == "done"
    try:
        shard = store.read(key) if cached else _pool_pieces(key, pieces, settings)
    except UnreadableError as error:
        store.record_failure(key, str(error))
        return replace(row, outcome="failed", reason=str(error)), None
    width = shard.features.shape[1]
    if first is not None and width != first[1]:
        raise InputError(
            f"{pieces[0].file.name}: {width} channels, but {first[0]} has {first[1]}; features of one modality must "
            "have one width (is --layout right?)"
        )
    if cached:
        return row, width
    store.write(key, shard)
    num_valid, reason = int(shard.valid.sum()), "; ".join(shard.notes)
    return replace(row, outcome="done", num_segments=len(shard.valid), num_valid=num_valid, reason=reason), width


def _pool_pieces(key: ShardKey, pieces: Sequence[Piece], settings: ImportSettings) -> Shard:
    """Return the shard of one recording from the rows of its files."""
    arrays = [read_rows(piece, settings) for piece in pieces]
    widths = {rows.values.shape[1] for rows in arrays}
    if len(widths) > 1:
        raise InputError(f"{key}: its files have {sorted(widths)} channels; features of one modality need one width")
    times_s = np.concatenate([rows.times_s + piece.offset_s for piece, rows in zip(pieces, arrays, strict=True)])
    order = np.argsort(times_s, kind="stable")
    joined = Rows(
        np.concatenate([rows.values for rows in arrays])[order], times_s[order],
        max(rows.reach_s for rows in arrays), max(rows.step_s for rows in arrays),
    )  # fmt: skip
    grid = SegmentGrid(key.duration_s, key.segment_s)
    features, valid = pool_rows(joined, grid, pool=settings.pool, between=settings.between)
    largest = float(np.abs(features).max(initial=0))
    if largest > np.finfo(np.float16).max:
        raise UnreadableError(f"{key}: values up to {largest:.3g} do not fit float16 (65504); rescale the features")
    if not valid.any():
        raise UnreadableError(f"{key}: no segment has a row of finite numbers")
    return Shard(features.astype(np.float16), valid, grid.centres_s, notes=_notes(pieces, arrays, valid))


def _notes(pieces: Sequence[Piece], arrays: Sequence[Rows], valid: np.ndarray) -> tuple[str, ...]:
    notes = []
    for piece, rows in zip(pieces, arrays, strict=True):
        if not rows.good.all():
            notes.append(f"{piece.file.name}: {int((~rows.good).sum())} of {len(rows.good)} rows are missing or NaN")
        end_s = float(rows.times_s[-1]) + rows.reach_s
        if end_s < SHORT * piece.span_s:
            notes.append(f"{piece.file.name}: ends at {end_s:.1f} s of {piece.span_s:.1f} s (stride and fps right?)")
    if not valid.all():
        notes.append(f"{int((~valid).sum())} of {len(valid)} segments have no features")
    return tuple(notes)
