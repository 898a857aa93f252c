"""Frames of segments: what is lost or concealed masks the segment, and the note says how much."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from talstack.extract import frames
from talstack.extract.frames import PictureTask, read_segments
from talstack.extract.layout import ClipSegments, ViewLayout
from talstack.io.frame_decoders import PyAVFrames

BFRAMES = {"g": "25", "bf": "2"}
RGB, MOTION = PictureTask(4, 64), PictureTask(4, 64, motion=True)


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


def test_a_worker_is_seen_to_live_while_a_clip_is_read_again(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, beats = shared_data / "media" / "made" / "zeroed_4k_mid.mp4", []
    monkeypatch.setattr(frames, "beat", lambda: beats.append(1))
    next(read_segments(numbered_layout(path, num_segments=5, end_s=4.97), [RGB], segment_s=1.0, chunk=5))
    # 150 packets each: to index them, to find what is damaged, to decode
    assert len(beats) > 3 * 100


def numbered_layout(path: Path, *, num_segments: int, end_s: float) -> ViewLayout:
    clip = ClipSegments(path, np.arange(num_segments), np.arange(float(num_segments)), end_s)
    return ViewLayout(np.arange(num_segments) + 0.5, True, (clip,), ())


def test_chunks_whose_frames_overlap_are_read_forwards(
    tmp_path: Path, write_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "clip.mp4", num_frames=150, fps=25, options=BFRAMES)
    layout, tasks = numbered_layout(path, num_segments=6, end_s=5.96), [RGB, MOTION]
    whole = list(read_segments(layout, tasks, segment_s=1.0, chunk=6))
    starts: list[PyAVFrames] = []
    begin = PyAVFrames._restart
    monkeypatch.setattr(PyAVFrames, "_restart", lambda frames: (starts.append(frames), begin(frames))[1])
    parts = list(read_segments(layout, tasks, segment_s=1.0, chunk=1))
    assert len(starts) == 1
    for number in range(len(tasks)):
        joined = np.concatenate([chunk.pixels[number][0] for chunk in parts])
        np.testing.assert_array_equal(joined, whole[0].pixels[number][0])
        assert np.concatenate([chunk.valid[number] for chunk in parts]).all()


def test_fast_frames_depend_neither_on_the_chunks_nor_on_other_tasks(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    path = write_clip(tmp_path / "clip.mp4", num_frames=150, fps=25, options=BFRAMES)
    layout = numbered_layout(path, num_segments=6, end_s=5.96)

    def pixels(tasks: list[PictureTask], chunk: int) -> list[np.ndarray]:
        chunks = list(read_segments(layout, tasks, segment_s=1.0, chunk=chunk, fast=True))
        return [np.concatenate([chunk.pixels[i][0] for chunk in chunks]) for i in range(len(tasks))]

    both = pixels([RGB, MOTION], 6)
    for found, expected in zip(pixels([RGB, MOTION], 1), both, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pixels([RGB], 2)[0], both[0])
