"""Perspective crops of panoramas: names, geometry, and the pixels beside a float64 reference."""

import numpy as np
import pytest

from talstack.extract.perspective import (
    Camera,
    PerspectiveCrop,
    camera_ring,
    camera_views,
    sample_points,
    source_size,
)
from talstack.io.errors import InputError

HEIGHT, WIDTH = 64, 128


def direction(yaw_deg: float | np.ndarray, pitch_deg: float | np.ndarray) -> np.ndarray:
    yaw, pitch = np.broadcast_arrays(np.radians(yaw_deg), np.radians(pitch_deg))
    return np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], axis=-1)


def panorama_directions(height: int, width: int) -> np.ndarray:
    """Return the (H, W, 3) direction that each pixel of a panorama shows."""
    yaw = ((np.arange(width) + 0.5) / width - 0.5) * 360
    pitch = (0.5 - (np.arange(height) + 0.5) / height) * 180
    return direction(yaw[None, :], pitch[:, None])


def paint(values: np.ndarray) -> np.ndarray:
    """Return (1, H, W, 3) uint8 of values in [0, 1]."""
    return np.repeat(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)[None, ..., None], 3, axis=-1)


def rotations(camera: Camera) -> np.ndarray:
    """Return the camera's 3 x 3 rotation, made of elementary ones: independent of `Camera.axes`."""
    y, p, r = np.radians([camera.yaw_deg, camera.pitch_deg, camera.roll_deg])
    yaw = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    pitch = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    roll = np.array([[np.cos(r), np.sin(r), 0], [-np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return yaw @ pitch @ roll


def reference_crop(panorama: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the (S, S, 3) float64 crop, one pixel at a time on a panorama padded over its edges."""
    height, width = panorama.shape[:2]
    tall = np.concatenate([np.roll(panorama[:1], width // 2, 1), panorama, np.roll(panorama[-1:], width // 2, 1)])
    padded = np.concatenate([tall[:, -1:], tall, tall[:, :1]], axis=1).astype(np.float64)
    out = np.empty((camera.size, camera.size, 3))
    half = np.tan(np.radians(camera.fov_deg / 2))
    for i in range(camera.size):
        for j in range(camera.size):
            ray = [((j + 0.5) / camera.size * 2 - 1) * half, (1 - (i + 0.5) / camera.size * 2) * half, 1.0]
            x, y, z = rotations(camera) @ ray / np.linalg.norm(ray)
            row = (0.5 - np.arcsin(np.clip(y, -1, 1)) / np.pi) * height + 0.5
            column = (0.5 + np.arctan2(x, z) / (2 * np.pi)) * width + 0.5
            a, b = min(int(row), height), min(int(column), width)
            u, v = row - a, column - b
            upper = padded[a, b] * (1 - v) + padded[a, b + 1] * v
            lower = padded[a + 1, b] * (1 - v) + padded[a + 1, b + 1] * v
            out[i, j] = upper * (1 - u) + lower * u
    return out


@pytest.mark.parametrize(
    "camera",
    [
        Camera(0, size=25),
        Camera(90, 20, 35, fov_deg=75, size=24),
        Camera(180, -15, fov_deg=110, size=24),
        Camera(-120.5, 90, fov_deg=100, size=24),
        Camera(33, -90, -60, fov_deg=60, size=24),
        Camera(179, 60, 200, fov_deg=170, size=24),
        Camera(10, 5, fov_deg=1, size=8),
    ],
    ids=lambda camera: camera.name,
)
def test_pixels_equal_the_float64_reference(camera: Camera) -> None:
    panoramas = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    crops = PerspectiveCrop(camera, (HEIGHT, WIDTH)).apply(panoramas)
    assert crops.shape == (2, camera.size, camera.size, 3) and crops.dtype == np.uint8
    for crop, panorama in zip(crops, panoramas, strict=True):
        # half a level of rounding and the 13 bits of the weights
        assert np.abs(crop - reference_crop(panorama, camera)).max() < 0.56


def test_extreme_pixels_neither_overflow_nor_leak_between_channels() -> None:
    crop = PerspectiveCrop(Camera(40, 12, 3, size=40), (HEIGHT, WIDTH))
    for colour in ([255, 255, 255], [255, 0, 255], [0, 255, 0], [0, 0, 0], [1, 254, 7]):
        seen = crop.apply(np.full((1, HEIGHT, WIDTH, 3), colour, dtype=np.uint8))
        assert (seen == colour).all()


@pytest.mark.parametrize("yaw_deg", [0, 90, 179, -135, 270, 540])
@pytest.mark.parametrize("pitch_deg", [0, 35, -80, 90, -90])
def test_the_direction_of_the_camera_is_the_middle_of_the_crop(yaw_deg: float, pitch_deg: float) -> None:
    blob = np.exp(
        -(np.arccos(np.clip(panorama_directions(128, 256) @ direction(yaw_deg, pitch_deg), -1, 1)) ** 2) / 0.02
    )
    seen = PerspectiveCrop(Camera(yaw_deg, pitch_deg, size=41), (128, 256)).apply(paint(blob))[0, ..., 0].astype(float)
    rows, columns = np.mgrid[:41, :41]
    assert seen[20, 20] > 240
    assert (seen * rows).sum() / seen.sum() == pytest.approx(20, abs=0.1)
    assert (seen * columns).sum() / seen.sum() == pytest.approx(20, abs=0.1)


def test_right_is_right_up_is_up_and_roll_is_clockwise() -> None:
    directions = panorama_directions(128, 256)
    blob = paint(np.exp(-(np.arccos(np.clip(directions @ direction(110, 0), -1, 1)) ** 2) / 0.004))

    def peak(camera: Camera) -> tuple[int, int]:
        seen = PerspectiveCrop(camera, (128, 256)).apply(blob)[0, ..., 0]
        row, column = np.unravel_index(seen.argmax(), seen.shape)
        return int(row) - 30, int(column) - 30

    off = round(61 / 2 * np.tan(np.radians(20)))
    assert peak(Camera(90, size=61)) == (0, off)
    assert peak(Camera(130, size=61)) == (0, -off)
    assert peak(Camera(110, 20, size=61)) == (off, 0)
    assert peak(Camera(90, roll_deg=90, size=61)) == (-off, 0)


@pytest.mark.parametrize("camera", [Camera(50, 30, 25, fov_deg=100, size=65), Camera(180, -40, size=65)])
def test_a_great_circle_becomes_a_straight_line(camera: Camera) -> None:
    normal = np.cross(direction(camera.yaw_deg, camera.pitch_deg), [0.3, 0.5, 0.8])
    normal /= np.linalg.norm(normal)
    ridge = np.exp(-((panorama_directions(256, 512) @ normal) ** 2) / 0.002)
    seen = PerspectiveCrop(camera, (256, 512)).apply(paint(ridge))[0, ..., 0].astype(np.float64)
    rows, columns = np.nonzero(seen > 150)
    assert np.ptp(rows) > 40 or np.ptp(columns) > 40
    points = np.stack([rows, columns], axis=1) - np.average(
        np.stack([rows, columns]), axis=1, weights=seen[rows, columns]
    )
    across = np.linalg.svd(points * np.sqrt(seen[rows, columns])[:, None], full_matrices=False)[2][1]
    along = points @ [across[1], -across[0]]
    bins = np.digitize(along, np.linspace(along.min(), along.max(), 9)[1:-1])
    middles = [np.average(points[bins == b] @ across, weights=seen[rows, columns][bins == b]) for b in range(8)]
    assert np.abs(middles).max() < 0.6


def test_a_parallel_does_not_become_a_straight_line() -> None:
    # the counter-check: latitude 30 is no great circle
    rows, columns = sample_points(Camera(0, size=64), 256, 512)
    latitude = 90 - (rows + 0.5) / 256 * 180
    line = [np.abs(latitude[:, j] - 30).argmin() for j in (0, 31, 63)]
    assert line[1] - line[0] > 3 and line[1] - line[2] > 3


def test_the_edges_of_the_crop_are_half_the_field_of_view_away() -> None:
    for fov_deg in (1.0, 40.0, 90.0, 150.0, 179.0):
        size = 501
        camera = Camera(0, fov_deg=fov_deg, size=size)
        _, columns = sample_points(camera, 1024, 2048)
        yaw = np.radians(((columns[size // 2] + 0.5) / 2048 - 0.5) * 360)
        # gnomonic: the tangent is linear in the picture; half a pixel further out lies the edge
        slope = (np.tan(yaw[-1]) - np.tan(yaw[0])) / (size - 1)
        assert np.degrees(np.arctan(np.tan(yaw[-1]) + slope / 2)) == pytest.approx(fov_deg / 2, abs=1e-6)


def test_turning_the_panorama_turns_the_cameras() -> None:
    panoramas = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    ahead = PerspectiveCrop(Camera(0, 10, 5, size=32), (HEIGHT, WIDTH)).apply(panoramas).astype(int)
    for yaw_deg in (90, 180, 270):  # 180: the seam goes through the middle of the crop
        turned = np.roll(panoramas, WIDTH * yaw_deg // 360, axis=2)
        seen = PerspectiveCrop(Camera(yaw_deg, 10, 5, size=32), (HEIGHT, WIDTH)).apply(turned)
        assert np.abs(seen - ahead).max() <= 1


def test_opposite_yaw_is_the_mirrored_picture_of_a_mirrored_panorama() -> None:
    panoramas = np.random.default_rng(2).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    left = PerspectiveCrop(Camera(-70, 15, size=32), (HEIGHT, WIDTH)).apply(panoramas).astype(int)
    right = PerspectiveCrop(Camera(70, 15, size=32), (HEIGHT, WIDTH)).apply(panoramas[:, :, ::-1])
    assert np.abs(left - right[:, :, ::-1]).max() <= 1


def test_nothing_breaks_at_seam_and_poles() -> None:
    directions = panorama_directions(256, 512)
    smooth = paint(0.5 + 0.25 * directions[..., 0] + 0.25 * directions[..., 1])
    for camera in (Camera(180, size=48), Camera(77, 90, size=48), Camera(5, -90, size=48), Camera(180, 80, size=48)):
        seen = PerspectiveCrop(camera, (256, 512)).apply(smooth)[0, ..., 0].astype(int)
        assert max(np.abs(np.diff(seen, axis=axis)).max() for axis in (0, 1)) <= 6, camera.name
        focal = 24.0
        right, down = np.meshgrid(np.arange(48) - 23.5, np.arange(48) - 23.5)
        rays = np.stack([right, -down, np.full_like(right, focal)], -1) @ rotations(camera).T
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        assert np.abs(seen - 255 * (0.5 + 0.25 * rays[..., 0] + 0.25 * rays[..., 1])).max() < 1.6, camera.name


def test_only_what_the_camera_sees_is_read() -> None:
    crop = PerspectiveCrop(Camera(180, size=64), (HEIGHT, WIDTH))
    panorama = np.zeros((1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    panorama[:, :, WIDTH // 4 + 1 : -WIDTH // 4 - 1] = 255
    assert not crop.apply(panorama).any()
    assert crop.apply(255 - panorama).all()


def test_a_ring_of_four_sees_every_column_of_the_horizon_once() -> None:
    seen = [sample_points(camera, 256, 512)[1][32] for camera in camera_ring(4, size=65)]
    assert [camera.yaw_deg for camera in camera_ring(4)] == [0, 90, 180, 270]
    assert np.histogram(np.concatenate(seen) % 512, bins=16, range=(0, 512))[0].min() > 10
    assert {(c.pitch_deg, c.fov_deg, c.size) for c in camera_ring(3, pitch_deg=-10, fov_deg=120, size=96)} == {
        (-10, 120, 96)
    }


def test_names_are_stable_and_tell_cameras_apart() -> None:
    assert list(camera_views("panoramic", camera_ring(4))) == [
        "panoramic@yaw000", "panoramic@yaw090", "panoramic@yaw180", "panoramic@yaw270",
    ]  # fmt: skip
    names = {camera.name for camera in camera_ring(7, pitch_deg=-30)}
    assert names >= {"yaw000down30", "yaw051p43down30", "yaw308p57down30"} and len(names) == 7
    assert Camera(-90).name == Camera(270).name == Camera(630).name == "yaw270"
    assert Camera(359.999).name == "yaw000" and Camera(0, 7.5, 12).name == "yaw000up7p5roll012"
    with pytest.raises(InputError, match="panoramic: two cameras are named yaw090"):
        camera_views("panoramic", [Camera(90), Camera(450, fov_deg=60)])


def test_source_size_samples_the_centre_one_to_one() -> None:
    assert source_size(90, 224) == (352, 704)
    for fov_deg, size in ((60, 224), (90, 112), (120, 300), (100, 1)):
        height, width = source_size(fov_deg, size)
        assert width == 2 * height and height % 2 == 0
        camera = Camera(0, fov_deg=fov_deg, size=size)
        exact = np.pi * size / np.tan(np.radians(fov_deg / 2))
        assert exact <= width < exact + 4
        if size > 2:
            step = np.diff(sample_points(camera, height, width)[1][size // 2])[size // 2]
            assert step == pytest.approx(1.0, abs=0.02)


def test_cameras_that_cannot_be() -> None:
    for change in ({"pitch_deg": 90.1}, {"pitch_deg": float("nan")}):
        with pytest.raises(InputError, match=r"pitch must lie in \[-90, 90\] degrees, got"):
            Camera(0, **change)
    for fov_deg in (0.0, 180.0, -5.0, float("nan")):
        with pytest.raises(InputError, match=f"above 0 and below 180 degrees, got {fov_deg}"):
            Camera(0, fov_deg=fov_deg)
    with pytest.raises(InputError, match="yaw and roll must be finite degrees, got inf"):
        Camera(float("inf"))
    with pytest.raises(InputError, match="at least 1 pixel, got 0"):
        Camera(0, size=0)
    with pytest.raises(InputError, match="at least one camera, got 0"):
        camera_ring(0)


def test_pictures_that_are_no_panoramas() -> None:
    with pytest.raises(InputError, match=r"twice as wide as high.*got \(64, 127\)"):
        PerspectiveCrop(Camera(0), (64, 127))
    crop = PerspectiveCrop(Camera(90, size=8), (HEIGHT, WIDTH))
    assert crop.apply(np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)).shape == (0, 8, 8, 3)
    for pixels in (
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        np.zeros((1, HEIGHT, WIDTH, 3), np.float32),
        np.zeros((1, HEIGHT, WIDTH + 2, 3), np.uint8),
    ):
        with pytest.raises(InputError, match=r"yaw090: pixels must be \(n, 64, 128, 3\) uint8, got"):
            crop.apply(pixels)
