"""Fixtures that every test folder may use."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import settings

# a loaded machine is no failure: tests have no time limits
settings.register_profile("talstack", deadline=None)
settings.load_profile("talstack")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is remembered about this machine out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data for tests; skip where it is absent, fail in CI."""
    root = Path(os.environ.get("TALSTACK_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "README.md").is_file():
        message = f"no test data at {root} (set TALSTACK_TEST_DATA)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return root


@pytest.fixture
def open_below() -> Callable[[Path], list[str]]:
    """Return a function that lists this process's open files and folders below a folder.

    Counting all open files would not do: others come and go with the garbage collector.
    """

    def listed(root: Path) -> list[str]:
        found = []
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return [path for path in found if path.startswith(str(root))]

    return listed


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Return the function that encodes a small numbered clip; see `numbered_clip`."""
    return numbered_clip


def numbered_clip(
    path: Path,
    *,
    stamps_s: Sequence[float] | None = None,
    num_frames: int = 60,
    fps: int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_starts_s: Sequence[float] = (0.0,),
    sound_rate: int = 16000,
) -> Path:
    """Write a 160x96 clip whose frame i shows i as nine black or white bars, lowest bit left; return its path.

    Args:
        path: the suffix decides the container.
        stamps_s: presentation time of every frame; default i / fps for `num_frames` frames. Empty: no picture.
        codec: video encoder.
        options: of the encoder.
        sound: (channels, n) float in [-1, 1]; None writes a clip without sound.
        sound_starts_s: where each repetition of `sound` starts, seconds.
        sound_rate: samples per second of `sound`.
    """
    stamps = [i / fps for i in range(num_frames)] if stamps_s is None else list(stamps_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    time_base = Fraction(1, fps if stamps_s is None else 30000)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream(codec, rate=fps, options=options or {"g": "15"}) if stamps else None
        audio = (
            container.add_stream("pcm_s16le" if path.suffix == ".mkv" else "aac", rate=sound_rate)
            if sound is not None
            else None
        )
        if audio is not None:
            audio.layout = "mono" if len(sound) == 1 else "stereo"
        if video is not None:
            video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
            video.codec_context.time_base = time_base
            for i, at_s in enumerate(stamps):
                frame = av.VideoFrame.from_ndarray(number_picture(i), format="rgb24")
                frame.pts, frame.time_base = round(at_s / time_base), time_base
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for start_s in sound_starts_s if audio is not None else ():
            for first in range(0, sound.shape[1], 1024):
                samples = np.ascontiguousarray(sound[:, first : first + 1024], dtype=np.float32)
                chunk = av.AudioFrame.from_ndarray(samples, format="fltp", layout=audio.layout.name)
                chunk.sample_rate, chunk.time_base = sound_rate, Fraction(1, sound_rate)
                chunk.pts = round(start_s * sound_rate) + first
                container.mux(audio.encode(chunk))
        if audio is not None:
            container.mux(audio.encode(None))
    return path


def number_picture(number: int) -> np.ndarray:
    """Return the (96, 160, 3) uint8 picture of a number below 512."""
    picture = np.full((96, 160, 3), 60, dtype=np.uint8)
    for bit in range(9):
        picture[16:80, bit * 16 : (bit + 1) * 16] = 255 * ((number >> bit) & 1)
    return picture


def read_number(picture: np.ndarray) -> int:
    """Return the number that a picture of any size shows."""
    height, width = picture.shape[:2]
    middles = ((np.arange(9) + 0.5) * width / 10).astype(int)
    return sum(1 << bit for bit, x in enumerate(middles) if picture[height // 2, x].mean() > 128)


@pytest.fixture(scope="session")
def numbers_of() -> Callable[[np.ndarray], list[int]]:
    """Return the function that reads the numbers off (n, H, W, 3) pictures."""
    return lambda pixels: [read_number(picture) for picture in pixels]


@pytest.fixture(scope="session")
def dask_scheduler() -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="dask and distributed are not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as made:
        yield made.scheduler_address


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def cluster_address(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return the address of a cluster of a kind, dask or ray, with two worker processes; skip where it is absent."""
    return lambda backend: str(request.getfixturevalue({"dask": "dask_scheduler", "ray": "ray_cluster"}[backend]))
