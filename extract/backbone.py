"""The backbone: an image network with temporal shift, an action classifier and a scene classifier.

Frames go in as (B, T, 3, H, W) normalised float; the feature of a segment is the pooled last stage averaged over
its T frames. The image networks are in `talstack.extract.image_networks`, weights of other programs in
`talstack.extract.checkpoints`.
"""

from typing import NamedTuple

import torch
from torch import nn

from talstack.extract.architectures import IMAGENET, Normalisation, normalisation_of
from talstack.extract.image_networks import build_image_network, insert_shift


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BackboneOutput(NamedTuple):
    """features (B, D), logits (B, C + 1) with background first, scene_logits (B, K)."""

    features: torch.Tensor
    logits: torch.Tensor
    scene_logits: torch.Tensor


class TSMBackbone(nn.Module):
    """TSM over fixed-length segments with an explicit background class and the scene as auxiliary output.

    Attributes:
        num_frames: T.
        feature_dim: D.
        modality: what its frames are: "rgb", or "rgbdiff" for stacked differences (`talstack.extract.motion`).
        normalisation: how its pixels are standardised (`normalise`).
    """

    def __init__(
        self, arch: str, *, num_frames: int, num_actions: int, num_scenes: int, shift: bool = True,
        fold_div: int = 8, causal: bool = False, dropout: float = 0.5, normalisation: Normalisation | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_frames, self.modality = num_frames, "rgb"
        self.normalisation = normalisation or normalisation_of(arch)
        self.net, self.feature_dim = build_image_network(arch)
        if shift:
            insert_shift(self.net, num_frames, fold_div=fold_div, causal=causal)
        self.dropout: nn.Module = nn.Dropout(dropout)
        self.action = nn.Linear(self.feature_dim, num_actions + 1)
        self.scene = nn.Linear(self.feature_dim, max(num_scenes, 1))

    def forward(self, frames: torch.Tensor) -> BackboneOutput:
        """Return the features and logits of (B, T, 3, H, W) normalised frames."""
        batch, num_frames = frames.shape[:2]
        flat = frames.reshape(batch * num_frames, *frames.shape[2:]).contiguous(memory_format=torch.channels_last)
        pooled = self.net(flat).view(batch, num_frames, self.feature_dim).mean(dim=1)
        dropped = self.dropout(pooled)
        return BackboneOutput(pooled, self.action(dropped), self.scene(dropped))


def normalise(pixels: torch.Tensor, normalisation: Normalisation = IMAGENET) -> torch.Tensor:
    """Return (..., 3, H, W) float32 from (..., H, W, 3) uint8 RGB, standardised as a backbone expects."""
    mean = torch.tensor(normalisation.mean, device=pixels.device) * 255
    std = torch.tensor(normalisation.std, device=pixels.device) * 255
    return ((pixels.float() - mean) / std).movedim(-1, -3)
