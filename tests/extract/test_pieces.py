"""Pieces of views and stacked differences through the engine: right pixels, one pass, nothing else changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.demo.encode import write_video
from talstack.extract import frames as frames_module
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.derived_views import Piece, derive_views
from talstack.extract.engine import extract_clip_group
from talstack.extract.layout import lay_out_view
from talstack.extract.motion import motion_backbone
from talstack.extract.perspective import Camera, PerspectiveCrop
from talstack.extract.pieces import open_piece
from talstack.extract.plan import ExtractionPlan, plan_extraction
from talstack.extract.rgbdiff import NUM_FRAMES, difference_times_s
from talstack.extract.runtimes import EagerRuntime
from talstack.extract.status import StatusRow
from talstack.extract.weights import load_source
from talstack.extract.workers import Workers
from talstack.io.errors import ConfigError, InputError
from talstack.io.extraction import Extraction, FeatureSet, shard_keys
from talstack.io.manifest import Manifest
from talstack.io.media import FrameReader
from talstack.io.store import ClipHashes

SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=4, frame_size=32)
PLAIN = ExtractConfig(init="random", init_arch="resnet18_narrow", batch_segments=3, runtime="folded")
RING = replace(PLAIN, panoramic=("front",), cameras=4, camera_fov_deg=80.0)


def planned(
    data: Path, store: Path, config: ExtractConfig, *modalities: str, views: tuple[str, ...] = ()
) -> ExtractionPlan:
    chosen = modalities or ("rgb",)
    return plan_extraction(data, store, config=config, sampling=SAMPLING, modalities=chosen, views=views)


def make(plan: ExtractionPlan) -> list[StatusRow]:
    """Make everything in this process."""
    plan.extraction.save(plan.store.root)
    return [row for item in plan.items(plan.keys, Workers(1)) for row in extract_clip_group(item)]


def features_of(data: Path, store: Path, recording: str, view: str, modality: str = "rgb") -> np.ndarray:
    shard = FeatureSet.open(Manifest.load(data), store).read(recording, view, modality)
    assert shard is not None and shard.valid.all()
    return shard.features.astype(np.float32)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()  # float16


def test_cameras_see_what_a_crop_of_the_panorama_shows(toy_data: Path, tmp_path: Path) -> None:
    plan = planned(toy_data, tmp_path, RING)
    assert {row.outcome for row in make(plan)} == {"done"}
    groups = FeatureSet.open(Manifest.load(toy_data), tmp_path).groups
    assert groups == [
        ("ego", "rgb"),
        ("front", "rgb"),
        *((f"front@yaw{yaw}", "rgb") for yaw in ("000", "090", "180", "270")),
    ]
    manifest = Manifest.load(toy_data)
    clip = lay_out_view(manifest, "r0", "front", segment_s=1.0).clips[0]
    source = (48, 96)  # as high as the file
    with FrameReader(clip.path, size=source) as reader:
        panoramas = reader.frames_at(clip.sample_times_s(4, 1.0).ravel()).pixels
    seen = PerspectiveCrop(Camera(90.0, fov_deg=80.0, size=32), source).apply(panoramas).reshape(4, 4, 32, 32, 3)
    expected = EagerRuntime(load_source(plan.sources[0])).run(seen).features
    assert_close(features_of(toy_data, tmp_path, "r0", "front@yaw090"), expected)


def test_a_panorama_of_another_shape_is_told(toy_data: Path, tmp_path: Path) -> None:
    make(planned(toy_data, tmp_path, RING, views=("front@yaw090",)))
    shard = FeatureSet.open(Manifest.load(toy_data), tmp_path).read("r0", "front@yaw090", "rgb")
    assert shard is not None and any("64x48, not 2:1 as a panorama is" in note for note in shard.notes)
    piece = Piece((Camera(0.0),))
    assert open_piece(piece, tmp_path, frame_size=32, picture=(320, 640), end_s=1.0).note is None


def test_a_pooled_ring_is_the_mean_of_its_cameras(toy_data: Path, tmp_path: Path) -> None:
    make(planned(toy_data, tmp_path / "each", RING))
    make(planned(toy_data, tmp_path / "pool", replace(RING, camera_pool=True)))
    each = [features_of(toy_data, tmp_path / "each", "r1", f"front@yaw{yaw}") for yaw in ("000", "090", "180", "270")]
    assert_close(features_of(toy_data, tmp_path / "pool", "r1", "front@ring4"), np.mean(each, axis=0))


def test_pieces_leave_the_other_shards_as_they_were(toy_data: Path, tmp_path: Path) -> None:
    make(planned(toy_data, tmp_path, PLAIN))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    plan = planned(toy_data, tmp_path, RING)
    assert {key.view.partition("@")[1] for key in plan.missing(plan.keys)} == {"@"}
    together = planned(toy_data, tmp_path / "at once", RING, "rgb", "rgbdiff")
    make(together)
    for path, content in before.items():
        assert next((tmp_path / "at once").rglob(path.name)).read_bytes() == content


def test_everything_made_from_pictures_takes_one_pass(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    class Counting(FrameReader):
        def __init__(self, path: Path, **settings: object) -> None:
            opened.append(path)
            super().__init__(path, **settings)

    monkeypatch.setattr(frames_module, "FrameReader", Counting)
    rows = make(planned(toy_data, tmp_path, RING, "rgb", "rgbdiff", views=("front",)))
    assert len(rows) == 4 * (1 + 4) * 2
    assert len(opened) == len(set(opened)) == 4


def test_a_killed_group_makes_only_what_it_lacks(toy_data: Path, tmp_path: Path) -> None:
    plan = planned(toy_data, tmp_path, PLAIN, "rgb", "rgbdiff", views=("front",))
    make(plan)
    lost = plan.store.path_of(plan.keys[0])
    content = lost.read_bytes()
    lost.unlink()
    outcomes = [row.outcome for row in make(plan)]
    assert outcomes.count("done") == 1 and outcomes.count("cached") == len(outcomes) - 1
    assert lost.read_bytes() == content


def test_rgbdiff_is_the_adapted_backbone_on_six_frames_a_moment(toy_data: Path, tmp_path: Path) -> None:
    plan = planned(toy_data, tmp_path, PLAIN, "rgbdiff", views=("front",))
    make(plan)
    clip = lay_out_view(Manifest.load(toy_data), "r2", "front", segment_s=1.0).clips[0]
    times_s = difference_times_s(clip.sample_times_s(4, 1.0), end_s=clip.end_s)
    pixels = np.empty((4, 4, NUM_FRAMES, 32, 32, 3), dtype=np.uint8)
    with FrameReader(clip.path, size=(32, 32)) as reader:
        for place in np.ndindex(4, 4, NUM_FRAMES):
            pixels[place] = reader.frames_at(times_s[place][None]).pixels[0]
    expected = EagerRuntime(motion_backbone(load_source(plan.sources[0]))).run(pixels).features
    assert_close(features_of(toy_data, tmp_path, "r2", "front", "rgbdiff"), expected)
    assert "rgbdiff" not in plan_extraction(toy_data, tmp_path, config=PLAIN, sampling=SAMPLING).extraction.recipes


def lens_picture(x: int, *, circles: bool) -> np.ndarray:
    """Return (80, 160, 3): left half bright, right half dim, a square at x; round where `circles`."""
    picture = np.full((80, 160, 3), 200, dtype=np.uint8)
    picture[:, 80:] = 90
    picture[30:50, x : x + 12] = (250, 60, 60)
    if circles:
        rows, columns = np.mgrid[:80, :160]
        picture[np.hypot(rows - 39.5, columns % 80 - 39.5) > 36] = 0
    return picture


@pytest.mark.parametrize("circles", [False, True])
def test_lenses_are_cut_apart_and_circles_to_a_square(tmp_path: Path, toy_data: Path, circles: bool) -> None:
    manifest = Manifest.load(toy_data)
    path = tmp_path / "both.mp4"
    write_video(path, [lens_picture(20 + i, circles=circles) for i in range(20)], fps=10)
    piece = open_piece(Piece(side="right"), path, frame_size=32, picture=(80, 160), end_s=1.9)
    crop = piece.drawing.crop
    assert crop is not None and piece.note is not None
    side = 36 / 80 * np.sqrt(2) if circles else 1.0
    assert crop.width == pytest.approx(side / 2, abs=0.02) and crop.height == pytest.approx(side, abs=0.04)
    assert crop.x + crop.width / 2 == pytest.approx(0.75, abs=0.01)
    assert ("circle at" if circles else "no fisheye circle") in piece.note
    with FrameReader(path, drawings=[piece.drawing]) as reader:
        assert abs(int(np.median(reader.frames_at(np.array([0.5])).pixels)) - 90) < 6  # the dim half
    config = replace(PLAIN, binocular=("ego",), split_lenses=True)
    assert list(derive_views(manifest, config)) == ["ego@left", "ego@right"]


def test_the_record_leads_to_the_same_shards(toy_data: Path, tmp_path: Path) -> None:
    plan = planned(toy_data, tmp_path, RING, "rgb", "rgbdiff")
    plan.extraction.save(tmp_path)
    found = shard_keys(Manifest.load(toy_data), Extraction.load(tmp_path, "toy"), ClipHashes(tmp_path))
    assert {key.fingerprint for key in found} == {key.fingerprint for key in plan.keys}


@pytest.mark.parametrize("change", [{"cameras": 4}, {"split_lenses": True}])
def test_pieces_of_views_that_the_data_set_lacks_are_refused(toy_data: Path, tmp_path: Path, change: dict) -> None:
    name = "panoramic" if "cameras" in change else "binocular"
    with pytest.raises(
        InputError, match=rf"extract.{name} \({name}\), but toy has only ego, front; set extract.{name}"
    ):
        planned(toy_data, tmp_path, replace(PLAIN, **change))


def test_memory_is_reckoned_with_all_pictures_that_wait(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr("talstack.extract.plan.process_bytes", lambda **what: found.append(what["pictures"]) or 1)
    for config in (PLAIN, RING, replace(RING, camera_pool=True)):
        plan = planned(toy_data, tmp_path, config, "rgb", "rgbdiff", "audio")
        plan.workers(plan.keys)
    assert found == [7, 35, 35]


def test_views_asked_for_by_name(toy_data: Path, tmp_path: Path) -> None:
    def views(*asked: str) -> set[str]:
        return {key.view for key in planned(toy_data, tmp_path, RING, views=asked).keys}

    ring = {f"front@yaw{yaw}" for yaw in ("000", "090", "180", "270")}
    assert views() == {"ego", "front"} | ring
    assert views("front") == {"front"} | ring
    assert views("front@yaw090") == {"front@yaw090"}
    with pytest.raises(InputError, match=r"view 'front@yaw045' is not in toy; views: ego, front, front@yaw000"):
        views("front@yaw045")
    with pytest.raises(ConfigError, match=r"camera_fov_deg in \(0, 180\)"):
        replace(RING, camera_fov_deg=180.0)


def test_a_clip_that_is_only_sound_costs_no_other_clip(
    toy_data: Path, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    manifest = Manifest.load(toy_data)
    sound = write_clip(manifest.media_root / "sound.mp4", stamps_s=[], sound=np.full((1, 16000), 0.1))
    alone = ("r0", "front", "c1", sound.name, 3.0, 1.0, None, None, None, True)
    more = pl.DataFrame([alone, ("r3", "sound", *alone[2:])], schema=manifest.clips.schema, orient="row")
    replace(manifest, clips=pl.concat([manifest.clips, more])).save(toy_data)
    config = replace(RING, binocular=("sound",), split_lenses=True)
    rows = {(row.recording, row.view): row for row in make(planned(toy_data, tmp_path, config))}
    for view in ("front", "front@yaw090"):
        assert (rows["r0", view].outcome, rows["r0", view].num_valid) == ("done", 4)
    for view in ("sound", "sound@left"):
        assert rows["r3", view].reason == "no segment to decode (sound.mp4: no picture, only sound)"
