"""The boosted learner: LightGBM, one binary model per class on one binned copy of the rows.

Deterministic for one LightGBM version. Models are kept as LightGBM's text, whose hash is compared before it is parsed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from talstack.heads.config import HeadsConfig
from talstack.heads.linear import CLASS_WEIGHT_POWER
from talstack.heads.solver import Link
from talstack.heads.targets import ClassColumns
from talstack.io.errors import ModelError
from talstack.io.files import sha256_text, write_text

_FEWEST_COLUMNS = 10  # that a tree may use: a fifth of a dozen columns would be two
_MAX_BIN = 63  # half the time of 255 bins for the same log-loss
_SEPARATOR = "\n#next class\n"  # between the texts of the classes; no line of LightGBM's text begins with #


@dataclass(frozen=True, slots=True, eq=False)
class GbmHead:
    """A fitted head: probabilities of its classes from rows of the design matrix.

    Attributes:
        link: under softmax the classes' probabilities are scaled to sum to one.
        columns: which classes were learned.
        boosters: one per learned class.
        prior_shift: (learned,) log-odds by which weighting a rare class up is undone.
        num_rounds: trees per class.
    """

    link: Link
    columns: ClassColumns
    boosters: tuple[lgb.Booster, ...]
    prior_shift: np.ndarray
    num_rounds: int

    @classmethod
    def fit(
        cls,
        rows: np.ndarray,
        targets: np.ndarray,
        *,
        folds: np.ndarray,
        link: Link,
        config: HeadsConfig,
        context: np.ndarray | None = None,  # noqa: ARG003 - to trees a column's size means nothing
    ) -> "GbmHead":
        """Return the head fitted on all rows; arguments as of `LinearHead.fit`."""
        columns = ClassColumns.of(targets)
        learned = targets[:, columns.learned]
        num_rounds = config.gbm_rounds
        if config.gbm_early_stopping and learned.shape[1]:
            held_out = folds == 0
            num_rounds = num_rounds if held_out.all() else _choose_rounds(rows, learned, held_out, config)
        boosters = tuple(_train(rows, learned, num_rounds, config))
        return cls(link, columns, boosters, np.log(_class_ratio(learned, config)), num_rounds)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Return (N, C) float32 probabilities."""
        probs = np.zeros((len(rows), len(self.boosters)))
        for i, booster in enumerate(self.boosters):
            logits = np.asarray(booster.predict(rows, raw_score=True, num_threads=1)) - self.prior_shift[i]
            probs[:, i] = 1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0)))
        return self.columns.expand(probs, self.link)

    @property
    def summary(self) -> dict[str, Any]:
        """What was chosen in fitting, and the hash of the models' text."""
        return {
            "num_rounds": self.num_rounds,
            "learned": self.columns.learned.tolist(),
            "constant": self.columns.constant.tolist(),
            "prior_shift": self.prior_shift.tolist(),
            "text_sha256": sha256_text(self._text()),
        }

    def _text(self) -> str:
        return _SEPARATOR.join(booster.model_to_string() for booster in self.boosters)

    def save(self, stem: Path) -> list[Path]:
        """Write `stem`.lightgbm.txt; return the files written."""
        path = stem.with_name(stem.name + ".lightgbm.txt")
        write_text(path, self._text())
        return [path]

    @classmethod
    def load(cls, stem: Path, *, link: Link, summary: dict[str, Any]) -> "GbmHead":
        """Read a head.

        Raises:
            ModelError: the file is missing, or is not the one that `summary` was written with.
        """
        path = stem.with_name(stem.name + ".lightgbm.txt")
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: not a readable model ({error}); run `talstack heads` again") from error
        if sha256_text(text) != summary["text_sha256"]:
            raise ModelError(f"{path}: does not match the hash in its card; run `talstack heads` again")
        boosters = tuple(lgb.Booster(model_str=part) for part in text.split(_SEPARATOR)) if text else ()
        columns = ClassColumns(np.array(summary["learned"], dtype=bool), np.array(summary["constant"]))
        return cls(link, columns, boosters, np.array(summary["prior_shift"]), int(summary["num_rounds"]))


def _params(num_rows: int, num_columns: int, config: HeadsConfig) -> dict[str, Any]:
    """Return LightGBM's parameters; limits that would forbid any split of few rows (scenes) shrink with them."""
    return {
        "objective": "binary",
        "learning_rate": config.gbm_learning_rate,
        "num_leaves": config.gbm_leaves,
        "min_data_in_leaf": max(1, min(config.gbm_min_leaf, num_rows // 8)),
        "min_sum_hessian_in_leaf": min(1.0, num_rows / 1000),
        "lambda_l2": min(config.gbm_l2, num_rows / 100),
        "feature_fraction": min(1.0, max(config.gbm_columns, _FEWEST_COLUMNS / num_columns)),
        "bagging_fraction": config.gbm_rows,
        "bagging_freq": 1,
        "extra_trees": config.gbm_extra_trees,
        "max_bin": _MAX_BIN,
        "feature_pre_filter": False,  # it would judge every class by the labels of the first
        "seed": config.seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }


def _class_ratio(targets: np.ndarray, config: HeadsConfig) -> np.ndarray:
    """Return the weight of each class's positives against its negatives, (C,)."""
    rate = targets.mean(axis=0, dtype=np.float64)
    return np.asarray(((1 - rate) / rate) ** CLASS_WEIGHT_POWER[config.class_weight])


def _train(rows: np.ndarray, targets: np.ndarray, num_rounds: int, config: HeadsConfig) -> Iterator[lgb.Booster]:
    """Yield one booster per class; the rows are binned once. No class is constant."""
    params = _params(len(rows), rows.shape[1], config)
    data = _dataset(rows, params)
    for labels, ratio in zip(targets.T, _class_ratio(targets, config), strict=True):
        data.set_label(labels.astype(np.float32))
        yield lgb.train({**params, "scale_pos_weight": ratio}, data, num_boost_round=num_rounds)


def _dataset(rows: np.ndarray, params: dict[str, Any], reference: lgb.Dataset | None = None) -> lgb.Dataset:
    data = lgb.Dataset(rows, np.zeros(len(rows), np.float32), reference=reference, params=params, free_raw_data=False)
    return data.construct()


def _choose_rounds(rows: np.ndarray, targets: np.ndarray, held_out: np.ndarray, config: HeadsConfig) -> int:
    """Return the number of trees with the least log-loss, summed over classes, on the rows held out.

    One number for all classes: the curve of a class with three examples is noise.
    """
    params = _params(int((~held_out).sum()), rows.shape[1], config) | {"metric": "binary_logloss"}
    train = _dataset(rows[~held_out], params)
    check = _dataset(rows[held_out], params, reference=train)
    losses = np.zeros(config.gbm_rounds)
    for i in np.flatnonzero(ClassColumns.of(targets[~held_out]).learned):
        train.set_label(targets[~held_out, i].astype(np.float32))
        check.set_label(targets[held_out, i].astype(np.float32))
        record: dict[str, Any] = {}
        lgb.train(
            params, train, config.gbm_rounds, valid_sets=[check], callbacks=[lgb.record_evaluation(record)]
        )  # fmt: skip
        losses += record["valid_0"]["binary_logloss"]
    return int(losses.argmin()) + 1
