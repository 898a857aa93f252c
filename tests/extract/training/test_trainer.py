"""The training loop on a small made-up set."""

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from talstack.extract.card import BackboneCard
from talstack.extract.training.checkpoint import load_checkpoint, save_checkpoint
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.dataset import TrainingSet
from talstack.extract.training.trainer import Trained, Trainer, Watcher
from talstack.extract.weights import build_network
from talstack.io.errors import ConfigError, TalstackError

MakeSet = Callable[..., TrainingSet]
STEPS = 3 * 3  # 24 segments, batches of 8, 3 epochs


class Killed(Exception):
    pass


def make_trainer(
    data: TrainingSet, card: BackboneCard, config: FinetuneConfig, *, validation: TrainingSet | None = None
) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(build_network(card), data, card, config, validation=validation)


def same(a: Trained, b: Trained) -> bool:
    return a.history == b.history and all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def test_it_learns_which_way_things_move(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig
) -> None:
    config = replace(small_config, epochs=12, dropout=0.0)
    trained = make_trainer(make_set(), small_card, config, validation=make_set(1)).run()
    first, last = trained.history[0], trained.history[-1]
    assert last.action_loss < 0.5 * first.action_loss
    assert last.scene_loss < 0.5 * first.scene_loss
    assert max(row.val_map or 0 for row in trained.history) > 0.9
    assert trained.best_epoch == max(trained.history, key=lambda row: (row.val_map, -row.epoch)).epoch


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_killed_at_any_step_ends_with_the_same_weights(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig, tmp_path: Path, ema: float
) -> None:
    config = replace(small_config, epochs=2, ema=ema, optimizer="sgd" if ema else "adamw", mixup=ema)
    data, validation = make_set(), make_set(1)
    whole = make_trainer(data, small_card, config, validation=validation).run()
    for last in (2, 3, 5):  # amid an epoch, at an epoch's last step before its figures, amid the next one
        path = tmp_path / f"{last}.pt"
        trainer = make_trainer(data, small_card, config, validation=validation)
        with pytest.raises(Killed):
            trainer.run(watcher=Watcher(step=functools.partial(save_and_kill, trainer, path, last)))
        steps: list[int] = []
        watcher = Watcher(step=lambda done, total, steps=steps: steps.append(done))
        resumed = make_trainer(data, small_card, config, validation=validation).run(path, watcher)
        assert steps[0] == last + 1, "it goes on behind its last checkpoint"
        assert same(resumed, whole)


def save_and_kill(trainer: Trainer, path: Path, last: int, done: int, total: int) -> None:
    if done == last:
        save_checkpoint(path, trainer.state())
        raise Killed


def test_checkpoints_are_written_while_it_runs(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig, tmp_path: Path
) -> None:
    config, path = replace(small_config, checkpoint_s=0.0), tmp_path / "c.pt"

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        make_trainer(make_set(), small_card, config).run(path, Watcher(step=kill))
    state = load_checkpoint(path)
    assert state is not None and state["step"] == 2


def test_a_damaged_checkpoint_starts_afresh_and_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"step": 3, "weights": {"a": torch.ones(2)}})
    state = load_checkpoint(path)
    assert state is not None and state["step"] == 3
    path.write_bytes(path.read_bytes()[:-40])
    assert load_checkpoint(path) is None

    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Hostile(), path)
    assert load_checkpoint(path) is None
    assert not (tmp_path / "ran").exists()


def test_validation_keeps_the_best_epoch_and_stops_when_nothing_gets_better(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.2, 0.6, 0.5, 0.6, 0.9])
    monkeypatch.setattr("talstack.extract.training.trainer.segment_map", lambda *args, **kwargs: next(values))
    config = replace(small_config, epochs=5, patience=2, validation_folds=1)
    kept = []
    trainer = make_trainer(make_set(), small_card, config, validation=make_set(1))
    trained = trainer.run(watcher=Watcher(epoch=lambda row, speed: kept.append(trainer._kept_weights())))
    assert [row.val_map for row in trained.history] == [0.2, 0.6, 0.5, 0.6]
    assert trained.best_epoch == 2
    assert torch.equal(trained.weights["action.weight"], kept[1]["action.weight"])


def test_parts_of_a_batch_give_the_gradient_of_the_whole(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig
) -> None:
    # SGD: AdamW would not see a wrong factor, and makes whole steps of the rounding of gradients that are all but zero
    config = replace(small_config, batch_norm="frozen", epochs=1, optimizer="sgd")
    whole = make_trainer(make_set(), small_card, config).run()
    parts = make_trainer(make_set(), small_card, replace(config, accumulate=4)).run()
    assert parts.history[0].action_loss == pytest.approx(whole.history[0].action_loss, rel=1e-5)
    assert parts.history[0].scene_loss == pytest.approx(whole.history[0].scene_loss, rel=1e-5)
    for name, weight in whole.weights.items():
        assert torch.allclose(weight, parts.weights[name], atol=1e-5), name
    with pytest.raises(ConfigError, match="4 groups .* cannot be shared evenly among 1 processes x accumulate 3"):
        make_trainer(make_set(), small_card, replace(config, accumulate=3))


def test_only_the_classifiers_move_where_the_network_is_frozen(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig
) -> None:
    trainer = make_trainer(make_set(), small_card, replace(small_config, freeze=True, epochs=1))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    after = trainer.run().weights
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"action", "scene"}


def test_learning_rate_warms_up_and_falls_to_nothing(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig
) -> None:
    trainer = make_trainer(make_set(), small_card, replace(small_config, warmup=0.4))
    rates = [trainer.lr_of(step) for step in range(STEPS + 1)]
    assert np.argmax(rates) in (3, 4)
    assert max(rates) == pytest.approx(2e-3)
    assert rates[0] == pytest.approx(5e-4)
    assert rates[STEPS] == pytest.approx(0.0, abs=1e-9)


def test_a_loss_that_is_not_finite_is_an_error(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig
) -> None:
    with pytest.raises(TalstackError, match="the loss is not finite; lower finetune.lr"):
        make_trainer(make_set(), small_card, replace(small_config, lr=1e30, clip_norm=0.0)).run()


DISTRIBUTED = """
import sys
from pathlib import Path
import torch
from talstack.extract.training.processes import training_processes
from talstack.extract.training.trainer import Trainer
from talstack.extract.weights import build_network
torch.set_num_threads(1)
card, config, data, validation, out = torch.load(sys.argv[1], weights_only=False)
torch.manual_seed(config.seed)
with training_processes() as processes:
    trained = Trainer(build_network(card), data, card, config, validation=validation, processes=processes).run()
    if processes.first:
        torch.save(trained, out)
"""


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_two_processes_train_like_one_with_the_whole_batch(
    make_set: MakeSet, small_card: BackboneCard, small_config: FinetuneConfig, tmp_path: Path, batch_norm: str
) -> None:
    config = replace(small_config, epochs=1, optimizer="sgd", lr=0.02, batch_norm=batch_norm)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have: other sums round otherwise, and training makes much of little
    alone = make_trainer(make_set(), small_card, config, validation=make_set(1)).run()
    torch.set_num_threads(threads)
    arguments, out = tmp_path / "arguments.pt", tmp_path / "trained.pt"
    torch.save((small_card, config, make_set(), make_set(1), out), arguments)
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(script), str(arguments)], check=True, capture_output=True, timeout=300)
    together: Trained = torch.load(out, weights_only=False)
    for one, two in zip(alone.history, together.history, strict=True):
        assert two.action_loss == pytest.approx(one.action_loss, rel=1e-3)
        assert two.scene_loss == pytest.approx(one.scene_loss, rel=1e-3)
        assert two.val_map == pytest.approx(one.val_map, abs=0.05)
    for name, weight in alone.weights.items():
        assert torch.allclose(weight.float(), together.weights[name].float(), atol=2e-3), name
