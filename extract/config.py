"""Settings of stage one: the tables [sampling] and [extract]; [finetune] is in `talstack.extract.training.config`."""

from dataclasses import dataclass
from typing import Literal

from talstack.extract.architectures import ARCH_HELP, Arch
from talstack.io.config import setting
from talstack.io.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Segments and the frames taken from each; a fine-tuned backbone fixes them for its extraction."""

    segment_s: float = setting(1.0, "length of a segment in seconds; a third of the shortest action is a good start")
    frames_per_segment: int = setting(8, "T, frames per segment, at the middles of T equal parts")
    frame_size: int = setting(224, "frames are resized to this many pixels on both sides")

    def __post_init__(self) -> None:
        if self.segment_s <= 0 or self.frames_per_segment < 1 or self.frame_size < 32:
            raise ConfigError(
                "sampling: segment_s must be > 0, frames_per_segment >= 1 and frame_size >= 32, got "
                f"{self.segment_s}, {self.frames_per_segment}, {self.frame_size}"
            )


@dataclass(frozen=True, slots=True)
class ExtractConfig:
    """Extraction of every (recording, view, modality) into the feature store."""

    modalities: tuple[str, ...] = setting(
        (), "rgb, rgbdiff, audio and names of external features; empty = all there are but rgbdiff"
    )
    views: tuple[str, ...] = setting((), "views to extract; empty = all")
    panoramic: tuple[str, ...] = setting(("panoramic",), "views that are equirectangular panoramas")
    cameras: int = setting(0, "perspective views cut from every panorama, evenly around the horizon; 0 = none")
    camera_fov_deg: float = setting(90.0, "their horizontal field of view, degrees")
    camera_pitch_deg: float = setting(0.0, "how far they look up, degrees")
    camera_pool: bool = setting(False, "one view with the mean of all cameras' features instead of one view each")
    binocular: tuple[str, ...] = setting(("binocular",), "views with two lenses side by side")
    split_lenses: bool = setting(False, "left and right lens as views of their own, fisheye circles cut to a square")
    init: Literal["imagenet", "random"] = setting(
        "imagenet", "weights where no fine-tuned backbone is given (no temporal shift then)"
    )
    init_arch: Arch = setting("resnet50", f"its architecture: {ARCH_HELP}")
    init_weights: str = setting(
        "",
        "a checkpoint file instead: official TSM, MMAction2 or torchvision; shifts where it was trained with a shift",
    )
    runtime: Literal["auto", "onnxruntime", "openvino", "folded", "compile", "eager"] = setting(
        "auto", "what computes the features on a CPU; auto = the fastest here, measured once per machine"
    )
    precision: Literal["float32", "bfloat16", "float16", "int8"] = setting(
        "float32",
        "of the backbone's arithmetic: 16 bits on a GPU, bfloat16 on a CPU with AVX512-BF16 or AMX, int8 on any CPU; "
        "faster, but moves the features (other shards)",
    )
    fast_decoding: bool = setting(
        False, "let a neighbouring frame stand for one that is costly to decode, up to half a sampling period away"
    )
    batch_segments: int = setting(8, "segments per forward pass; bounds memory")
    hang_s: float = setting(300.0, "a worker without progress for so long is ended, and tried again; 0 = never")
    audio_rate: int = setting(16000, "sample rate of the sound, Hz")
    audio_mels: int = setting(64, "mel bands")

    def __post_init__(self) -> None:
        if self.cameras < 0 or not 0 < self.camera_fov_deg < 180 or abs(self.camera_pitch_deg) > 90:
            raise ConfigError(
                "extract: cameras must be >= 0, camera_fov_deg in (0, 180) and camera_pitch_deg in [-90, 90], got "
                f"{self.cameras}, {self.camera_fov_deg}, {self.camera_pitch_deg}"
            )
        if self.batch_segments < 1:
            raise ConfigError(f"extract: batch_segments must be at least 1, got {self.batch_segments}")
        if self.precision == "int8" and self.runtime not in ("auto", "onnxruntime", "openvino"):
            raise ConfigError(
                f"extract: precision = int8 needs runtime = onnxruntime (auto) or openvino, got {self.runtime!r}"
            )
        if not (1000 <= self.audio_rate <= 384_000 and 1 <= self.audio_mels <= 512):
            raise ConfigError(
                "extract: audio_rate must lie in [1000, 384000] Hz and audio_mels in [1, 512], got "
                f"{self.audio_rate}, {self.audio_mels}"
            )
        if not 0 <= self.hang_s < 1e6:
            raise ConfigError(f"extract.hang_s must be 0 (never) or a number of seconds below 1e6, got {self.hang_s}")
