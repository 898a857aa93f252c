"""What a backbone is and what it has seen: the card beside its weights. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talstack.io.errors import MissingInputError, ModelError
from talstack.io.files import read_json
from talstack.io.members import Link

FORMAT_VERSION = 1
CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class BackboneCard:
    """What a backbone is, what its inputs must be, and which recordings it has seen.

    Attributes:
        arch, shift, fold_div: the network.
        segment_s, frames_per_segment, frame_size: the sampling it was trained with.
        actions, scenes: order of its logits; action logits have background in front.
        seen: recordings it was fine-tuned on.
        validated: recordings that early stopping or the choice of an epoch looked at.
        training: settings, data set, versions and figures of its training.
        weights_sha256: content hash of the weights file.
    """

    arch: str
    shift: bool
    segment_s: float
    frames_per_segment: int
    frame_size: int
    actions: tuple[str, ...]
    scenes: tuple[str, ...]
    seen: tuple[str, ...] = ()
    fold_div: int = 8
    training: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    format_version: int = FORMAT_VERSION
    validated: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """The recordings whose features are optimistic: those seen, and those validated on."""
        return tuple(sorted({*self.seen, *self.validated}))

    @property
    def link(self) -> Link:
        """What is between its action logits and probabilities, as it was trained."""
        loss = dict(self.training.get("config", {})).get("loss", "softmax")
        return "softmax" if loss == "softmax" else "sigmoid"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: Path) -> "BackboneCard":
        """Return the card of parsed JSON.

        Raises:
            ModelError: another format, or not a card at all.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise ModelError(f"{where}: card format {values.get('format_version')!r}, expected {FORMAT_VERSION}")
        try:
            fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
            return cls(**fields)
        except TypeError as error:
            raise ModelError(f"{where}: not a talstack backbone card: {error}") from error


def load_card(folder: Path) -> BackboneCard:
    """Read the card of a backbone folder.

    Raises:
        MissingInputError: there is no backbone in the folder.
        ModelError: the card is of another format.
    """
    if not (folder / CARD_FILE).is_file():
        raise MissingInputError(f"{folder}: no backbone there (no {CARD_FILE}); make one with `talstack finetune`")
    return BackboneCard.from_dict(read_json(folder / CARD_FILE), where=folder)


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """Where the weights come from: a fine-tuned folder, or an untrained network described by a card.

    Attributes:
        card: what the network is.
        folder: a folder written by `talstack finetune`, or None.
        imagenet: without a folder, torchvision's ImageNet weights instead of seeded random ones.
    """

    card: BackboneCard
    folder: Path | None = None
    imagenet: bool = False

    @property
    def size_bytes(self) -> int:
        """How large the files of weights are; 0 without a folder."""
        return 0 if self.folder is None else sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    @property
    def identity(self) -> dict[str, Any]:
        """What the features depend on, for the fingerprint."""
        network = {"arch": self.card.arch, "shift": self.card.shift, "fold_div": self.card.fold_div}
        if self.folder is not None:
            return {**network, "weights_sha256": self.card.weights_sha256}
        return {**network, "init": "imagenet, torchvision DEFAULT" if self.imagenet else "random, seed 0"}
