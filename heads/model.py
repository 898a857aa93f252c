"""A trained head: its design and learner together, in memory and as files.

<head>.json                 the card: what it is, what was chosen, SHA-256 of the other files; written last
<head>.design.safetensors   the design's arrays
<head>.safetensors          a linear head's weights, or
<head>.lightgbm.txt         a boosted head's trees
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talstack.heads.arrays import read_arrays, write_arrays
from talstack.heads.config import HeadsConfig
from talstack.heads.context import Context
from talstack.heads.design import Design, DesignSettings
from talstack.heads.features import GroupFeatures
from talstack.heads.inner_folds import inner_folds
from talstack.heads.linear import LinearHead
from talstack.heads.solver import Link
from talstack.heads.targets import TaskTargets
from talstack.io.errors import InputError, ModelError, TalstackError
from talstack.io.files import canonical_json, read_json, sha256_file, sha256_text, write_json
from talstack.io.predictions import ModelKey

if TYPE_CHECKING:
    from talstack.heads.gbm import GbmHead

FORMAT_VERSION = 5  # of the files, and of what the code computes: raise it when either changes


@dataclass(frozen=True, slots=True, eq=False)
class TrainedHead:
    """One head of one (view, modality).

    Attributes:
        key: what it is called.
        classes: names of the probability columns.
        link: softmax where exactly one class holds, sigmoid where any number may.
        design: from stored features to rows.
        learner: from rows to probabilities.
    """

    key: ModelKey
    classes: tuple[str, ...]
    link: Link
    design: Design
    learner: "LinearHead | GbmHead"

    @classmethod
    def fit(
        cls,
        key: ModelKey,
        group: GroupFeatures,
        targets: TaskTargets,
        *,
        train: np.ndarray,
        folds: np.ndarray,
        config: HeadsConfig,
    ) -> "TrainedHead | None":
        """Return the head fitted on the training recordings; None where these have no valid labelled row.

        Args:
            train: (R,) bool, the training recordings of the group. Nothing of the others is looked at.
            folds: (R,) int, the recordings' outer folds, which the inner ones follow.
        """
        pooled = key.task == "scene"
        own = train if pooled else train[group.row_recordings]
        values, labelled = targets.values[own], targets.known[own]
        group = group.subset(train)
        if not group.valid.any():
            return None
        design, rows, valid = Design.fit_rows(group, design_settings(key, config, targets.segment_s))
        use = valid & labelled
        if not use.any():
            return None
        inner = inner_folds(folds[train], config.inner_folds, seed=config.seed)
        inner = inner if pooled else inner[group.row_recordings]
        if not use.all():
            rows, values, inner = rows[use], values[use], inner[use]
        learner = _learner(key.learner).fit(
            rows, values, folds=inner, link=targets.link, config=config, context=design.context_columns
        )
        return cls(key, targets.classes, targets.link, design, learner)

    def predict_proba(self, group: GroupFeatures) -> tuple[np.ndarray, np.ndarray]:
        """Return (probs, valid): (N, C) float32, NaN where not valid, and (N,) bool; by recording for scenes.

        Raises:
            InputError: the features have another width than those it was trained on.
        """
        expected = len(self.design.reduction.scaler.mean)
        got = group.features.shape[1] if group.reduction is None else len(group.reduction.scaler.mean)
        if got != expected:
            raise InputError(f"{self.key}: trained on {expected} features, got {got}")
        rows, valid = self.design.rows(group)
        probs = np.full((len(rows), len(self.classes)), np.nan, dtype=np.float32)
        if valid.any():
            probs[valid] = self.learner.predict_proba(rows[valid])
        return probs, valid

    def save(self, folder: Path, name: str = "") -> dict[str, Any]:
        """Write the head's files; return its card, which the caller completes and hands to `write_card`.

        Args:
            name: what they are called; as the head by default.
        """
        stem = folder / (name or self.key.head)
        design = write_arrays(stem.with_name(stem.name + ".design.safetensors"), self.design.arrays())
        files = [design, *self.learner.save(stem)]
        return {
            "format_version": FORMAT_VERSION,
            "view": self.key.view,
            "modality": self.key.modality,
            "head": self.key.head,
            "classes": list(self.classes),
            "link": self.link,
            "design": asdict(self.design.settings),
            "learner": self.learner.summary,
            "files": {path.name: sha256_file(path) for path in files},
        }

    @classmethod
    def load(cls, card_file: Path) -> "TrainedHead":
        """Read a head by its card.

        Raises:
            ModelError: a file is missing, damaged or foreign.
        """
        card = read_card(card_file)
        for name, digest in card["files"].items():
            path = card_file.with_name(Path(name).name)
            if not path.is_file() or sha256_file(path) != digest:
                raise ModelError(
                    f"{path}: missing, or not the file that its card {card_file.name} names; run `talstack heads` again"
                )
        stem = card_file.with_suffix("")
        try:
            key = ModelKey(card["view"], card["modality"], card["head"])
            settings = _settings_of(card["design"])
            design = Design.from_arrays(read_arrays(stem.with_name(stem.name + ".design.safetensors")), settings)
            learner = _learner(key.learner).load(stem, link=card["link"], summary=card["learner"])
            return cls(key, tuple(card["classes"]), card["link"], design, learner)
        except ModelError:
            raise
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ModelError(
                f"{card_file}: not the card of a head ({type(error).__name__}: {error}); run `talstack heads` again"
            ) from error


def _learner(name: str) -> "type[LinearHead] | type[GbmHead]":
    """Return the class of a learner.

    Raises:
        ValueError: there is none of this name.
    """
    if name == "linear":
        return LinearHead
    if name != "gbm":
        raise ValueError(f"no such learner: {name!r}")
    from talstack.heads.gbm import GbmHead  # LightGBM brings scikit-learn along: a second that linear heads can spare

    return GbmHead


def write_card(card_file: Path, card: Mapping[str, Any]) -> None:
    """Write a card with a hash of its own content: what was fitted stands in it too (penalties, prior shifts)."""
    write_json(card_file, {**card, "card_sha256": sha256_text(canonical_json(card))})


def read_card(card_file: Path) -> dict[str, Any]:
    """Return a head's card.

    Raises:
        ModelError: missing, damaged, or of another format version.
    """
    try:
        card: dict[str, Any] = read_json(card_file)
    except (TalstackError, ValueError, RecursionError) as error:
        raise ModelError(f"{error}; run `talstack heads` again") from error
    version = card.get("format_version") if isinstance(card, dict) else None
    if version != FORMAT_VERSION:
        raise ModelError(f"{card_file}: format_version {version!r}, expected {FORMAT_VERSION}; run `talstack heads`")
    if not _is_whole(card):
        raise ModelError(f"{card_file}: damaged, or not a card that talstack wrote; run `talstack heads` again")
    return card


def _is_whole(card: Mapping[str, Any]) -> bool:
    content = {name: value for name, value in card.items() if name != "card_sha256"}
    try:
        return card.get("card_sha256") == sha256_text(canonical_json(content))
    except ValueError:  # NaN or infinity, which talstack never writes
        return False


def card_path(folder: Path, key: ModelKey) -> Path:
    """Return where a head's card lies."""
    return folder / f"{key.head}.json"


def _settings_of(card: dict[str, Any]) -> DesignSettings:
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in card["context"].items()}
    return DesignSettings(**{**card, "context": Context(**values)})


def design_settings(key: ModelKey, config: HeadsConfig, segment_s: float) -> DesignSettings:
    """Return what the rows of a head hold."""
    linear, pooled = key.learner == "linear", key.task == "scene"
    components, with_context = (
        getattr(config, f"{key.learner}_{name}") for name in ("components", "context_components")
    )
    if pooled and with_context:  # few recordings: as few columns as a neighbourhood gets
        components = min(components, with_context)
    return DesignSettings(
        pooled=pooled,
        components=components,
        clip=config.clip,
        context=Context() if pooled else _context(config, segment_s, boundary=key.task == "boundary"),
        context_components=with_context,
        rotate=linear,  # trees cut along columns: they keep the features' own where there are few
        whitening=config.linear_whitening if linear else 1.0,
        squares=config.linear_squares if linear and not pooled else 0.0,
    )


def _context(config: HeadsConfig, segment_s: float, *, boundary: bool) -> Context:
    windows = {max(1, round(window_s / segment_s)) for window_s in config.context_s} | set(config.context)
    return Context(
        windows=tuple(sorted(windows | set(config.boundary_context if boundary else ()))),
        statistics=config.context_statistics,
        neighbours=config.context_neighbours,
        position=config.context_position,
    )
