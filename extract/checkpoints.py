"""Weights from files of other programs: read safely, recognised, and put into a backbone.

Which layouts there are is in `talstack.extract.checkpoint_keys`. What a file does not say (how many channels were
shifted, and whether from the past only) is assumed to be as the backbone has it, and told.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from talstack.extract.architectures import ARCHS
from talstack.extract.backbone import TSMBackbone
from talstack.extract.checkpoint_keys import PlainState, plain_state
from talstack.extract.image_networks import build_image_network, shifted_convolutions
from talstack.extract.shift import TemporalShift
from talstack.io.errors import MissingInputError, ModelError

INNER = ("state_dict", "model_state_dict", "model")  # where training programs keep the weights in their files
LISTED = 5  # so many keys are named in an error


def read_checkpoint(path: Path) -> PlainState:
    """Return the weights of a checkpoint file (.pth, .pt, .pth.tar or .safetensors) under torchvision's names.

    Nothing in the file is run: only tensors and plain values are unpickled.

    Raises:
        MissingInputError: there is no such file.
        ModelError: it cannot be read, holds more than tensors and plain values, or no weights.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelError(
            f"{path}: holds more than tensors and plain values, or is no checkpoint, and is not loaded ({reason}); if "
            "you trust it, save its state_dict alone with the program that wrote it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as a checkpoint: {error}") from error
    return plain_state(_weights_in(held, path))


def _weights_in(held: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors by name of what a file held."""
    while isinstance(held, Mapping) and (inner := [held[key] for key in INNER if isinstance(held.get(key), Mapping)]):
        held = inner[0]
    tensors = {k: v for k, v in held.items() if isinstance(v, torch.Tensor)} if isinstance(held, Mapping) else {}
    if not tensors:
        raise ModelError(f"{path}: no weights in it; expected tensors by name, perhaps under 'state_dict'")
    return {str(key): value for key, value in tensors.items()}


def load_checkpoint(model: TSMBackbone, weights: PlainState, *, arch: str, where: object) -> tuple[str, ...]:
    """Put weights into a backbone, in place; return what was assumed or left out, a sentence each.

    The file's classifier becomes the action classifier if it has as many classes as that; the scene classifier stays
    as it is.

    Args:
        arch: the backbone's architecture, for messages.
        where: where the weights come from, for messages.

    Raises:
        ModelError: weights of another network, or shifted at other places; what is missing and unexpected is listed.
    """
    own = _plain_names(model.net)
    state = model.net.state_dict()
    missing = [n for n in own if n not in weights.net and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in weights.net if n not in own]
    wrong = [
        f"{n} {tuple(weights.net[n].shape)} instead of {tuple(state[own[n]].shape)}"
        for n in own
        if n in weights.net and weights.net[n].shape != state[own[n]].shape
    ]
    if missing or unexpected or wrong:
        raise ModelError(
            f"{where}: not weights of {arch}{_hint(weights)}; {_listed('missing', missing)}; "
            f"{_listed('unexpected', unexpected)}; {_listed('of another shape', wrong)}"
        )
    notes = [f"{len(weights.net)} tensors in {weights.layout} layout", *_shift_notes(model, weights, where)]
    with torch.no_grad():
        for name in own.keys() & weights.net.keys():
            state[own[name]].copy_(weights.net[name])
    return (*notes, *_load_classifier(model, weights))


def _plain_names(net: nn.Module) -> dict[str, str]:
    """Return {name without the shift's layers: name in the network}."""
    shifts = {f"{name}.net." for name, module in net.named_modules() if isinstance(module, TemporalShift)}
    names = {}
    for key in net.state_dict():
        before, found, behind = key.rpartition(".net.")
        names[f"{before}.{behind}" if f"{before}{found}" in shifts else key] = key
    return names


def _shift_notes(model: TSMBackbone, weights: PlainState, where: object) -> list[str]:
    """Return what is to be said of the shift.

    Raises:
        ModelError: the file's network shifts elsewhere than ours ever does.
    """
    shifts = [module for module in model.net.modules() if isinstance(module, TemporalShift)]
    if not weights.shifted:
        said = "its keys show no temporal shift: taken as weights of the plain network"
        return [f"{said}, before which a shift now stands" if shifts else said]
    expected = shifted_convolutions(model.net)
    if weights.shifted != expected:
        odd = sorted(weights.shifted ^ expected)
        raise ModelError(
            f"{where}: its temporal shift stands at other places (such as {', '.join(odd[:LISTED])}); only "
            "shifts at each residual block's first convolution ('blockres') can be loaded"
        )
    if not shifts:
        return [f"trained with a temporal shift before {len(expected)} convolutions, which is switched off here"]
    kind = "from the past only" if shifts[0].causal else "from both sides"
    return [
        f"temporal shift before {len(expected)} convolutions; 1/{shifts[0].fold_div} of the channels {kind} is assumed"
    ]


def _load_classifier(model: TSMBackbone, weights: PlainState) -> list[str]:
    """Take the classifier over where it fits; return what is to be said of it and of other heads."""
    notes = [f"left out: {', '.join(weights.left_out)}"] if weights.left_out else []
    if weights.classifier is None:
        return [*notes, "no classifier in it"]
    weight, bias = weights.classifier
    action = model.action
    if weight.shape != action.weight.shape:
        return [*notes, f"its classifier of {len(weight)} classes is left out: {action.out_features} are needed"]
    with torch.no_grad():
        action.weight.copy_(weight)
        action.bias.zero_() if bias is None else action.bias.copy_(bias)
    return [*notes, f"its classifier of {len(weight)} classes is the action classifier, the first is the background"]


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{what}: {', '.join(names[:LISTED]) or 'none'}{more}"


def _hint(weights: PlainState) -> str:
    """Return which architecture the weights are of, for an error message."""
    shapes = {n: tuple(v.shape) for n, v in weights.net.items() if not n.endswith("num_batches_tracked")}
    for arch in ARCHS:
        with torch.device("meta"):
            state = build_image_network(arch)[0].state_dict()
        if shapes == {n: tuple(v.shape) for n, v in state.items() if not n.endswith("num_batches_tracked")}:
            return f" but of {arch}"
    return ""
