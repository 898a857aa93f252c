"""Temperature: one factor on a head's logits, learned on held-out inner folds (Guo et al. 2017).

Classes' rates are kept: a factor below one alone would lift every rare class. So the logits are pulled towards the
logit of the class's rate instead of towards zero.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from talstack.heads.solver import LOSSES, Link

_LARGEST = 4.0  # temperatures from a quarter to four: beyond, the inner folds are too few to be believed


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Logits of held-out rows and what they should have said.

    Attributes:
        logits: (N, C) float32.
        targets: (N, C) bool.
        anchor: (C,) float32, the logit that each class is pulled towards.
    """

    logits: np.ndarray
    targets: np.ndarray
    anchor: np.ndarray


def log_loss(logits: np.ndarray, targets: np.ndarray, link: Link) -> float:
    """Return the log-loss summed over rows and classes."""
    return float(LOSSES[link](logits, targets)[0].sum(dtype=np.float64)) if logits.size else 0.0


def temper(logits: np.ndarray, anchor: np.ndarray, temperature: float) -> np.ndarray:
    """Return the logits at a temperature: above one they are closer to the anchor."""
    return anchor + (logits - anchor) / np.float32(temperature)


def choose_temperature(parts: list[HeldOut], link: Link) -> float:
    """Return the temperature with the least log-loss over the parts; 1 where there is nothing to choose on."""
    if not any(part.logits.size for part in parts):
        return 1.0

    def loss(log_temperature: float) -> float:
        factor = float(np.exp(log_temperature))
        return sum(log_loss(temper(part.logits, part.anchor, factor), part.targets, link) for part in parts)

    limit = float(np.log(_LARGEST))
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 0.01})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
