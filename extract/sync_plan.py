"""Which clips are to be placed by their sound, and which ones they may be compared with.

References are the recording's clips at an offset that somebody knew. An offset that an earlier run estimated is none,
so that what comes out does not depend on how often, or in which order, clips were placed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from talstack.extract.sync import MIN_CONFIDENCE
from talstack.extract.sync_record import KEYS, ClipSync, is_estimate
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """How sure to be, and where to look.

    Attributes:
        min_confidence: below it a clip is not placed; see `sync`.
        max_lag_s: furthest from the clip's known offset, or from second 0 where it has none.
        check: compare known offsets with the sound instead of placing clips.
        overwrite: place clips at a known offset as well.
    """

    min_confidence: float = MIN_CONFIDENCE
    max_lag_s: float = np.inf
    check: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not (self.min_confidence > 0 and self.max_lag_s >= 0):
            raise InputError(
                f"sync: expected a confidence > 0 and a lag >= 0, got {self.min_confidence} and {self.max_lag_s}"
            )
        if self.check and self.overwrite:
            raise InputError("sync: a check changes nothing, so there is nothing to overwrite; leave one of them out")


@dataclass(frozen=True, slots=True)
class SyncClip:
    """One clip of a recording, and its part in this.

    Attributes:
        path: the media file.
        offset_s: where it is known to begin, seconds; None where unknown.
        duration_s: 0 where it could not be read at import.
        has_audio: None where it could not be read at import.
        was_estimated: the offset is what an earlier run estimated.
        is_target: it is to be placed or checked.
        is_reference: others may be compared with it.
    """

    recording: str
    view: str
    clip: str
    path: Path
    offset_s: float | None
    duration_s: float
    has_audio: bool | None
    was_estimated: bool = False
    is_target: bool = False
    is_reference: bool = False

    @property
    def name(self) -> str:
        """View and clip."""
        return f"{self.view}/{self.clip}"

    def row(self, outcome: str, reason: str = "") -> ClipSync:
        """Return the clip's row of the result, without an estimate."""
        return ClipSync(self.recording, self.view, self.clip, outcome, known_s=self.offset_s, reason=reason)


def plan_sync(
    manifest: Manifest, record: pl.DataFrame, settings: SyncSettings, *, views: Sequence[str] = ()
) -> list[list[SyncClip]]:
    """Return the clips of every recording that has one to place or to check; references come longest first.

    Args:
        manifest: the data set.
        record: what earlier runs found out; see `load_record`.
        settings: what to do.
        views: place only clips of these; none stands for all.

    Raises:
        InputError: there is no clip of one of the views.
    """
    there = sorted(set(manifest.clips["view"]))
    for view in views:
        if view not in there:
            raise InputError(f"no clip of view {view!r}; the views are {', '.join(there)}")
    placed = record.filter(pl.col("outcome") == "placed").select(*KEYS, "estimate_s")
    rows = manifest.clips.join(placed, on=KEYS, how="left").with_columns(was_estimated=is_estimate("offset_s"))
    groups = []
    for _, group in rows.sort(KEYS).group_by("recording", maintain_order=True):
        clips = [_clip(manifest, row, settings, views) for row in group.iter_rows(named=True)]
        clips.sort(key=lambda clip: -round(clip.duration_s, 1))
        if settings.overwrite:
            clips = _keep_an_anchor(clips)
        if any(clip.is_target for clip in clips):
            groups.append(clips)
    return groups


def _clip(manifest: Manifest, row: dict[str, Any], settings: SyncSettings, views: Sequence[str]) -> SyncClip:
    is_known = row["offset_s"] is not None
    is_wanted = is_known if settings.check else settings.overwrite or not is_known
    is_target = is_wanted and (not views or row["view"] in views)
    return SyncClip(
        row["recording"], row["view"], row["clip"], manifest.media_path(row["path"]), row["offset_s"],
        row["duration_s"] or 0.0, row["has_audio"], row["was_estimated"], is_target,
        is_reference=is_known and not row["was_estimated"] and (settings.check or not is_target),
    )  # fmt: skip


def _keep_an_anchor(clips: list[SyncClip]) -> list[SyncClip]:
    """Return the clips; where all would be placed anew, the longest that somebody placed stays and is the reference."""
    known = [clip for clip in clips if clip.offset_s is not None and clip.has_audio is not False]
    if not known or any(clip.is_reference for clip in clips):
        return clips
    anchor = min(known, key=lambda clip: (clip.was_estimated, -round(clip.duration_s, 1), abs(clip.offset_s or 0.0)))
    return [replace(clip, is_target=False, is_reference=True) if clip is anchor else clip for clip in clips]
