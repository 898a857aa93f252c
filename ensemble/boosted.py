"""The boosted stacker: LightGBM over a handful of figures per (segment, action), the same trees for all actions.

A dozen instances per class cannot teach trees about that class; all classes together can teach what it means that the
models agree, that a neighbour or a rival is likelier, or that only one camera is left. So every (segment, action) is
one row, and its columns say the same thing whichever action it is:

- own logit by (view, modality), its mean, least, greatest and spread over the models (agreement between views)
- mean over the models of every other kind of `talstack.ensemble.design`: neighbour windows, any action, rival
- own mean minus that of the nearest window; share of the models that put this action first; share that is present
- log-ratio of the action's frequency in the recording's probable scenes

A missing model is NaN, which trees handle by themselves. Deterministic for one LightGBM version.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.design import Scaling, action_features
from talstack.ensemble.evidence import Evidence
from talstack.ensemble.stacker import ScenePrior, TrainingRows, check_classes, sampled_pairs
from talstack.io.errors import ModelError
from talstack.io.files import read_json, sha256_text, write_json, write_text
from talstack.io.predictions import ModelKey

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class BoostedStacker:
    """A fitted boosted stacker; it predicts actions only.

    Attributes:
        models, actions, scenes, neighbours, prior: as of `Stacker`.
        scaling: standardisation by kind and model, so that a mean over models is one of like things.
        text: LightGBM's text of the trees.
        num_rounds: trees.
    """

    models: tuple[ModelKey, ...]
    actions: tuple[str, ...]
    scenes: tuple[str, ...]
    neighbours: tuple[int, ...]
    prior: ScenePrior
    scaling: Scaling
    text: str
    num_rounds: int

    def predict(self, evidence: Evidence) -> np.ndarray:
        """Return the probability of every action in all segments of `evidence`, (N, C) float32.

        Raises:
            ModelError: the evidence has other actions or scenes.
        """
        return self.predict_path(evidence, [self.num_rounds])[0]

    def predict_path(self, evidence: Evidence, rounds: Sequence[int]) -> list[np.ndarray]:
        """Return what `predict` would for other numbers of trees, ascending, up to the one that was fitted."""
        check_classes(evidence, self.actions, self.scenes)
        evidence = evidence.with_models(self.models)
        ratio = self.prior.log_ratio(evidence.scene_probs)
        import lightgbm as lgb  # it brings scikit-learn along: a second that the other stacker can spare

        booster = lgb.Booster(model_str=self.text)
        parts: list[list[np.ndarray]] = [[] for _ in rounds]
        for row, (_, rows) in enumerate(evidence.index.slices()):
            features = action_features(
                evidence.action_probs[:, rows], evidence.activity_probs[:, rows], self.neighbours
            )
            columns = pair_columns(self.scaling.standardise(features), self.models, ratio[[row]])
            score, done = np.zeros(len(columns)), 0
            for part, count in zip(parts, rounds, strict=True):
                if count > done:  # LightGBM takes 0 for all
                    score += booster.predict(columns, done, count - done, raw_score=True, num_threads=1)
                part.append(expit(score).reshape(-1, len(self.actions)).astype(np.float32))
                done = count
        return [np.concatenate(part) for part in parts]

    def shortened(self, num_rounds: int) -> "BoostedStacker":
        """Return the stacker of the first `num_rounds` trees, at most those that it has."""
        if num_rounds >= self.num_rounds:
            return self
        import lightgbm as lgb

        text = lgb.Booster(model_str=self.text).model_to_string(num_iteration=num_rounds)
        return replace(self, text=text, num_rounds=num_rounds)

    def save(self, folder: Path) -> None:
        """Write boosted.lightgbm.txt and boosted.json; the JSON, which has the text's hash, comes last."""
        write_text(folder / "boosted.lightgbm.txt", self.text)
        write_json(
            folder / "boosted.json",
            {
                "format_version": FORMAT_VERSION,
                "models": [[key.view, key.modality, key.head] for key in self.models],
                "actions": list(self.actions),
                "scenes": list(self.scenes),
                "neighbours": list(self.neighbours),
                "num_rounds": self.num_rounds,
                "prior": {"by_scene": self.prior.by_scene.tolist(), "overall": self.prior.overall.tolist()},
                "scaling": {"mean": self.scaling.mean.tolist(), "std": self.scaling.std.tolist()},
                "text_sha256": sha256_text(self.text),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "BoostedStacker":
        """Read what `save` wrote.

        Raises:
            MissingInputError: there is none.
            ModelError: a damaged file or another format.
        """
        card, path = read_json(folder / "boosted.json"), folder / "boosted.lightgbm.txt"
        if card.get("format_version") != FORMAT_VERSION:
            raise ModelError(f"{folder}: boosted format {card.get('format_version')!r}, expected {FORMAT_VERSION}")
        try:
            text = path.read_bytes().decode("utf-8")
            if sha256_text(text) != card["text_sha256"]:
                raise ModelError(f"{path}: does not match the hash in its card; run `talstack submit` again")
            overall, scenes = np.array(card["prior"]["overall"], np.float32), tuple(card["scenes"])
            by_scene = np.array(card["prior"]["by_scene"], np.float32).reshape(len(scenes), len(overall))
            return cls(
                models=tuple(ModelKey(*names) for names in card["models"]),
                actions=tuple(card["actions"]),
                scenes=scenes,
                neighbours=tuple(card["neighbours"]),
                prior=ScenePrior(by_scene, overall),
                scaling=Scaling(*(np.array(card["scaling"][name], np.float32) for name in ("mean", "std"))),
                text=text,
                num_rounds=int(card["num_rounds"]),
            )
        except (KeyError, TypeError, OSError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{folder}: not a stacker that talstack wrote: {error}") from error


def fit_boosted(rows: TrainingRows, *, num_rounds: int, config: EnsembleConfig) -> BoostedStacker:
    """Return the boosted stacker fitted on the training rows."""
    import lightgbm as lgb  # see above

    scaling = Scaling.of(rows.action)
    taken, weight = sampled_pairs(rows)
    places, classes = np.unravel_index(taken, rows.targets.shape)
    features = scaling.standardise(rows.action[:, :, places, classes][..., None])
    columns = pair_columns(features, rows.evidence.models, rows.ratio[places, classes][:, None])
    params = _params(len(taken), config)
    labels = rows.targets[places, classes].astype(np.float32)
    data = lgb.Dataset(columns, labels, weight=weight, params=params)
    booster = lgb.train(params, data, num_boost_round=num_rounds)
    return BoostedStacker(
        models=rows.evidence.models,
        actions=rows.evidence.actions,
        scenes=rows.evidence.scenes,
        neighbours=rows.neighbours,
        prior=rows.prior,
        scaling=scaling,
        text=booster.model_to_string(),
        num_rounds=num_rounds,
    )


def pair_columns(features: np.ndarray, models: Sequence[ModelKey], ratio: np.ndarray) -> np.ndarray:
    """Return one row per (segment, action), (N * C, F) float32.

    Args:
        features: (K, M, N, C) standardised features of `action_features`; NaN where a model is missing.
        models: the M models.
        ratio: (1 or N, C) log-ratio of the frequency in the probable scenes.
    """
    own, windows, companion, rival = features[0], features[1:-2], features[-2], features[-1]
    present = ~np.isnan(own)
    groups = [(key.view, key.modality) for key in models]
    by_group = [_mean(own[[i for i, group in enumerate(groups) if group == one]]) for one in dict.fromkeys(groups)]
    mean = _mean(own)
    around = [_mean(window) for window in windows]
    spread = [np.fmin.reduce(own), np.fmax.reduce(own), np.sqrt(_mean(np.square(own - mean)))]
    first = _mean(np.where(present, own > rival, np.nan))
    others = [_mean(companion), np.fmax.reduce(companion), _mean(rival)]
    prior = np.broadcast_to(ratio, mean.shape)
    columns = [*by_group, mean, *spread, *around, mean - around[0], first, *others, present.mean(axis=0), prior]
    return np.stack([column.ravel() for column in columns], axis=1).astype(np.float32)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of what is not NaN; NaN where all is. As np.nanmean, which warns there."""
    present = ~np.isnan(values)
    count = present.sum(axis=0)
    total = np.where(present, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan, total.dtype), where=count > 0)


def _params(num_pairs: int, config: EnsembleConfig) -> dict[str, Any]:
    """Return LightGBM's parameters: few leaves, many rows in each, strong penalties."""
    return {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": config.gbm_leaves,
        "min_data_in_leaf": max(1, min(config.gbm_min_leaf, num_pairs // 20)),
        "lambda_l2": config.gbm_l2,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "extra_trees": True,
        "max_bin": 63,
        "seed": config.seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }
