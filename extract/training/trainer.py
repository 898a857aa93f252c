"""The training loop: one or several processes, resumable at any step.

All randomness is a function of (seed, epoch, step), and the learning rate of the step, so that a training that was
killed and goes on ends with the weights of one that was not, and processes agree without talking.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from talstack.extract.backbone import TSMBackbone, normalise
from talstack.extract.card import BackboneCard
from talstack.extract.training.augment import apply_augmentation, mix_targets
from talstack.extract.training.batch_norm import (
    convert_batch_norm,
    freeze_batch_norm_parameters,
    set_batch_norm_mode,
)
from talstack.extract.training.checkpoint import load_checkpoint, save_checkpoint
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.dataset import TrainingSet
from talstack.extract.training.dropout import RowDropout
from talstack.extract.training.ema import WeightAverage
from talstack.extract.training.loader import Batch, BatchLoader
from talstack.extract.training.losses import action_loss, scene_loss
from talstack.extract.training.mirror import mirror_permutation, mirror_targets
from talstack.extract.training.processes import ALONE, Processes
from talstack.extract.training.validation import segment_map
from talstack.io.errors import TalstackError

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class EpochRow:
    """Figures of one epoch.

    Attributes:
        action_loss, scene_loss: means over the batches.
        accuracy: share of segments whose best class is one of theirs.
        lr: learning rate of the last step.
        val_map: segment mAP of the validation folds, None without any.
    """

    epoch: int
    action_loss: float
    scene_loss: float
    accuracy: float
    lr: float
    val_map: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a training gave.

    Attributes:
        weights: of the best epoch by `val_map`, of the last one without validation; averaged where `ema` is set.
        history: every epoch.
        best_epoch: which epoch the weights are of.
    """

    weights: Weights
    history: tuple[EpochRow, ...]
    best_epoch: int


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who hears of a training: called by the first process alone.

    Attributes:
        step: after every step, with the number of steps done and their total.
        epoch: after every epoch, with its figures and its segments per second.
    """

    step: Callable[[int, int], None] = lambda done, total: None
    epoch: Callable[[EpochRow, float], None] = lambda row, segments_per_s: None


SILENT = Watcher()


class Trainer:
    """A network in training."""

    def __init__(
        self,
        model: TSMBackbone,
        data: TrainingSet,
        card: BackboneCard,
        config: FinetuneConfig,
        *,
        validation: TrainingSet | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Take a network with its first weights; the trainer owns it from then on."""
        self.config, self.validation, self.processes = config, validation, processes
        self._mirror = mirror_permutation(card.actions, config.flip)
        self._loader = BatchLoader(data, config, self._mirror, processes)
        self._prepare(model)
        self.model = model.to(processes.device).to(memory_format=torch.channels_last)
        self._normalise = functools.partial(normalise, normalisation=model.normalisation)
        self._wrapped = processes.wrap(self.model)
        self._optimizer = _optimizer(self.model, config)
        half = config.precision != "float32" and processes.device.type == "cuda"
        self._dtype = getattr(torch, config.precision) if half else None
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=self._dtype == torch.float16)
        self._average = WeightAverage(self.model, config.ema) if config.ema else None
        self.steps_per_epoch = self._loader.steps_per_epoch
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step = 0
        self.history: list[EpochRow] = []
        self._best: dict[str, Any] = {}
        self._sums = torch.zeros(3)

    def _prepare(self, model: TSMBackbone) -> None:
        config = self.config
        self._dropout = RowDropout(config.dropout)
        model.dropout = self._dropout
        if self.processes.world > 1:
            convert_batch_norm(model)
        freeze_batch_norm_parameters(model, config.batch_norm)
        if config.freeze:
            model.net.requires_grad_(False)

    def run(self, checkpoint: Path | None = None, watcher: Watcher = SILENT) -> Trained:
        """Train to the end, from the checkpoint where there is one, and write one every `checkpoint_s` seconds.

        Raises:
            TalstackError: the loss is no longer finite.
            ConfigError: the batches cannot be shared among the processes.
        """
        if checkpoint is not None and (state := load_checkpoint(checkpoint)) is not None:
            self.load_state(state)
        self.processes.wait()  # nobody writes the checkpoint while another reads it
        if not self.processes.first:
            checkpoint, watcher = None, SILENT
        saved = started = time.monotonic()
        while len(self.history) < self.config.epochs and not self._stalled:
            epoch = len(self.history)
            first_step = self.step - epoch * self.steps_per_epoch
            for batches in self._loader.epoch(epoch, first_step=first_step):
                self._sums += self._take(batches)
                self.step += 1
                watcher.step(self.step, self.total_steps)
                if checkpoint is not None and time.monotonic() - saved >= self.config.checkpoint_s:
                    save_checkpoint(checkpoint, self.state())
                    saved = time.monotonic()
            row = self._end_epoch(epoch)
            num_segments = (self.steps_per_epoch - first_step) * self.config.batch_size
            watcher.epoch(row, num_segments / (time.monotonic() - started))
            started = time.monotonic()
        best = self._best or {"weights": self._kept_weights(), "epoch": len(self.history)}
        return Trained(best["weights"], tuple(self.history), int(best["epoch"]))

    @property
    def _stalled(self) -> bool:
        """Whether the validation has not got better for `patience` epochs."""
        patience = self.config.patience
        return bool(patience and self._best and len(self.history) - self._best["epoch"] >= patience)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on."""
        return {
            "step": self.step, "model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(), "average": self._average.state() if self._average else {},
            "history": [asdict(row) for row in self.history], "best": self._best, "sums": self._sums,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average:
            self._average.load_state(state["average"])
        names = {field.name for field in fields(EpochRow)}
        self.history = [EpochRow(**{k: v for k, v in row.items() if k in names}) for row in state["history"]]
        self.step, self._best, self._sums = int(state["step"]), dict(state["best"]), state["sums"].clone()

    def _take(self, batches: list[Batch]) -> torch.Tensor:
        """Take one step of the optimizer; return this process's share of action loss, scene loss and accuracy."""
        config = self.config
        self.model.train()
        if config.freeze:
            self.model.net.eval()
        set_batch_norm_mode(self.model, config.batch_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr_of(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3)
        for i, batch in enumerate(batches):
            with nullcontext() if i == len(batches) - 1 else _unsynced(self._wrapped):
                loss, figures = self._loss(batch)
                # gradients are averaged over the processes, the loss is this process's share of a sum
                self._scaler.scale(loss * self.processes.world).backward()  # type: ignore[no-untyped-call]
            sums += figures
        if config.clip_norm:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average:
            self._average.update(self.model)
        return sums

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this part's share of the global batch's loss, and of the figures that are reported."""
        config, device = self.config, self.processes.device
        self._dropout.set_step(config.seed, self.step, batch.first_row, config.batch_size)
        pixels = apply_augmentation(batch.pixels.to(device, non_blocking=True), batch.plan, normalise=self._normalise)
        targets = mirror_targets(batch.targets, batch.plan.mirrored, self._mirror)
        targets = mix_targets(targets, batch.plan).to(device)
        scenes, groups = mix_targets(batch.scenes, batch.plan).to(device), batch.groups.to(device)
        with torch.autocast(device.type, dtype=self._dtype) if self._dtype else nullcontext():
            out = self._wrapped(pixels)
        actions = (
            action_loss(
                out.logits.float(),
                targets,
                kind=config.loss,
                gamma=config.focal_gamma,
                smoothing=config.label_smoothing,
            ).sum()
            / config.batch_size
        )
        scene = scene_loss(out.scene_logits.float(), scenes, groups).sum() / batch.num_known
        best = out.logits.detach().argmax(dim=1, keepdim=True)
        hits = (targets.gather(1, best) > 0).float().sum() / config.batch_size
        loss: torch.Tensor = actions + config.scene_weight * scene
        return loss, torch.stack([actions.detach(), scene.detach(), hits]).float().cpu()

    def lr_of(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then half a cosine down to zero."""
        warmup = max(1, round(self.config.warmup * self.total_steps))
        if step < warmup:
            return self.config.lr * (step + 1) / warmup
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.total_steps - warmup)))

    def _end_epoch(self, epoch: int) -> EpochRow:
        actions, scene, accuracy = (self.processes.total(self._sums) / self.steps_per_epoch).tolist()
        self._sums = torch.zeros(3)
        if not np.isfinite(actions + scene):
            raise TalstackError(f"fine-tuning diverged in epoch {epoch + 1}: the loss is not finite; lower finetune.lr")
        row = EpochRow(epoch + 1, actions, scene, accuracy, self.lr_of(self.step - 1), self._validate())
        self.history.append(row)
        if row.val_map is not None and row.val_map > self._best.get("val_map", -1.0):
            self._best = {"val_map": row.val_map, "epoch": row.epoch, "weights": self._kept_weights()}
        return row

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        with self._averaged():
            self.model.eval()
            return segment_map(
                self.model, self.validation, kind=self.config.loss, batch_size=self.config.batch_size,
                processes=self.processes,
            )  # fmt: skip

    def _kept_weights(self) -> Weights:
        """Return a copy on the CPU of the weights worth keeping: the averaged ones where there are any."""
        with self._averaged():
            return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights, where there are any, into the model for a while."""
        if self._average is None:
            yield
            return
        own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self._average.copy_to(self.model)
        yield
        self.model.load_state_dict(own)


def _unsynced(model: nn.Module) -> Any:
    """Return a context in which gradients stay in their process."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


def _optimizer(model: TSMBackbone, config: FinetuneConfig) -> torch.optim.Optimizer:
    """Return the optimizer, with decay on weight matrices only: biases and norms are left free."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr)
