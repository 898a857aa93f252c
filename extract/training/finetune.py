"""Fine-tuning of the backbone on the training recordings: actions with background, scene as auxiliary task."""

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional

from talstack.extract.backbone import TSMBackbone, normalise, pick_device
from talstack.extract.card import CARD_FILE, BackboneCard, load_card
from talstack.extract.config import SamplingConfig
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.framecache import OVERSAMPLING, FrameCache, build_frame_cache
from talstack.extract.training.targets import action_loss, class_targets, sampling_weights
from talstack.extract.weights import build_network, save_backbone
from talstack.io.config import to_dict
from talstack.io.errors import InputError, LeakError, TalstackError
from talstack.io.extraction import check_views
from talstack.io.files import canonical_json, sha256_text
from talstack.io.manifest import Manifest
from talstack.io.store import ClipHashes
from talstack.io.targets import scene_targets, segment_index, segment_targets

CODE_VERSION = 1  # raise when the code changes the weights that unchanged settings give


@dataclass(frozen=True, slots=True)
class EpochRow:
    """Figures of one epoch: mean losses and the share of segments whose best class is one of theirs."""

    epoch: int
    action_loss: float
    scene_loss: float
    accuracy: float
    lr: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """Cached frames with their targets, rows alike.

    Attributes:
        frames: N segments.
        actions: (N, C + 1) float32, rows sum to one, background first.
        scenes: (N,) int64, -1 where the recording has none.
    """

    frames: FrameCache
    actions: np.ndarray
    scenes: np.ndarray


def training_recordings(manifest: Manifest, config: FinetuneConfig) -> list[str]:
    """Return the recordings to fine-tune on: split train, without the folds that are held out, sorted.

    Raises:
        LeakError: nothing would be left that the backbone has not seen, so no stacker could be fitted honestly.
        InputError: no recording is left to train on.
    """
    held_out = manifest.folds.filter(pl.col("fold") < config.holdout_folds)["recording"].to_list()
    train = [r for r in manifest.recordings_of(["train"]) if r not in set(held_out)]
    if not train:
        raise InputError(
            f"{manifest.name}: no training recording left after holding out {config.holdout_folds} folds; "
            "lower finetune.holdout_folds or import with more --folds"
        )
    unseen = set(manifest.recordings_of(["train", "val"])) - set(train)
    if not unseen:
        raise LeakError(
            f"{manifest.name}: the backbone would see every recording of train and val, and the stacker needs some "
            "it has not seen; set finetune.holdout_folds to 1 or more, or give the data set a val split"
        )
    return train


def finetune(
    manifest: Manifest,
    out: Path,
    *,
    config: FinetuneConfig,
    sampling: SamplingConfig,
    jobs: int = 1,
    report: Callable[[EpochRow], None] = lambda row: None,
    recordings: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
) -> BackboneCard:
    """Train a backbone into the folder `out` and return its card; a finished equal training is not repeated.

    Args:
        recordings: all that it may learn from or look at; by default `training_recordings`.
        views: to train on instead of the configuration's.

    Raises:
        LeakError, InputError: see `training_recordings`.
        MediaError: no training clip gives frames.
    """
    views = check_views(manifest, config.views if views is None else views)
    recordings = training_recordings(manifest, config) if recordings is None else sorted(recordings)
    hashes = ClipHashes(out)
    clips = manifest.clips.filter(pl.col("recording").is_in(recordings) & pl.col("view").is_in(views))
    source_hashes = [
        hashes.sha256(manifest.media_path(path)) for path in clips.sort("recording", "view", "clip")["path"]
    ]
    hashes.save()
    fingerprint = _fingerprint(manifest, recordings, config, sampling, source_hashes)
    if (out / CARD_FILE).is_file() and load_card(out).training.get("fingerprint") == fingerprint:
        return load_card(out)
    frames = build_frame_cache(
        manifest,
        recordings,
        views=views,
        sampling=sampling,
        folder=out / "frames",
        source_hashes=source_hashes,
        jobs=jobs,
    )
    data = _training_set(manifest, frames, recordings, sampling.segment_s)
    card = BackboneCard(
        arch=config.arch, shift=config.shift, segment_s=sampling.segment_s,
        frames_per_segment=sampling.frames_per_segment, frame_size=sampling.frame_size,
        actions=manifest.actions, scenes=manifest.scenes, seen=tuple(recordings),
    )  # fmt: skip
    model, history = train(data, card, config, report=report)
    training: dict[str, Any] = {
        "fingerprint": fingerprint, "dataset": manifest.name, "views": list(views), "config": to_dict(config),
        "num_segments": len(data.actions), "skipped": list(frames.skipped),
        "history": [asdict(row) for row in history],
        "versions": {name: version(name) for name in ("torch", "torchvision")} | {"python": platform.python_version()},
    }  # fmt: skip
    return save_backbone(out, model, replace(card, training=training))


def train(
    data: TrainingSet,
    card: BackboneCard,
    config: FinetuneConfig,
    *,
    report: Callable[[EpochRow], None] = lambda row: None,
) -> tuple[TSMBackbone, list[EpochRow]]:
    """Return the trained network in evaluation mode, and the figures of every epoch.

    Raises:
        TalstackError: the loss is no longer finite.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    device = pick_device()
    model = build_network(card, imagenet=config.imagenet, dropout=config.dropout)
    model = model.to(device).to(memory_format=torch.channels_last)
    steps_per_epoch = max(1, len(data.actions) // config.batch_size)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.lr)
    total = steps_per_epoch * config.epochs
    warmup = max(1, round(config.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / warmup
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        ),
    )
    history = []
    for epoch in range(config.epochs):
        model.train()
        sums = np.zeros(3)
        for batch in _batches(data, card, config, steps=steps_per_epoch, rng=rng):
            sums += _step(model, optimizer, batch=[t.to(device) for t in batch], config=config)
            schedule.step()
        loss_action, loss_scene, accuracy = (sums / steps_per_epoch).tolist()
        row = EpochRow(epoch + 1, loss_action, loss_scene, accuracy, float(schedule.get_last_lr()[0]))
        if not np.isfinite(row.action_loss):
            raise TalstackError(f"fine-tuning diverged in epoch {epoch + 1}: the loss is not finite; lower finetune.lr")
        report(row)
        history.append(row)
    return model.eval().cpu(), history


def _training_set(manifest: Manifest, frames: FrameCache, recordings: list[str], segment_s: float) -> TrainingSet:
    index = segment_index(manifest, segment_s, recordings)
    targets = segment_targets(manifest, index, segment_s)
    first_row = {recording: rows.start for recording, rows in index.slices()}
    rows = np.array([first_row[r] for r in frames.recording]) + frames.segment
    scene_of = dict(zip(recordings, scene_targets(manifest, recordings), strict=True))
    return TrainingSet(frames, class_targets(targets[rows]), np.array([scene_of[r] for r in frames.recording]))


def _parameter_groups(model: TSMBackbone, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters with decay on weight matrices only: biases and norms are left free."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _batches(
    data: TrainingSet, card: BackboneCard, config: FinetuneConfig, *, steps: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield one epoch: pixels (B, T, H, W, 3) uint8, action targets (B, C + 1), scenes (B,)."""
    weights = sampling_weights(data.actions)
    drawn = rng.choice(len(weights), size=(steps, config.batch_size), p=weights)
    num_frames = card.frames_per_segment
    for rows in drawn:
        picked = rng.integers(0, OVERSAMPLING, size=(len(rows), num_frames)) + OVERSAMPLING * np.arange(num_frames)
        pixels = np.stack([data.frames.frames(row)[part] for row, part in zip(rows, picked, strict=True)])
        pixels = augment(pixels, rng, strength=config.jitter)
        yield (
            torch.from_numpy(pixels),
            torch.from_numpy(data.actions[rows]),
            torch.from_numpy(data.scenes[rows]),
        )


def augment(pixels: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """Return (B, T, H, W, 3) uint8 with each segment moved and its contrast changed, all its frames alike.

    Nothing is mirrored: direction of motion can be what tells two actions apart.
    """
    if strength <= 0:
        return pixels
    out = np.empty_like(pixels)
    reach = max(1, int(strength * pixels.shape[2]))
    for i, segment in enumerate(pixels):
        dy, dx = rng.integers(-reach, reach + 1, size=2)
        padded = np.pad(segment, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        height, width = segment.shape[1:3]
        moved = padded[:, reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        gain, shift = rng.uniform(1 - strength, 1 + strength), rng.uniform(-128, 128) * strength
        table = np.clip((np.arange(256) - 128) * gain + 128 + shift, 0, 255).astype(np.uint8)
        out[i] = table[moved]
    return out


def _step(
    model: TSMBackbone, optimizer: torch.optim.Optimizer, *, batch: list[torch.Tensor], config: FinetuneConfig
) -> np.ndarray:
    """Take one optimiser step; return action loss, scene loss and accuracy."""
    pixels, actions, scenes = batch
    out = model(normalise(pixels))
    loss_action = action_loss(out.logits, actions, kind=config.loss)
    known = scenes >= 0
    # a sum over no rows is a zero that still has a gradient
    loss_scene = functional.cross_entropy(out.scene_logits[known], scenes[known], reduction="sum") / max(
        1, int(known.sum())
    )
    optimizer.zero_grad(set_to_none=True)
    loss: torch.Tensor = loss_action + config.scene_weight * loss_scene
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    best = out.logits.detach().argmax(dim=1, keepdim=True)
    accuracy = (actions.gather(1, best) > 0).float().mean()
    return np.array([loss_action.item(), loss_scene.item(), accuracy.item()])


def _fingerprint(
    manifest: Manifest,
    recordings: list[str],
    config: FinetuneConfig,
    sampling: SamplingConfig,
    source_hashes: list[str],
) -> str:
    """Return the hash of everything that decides the weights."""
    instances = manifest.instances.filter(pl.col("recording").is_in(recordings)).sort(
        "recording", "start_s", "end_s", "label"
    )
    scenes = manifest.recordings.filter(pl.col("recording").is_in(recordings)).sort("recording")
    clips = manifest.clips.filter(pl.col("recording").is_in(recordings)).sort("recording", "view", "clip")
    return sha256_text(
        canonical_json(
            {
                "code": CODE_VERSION, "config": to_dict(config), "sampling": to_dict(sampling),
                "sources": source_hashes,
                "instances": instances.rows(), "recordings": scenes.rows(), "offsets": clips["offset_s"].to_list(),
                "actions": list(manifest.actions), "scenes": list(manifest.scenes), "torch": version("torch"),
            }
        )
    )  # fmt: skip
