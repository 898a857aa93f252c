"""The networks of a worker process: loaded once, since that costs more than a short clip."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from talstack.extract.backbone import TSMBackbone, pick_device
from talstack.extract.int8 import build_quantized
from talstack.extract.item import NetworkOrder, QuantizedNetwork
from talstack.extract.motion import motion_backbone
from talstack.extract.runtime_choice import CANDIDATES, TOLERANCE, Choice, recall, remember
from talstack.extract.runtime_measure import check_agreement, measure_runtimes, random_pixels
from talstack.extract.runtimes import EagerRuntime, FoldedRuntime, Runtime, build_runtime
from talstack.extract.weights import load_source
from talstack.io.errors import ModelError

# of the largest feature; 16 bits move features, and more than this is a fault
TOLERANCES = {"float32": TOLERANCE, "bfloat16": 0.1, "float16": 0.02}

_BUILT: dict[tuple[str, str], Runtime] = {}


def runtime_of(order: NetworkOrder, modality: str, *, among: Sequence[NetworkOrder] = ()) -> Runtime:
    """Return what computes a modality, "rgb" or "rgbdiff", in this process.

    Args:
        among: other networks that are still needed; any further ones are dropped from memory.

    Raises:
        MissingInputError, ModelError: weights that are missing or damaged.
        ConfigError: a runtime that is not installed.
    """
    needed = {order.name, *(other.name for other in among)}
    for built in [built for built in _BUILT if built[0] not in needed]:
        del _BUILT[built]
    key = (order.name, modality)
    if key not in _BUILT:
        torch.set_num_threads(order.threads)
        if order.precision == "int8":
            _BUILT[key] = build_quantized(_quantized(order, modality), threads=order.threads)
            return _BUILT[key]
        model = load_source(order.source)
        _BUILT[key] = _build(motion_backbone(model) if modality == "rgbdiff" else model, order)
    return _BUILT[key]


def _quantized(order: NetworkOrder, modality: str) -> QuantizedNetwork:
    for network in order.quantized:
        if network.modality == modality:
            return network
    raise ModelError(f"{modality}: precision = int8, but no int8 network was made for it")


def measure_here(order: NetworkOrder) -> Choice | None:
    """Return which runtime is the fastest on this machine and remember it; None where a GPU computes."""
    if pick_device().type != "cpu":
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(order.threads)
    size = order.source.card.frame_size
    try:
        choice = measure_runtimes(load_source(order.source), CANDIDATES, frame_size=size, threads=order.threads)
    finally:
        torch.set_num_threads(before)
    remember(order.source, order.threads, choice)
    return choice


def _build(model: TSMBackbone, order: NetworkOrder) -> Runtime:
    device, size = pick_device(), order.source.card.frame_size
    if device.type != "cpu" or order.precision != "float32":
        return _build_folded(model, device, order)
    if order.runtime == "auto":  # nobody has looked before, as on a cluster
        choice = recall(order.source, order.threads) or measure_here(order)
        order = replace(order, runtime=choice.name if choice is not None else "eager")
    runtime = build_runtime(order.runtime, model, frame_size=size, threads=order.threads)
    pixels = random_pixels(model, size)
    check_agreement(runtime, runtime.run(pixels), EagerRuntime(model).run(pixels))
    return runtime


def _build_folded(model: TSMBackbone, device: torch.device, order: NetworkOrder) -> Runtime:
    """Return the folded network where it does what the module does, else the module; asking for "eager" gives that."""
    pixels = random_pixels(model, order.source.card.frame_size)
    reference = EagerRuntime(model, device).run(pixels)
    if order.runtime != "eager":
        try:
            folded = FoldedRuntime(model, device, precision=order.precision)
            check_agreement(folded, folded.run(pixels), reference, tolerance=TOLERANCES[order.precision])
        except (RuntimeError, ModelError):  # an operation that this device or torch lacks
            pass
        else:
            return folded
    return EagerRuntime(model, device, precision=order.precision)
