"""Networks and their weights on disk: `backbone.safetensors` beside the card."""

from dataclasses import asdict, replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

from talstack.extract.backbone import TSMBackbone
from talstack.extract.card import CARD_FILE, BackboneCard, BackboneSource, load_card
from talstack.io.errors import MissingInputError, ModelError
from talstack.io.files import atomic_path, sha256_file, write_json

WEIGHTS_FILE = "backbone.safetensors"


def build_network(card: BackboneCard, *, imagenet: bool = False, dropout: float = 0.5) -> TSMBackbone:
    """Return the card's network with fresh weights."""
    return TSMBackbone(
        card.arch,
        num_frames=card.frames_per_segment,
        num_actions=len(card.actions),
        num_scenes=len(card.scenes),
        shift=card.shift,
        fold_div=card.fold_div,
        dropout=dropout,
        imagenet=imagenet,
    )


def save_backbone(folder: Path, model: TSMBackbone, card: BackboneCard) -> BackboneCard:
    """Write weights, then card (its presence marks a complete folder); return the card with the weights' hash."""
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, temporary)
    card = replace(card, weights_sha256=sha256_file(folder / WEIGHTS_FILE))
    write_json(folder / CARD_FILE, asdict(card))
    return card


def load_backbone(folder: Path) -> tuple[TSMBackbone, BackboneCard]:
    """Return the network in evaluation mode, and its card.

    Raises:
        MissingInputError: there is no backbone in the folder.
        ModelError: weights that are damaged, not the card's, or of another network; keys are listed.
    """
    card = load_card(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise MissingInputError(f"{path}: missing; fine-tune again")
    if sha256_file(path) != card.weights_sha256:
        raise ModelError(f"{path}: not the weights that {CARD_FILE} describes (SHA-256 differs); fine-tune again")
    model = build_network(card)
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: not weights of {card.arch}: {error}") from error
    if missing or unexpected:
        raise ModelError(f"{path}: not weights of {card.arch}; missing {missing[:5]}, unexpected {unexpected[:5]}")
    return model.eval(), card


def load_source(source: BackboneSource) -> TSMBackbone:
    """Return the source's network in evaluation mode: fine-tuned, ImageNet or seeded random weights."""
    if source.folder is not None:
        return load_backbone(source.folder)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(source.card, imagenet=source.imagenet).eval()
