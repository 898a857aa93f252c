"""Segment mAP on recordings that are not trained on."""

import numpy as np
import torch

from talstack.evaluate.segments import segment_average_precision
from talstack.extract.backbone import TSMBackbone, normalise
from talstack.extract.training.dataset import TrainingSet
from talstack.extract.training.processes import ALONE, Processes


def segment_map(
    model: TSMBackbone, data: TrainingSet, *, kind: str, batch_size: int, processes: Processes = ALONE
) -> float:
    """Return the mean average precision over the actions that occur, fraction; background is not counted.

    Args:
        model: in evaluation mode.
        kind: "softmax" or "focal", how its logits become probabilities.
        batch_size: segments per forward pass.
        processes: the segments are shared among them; every one gets the result.

    Raises:
        InputError: no action occurs in `data`.
    """
    own = np.arange(processes.rank, len(data), processes.world)
    drawn = np.full((batch_size, data.frames.frame_shape[0]), data.frames.middle)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(own), batch_size):
            rows = own[start : start + batch_size]
            pixels = torch.empty((len(rows), *data.frames.frame_shape), dtype=torch.uint8)
            data.frames.read_into(pixels.numpy(), rows, drawn[: len(rows)])
            logits.append(model(normalise(pixels.to(processes.device), model.normalisation)).logits.float().cpu())
    width = data.targets.shape[1]
    parts = processes.gather(torch.cat(logits) if logits else torch.empty((0, width)))
    probs = np.empty((len(data), width), dtype=np.float32)
    for rank, part in enumerate(parts):
        squashed = part.softmax(1) if kind == "softmax" else part.sigmoid()
        probs[rank :: processes.world] = squashed.numpy()
    return segment_average_precision(probs[:, 1:], data.labels)[1]
