"""What a backbone is and what it has seen: the card beside its weights. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talstack.extract.architectures import IMAGENET, Normalisation, normalisation_of
from talstack.io.errors import MissingInputError, ModelError
from talstack.io.files import read_json, sha256_file
from talstack.io.members import Link

FORMAT_VERSION = 1
CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class BackboneCard:
    """What a backbone is, what its inputs must be, and which recordings it has seen.

    Attributes:
        arch, shift, fold_div, causal: the network.
        segment_s, frames_per_segment, frame_size: the sampling it was trained with.
        actions, scenes: order of its logits; action logits have background in front.
        seen: recordings it was fine-tuned on.
        validated: recordings that chose its best epoch, or when to stop; they flatter it too.
        training: settings, data set, versions and figures of its training.
        weights_sha256: content hash of the weights file.
        pixel_mean, pixel_std: how its pixels are standardised; empty takes what the architecture's weights expect.
    """

    arch: str
    shift: bool
    segment_s: float
    frames_per_segment: int
    frame_size: int
    actions: tuple[str, ...]
    scenes: tuple[str, ...]
    seen: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()
    fold_div: int = 8
    training: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    format_version: int = FORMAT_VERSION
    causal: bool = False
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        usual = normalisation_of(self.arch)
        object.__setattr__(self, "pixel_mean", tuple(self.pixel_mean) or usual.mean)
        object.__setattr__(self, "pixel_std", tuple(self.pixel_std) or usual.std)

    @property
    def normalisation(self) -> Normalisation:
        """How pixels are standardised."""
        return Normalisation(self.pixel_mean, self.pixel_std)

    @property
    def network(self) -> dict[str, Any]:
        """What the network computes apart from its weights, for fingerprints.

        What older backbones could not have is named only where it is there, so that their shards are still found.
        """
        named: dict[str, Any] = {"arch": self.arch, "shift": self.shift, "fold_div": self.fold_div}
        if self.causal and self.shift:
            named["causal"] = True
        if self.normalisation != IMAGENET:
            named["pixel_mean"], named["pixel_std"] = list(self.pixel_mean), list(self.pixel_std)
        return named

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


def start_identity(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the content hash of weights to start from, and the recordings that they have seen.

    Args:
        path: a checkpoint file of another program, or a backbone's folder.

    Raises:
        MissingInputError: nothing there, or a folder without a backbone.
    """
    if path.is_dir():
        card = load_card(path)
        return card.weights_sha256, card.known
    if not path.is_file():
        raise MissingInputError(f"{path}: no such checkpoint file or backbone folder; see finetune.weights")
    return sha256_file(path), ()


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """Where the weights come from: a fine-tuned folder, or an untrained network described by a card.

    Attributes:
        card: what the network is.
        folder: a folder written by `talstack finetune`, or None.
        imagenet: without a folder, ImageNet weights instead of seeded random ones.
        checkpoint: without a folder, another program's weights (`talstack.extract.checkpoints`).
        checkpoint_sha256: content hash of that file.
    """

    card: BackboneCard
    folder: Path | None = None
    imagenet: bool = False
    checkpoint: Path | None = None
    checkpoint_sha256: str = ""

    @property
    def size_bytes(self) -> int:
        """How large the files of weights are; 0 without a folder."""
        return 0 if self.folder is None else sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    @property
    def identity(self) -> dict[str, Any]:
        """What the features depend on, for the fingerprint."""
        network = self.card.network
        if self.folder is not None:
            return {**network, "weights_sha256": self.card.weights_sha256}
        if self.checkpoint is not None:
            return {**network, "init": "checkpoint", "checkpoint_sha256": self.checkpoint_sha256}
        if not self.imagenet:
            return {**network, "init": "random, seed 0"}
        publisher = "torchvision DEFAULT"
        if self.card.arch == "efficientnet_lite0":
            publisher = "efficientnet-lite0-57934424"
        return {**network, "init": f"imagenet, {publisher}"}
