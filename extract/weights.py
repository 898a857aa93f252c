"""Networks and their weights on disk: `backbone.safetensors` beside the card."""

from dataclasses import asdict, replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

from talstack.extract.backbone import TSMBackbone
from talstack.extract.card import CARD_FILE, BackboneCard, BackboneSource, load_card
from talstack.extract.checkpoint_keys import plain_state
from talstack.extract.checkpoints import load_checkpoint, read_checkpoint
from talstack.extract.image_networks import imagenet_state
from talstack.io.errors import ConfigError, MissingInputError, ModelError
from talstack.io.files import atomic_path, sha256_file, write_json

WEIGHTS_FILE = "backbone.safetensors"


def build_network(card: BackboneCard, *, imagenet: bool = False, dropout: float = 0.5) -> TSMBackbone:
    """Return the card's network with fresh weights, or with ImageNet's.

    Raises:
        ConfigError: no such network, or no ImageNet weights for it.
        MissingInputError: ImageNet weights that are not here.
    """
    model = TSMBackbone(
        card.arch,
        num_frames=card.frames_per_segment,
        num_actions=len(card.actions),
        num_scenes=len(card.scenes),
        shift=card.shift,
        fold_div=card.fold_div,
        causal=card.causal,
        dropout=dropout,
        normalisation=card.normalisation,
    )
    if imagenet:
        published = replace(plain_state(imagenet_state(card.arch)), classifier=None)
        load_checkpoint(model, published, arch=card.arch, where="ImageNet weights")
    return model


def start_from(model: TSMBackbone, card: BackboneCard, path: Path) -> tuple[str, ...]:
    """Put the weights of a checkpoint file or of a backbone's folder into a new network, in place.

    The classifiers of a folder are taken over where its classes are the card's, those of a file where their number
    fits. What the new network has then seen is `talstack.extract.card.start_identity`'s business.

    Returns:
        What was assumed or left out, a sentence each.

    Raises:
        MissingInputError: nothing there.
        ModelError: weights that are damaged, or of another network.
    """
    if not path.is_dir():
        return load_checkpoint(model, read_checkpoint(path), arch=card.arch, where=path)
    found, started = load_backbone(path)
    if (started.arch, started.normalisation) != (card.arch, card.normalisation):
        raise ModelError(f"{path}: a backbone of {started.arch}; this one is to be {card.arch}: set finetune.arch")
    load_checkpoint(model, plain_state(found.net.state_dict()), arch=card.arch, where=path)
    notes = [f"backbone fine-tuned on {len(started.seen)} recordings, which count as seen"]
    notes += [
        f"{name} was {getattr(started, name)} and is {getattr(card, name)}"
        for name in ("shift", "causal", "fold_div", "frames_per_segment")
        if getattr(started, name) != getattr(card, name)
    ]
    for name, head, same in (
        ("action", found.action, started.actions == card.actions),
        ("scene", found.scene, started.scenes == card.scenes),
    ):
        if same:
            getattr(model, name).load_state_dict(head.state_dict())
        else:
            notes.append(f"its {name} classifier is left out: the classes are others")
    return tuple(notes)


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
    """Return the source's network in evaluation mode: fine-tuned, another program's, ImageNet's or seeded random."""
    if source.folder is not None:
        return load_backbone(source.folder)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_network(source.card, imagenet=source.imagenet and source.checkpoint is None)
    if source.checkpoint is not None:
        if sha256_file(source.checkpoint) != source.checkpoint_sha256:
            raise ModelError(f"{source.checkpoint}: has changed since this extraction was planned; start it again")
        load_checkpoint(model, read_checkpoint(source.checkpoint), arch=source.card.arch, where=source.checkpoint)
    return model.eval()


def checkpoint_source(card: BackboneCard, path: Path) -> BackboneSource:
    """Return a source of a checkpoint file's weights; the network shifts if the file's did.

    Raises:
        MissingInputError: there is no such file.
        ModelError: it cannot be read, or is of another network.
    """
    if path.is_dir():
        raise ConfigError(f"extract.init_weights: {path} is a folder; a fine-tuned backbone goes to --backbone")
    weights = read_checkpoint(path)
    card = replace(card, shift=bool(weights.shifted))
    load_checkpoint(build_network(card), weights, arch=card.arch, where=path)  # blamed on the file before work starts
    return BackboneSource(card, checkpoint=path.resolve(), checkpoint_sha256=sha256_file(path))
