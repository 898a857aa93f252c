"""Several backbones in one folder: one per view, one per fold that it has not seen, or both.

    FOLDER/set.json      {"format_version": 1, "members": [{"name", "views", "folds", "weights_sha256"}, ...]}
    FOLDER/<name>/       an ordinary backbone folder

A member serves the views it names (none: all), and the recordings of the folds it was trained without (none: all
recordings). An ordinary backbone folder is a set of one. Needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talstack.extract.card import BackboneCard, BackboneSource, load_card
from talstack.io.errors import LeakError, ModelError, TalstackError
from talstack.io.files import read_json, write_json
from talstack.io.manifest import Manifest
from talstack.io.members import Member, choose_members

FORMAT_VERSION = 1
SET_FILE = "set.json"
_SHARED = ("segment_s", "frames_per_segment", "frame_size", "actions", "scenes", "link")


@dataclass(frozen=True, slots=True)
class BackboneSet:
    """Backbones that make the features of one data set together.

    Attributes:
        members: sorted by name; all with the same classes and sampling.
        sources: where each member's weights are.
    """

    members: tuple[Member, ...]
    sources: tuple[BackboneSource, ...]

    @property
    def is_single(self) -> bool:
        """Whether one backbone makes everything."""
        return len(self.members) == 1 and not self.members[0].views and not self.members[0].folds

    @property
    def card(self) -> BackboneCard:
        """The first member's; all share classes and sampling."""
        return self.sources[0].card

    @classmethod
    def of(cls, source: BackboneSource) -> "BackboneSet":
        """Return the set of one backbone."""
        return cls((Member("", source.identity, known=source.card.known),), (source,))

    @classmethod
    def load(cls, folder: Path) -> "BackboneSet":
        """Read a set, or an ordinary backbone folder.

        Raises:
            MissingInputError: there is no backbone in the folder, or not all that set.json names.
            ModelError: set.json is damaged, or its members do not fit together.
        """
        if not (folder / SET_FILE).is_file():
            return cls.of(BackboneSource(load_card(folder), folder))
        entries = sorted(_entries(folder), key=lambda entry: str(entry["name"]))
        sources = tuple(BackboneSource(load_card(folder / entry["name"]), folder / entry["name"]) for entry in entries)
        members = tuple(
            Member(entry["name"], source.identity, tuple(entry["views"]), tuple(entry["folds"]), source.card.known)
            for entry, source in zip(entries, sources, strict=True)
        )
        for entry, source in zip(entries, sources, strict=True):
            _check(folder, entry, source.card, sources[0].card)
        return cls(members, sources)

    def members_for(self, recording: str, view: str, fold: int | None) -> tuple[Member, ...]:
        """Return the members that make the features of a recording's view.

        Args:
            fold: the recording's; None where it has none, which gives all members of the view.

        Raises:
            LeakError: a member that was trained without this fold has seen the recording nevertheless.
            ModelError: no member is for this view.
        """
        chosen = choose_members(self.members, view, fold)
        if not chosen:
            views = sorted({name for member in self.members for name in member.views})
            raise ModelError(f"view {view!r}: no backbone of the set is for it; they are for {', '.join(views)}")
        for member in chosen:
            if fold in member.folds and recording in member.known:
                raise LeakError(
                    f"{recording}: lies in fold {fold}, and {member.name!r}, the backbone trained without that fold, "
                    "has seen it: the folds are not those it was trained with; run `talstack finetune` again"
                )
        return chosen

    def check(self, manifest: Manifest, views: Sequence[str]) -> None:
        """Check that every recording has a backbone that serves it honestly; raises as `members_for`."""
        folds = dict(manifest.folds.iter_rows())
        for recording in manifest.recordings["recording"].sort():
            for view in views:
                self.members_for(recording, view, folds.get(recording))


def save_set(folder: Path, members: Sequence[Member]) -> BackboneSet:
    """Write set.json over members whose folders are there; return the set."""
    entries = [
        {
            "name": member.name, "views": list(member.views), "folds": list(member.folds),
            "weights_sha256": load_card(folder / member.name).weights_sha256,
        }
        for member in members
    ]  # fmt: skip
    write_json(folder / SET_FILE, {"format_version": FORMAT_VERSION, "members": entries})
    return BackboneSet.load(folder)


def _entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / SET_FILE
    try:
        values = read_json(path)
        if values["format_version"] != FORMAT_VERSION:
            raise ModelError(f"{path}: format {values['format_version']!r}, expected {FORMAT_VERSION}")
        entries = [
            {name: entry[name] for name in ("name", "views", "folds", "weights_sha256")} for entry in values["members"]
        ]
        if not entries or len({entry["name"] for entry in entries}) < len(entries):
            raise ModelError(f"{path}: expected members with names of their own")
        if any(Path(entry["name"]).name != entry["name"] for entry in entries):
            raise ModelError(f"{path}: a member's name must be that of a folder beside it")
        return [{**entry, "folds": [int(fold) for fold in entry["folds"]]} for entry in entries]
    except ModelError:
        raise
    except (TalstackError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not the description of a set of backbones ({error}); fine-tune again") from error


def _check(folder: Path, entry: dict[str, Any], card: BackboneCard, first: BackboneCard) -> None:
    if card.weights_sha256 != entry["weights_sha256"]:
        raise ModelError(
            f"{folder / entry['name']}: not the backbone that {SET_FILE} names; finish `talstack finetune`"
        )
    for name in _SHARED:
        if getattr(card, name) != getattr(first, name):
            raise ModelError(
                f"{folder / entry['name']}: {name} is {getattr(card, name)!r:.80}, another member's is "
                f"{getattr(first, name)!r:.80}; the backbones of a set must agree"
            )
