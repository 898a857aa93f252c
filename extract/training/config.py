"""Settings of fine-tuning: the table [finetune] of the configuration file."""

from dataclasses import dataclass
from typing import Literal

from talstack.extract.architectures import ARCH_HELP, Arch
from talstack.io.config import setting
from talstack.io.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """Fine-tuning of the TSM backbone: actions with background, and the scene as auxiliary task."""

    # the network and what it starts from
    arch: Arch = setting("resnet50", ARCH_HELP)
    imagenet: bool = setting(True, "start from ImageNet weights instead of random ones")
    weights: str = setting(
        "", "start from this instead: a checkpoint (official TSM, MMAction2, torchvision) or a backbone's folder"
    )
    shift: bool = setting(True, "temporal shift; off gives the plain network, for comparison")
    causal: bool = setting(False, "shift from the past only, for use on a live stream")
    batch_norm: Literal["train", "partial", "frozen"] = setting(
        "train", "which batch norms follow the data: all, only the first (as TSM does on small sets), or none"
    )
    freeze: bool = setting(False, "train the classifiers alone and leave the network as it starts")
    dropout: float = setting(0.5, "before the classifiers")

    # the recordings it learns from
    views: tuple[str, ...] = setting((), "views to train on, mixed; empty = all")
    per_view: bool = setting(False, "one backbone per view instead of one for all")
    holdout_folds: int = setting(2, "folds the backbone never sees: the stacker learns on these and on split val")
    validation_folds: int = setting(
        0, "folds, taken after the held-out ones, that measure every epoch; they count as seen by the backbone"
    )

    # what it learns
    background: bool = setting(True, "segments without an action as a class of their own; off: they are left out")
    targets: Literal["multihot", "majority", "soft"] = setting(
        "multihot", "all actions of a segment alike, the one that covers most of it, or each by the share it covers"
    )
    loss: Literal["softmax", "focal"] = setting(
        "softmax", "softmax over background + classes (the paper), or one sigmoid per class where labels overlap a lot"
    )
    focal_gamma: float = setting(2.0, "how little the focal loss counts what is right already; 0 = plain sigmoid")
    label_smoothing: float = setting(0.0, "share of every target spread over all classes")
    scene_weight: float = setting(0.3, "weight of the scene's cross-entropy beside the actions' loss")

    # how batches are made
    batch_size: int = setting(32, "segments per step, over all processes")
    segments_per_recording: int = setting(4, "segments of one recording and view in a batch; the scene pools them")
    balance: float = setting(0.5, "0: segments as they come, 1: every class equally often, 0.5: half-way")
    draws: int = setting(
        3, "frames kept on disk for each one used, to draw from; odd: the middle one is what extraction uses"
    )
    jitter: float = setting(0.15, "random shift of the picture (share of its size) and change of contrast")
    yaw: bool = setting(True, "turn panoramas by a random angle")
    flip: Literal["never", "auto", "always"] = setting(
        "never", "mirror at random; auto: not where a label's name has a side that the class list lacks the other of"
    )
    mixup: float = setting(0.0, "alpha of mixup between recordings; 0 = off")
    cutmix: float = setting(0.0, "alpha of cutmix between recordings; 0 = off")

    # how it is optimised
    epochs: int = setting(20, "passes over the training segments")
    optimizer: Literal["adamw", "sgd"] = setting("adamw", "AdamW, or SGD with Nesterov momentum 0.9")
    lr: float = setting(0.001, "peak learning rate (cosine schedule with warm-up)")
    weight_decay: float = setting(0.05, "decoupled weight decay (SGD: L2); not on biases and norms")
    warmup: float = setting(0.1, "share of the steps spent warming up")
    clip_norm: float = setting(5.0, "largest norm of the gradient; 0 = any")
    accumulate: int = setting(1, "parts that a batch goes through the network in, to save memory")
    ema: float = setting(0.0, "decay per step of the averaged weights that are kept; 0 = the weights themselves")
    patience: int = setting(0, "epochs without a better validation mAP after which training stops; 0 = never")
    precision: Literal["float32", "bfloat16", "float16"] = setting("float32", "of the arithmetic on a GPU")
    checkpoint_s: float = setting(300.0, "seconds between the checkpoints that a killed training resumes from")
    seed: int = setting(0, "initialisation, order, augmentation")

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.segments_per_recording < 1 or self.batch_size % self.segments_per_recording:
            raise ConfigError(
                "finetune: batch_size must be a multiple of segments_per_recording, both at least 1, got "
                f"{self.batch_size} and {self.segments_per_recording}"
            )
        if self.epochs < 1 or self.accumulate < 1 or self.holdout_folds < 0 or self.validation_folds < 0:
            raise ConfigError(
                "finetune: epochs and accumulate must be at least 1, holdout_folds and validation_folds at least 0, "
                f"got {self.epochs}, {self.accumulate}, {self.holdout_folds}, {self.validation_folds}"
            )
        for name, low, high in (
            ("draws", 1, 100),
            ("dropout", 0, 1), ("label_smoothing", 0, 1), ("balance", 0, 1), ("warmup", 0, 1), ("ema", 0, 1),
            ("jitter", 0, 1), ("scene_weight", 0, 1e6), ("focal_gamma", 0, 100), ("mixup", 0, 100), ("cutmix", 0, 100),
            ("weight_decay", 0, 1e6), ("clip_norm", 0, 1e9), ("patience", 0, 1e9), ("checkpoint_s", 0, 1e9),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"finetune.{name} must lie in [{low}, {high:g}], got {getattr(self, name)}")
        if self.patience and not self.validation_folds:
            raise ConfigError("finetune.patience needs finetune.validation_folds: recordings to measure on")
