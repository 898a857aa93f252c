"""Decoded frames on disk."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from talstack.extract.config import SamplingConfig
from talstack.extract.frames import PictureTask, read_segments
from talstack.extract.layout import lay_out_view
from talstack.extract.training.framecache import FrameCache, build_frame_cache
from talstack.io import store
from talstack.io.errors import MediaError, WriteError
from talstack.io.manifest import Manifest
from talstack.io.store import ClipHashes

VIEWS = ("ego", "front")
SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=4, frame_size=32)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., FrameCache]:
    def made(
        manifest: Manifest, recordings: list[str], *, draws: int = 3, views: tuple = ("ego", "front")
    ) -> FrameCache:
        return build_frame_cache(
            manifest, recordings, views=views, sampling=SAMPLING, draws=draws, folder=tmp_path / "f",
            hashes=ClipHashes(tmp_path),
        )  # fmt: skip

    return made


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_middle_draw_is_the_frame_that_extraction_uses(toy_data: Path, build: Callable[..., FrameCache]) -> None:
    manifest = Manifest.load(toy_data)
    cache = build(manifest, ["r0"], views=("front",))
    layout = lay_out_view(manifest, "r0", "front", segment_s=1.0)
    (chunk,) = read_segments(layout, [PictureTask(4, 32)], segment_s=1.0, chunk=100)
    out = np.empty((len(cache), 4, 32, 32, 3), np.uint8)
    cache.read_into(out, np.arange(len(cache)), np.full((len(cache), 4), cache.middle))
    assert cache.frame_shape == out.shape[1:]
    assert np.array_equal(out, chunk.pixels[0][0])
    cache.read_into(out, np.arange(len(cache)), np.zeros((len(cache), 4), int))
    assert not np.array_equal(out, chunk.pixels[0][0])


def test_a_disk_without_room_is_told_before_anything_is_decoded(
    toy_data: Path, tmp_path: Path, build: Callable[..., FrameCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(toy_data)
    clips = manifest.clips.filter(manifest.clips["recording"] == "r0")
    needed = int(clips["duration_s"].sum()) * 3 * 4 * 32 * 32 * 3
    free = needed - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(WriteError, match=r"2 views take about .* lower finetune.draws \(now 3\)"):
        build(manifest, ["r0"])
    assert not list((tmp_path / "f").iterdir())
    free = needed
    build(manifest, ["r0"])
    free = 0
    build(manifest, ["r0"])  # everything is there: no room is needed


def test_a_disk_that_becomes_full_is_an_error_and_leaves_nothing(
    toy_data: Path, tmp_path: Path, build: Callable[..., FrameCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WriteError, match="free space"):
        build(Manifest.load(toy_data), ["r0"])
    assert not list((tmp_path / "f").iterdir())


def test_another_training_decodes_only_what_is_new_to_it(
    toy_data: Path, tmp_path: Path, build: Callable[..., FrameCache]
) -> None:
    manifest = Manifest.load(toy_data)
    build(manifest, ["r0", "r1"])
    before = stamps(tmp_path / "f")
    assert len(before) == 2 * 2 * 2, "two recordings, two views, pixels and a sidecar each"
    cache = build(manifest, ["r1", "r2"])
    after = stamps(tmp_path / "f")
    assert before.items() <= after.items()
    assert len(after) == 3 * 2 * 2
    assert set(cache.recording) == {"r1", "r2"}
    build(manifest, ["r1"], draws=1)
    assert len(stamps(tmp_path / "f")) == 4 * 2 * 2


def test_what_is_there_is_read_once_for_its_check(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, read = Manifest.load(toy_data), []
    real = store.sha256_file
    monkeypatch.setattr(store, "sha256_file", lambda path: read.append(path.suffix) or real(path))
    hashes = ClipHashes(tmp_path)
    for _ in range(3):
        build_frame_cache(
            manifest, ["r0", "r1"], views=VIEWS, sampling=SAMPLING, draws=1, folder=tmp_path / "f", hashes=hashes
        )
    assert sorted(read) == [".mp4"] * 4 + [".npy"] * 4


def test_a_moved_clip_and_a_damaged_file_are_decoded_again(
    toy_data: Path, tmp_path: Path, build: Callable[..., FrameCache]
) -> None:
    manifest = Manifest.load(toy_data)
    first = build(manifest, ["r0"], views=("front",))
    (pixels,) = (tmp_path / "f").glob("*.npy")
    whole = pixels.read_bytes()
    del first
    pixels.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    build(manifest, ["r0"], views=("front",))
    assert pixels.read_bytes() == whole
    moved = manifest.clips.with_columns(offset_s=manifest.clips["offset_s"] + 1.0)
    later = build(replace(manifest, clips=moved), ["r0"], views=("front",))
    assert len(list((tmp_path / "f").glob("*.npy"))) == 2
    assert later.segment.tolist() == [1, 2, 3]


def test_views_without_labels_or_frames_are_left_out_with_their_reason(
    toy_data: Path, build: Callable[..., FrameCache]
) -> None:
    manifest = Manifest.load(toy_data)
    cache = build(manifest, ["r2", "r3"])
    assert [reason.split(":")[0] for reason in cache.skipped] == ["r3 ego"]
    assert "offsets unknown" in cache.skipped[0]
    with pytest.raises(MediaError, match="no training frames in 1 views; r3 ego: clip offsets unknown"):
        build(manifest, ["r3"], views=("ego",))
