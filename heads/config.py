"""Settings of the heads: one table, [heads], of the configuration file."""

from dataclasses import dataclass
from typing import Literal

from talstack.heads.context import STATISTICS
from talstack.io.config import setting
from talstack.io.errors import ConfigError
from talstack.io.manifest import SPLITS
from talstack.io.predictions import TASKS

LEARNERS = ("linear", "gbm")


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """Heads of every (view, modality): what they see, how they learn, and on which recordings."""

    tasks: tuple[str, ...] = setting(
        TASKS,
        "activity (action or background), action (which), boundary (where one starts or ends), scene (per recording)",
    )
    learners: tuple[str, ...] = setting(LEARNERS, "linear (logistic regression), gbm (LightGBM)")
    context: tuple[int, ...] = setting(
        (2, 4, 8), "windows on either side of a segment, in segments, summed up by context_statistics; empty = none"
    )
    context_s: tuple[float, ...] = setting((), "further windows, in seconds")
    context_statistics: tuple[str, ...] = setting(
        ("level", "slope", "spread", "max"),
        "of each window: level (mean of both sides), slope (their difference), spread (deviation), max",
    )
    context_neighbours: int = setting(0, "nearest segments on either side that are added as they are")
    context_position: bool = setting(False, "where in the recording a segment lies, as columns")
    boundary_context: tuple[int, ...] = setting((1,), "further windows of boundary heads, in segments")
    clip: float = setting(4.0, "standardised columns are cut at this many standard deviations")
    class_weight: Literal["none", "sqrt", "balanced"] = setting(
        "none", "how far rare classes are weighted up in training; the probabilities are corrected for it"
    )
    inner_folds: int = setting(
        3, "parts of the training recordings, made of their folds, to choose penalty and temperature on"
    )
    linear_components: int = setting(256, "linear: principal components of the features, at most; 0 = as they are")
    linear_context_components: int = setting(64, "linear: the first components, which have context as well; 0 = all")
    linear_whitening: float = setting(
        0.0, "linear: 0 leaves the components their own size, 1 makes all equal, so that small ones count as much"
    )
    linear_context_gain: tuple[float, ...] = setting(
        (0.6, 0.1),
        "linear: sizes of context columns beside the segment's own, to choose from; small ones are penalised more",
    )
    linear_squares: float = setting(
        0.5, "linear: size of the columns' squares, so that size counts whatever the sign; 0 = none"
    )
    linear_l2: tuple[float, ...] = setting(
        (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
        "linear: penalties on the mean log-loss, tried from the largest down until the inner folds get worse",
    )
    gbm_components: int = setting(256, "gbm: wider features are reduced to this many principal components; 0 = never")
    gbm_context_components: int = setting(32, "gbm: the first components, which have context as well; 0 = all")
    gbm_rounds: int = setting(150, "gbm: trees per class; the most of them with early stopping")
    gbm_early_stopping: bool = setting(
        False, "gbm: choose the number of trees on one inner fold (about twice the time)"
    )
    gbm_learning_rate: float = setting(0.1, "gbm: shrinkage of each tree")
    gbm_leaves: int = setting(15, "gbm: leaves per tree")
    gbm_min_leaf: int = setting(30, "gbm: fewest rows in a leaf (an eighth of the rows where there are few)")
    gbm_columns: float = setting(0.2, "gbm: share of the columns that each tree may use")
    gbm_rows: float = setting(0.5, "gbm: share of the rows that each tree is grown on")
    gbm_extra_trees: bool = setting(True, "gbm: one random threshold per column and split: smoother and faster")
    gbm_l2: float = setting(10.0, "gbm: penalty on leaf values")
    fit_splits: tuple[str, ...] = setting(("train", "val"), "splits whose folds the heads learn from")
    fit_on: Literal["all", "unseen"] = setting("all", "unseen: learn only from recordings the backbone has not seen")
    others_by: Literal["refit", "folds"] = setting(
        "refit",
        "what predicts recordings without a fold (test) and those of `talstack predict`: refit = one more model, of "
        "all training recordings; folds = the mean of the folds' models",
    )
    seed: int = setting(0, "inner folds, and the rows and columns of each tree")

    def __post_init__(self) -> None:
        for name, known in (
            ("tasks", TASKS),
            ("learners", LEARNERS),
            ("fit_splits", SPLITS),
            ("context_statistics", STATISTICS),
        ):
            values = getattr(self, name)
            unknown = sorted(set(values) - set(known))
            if unknown or not values or len(set(values)) < len(values):
                raise ConfigError(f"heads.{name}: expected some of {', '.join(known)}, each once, got {list(values)}")
        if "test" in self.fit_splits:
            raise ConfigError("heads.fit_splits: split test is for evaluation; take train and val")
        for name in ("context", "boundary_context"):
            windows = list(getattr(self, name))
            if windows != sorted(set(windows)) or min(windows, default=1) < 1:
                raise ConfigError(f"heads.{name}: expected ascending counts of segments from 1, got {windows}")
        if min(self.context_s, default=1.0) <= 0:
            raise ConfigError(f"heads.context_s: expected seconds > 0, got {list(self.context_s)}")
        for name in ("linear_l2", "linear_context_gain"):
            if min(getattr(self, name), default=0.0) <= 0:
                raise ConfigError(f"heads.{name}: expected numbers > 0, got {list(getattr(self, name))}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        least = {
            "linear_components": 0, "linear_context_components": 0, "linear_squares": 0.0, "context_neighbours": 0,
            "gbm_components": 0, "gbm_context_components": 0, "gbm_rounds": 1, "gbm_leaves": 2, "gbm_min_leaf": 1,
            "gbm_l2": 0.0, "inner_folds": 2, "seed": 0,
        }  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"heads.{name}: expected at least {smallest}, got {getattr(self, name)}")
        for name in ("clip", "gbm_learning_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"heads.{name}: expected a number > 0, got {getattr(self, name)}")
        for name in ("gbm_columns", "gbm_rows"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"heads.{name}: expected a share in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.linear_whitening <= 1:
            raise ConfigError(f"heads.linear_whitening: expected 0 to 1, got {self.linear_whitening}")
