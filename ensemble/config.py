"""Settings of the ensemble: one table, [ensemble], of the configuration file."""

from dataclasses import dataclass
from typing import Literal

from talstack.io.config import setting
from talstack.io.errors import ConfigError

LISTS = (
    "neighbours_s", "shared_l2", "class_l2", "score", "refine", "proposals", "hmm", "smoothing_s", "smoothing_power",
    "gap_s", "margin", "contrast_weight", "nms_sigma",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EnsembleConfig:
    """Stacking, weighting and decoding of the heads' predictions.

    Where a setting lists several values, the one that scores best on unseen out-of-fold recordings is taken.
    """

    neighbours_s: tuple[float, ...] = setting(
        (0.25, 0.75), "reach of the stacker's neighbour windows, seconds before and after: to 0.25, from there to 0.75"
    )
    shared_l2: tuple[float, ...] = setting((30.0, 3.0), "penalties on the weights that all classes share")
    class_l2: tuple[float, ...] = setting((100.0, 30.0, 10.0), "penalties on a class's own part of the weights")
    view_dropout: float = setting(0.25, "chance that a view is hidden in the stacker's augmented training rows")
    scene_smoothing: float = setting(200.0, "segments of the overall action frequencies mixed into each scene's")
    max_rows: int = setting(20_000, "training segments of the stacker at most; a seeded sample of them beyond")
    weighted_rounds: int = setting(40, "rounds of the weighted ensemble's greedy selection")
    weighted_metric: Literal["ap", "log_loss"] = setting("ap", "what the weighted ensemble maximises over segments")
    score: tuple[str, ...] = setting(
        ("fitted", "plain"), "an interval's score: learned out of fold, or class probability times contrast"
    )
    refine: tuple[bool, ...] = setting(
        (True, False), "move starts and ends as learned out of fold from the curves there"
    )
    proposals: tuple[str, ...] = setting(("both", "activity", "class"), "runs of which curves become intervals")
    hmm: tuple[bool, ...] = setting((False, True), "runs of a hidden Markov model with the classes' durations as well")
    smoothing_s: tuple[float, ...] = setting((0.0, 0.25, 0.5, 1.0), "Gaussian smoothing of the curves, seconds")
    smoothing_power: tuple[float, ...] = setting(
        (0.0, 1.0), "0: all classes smoothed alike; 1: in proportion to their typical duration"
    )
    gap_s: tuple[float, ...] = setting((0.0, 0.5), "runs with at most this between them become one, seconds")
    margin: tuple[float, ...] = setting(
        (0.2, 0.1, 0.4, 0.7), "plain score: surroundings of a run, as a share of its length"
    )
    contrast_weight: tuple[float, ...] = setting((1.0, 0.5, 2.0, 3.0), "plain score: exponent of the contrast")
    nms_sigma: tuple[float, ...] = setting((0.5, 0.2), "width of Gaussian Soft-NMS")
    nms: Literal["gaussian", "linear", "hard"] = setting("gaussian", "suppression within a class")
    nms_threshold: float = setting(0.5, "tIoU from which linear and hard suppression act")
    max_detections: int = setting(200, "intervals kept per recording")
    seed: int = setting(0, "seed of the view dropout and of row sampling")

    def __post_init__(self) -> None:
        for name in LISTS:
            if not getattr(self, name):
                raise ConfigError(f"ensemble.{name}: expected at least one value, got none")
        if list(self.neighbours_s) != sorted(set(self.neighbours_s)) or self.neighbours_s[0] <= 0:
            raise ConfigError(f"ensemble.neighbours_s: expected ascending seconds > 0, got {self.neighbours_s}")
        if not 0.0 <= self.view_dropout < 1.0:
            raise ConfigError(f"ensemble.view_dropout: expected 0 <= chance < 1, got {self.view_dropout}")
        for name, known in (("proposals", ("both", "activity", "class")), ("score", ("fitted", "plain"))):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise ConfigError(f"ensemble.{name}: expected {' or '.join(known)}, got {unknown[0]!r}")
        for name in ("smoothing_s", "smoothing_power", "gap_s", "margin", "contrast_weight"):
            if min(getattr(self, name)) < 0:
                raise ConfigError(f"ensemble.{name}: expected numbers from 0 on, got {getattr(self, name)}")

    def neighbours(self, segment_s: float) -> tuple[int, ...]:
        """Return the reaches of the neighbour windows in segments, ascending, at least 1."""
        return tuple(sorted({max(1, round(reach / segment_s)) for reach in self.neighbours_s}))
