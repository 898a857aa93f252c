"""Fine-tuning of several backbones: one per fold, trained without it, one per view, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import polars as pl

from talstack.extract.backbone_set import SET_FILE, BackboneSet, save_set
from talstack.extract.card import CARD_FILE
from talstack.extract.config import SamplingConfig
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.finetune import EpochRow, finetune
from talstack.io.errors import InputError, LeakError
from talstack.io.extraction import check_views
from talstack.io.manifest import Manifest
from talstack.io.members import Member


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """A backbone to train.

    Attributes:
        name: of its folder.
        views: it is trained on and serves; None: the configuration's, and all.
        folds: it is trained without; empty: those that the configuration holds out.
        recordings: it may learn from; None: as the configuration says.
    """

    name: str
    views: tuple[str, ...] | None = None
    folds: tuple[int, ...] = ()
    recordings: tuple[str, ...] | None = None

    @property
    def member(self) -> Member:
        """Its entry in the set."""
        return Member(self.name, views=self.views or (), folds=self.folds)


def plan_members(manifest: Manifest, config: FinetuneConfig, *, cross_fit: int = 0) -> list[MemberPlan]:
    """Return the backbones to train, one at least.

    Args:
        cross_fit: how many backbones share the folds, each trained without its own; 0 = all see the same recordings.
            With cross-fitting nothing else is held out: every recording of split train is learned from.

    Raises:
        InputError: more backbones than folds, or one without a recording to learn from.
    """
    views = [(view,) for view in check_views(manifest, config.views)] if config.per_view else [None]
    parts = _fold_parts(manifest, cross_fit) if cross_fit else {"": ((), None)}
    return [
        MemberPlan("-".join(part for part in (view and f"view-{quote(view[0], safe=' ')}", name) if part), view, *rest)
        for view in views
        for name, rest in parts.items()
    ]


def _fold_parts(manifest: Manifest, number: int) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Return {name: (folds held out, recordings to learn from)}; more folds than parts are dealt out in turn."""
    folds = sorted(manifest.folds["fold"].unique())
    if not 2 <= number <= len(folds):
        raise InputError(
            f"{manifest.name}: cross-fitting {number} backbones needs 2 to {len(folds)}, the number of its folds; "
            "import with more --folds for more"
        )
    train, parts = manifest.recordings_of(["train"]), {}
    for part in range(number):
        own = tuple(folds[part::number])
        held_out = set(manifest.folds.filter(pl.col("fold").is_in(own))["recording"])
        left = tuple(name for name in train if name not in held_out)
        if not left:
            raise InputError(f"{manifest.name}: no training recording outside folds {', '.join(map(str, own))}")
        parts[f"fold{part}"] = (own, left)
    return parts


def finetune_set(
    manifest: Manifest,
    out: Path,
    *,
    config: FinetuneConfig,
    sampling: SamplingConfig,
    cross_fit: int = 0,
    jobs: int = 1,
    report: Callable[[str, EpochRow], None] = lambda member, row: None,
) -> BackboneSet:
    """Train the backbones of `plan_members` into the folder `out` and return them; finished ones are not repeated.

    One backbone for everything lies in `out` itself, several in a folder each, with set.json written last.

    Args:
        report: called with the member's name and the figures of every epoch.

    Raises:
        InputError: as `plan_members`, or `out` holds the other kind.
        LeakError: a member came to know a recording of the folds that it serves.
    """
    plans = plan_members(manifest, config, cross_fit=cross_fit)
    several = bool(plans[0].name)
    other = out / (CARD_FILE if several else SET_FILE)
    if other.is_file():
        raise InputError(
            f"{out}: holds {'a single backbone' if several else 'a set of backbones'}; take another folder"
        )
    for plan in plans:
        card = finetune(
            manifest, out / plan.name, config=config, sampling=sampling, jobs=jobs, report=partial(report, plan.name),
            recordings=plan.recordings, views=plan.views,
        )  # fmt: skip
        _check_unknown(manifest, plan, card.known, out / plan.name)
    return save_set(out, [plan.member for plan in plans]) if several else BackboneSet.load(out)


def _check_unknown(manifest: Manifest, plan: MemberPlan, known: Sequence[str], folder: Path) -> None:
    """Raise LeakError where a member knows a recording of the folds that it was to be trained without."""
    folds = dict(manifest.folds.iter_rows())
    leaked = [name for name in known if folds.get(name) in plan.folds]
    if leaked:
        raise LeakError(
            f"{folder}: was to be trained without folds {', '.join(map(str, plan.folds))}, and knows {leaked[0]} all "
            "the same; set finetune.validation_folds to 0"
        )
