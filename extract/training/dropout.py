"""Dropout that does not depend on how a batch is divided: among processes, or into parts that save memory."""

import numpy as np
import torch
from torch import nn

from talstack.io.errors import ConfigError, InputError


class RowDropout(nn.Module):
    """Dropout of (B, D) input whose mask is a pure function of (seed, step, row of the whole batch).

    Every process draws the mask of the whole batch on the CPU, where all draw alike, and takes its rows.
    """

    def __init__(self, p: float) -> None:
        """Drop with probability p.

        Raises:
            ConfigError: p outside [0, 1].
        """
        super().__init__()
        if not 0 <= p <= 1:
            raise ConfigError(f"dropout must lie in [0, 1], got {p}")
        self.p = p
        self._place: tuple[int, int, int, int] | None = None

    def set_step(self, seed: int, step: int, first_row: int, num_rows_total: int) -> None:
        """Say which rows of which batch come next: `first_row` and those after it, of `num_rows_total`."""
        self._place = (seed, step, first_row, num_rows_total)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x in evaluation, else x with some values zero and the others over 1 - p.

        Raises:
            InputError: training without `set_step`, or more rows than it left.
        """
        if not self.training or self.p == 0:
            return x
        if self._place is None:
            raise InputError("RowDropout: call set_step before a training step, so that its mask can be drawn again")
        seed, step, first_row, num_rows = self._place
        if first_row < 0 or first_row + len(x) > num_rows:
            raise InputError(f"RowDropout: rows {first_row} to {first_row + len(x)} of a batch of {num_rows}")
        mixed = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        kept = torch.rand((num_rows, x.shape[1]), generator=generator)[first_row : first_row + len(x)] >= self.p
        return x * (kept.to(x) / max(1 - self.p, torch.finfo(x.dtype).tiny))

    def extra_repr(self) -> str:
        """Return what print(network) shows."""
        return f"p={self.p}"
