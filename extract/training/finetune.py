"""Fine-tuning of the backbone on the training recordings: actions with background, scene as auxiliary task."""

import platform
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import torch

from talstack.extract.backbone import TSMBackbone
from talstack.extract.card import CARD_FILE, BackboneCard, load_card, start_identity
from talstack.extract.config import SamplingConfig
from talstack.extract.training.checkpoint import checkpoint_path, remove_checkpoint
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.dataset import TrainingSet
from talstack.extract.training.framecache import build_frame_cache
from talstack.extract.training.processes import Processes, training_processes
from talstack.extract.training.trainer import SILENT, Trained, Trainer, Watcher
from talstack.extract.weights import build_network, save_backbone, start_from
from talstack.io.config import to_dict
from talstack.io.errors import InputError, LeakError
from talstack.io.extraction import check_views
from talstack.io.files import canonical_json, sha256_text
from talstack.io.manifest import Manifest
from talstack.io.media import decoder_versions
from talstack.io.store import ClipHashes

CODE_VERSION = 2  # raise when the code changes the weights that unchanged settings give
FRAMES_FOLDER = "frames"
_NEUTRAL = ("checkpoint_s", "per_view")  # settings that do not change the weights


@dataclass(frozen=True, slots=True)
class RecordingSplit:
    """Which recordings a backbone learns from, and which choose its best epoch; sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()


def split_recordings(manifest: Manifest, config: FinetuneConfig) -> RecordingSplit:
    """Return the recordings to fine-tune on: split train, without the folds that are held out or that validate.

    Raises:
        LeakError: nothing would be left that the backbone has not seen, so no stacker could be fitted honestly.
        InputError: no recording is left to train on.
    """
    folds = dict(manifest.folds.select("recording", "fold").iter_rows())
    last = config.holdout_folds + config.validation_folds
    inside = manifest.recordings_of(["train"])
    train = tuple(r for r in inside if folds.get(r, last) >= last)
    validation = tuple(r for r in inside if config.holdout_folds <= folds.get(r, last) < last)
    if not train or (config.validation_folds and not validation):
        raise InputError(
            f"{manifest.name}: no {'validation' if train else 'training'} recording left after holding out "
            f"{config.holdout_folds} folds and validating on {config.validation_folds}; lower finetune.holdout_folds "
            "or finetune.validation_folds, or import with more --folds"
        )
    known = {*train, *validation, *_start(config)[1]}
    if not set(manifest.recordings_of(["train", "val"])) - known:
        raise LeakError(
            f"{manifest.name}: the backbone would see every recording of train and val, and the stacker needs some "
            "it has not seen; set finetune.holdout_folds to 1 or more, or give the data set a val split"
        )
    return RecordingSplit(train, validation)


def finetune(
    manifest: Manifest,
    out: Path,
    *,
    config: FinetuneConfig,
    sampling: SamplingConfig,
    split: RecordingSplit | None = None,
    panoramas: Collection[str] = ("panoramic",),
    frames: Path | None = None,
    jobs: int = 1,
    watcher: Watcher = SILENT,
) -> BackboneCard:
    """Train a backbone into the folder `out` and return its card; a finished equal training is not repeated.

    A training that was killed goes on where its last checkpoint was written. Started by `torchrun`, the processes
    share every batch; `out` must then be a folder that all of them see.

    Args:
        split: default: see `split_recordings`.
        panoramas: views that are equirectangular panoramas.
        frames: folder of the decoded frames, which several backbones may share; default: `out`/frames.
        jobs: processes that decode.

    Raises:
        LeakError, InputError: see `split_recordings`.
        MediaError: no training clip gives frames.
        ConfigError: the batches cannot be shared among the processes.
        TalstackError: the loss is no longer finite.
    """
    split = split or split_recordings(manifest, config)
    task = _Task(manifest, split, check_views(manifest, config.views), config, sampling, frozenset(panoramas))
    with training_processes() as processes:
        folder = frames or out / FRAMES_FOLDER
        hashes = ClipHashes(folder)  # beside the frames, so that backbones that share them share these too
        fingerprint = processes.shared(task.fingerprint(hashes) if processes.first else "")
        if processes.first:
            hashes.save()
        if not processes.shared(_is_done(out, fingerprint)):
            if processes.first:  # decodes alone; the others then find everything done
                sets = task.training_sets(folder, hashes, jobs)
                hashes.save()
            processes.wait()
            if not processes.first:
                sets = task.training_sets(folder, hashes, jobs=1)
            checkpoint = checkpoint_path(out, fingerprint)
            model, notes = task.first_network()
            trained = task.trainer(model, sets, processes).run(checkpoint, watcher)
            if processes.first:
                about = task.description(sets, trained, processes)
                training = {"fingerprint": fingerprint, "start": list(notes), **about}
                _save(out, replace(task.card(), training=training), trained)
                remove_checkpoint(checkpoint)
            processes.wait()
    return load_card(out)


@dataclass(frozen=True, slots=True)
class _Task:
    """What is trained on what."""

    manifest: Manifest
    split: RecordingSplit
    views: tuple[str, ...]
    config: FinetuneConfig
    sampling: SamplingConfig
    panoramas: frozenset[str]

    @property
    def _clips(self) -> pl.DataFrame:
        recordings = [*self.split.train, *self.split.validation]
        clips = self.manifest.clips
        return clips.filter(pl.col("recording").is_in(recordings) & pl.col("view").is_in(self.views)).sort(
            "recording", "view", "clip"
        )

    def fingerprint(self, hashes: ClipHashes) -> str:
        """Return the hash of everything that decides the weights."""
        manifest, clips = self.manifest, self._clips
        known = pl.col("recording").is_in([*self.split.train, *self.split.validation])
        instances = manifest.instances.filter(known).sort("recording", "start_s", "end_s", "label")
        recordings = manifest.recordings.filter(known).select("recording", "duration_s", "scene").sort("recording")
        config = {name: value for name, value in to_dict(self.config).items() if name not in _NEUTRAL}
        config["weights"] = _start(self.config)[0]
        content = {
            "code": CODE_VERSION, "config": config, "sampling": to_dict(self.sampling),
            "train": self.split.train, "validation": self.split.validation,
            "views": self.views, "panoramas": sorted(self.panoramas & set(self.views)),
            "clips": [
                [*row, hashes.sha256(manifest.media_path(path))]
                for *row, path in clips.select("recording", "view", "clip", "offset_s", "path").iter_rows()
            ],
            "instances": instances.rows(), "recordings": recordings.rows(), "decoder": decoder_versions(),
            "actions": manifest.actions, "scenes": manifest.scenes, "torch": version("torch"),
        }  # fmt: skip
        return sha256_text(canonical_json(content))

    def card(self) -> BackboneCard:
        """Return the card of the network to be trained."""
        config, sampling = self.config, self.sampling
        return BackboneCard(
            arch=config.arch, shift=config.shift, causal=config.causal, segment_s=sampling.segment_s,
            frames_per_segment=sampling.frames_per_segment, frame_size=sampling.frame_size,
            actions=self.manifest.actions, scenes=self.manifest.scenes,
            seen=tuple(sorted({*self.split.train, *_start(self.config)[1]})), validated=self.split.validation,
        )  # fmt: skip

    def training_sets(self, folder: Path, hashes: ClipHashes, jobs: int) -> list[TrainingSet]:
        """Return what is trained on, and behind it what is validated on where there is anything."""
        made = []
        for recordings in filter(None, (self.split.train, self.split.validation)):
            frames = build_frame_cache(
                self.manifest, recordings, views=self.views, sampling=self.sampling, draws=self.config.draws,
                folder=folder, hashes=hashes, jobs=jobs,
            )  # fmt: skip
            made.append(
                TrainingSet.of(
                    self.manifest, frames, recordings, segment_s=self.sampling.segment_s, config=self.config,
                    panoramas=self.panoramas,
                )
            )  # fmt: skip
        if not self.config.background:
            made[0] = made[0].of_actions(exclusive=self.config.loss == "softmax")
        return made

    def first_network(self) -> tuple[TSMBackbone, tuple[str, ...]]:
        """Return the network with its first weights, and what was assumed about them."""
        config, card = self.config, self.card()
        torch.manual_seed(config.seed)
        model = build_network(card, imagenet=config.imagenet and not config.weights, dropout=config.dropout)
        notes: tuple[str, ...] = ()
        if config.weights:
            notes = start_from(model, card, Path(config.weights).expanduser())
        if not config.background:
            _drop_background(model)
        return model, notes

    def trainer(self, model: TSMBackbone, sets: Sequence[TrainingSet], processes: Processes) -> Trainer:
        """Return the trainer of a network."""
        data, *validation = sets
        held_out = validation[0] if validation else None
        return Trainer(model, data, self.card(), self.config, validation=held_out, processes=processes)

    def description(self, sets: Sequence[TrainingSet], trained: Trained, processes: Processes) -> dict[str, Any]:
        """Return what the card says about the training."""
        folds = self.manifest.folds.filter(pl.col("recording").is_in([*self.split.train, *self.split.validation]))
        return {
            "dataset": self.manifest.name, "views": list(self.views), "config": to_dict(self.config),
            "num_segments": len(sets[0]), "folds_seen": sorted(folds["fold"].unique().to_list()),
            "skipped": [reason for part in sets for reason in part.frames.skipped],
            "best_epoch": trained.best_epoch, "history": [asdict(row) for row in trained.history],
            "processes": processes.world, "device": processes.device.type,
            "versions": {name: version(name) for name in ("torch", "torchvision")}
            | {"python": platform.python_version()},
        }  # fmt: skip


def _start(config: FinetuneConfig) -> tuple[str, tuple[str, ...]]:
    """Return the content hash of the weights to start from, and the recordings that they have seen."""
    return start_identity(Path(config.weights).expanduser()) if config.weights else ("", ())


def _drop_background(model: TSMBackbone) -> None:
    """Give background a probability of nothing that no step of training changes."""
    with torch.no_grad():
        model.action.weight[0] = 0
        model.action.bias[0] = -30


def _is_done(out: Path, fingerprint: str) -> bool:
    return (out / CARD_FILE).is_file() and load_card(out).training.get("fingerprint") == fingerprint


def _save(out: Path, card: BackboneCard, trained: Trained) -> None:
    model = build_network(card)
    model.load_state_dict(trained.weights)
    save_backbone(out, model, card)
