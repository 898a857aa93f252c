"""Placing the clips of a recording by their sound.

Every clip is compared with every reference. Those that are confident vote: what most of them say counts, and where as
many say something else the clip stays where it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import joblib

from talstack.extract.sync import RATE, LagEstimate, SoundFeatures, estimate_lag, sound_features
from talstack.extract.sync_plan import SyncClip, SyncSettings
from talstack.extract.sync_record import ClipSync
from talstack.io.errors import MediaError, TalstackError
from talstack.io.media import read_audio

AGREE_S = 0.1  # sound needs as long for 34 m


@dataclass(frozen=True, slots=True)
class _Vote:
    """Where one reference puts a clip, on the recording's clock."""

    reference: str
    offset_s: float
    estimate: LagEstimate

    def agrees_with(self, offset_s: float | None) -> bool:
        return offset_s is not None and abs(self.offset_s - offset_s) <= AGREE_S


def sync_recordings(
    groups: Sequence[Sequence[SyncClip]],
    settings: SyncSettings,
    *,
    jobs: int,
    report: Callable[[], None] = lambda: None,
) -> list[ClipSync]:
    """Return what the sound says about every target, and the references that cannot be read, sorted.

    Args:
        groups: the clips of each recording; see `plan_sync`.
        settings: how sure to be.
        jobs: recordings at a time, each in a process of its own.
        report: called after each recording.

    Raises:
        TalstackError: a worker process died (out of memory?).
    """
    rows: list[ClipSync] = []
    parallel = joblib.Parallel(n_jobs=min(jobs, len(groups)) or 1, return_as="generator_unordered", batch_size=1)
    try:
        for found in parallel(joblib.delayed(sync_recording)(group, settings) for group in groups):
            rows += found
            report()
    except joblib.externals.loky.process_executor.TerminatedWorkerError as error:
        raise TalstackError("a worker process died (out of memory?); nothing was written; try fewer --jobs") from error
    return sorted(rows, key=lambda row: (row.recording, row.view, row.clip))


def sync_recording(clips: Sequence[SyncClip], settings: SyncSettings) -> list[ClipSync]:
    """Return what the sound says about the targets among a recording's clips, and the references that failed."""
    rows: list[ClipSync] = []
    references: list[tuple[SyncClip, SoundFeatures]] = []
    for clip in clips:
        if not clip.is_reference:
            continue
        heard = _hear(clip)
        if isinstance(heard, SoundFeatures):
            references.append((clip, heard))
        elif clip.is_target or heard.outcome == "failed":
            rows.append(heard)
    known = {clip.name: features for clip, features in references}
    for clip in clips:
        if not clip.is_target or any(row.view == clip.view and row.clip == clip.clip for row in rows):
            continue
        others = [(other, features) for other, features in references if other is not clip]
        if clip.has_audio is not False and not others:
            rows.append(clip.row("no reference", "no other clip with sound at a known offset"))
            continue
        heard = known.get(clip.name) or _hear(clip)
        rows.append(_place(clip, heard, others, settings) if isinstance(heard, SoundFeatures) else heard)
    return rows


def _hear(clip: SyncClip) -> SoundFeatures | ClipSync:
    """Return the features of the clip's sound, or the row that says why there are none."""
    if clip.has_audio is False:
        return clip.row("no sound")
    try:
        sound = read_audio(clip.path, rate=RATE)
    except MediaError as error:
        return clip.row("failed", str(error))
    features = sound_features(sound.samples, start_s=sound.start_s)
    return features or clip.row("still", "silence, a steady tone, or less than 2 s of sound")


def _place(
    clip: SyncClip, sound: SoundFeatures, references: Sequence[tuple[SyncClip, SoundFeatures]], settings: SyncSettings
) -> ClipSync:
    votes = []
    for reference, features in references:
        start_s = reference.offset_s or 0.0
        near_s = (clip.offset_s or 0.0) - start_s
        estimate = estimate_lag(features, sound, near_s=near_s, max_lag_s=settings.max_lag_s)
        if estimate is not None:
            votes.append(_Vote(reference.name, start_s + estimate.lag_s, estimate))
    if not votes:
        return clip.row("unsure", "nowhere 2 s of both sounds, or too few places to tell a match from chance")
    confident = [vote for vote in votes if vote.estimate.confidence >= settings.min_confidence]
    if not confident:
        return _row(clip, "unsure", max(votes, key=lambda vote: vote.estimate.confidence))
    best = max(
        confident,
        key=lambda vote: (_support(vote, confident), vote.agrees_with(clip.offset_s), vote.estimate.confidence),
    )
    against = [vote for vote in confident if not vote.agrees_with(best.offset_s)]
    reason = "; ".join(f"{vote.reference} says {vote.offset_s:.3f} s" for vote in against)
    if 2 * len(against) >= len(confident) and not best.agrees_with(clip.offset_s):
        return replace(_row(clip, "contradictory", best), reason=reason)
    outcome = ("agrees" if best.agrees_with(clip.offset_s) else "differs") if settings.check else "placed"
    return replace(_row(clip, outcome, best), reason=reason)


def _support(vote: _Vote, votes: Sequence[_Vote]) -> int:
    return sum(other.agrees_with(vote.offset_s) for other in votes)


def _row(clip: SyncClip, outcome: str, vote: _Vote) -> ClipSync:
    estimate = vote.estimate
    return replace(
        clip.row(outcome), estimate_s=round(vote.offset_s, 4), confidence=round(estimate.confidence, 2),
        correlation=round(estimate.correlation, 4), overlap_s=round(estimate.overlap_s, 2), reference=vote.reference,
    )  # fmt: skip
