"""Settings of the ensemble: one table, [ensemble], of the configuration file."""

from dataclasses import dataclass
from typing import Literal

from talstack.io.config import setting
from talstack.io.errors import ConfigError

LISTS = (
    "neighbours_s", "shared_l2", "class_l2", "score", "refine", "proposals", "hmm", "smoothing_s", "smoothing_power",
    "gap_s", "margin", "contrast_weight", "nms_sigma",
)  # fmt: skip
COMBINERS = ("weighted_direct", "weighted_by_class", "vote")


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
    stacker: Literal["logistic", "gbm", "both"] = setting(
        "both",
        "what stacks: a logistic regression, boosted trees, or a mean of the two whose weights are chosen out of fold",
    )
    stack_mean: float = setting(
        0.5, "share in the stack of the mean of the models weighted by class, whose curves keep the ends of actions"
    )
    gbm_rounds: tuple[int, ...] = setting((50, 100, 200), "trees of the boosted stacker")
    gbm_leaves: int = setting(6, "leaves of a tree of the boosted stacker")
    gbm_min_leaf: int = setting(200, "rows (segment, action) in a leaf at least")
    gbm_l2: float = setting(20.0, "penalty on the leaves of the boosted stacker")
    combiners: tuple[str, ...] = setting(COMBINERS, "combiners that are scored beside mean, weighted and stack")
    weighted_bags: int = setting(0, "random halves of the models among which weights are selected and averaged; 0: all")
    weighted_pull: float = setting(
        10.0, "pull of directly found weights towards equal ones, in segments with an action"
    )
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
        unknown = sorted(set(self.combiners) - set(COMBINERS))
        if unknown:
            raise ConfigError(f"ensemble.combiners: expected some of {', '.join(COMBINERS)}, got {unknown[0]!r}")
        if not self.gbm_rounds or min(self.gbm_rounds) < 1:
            raise ConfigError(f"ensemble.gbm_rounds: expected at least one number of trees >= 1, got {self.gbm_rounds}")
        if self.weighted_pull < 0:
            raise ConfigError(f"ensemble.weighted_pull: expected >= 0, got {self.weighted_pull}")
        for name in LISTS:
            if not getattr(self, name):
                raise ConfigError(f"ensemble.{name}: expected at least one value, got none")
        if list(self.neighbours_s) != sorted(set(self.neighbours_s)) or self.neighbours_s[0] <= 0:
            raise ConfigError(f"ensemble.neighbours_s: expected ascending seconds > 0, got {self.neighbours_s}")
        self._check_shares()
        for name, known in (("proposals", ("both", "activity", "class")), ("score", ("fitted", "plain"))):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise ConfigError(f"ensemble.{name}: expected {' or '.join(known)}, got {unknown[0]!r}")
        for name in ("smoothing_s", "smoothing_power", "gap_s", "margin", "contrast_weight"):
            if min(getattr(self, name)) < 0:
                raise ConfigError(f"ensemble.{name}: expected numbers from 0 on, got {getattr(self, name)}")

    def _check_shares(self) -> None:
        for name in ("view_dropout", "stack_mean"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"ensemble.{name}: expected 0 <= share < 1, got {getattr(self, name)}")

    def neighbours(self, segment_s: float) -> tuple[int, ...]:
        """Return the reaches of the neighbour windows in segments, ascending, at least 1."""
        return tuple(sorted({max(1, round(reach / segment_s)) for reach in self.neighbours_s}))
