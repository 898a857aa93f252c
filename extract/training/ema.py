"""The averaged weights: an exponential moving average of a network over its training steps."""

from collections.abc import Iterator

import torch
from torch import nn

from talstack.io.errors import ConfigError, ModelError

NUM_UPDATES = "num_updates"  # its place among the tensors of `state`


class WeightAverage:
    """A float32 average of a network's parameters and batch-norm statistics, kept on the network's device.

    The decay of update t, counted from 0, is min(decay, (1 + t) / (10 + t)): the random start is soon forgotten.
    Statistics are averaged as the weights are, not copied: those of the last weights belong to another network, and
    an average over the same steps is what the averaged one has, to first order. Buffers of whole numbers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the network as it is.

        Raises:
            ConfigError: a decay outside [0, 1].
        """
        if not 0 <= decay <= 1:
            raise ConfigError(f"averaged weights: decay must lie in [0, 1], got {decay}")
        self.decay, self.num_updates = decay, 0
        self._shadow = {name: _averageable(tensor).clone() for name, tensor in _tensors(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the network after a step of its optimiser."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        pairs = [(self._shadow[name], _averageable(tensor)) for name, tensor in _tensors(model)]
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([shadow for shadow, _ in averaged], [now for _, now in averaged], 1 - decay)
        for shadow, now in pairs:
            if not shadow.is_floating_point():
                shadow.copy_(now)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average into a network of the same architecture."""
        for name, tensor in _tensors(model):
            tensor.copy_(self._shadow[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Return what `load_state` goes on from: the average by name, not copied, and how many updates it has seen."""
        return self._shadow | {NUM_UPDATES: torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state.

        Raises:
            ModelError: it is that of another network; some of the names are listed.
        """
        expected = {name: shadow.shape for name, shadow in self._shadow.items()} | {NUM_UPDATES: torch.Size()}
        names = expected.keys() | state.keys()
        wrong = sorted(name for name in names if name not in state or expected.get(name) != state[name].shape)
        if wrong:
            raise ModelError(f"averaged weights: not those of this network; missing, unknown or misshapen: {wrong[:5]}")
        self.num_updates = int(state[NUM_UPDATES])
        for name, shadow in self._shadow.items():
            shadow.copy_(state[name])


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _averageable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
