import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from talstack.extract.training.losses import action_loss, scene_loss
from talstack.io.errors import InputError

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])


def test_softmax_loss_is_the_cross_entropy_of_each_row() -> None:
    targets = torch.tensor([[1.0, 0, 0], [0, 0.25, 0.75]])
    expected = -(targets * LOGITS.log_softmax(1)).sum(1)
    assert torch.allclose(action_loss(LOGITS, targets, kind="softmax"), expected)
    smoothed = -((0.9 * targets + 0.1 / 3) * LOGITS.log_softmax(1)).sum(1)
    assert torch.allclose(action_loss(LOGITS, targets, kind="softmax", smoothing=0.1), smoothed)


def test_focal_loss_is_the_published_formula_at_hard_targets() -> None:
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    expected = []
    for logits, row in zip(LOGITS.tolist(), targets.tolist(), strict=True):
        right = [1 / (1 + math.exp(-x if y else x)) for x, y in zip(logits, row, strict=True)]
        expected.append(sum(-((1 - p) ** 2) * math.log(p) for p in right))
    assert action_loss(LOGITS, targets, kind="focal", gamma=2.0).tolist() == pytest.approx(expected, rel=1e-5)


def test_gamma_zero_is_plain_binary_cross_entropy_and_gamma_quiets_what_is_right() -> None:
    targets = torch.tensor([[0.3, 0, 1], [0, 1, 0.5]])
    plain = functional.binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").sum(1)
    assert torch.allclose(action_loss(LOGITS, targets, kind="focal", gamma=0.0), plain)
    smoothed = functional.binary_cross_entropy_with_logits(LOGITS, 0.8 * targets + 0.1, reduction="none").sum(1)
    assert torch.allclose(action_loss(LOGITS, targets, kind="focal", gamma=0.0, smoothing=0.2), smoothed)
    right, wrong = torch.tensor([[3.0]]), torch.tensor([[-3.0]])
    kept = [float(action_loss(x, torch.ones(1, 1), kind="focal") / functional.softplus(-x)) for x in (right, wrong)]
    assert kept[0] < 0.01 and kept[1] > 0.9


def test_focal_loss_of_a_soft_target_is_least_at_the_target() -> None:
    probs = torch.linspace(0.01, 0.99, 99)[:, None]
    losses = action_loss(probs.logit(), torch.full((99, 1), 0.3), kind="focal")
    assert float(probs[losses.argmin()]) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_extreme_logits_give_finite_losses_and_gradients(gamma: float) -> None:
    logits = torch.tensor([[1e4, -1e4, 50.0, 0.0]], requires_grad=True)
    loss = action_loss(logits, torch.tensor([[1.0, 1.0, 0.0, 0.5]]), kind="focal", gamma=gamma)
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    assert float(logits.grad[0, 1]) < 0 < float(logits.grad[0, 2]), "what is wrong is pulled back"


def test_scene_loss_is_the_cross_entropy_of_mean_logits() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([2, 0, 2, 0, 2, 0])  # 1 has no rows
    scenes = torch.eye(4)[torch.tensor([3, 1, 3, 1, 3, 1])]
    loss = scene_loss(logits, scenes, groups)
    expected = [functional.cross_entropy(logits[groups == g].mean(0), torch.tensor(c)) for g, c in ((0, 1), (2, 3))]
    np.testing.assert_allclose(loss[[0, 2]], expected, rtol=1e-5)
    assert loss.shape == (3,) and loss[1] == 0


def test_an_unknown_scene_costs_nothing_and_half_of_one_half() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    groups = torch.tensor([0, 0, 1, 1])
    scenes = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]])
    loss = scene_loss(logits, scenes, groups)
    loss.sum().backward()
    assert loss[0] == 0 and loss[1] > 0
    assert logits.grad is not None
    assert (logits.grad[:2] == 0).all() and (logits.grad[2:] != 0).all()
    assert torch.allclose(scene_loss(logits, 0.5 * scenes, groups), 0.5 * loss)


def test_a_segment_of_flat_logits_does_not_veto_its_group() -> None:
    sure, flat = torch.tensor([[8.0, 0.0]]), torch.zeros(1, 2)
    loss = scene_loss(torch.cat([sure, flat]), torch.tensor([[1.0, 0], [1, 0]]), torch.zeros(2, dtype=torch.int64))
    assert float(loss) < 0.02  # the mean of their own losses is 0.35


def test_wrong_shapes_and_kinds_are_refused() -> None:
    with pytest.raises(InputError, match=r"logits \(2, 3\) and targets \(2,\); both \(B, C\+1\)"):
        action_loss(LOGITS, torch.tensor([0.0, 1.0]), kind="softmax")
    with pytest.raises(InputError, match="'sigmoid': expected softmax or focal"):
        action_loss(LOGITS, LOGITS.sigmoid(), kind="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected \(B, K\), \(B, K\) and \(B,\)"):
        scene_loss(LOGITS, LOGITS, torch.zeros(3, dtype=torch.int64))
