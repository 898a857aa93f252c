"""The shards of one recording's view, made from pictures: one pass over the clips for all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from talstack.extract.card import BackboneCard
from talstack.extract.derived_views import Piece
from talstack.extract.frames import FrameChunk, PictureTask, read_ahead, read_segments
from talstack.extract.layout import ViewLayout
from talstack.extract.runtimes import Computed, Runtime
from talstack.io.errors import MediaError
from talstack.io.shard import Shard, ShardKey


@dataclass(frozen=True, slots=True)
class Spent:
    """What making shards took.

    Attributes:
        decode_s: processor time of decoding, seconds; it runs beside the computation.
        compute_s: time of the computation, seconds.
        runtimes: what computed, one name per shard where anything did.
    """

    decode_s: float = 0.0
    compute_s: float = 0.0
    runtimes: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Drafted:
    """A shard that is being filled."""

    computed: Computed
    valid: np.ndarray
    notes: dict[str, None]  # an ordered set

    def fill(self, chunk: FrameChunk, task: int, found: Computed) -> None:
        good = chunk.valid[task]
        rows = chunk.rows[good]
        self.computed.features[rows] = found.features[good].astype(np.float16)
        self.computed.logits[rows], self.computed.scene_logits[rows] = found.logits[good], found.scene_logits[good]
        self.valid[rows] = True
        self.notes.update(dict.fromkeys(chunk.notes[task]))


def make_picture_shards(
    keys: Sequence[ShardKey],
    layout: ViewLayout,
    *,
    card: BackboneCard,
    trained: bool,
    runtime_of: Callable[[ShardKey], Runtime],
    batch_segments: int,
) -> tuple[list[Shard], Spent]:
    """Return the shards of the keys, all of one recording and of one view's clips, in their order.

    Args:
        keys: rgb and rgbdiff, of the view and of pieces of it, by one network or several.
        layout: of the view.
        card: the backbone's; several share classes and sampling.
        trained: whether its logits mean anything.
        runtime_of: gives what computes a shard.
        batch_segments: segments per forward pass.

    Raises:
        MediaError: a clip gives no frames, or is too short for a segment.
    """
    tasks = [
        PictureTask(
            card.frames_per_segment, card.frame_size, key.recipe["kind"] == "rgbdiff", Piece.of_recipe(key.recipe)
        )
        for key in keys
    ]
    drawn = list(dict.fromkeys(tasks))  # networks share their pictures
    layout = _with_picture(layout)
    runtimes = [runtime_of(key) for key in keys]
    drafts: list[_Drafted] = []
    decode_s = compute_s = 0.0
    chunks = read_segments(
        layout, drawn, segment_s=keys[0].segment_s, chunk=batch_segments, fast="fast_decoding" in keys[0].recipe
    )
    for chunk in read_ahead(chunks):
        started = time.perf_counter()
        for number, (runtime, task) in enumerate(zip(runtimes, tasks, strict=True)):
            found = _mean([runtime.run(pixels) for pixels in chunk.pixels[drawn.index(task)]])
            if number == len(drafts):
                drafts.append(_draft(len(layout.times_s), found, layout.notes))
            drafts[number].fill(chunk, drawn.index(task), found)
        compute_s += time.perf_counter() - started
        decode_s += chunk.decode_s
    if not drafts:
        raise MediaError(f"no segment to decode ({'; '.join(layout.notes) or 'too short'})")
    spent = Spent(decode_s, compute_s, tuple(runtime.name for runtime in runtimes))
    return [_finished(draft, layout, card, trained=trained) for draft in drafts], spent


def _with_picture(layout: ViewLayout) -> ViewLayout:
    """Return the layout without clips that are only sound, which a note then names."""
    blind = [f"{clip.path.name}: no picture, only sound" for clip in layout.clips if not all(clip.picture)]
    if not blind:
        return layout
    return replace(layout, clips=tuple(c for c in layout.clips if all(c.picture)), notes=(*layout.notes, *blind))


def _mean(found: list[Computed]) -> Computed:
    """Return the mean over a panorama's cameras."""
    if len(found) == 1:
        return found[0]
    return Computed(*(np.mean([getattr(one, name) for one in found], axis=0) for name in Computed.__slots__))


def _draft(num_rows: int, found: Computed, notes: Sequence[str]) -> _Drafted:
    empty = Computed(
        np.zeros((num_rows, found.features.shape[1]), dtype=np.float16),
        np.zeros((num_rows, found.logits.shape[1]), dtype=np.float32),
        np.zeros((num_rows, found.scene_logits.shape[1]), dtype=np.float32),
    )
    return _Drafted(empty, np.zeros(num_rows, dtype=bool), dict.fromkeys(notes))


def _finished(draft: _Drafted, layout: ViewLayout, card: BackboneCard, *, trained: bool) -> Shard:
    return Shard(
        draft.computed.features, draft.valid, layout.times_s, aligned=layout.aligned, notes=tuple(draft.notes),
        logits=draft.computed.logits if trained else None,
        scene_logits=draft.computed.scene_logits if trained and card.scenes else None,
    )  # fmt: skip
