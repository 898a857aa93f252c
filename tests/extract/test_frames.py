"""Frames of segments: what is lost or concealed masks the segment, and the note says how much."""

import numpy as np

from talstack.extract.frames import PictureTask, read_segments
from talstack.extract.layout import ClipSegments, ViewLayout


def test_segments_on_concealed_frames_are_masked_with_the_reason(shared_data):
    path = shared_data / "media" / "made" / "zeroed_4k_mid.mp4"
    clip = ClipSegments(path, np.arange(5), np.arange(5.0), 4.97)
    layout = ViewLayout(np.arange(5) + 0.5, True, (clip,), ())
    chunks = list(read_segments(layout, [PictureTask(8, 32)], segment_s=1.0, chunk=1))
    assert [bool(chunk.valid[0][0]) for chunk in chunks] == [True, True, False, True, True]
    assert "of 8 frames concealed by the decoder at 2.7-2.9 s" in chunks[2].notes[0][0]
    assert [chunk.notes for chunk in chunks[:2]] == [((),), ((),)]
    # the pictures are still there
    assert chunks[2].pixels[0][0][0, -1].any()
