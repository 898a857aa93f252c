"""Fine-tuning of several backbones: one per fold, trained without it, one per view, or both."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from talstack.extract.backbone_set import SET_FILE, BackboneSet, save_set
from talstack.extract.card import CARD_FILE
from talstack.extract.config import SamplingConfig
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.finetune import FRAMES_FOLDER, RecordingSplit, finetune
from talstack.extract.training.processes import training_processes
from talstack.extract.training.trainer import SILENT, Watcher
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
        split: recordings that it learns from and is validated on; None: as the configuration says.
    """

    name: str
    views: tuple[str, ...] | None = None
    folds: tuple[int, ...] = ()
    split: RecordingSplit | None = None

    @property
    def member(self) -> Member:
        """Its entry in the set."""
        return Member(self.name, views=self.views or (), folds=self.folds)


def plan_members(manifest: Manifest, config: FinetuneConfig, *, cross_fit: int = 0) -> list[MemberPlan]:
    """Return the backbones to train, one at least.

    Args:
        cross_fit: how many backbones share the folds, each trained without its own; 0 = all see the same recordings.
            With cross-fitting `holdout_folds` does not count: every recording of split train is learned from by all
            backbones but those that serve it, and those it validates.

    Raises:
        InputError: more backbones than folds, or one without a recording to learn from.
    """
    views = [(view,) for view in check_views(manifest, config.views)] if config.per_view else [None]
    parts = _fold_parts(manifest, cross_fit, config.validation_folds) if cross_fit else {"": ((), None)}
    return [
        MemberPlan("-".join(part for part in (view and f"view-{quote(view[0], safe=' ')}", name) if part), view, *rest)
        for view in views
        for name, rest in parts.items()
    ]


def _fold_parts(
    manifest: Manifest, number: int, num_validation: int
) -> dict[str, tuple[tuple[int, ...], RecordingSplit]]:
    """Return {name: (folds held out, recordings to learn from and to validate on)}.

    More folds than parts are dealt out in turn; a part is validated on the folds that follow its own.
    """
    folds = sorted(manifest.folds["fold"].unique())
    if not 2 <= number <= len(folds):
        raise InputError(
            f"{manifest.name}: cross-fitting {number} backbones needs 2 to {len(folds)}, the number of its folds; "
            "import with more --folds for more"
        )
    fold_of, train, parts = dict(manifest.folds.iter_rows()), manifest.recordings_of(["train"]), {}
    for part in range(number):
        own = tuple(folds[part::number])
        others = [fold for fold in (*folds[part:], *folds[:part]) if fold not in own]
        looked_at = set(others[:num_validation])
        split = RecordingSplit(
            tuple(name for name in train if fold_of.get(name) not in {*own, *looked_at}),
            tuple(name for name in train if fold_of.get(name) in looked_at),
        )
        if not split.train:
            besides = f" and validation folds {', '.join(map(str, sorted(looked_at)))}" if looked_at else ""
            raise InputError(
                f"{manifest.name}: no training recording outside folds {', '.join(map(str, own))}{besides}"
            )
        parts[f"fold{part}"] = (own, split)
    return parts


def finetune_set(
    manifest: Manifest,
    out: Path,
    *,
    config: FinetuneConfig,
    sampling: SamplingConfig,
    cross_fit: int = 0,
    panoramas: Collection[str] = ("panoramic",),
    jobs: int = 1,
    watcher_of: Callable[[str], Watcher] = lambda member: SILENT,
) -> BackboneSet:
    """Train the backbones of `plan_members` into the folder `out` and return them; finished ones are not repeated.

    One backbone for everything lies in `out` itself, several in a folder each, with set.json written last; all share
    the decoded frames in `out`/frames.

    Args:
        panoramas: views that are equirectangular panoramas.
        jobs: processes that decode.
        watcher_of: given a member's name, who hears of its training.

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
    with training_processes() as processes:
        for plan in plans:
            card = finetune(
                manifest, out / plan.name, config=replace(config, views=plan.views or config.views), sampling=sampling,
                split=plan.split, panoramas=panoramas, frames=out / FRAMES_FOLDER, jobs=jobs,
                watcher=watcher_of(plan.name),
            )  # fmt: skip
            _check_unknown(manifest, plan, card.known, out / plan.name)
        if several and processes.first:
            save_set(out, [plan.member for plan in plans])
        processes.wait()
    return BackboneSet.load(out)


def _check_unknown(manifest: Manifest, plan: MemberPlan, known: Collection[str], folder: Path) -> None:
    """Raise LeakError where a member knows a recording of the folds that it was to be trained without."""
    folds = dict(manifest.folds.iter_rows())
    leaked = [name for name in known if folds.get(name) in plan.folds]
    if leaked:
        raise LeakError(
            f"{folder}: was to be trained without folds {', '.join(map(str, plan.folds))}, and knows {leaked[0]} all "
            "the same; did finetune.weights see it?"
        )
