"""The networks of a worker process: loaded once, since that costs more than a short clip."""

from dataclasses import dataclass, replace

import torch

from talstack.extract.backbone import TSMBackbone, pick_device
from talstack.extract.card import BackboneSource
from talstack.extract.motion import motion_backbone
from talstack.extract.runtime_choice import check_agreement, choose_runtime, random_pixels
from talstack.extract.runtimes import EagerRuntime, Runtime, build_runtime
from talstack.extract.weights import load_source
from talstack.io.files import canonical_json


@dataclass(frozen=True, slots=True)
class NetworkOrder:
    """What computes the features of a worker.

    Attributes:
        source: the backbone.
        runtime: its name; "auto" takes the fastest.
        precision: on a GPU.
        threads: of the computation.
    """

    source: BackboneSource
    runtime: str = "auto"
    precision: str = "float32"
    threads: int = 1

    @property
    def name(self) -> str:
        """What tells one order from another; an untrained network's identity says nothing of its classifiers."""
        card = self.source.card
        shape = [card.frames_per_segment, card.frame_size, len(card.actions), len(card.scenes)]
        what = [str(self.source.folder), dict(self.source.identity), shape]
        return canonical_json([*what, self.runtime, self.precision, self.threads])


_BUILT: dict[tuple[str, str], Runtime] = {}


def runtime_of(order: NetworkOrder, modality: str) -> Runtime:
    """Return what computes a modality, "rgb" or "rgbdiff", in this process.

    Raises:
        MissingInputError, ModelError: weights that are missing or damaged.
        ConfigError: a runtime that is not installed.
    """
    if any(name != order.name for name, _ in _BUILT):
        _BUILT.clear()
    key = (order.name, modality)
    if key not in _BUILT:
        torch.set_num_threads(order.threads)
        model = load_source(order.source)
        _BUILT[key] = _build(motion_backbone(model) if modality == "rgbdiff" else model, order)
    return _BUILT[key]


def with_fastest_runtime(order: NetworkOrder) -> NetworkOrder:
    """Return the order with what "auto" means on this machine, measured where it has not been.

    Done before workers start: several that measure at once would measure each other.
    """
    if order.runtime != "auto" or order.precision != "float32" or pick_device().type != "cpu":
        return order
    before = torch.get_num_threads()
    torch.set_num_threads(order.threads)
    try:
        size = order.source.card.frame_size
        return replace(
            order, runtime=choose_runtime(load_source(order.source), frame_size=size, threads=order.threads).name
        )
    finally:
        torch.set_num_threads(before)


def _build(model: TSMBackbone, order: NetworkOrder) -> Runtime:
    device, size = pick_device(), order.source.card.frame_size
    if device.type != "cpu" or order.precision != "float32":
        return EagerRuntime(model, device, precision=order.precision)
    if order.runtime == "auto":
        name = choose_runtime(model, frame_size=size, threads=order.threads).name
        return build_runtime(name, model, frame_size=size, threads=order.threads)
    runtime = build_runtime(order.runtime, model, frame_size=size, threads=order.threads)
    pixels = random_pixels(model, size)
    check_agreement(runtime, runtime.run(pixels), EagerRuntime(model).run(pixels))
    return runtime
