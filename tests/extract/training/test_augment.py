from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from talstack.extract.backbone import normalise
from talstack.extract.training import augment
from talstack.extract.training.augment import AugmentPlan, apply_augmentation, mix_targets, plan_augmentation
from talstack.extract.training.config import FinetuneConfig
from talstack.io.errors import InputError

SIZE = 16
STILL = FinetuneConfig(jitter=0.0, yaw=False)
ALL = FinetuneConfig(jitter=0.3, yaw=True, flip="always", mixup=0.4, cutmix=1.0)


def planned(config: FinetuneConfig, *, num_groups: int = 4, seed: int = 0, **given: Any) -> AugmentPlan:
    batch = num_groups * 3
    flags = {
        "groups": np.repeat(np.arange(num_groups), 3),
        "panoramic": np.zeros(batch, dtype=bool),
        "mirrorable": np.ones(batch, dtype=bool),
    } | given
    return plan_augmentation(config, np.random.default_rng(seed), size=SIZE, **flags)


def pictures(batch: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 2, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def by_hand(pixels: np.ndarray, plan: AugmentPlan) -> np.ndarray:
    """Return (B, T, H, W, 3) pixel values in [0, 255], a row at a time."""
    shown = np.stack([
        np.clip(plan.gain[i] * (picture[:, plan.rows[i]][:, :, plan.cols[i]] - 128) + 128 + plan.bias[i], 0, 255)
        for i, picture in enumerate(pixels.astype(np.float64))
    ])  # fmt: skip
    out = shown.copy()
    for i, (partner, share) in enumerate(zip(plan.partner, plan.share, strict=True)):
        y0, y1, x0, x1 = (0, 0, 0, 0) if plan.box is None else plan.box[i]
        if y1 > y0 and x1 > x0:
            out[i, :, y0:y1, x0:x1] = shown[partner][:, y0:y1, x0:x1]
        else:
            out[i] = share * shown[i] + (1 - share) * shown[partner]
    return out


def test_a_plan_without_augmentation_is_normalisation_alone() -> None:
    plan, pixels = planned(STILL), pictures()
    out = apply_augmentation(pixels, plan)
    assert out.shape == (12, 2, 3, SIZE, SIZE) and out.dtype == torch.float32
    assert torch.allclose(out, normalise(pixels), atol=1e-5)
    flat = out.reshape(24, 3, SIZE, SIZE)
    assert flat.is_contiguous(memory_format=torch.channels_last), "the network needs no copy"
    targets = torch.rand(12, 5)
    assert mix_targets(targets, plan) is targets


@pytest.mark.parametrize("chunk", [1, 4000, 2**20])
@pytest.mark.parametrize("config", [replace(ALL, cutmix=0.0), replace(ALL, mixup=0.0), ALL])
def test_pictures_are_what_the_plan_says(config: FinetuneConfig, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "CHUNK", chunk)
    plan, pixels = planned(config, panoramic=np.arange(12) % 2 == 0), pictures()
    expected = normalise(torch.from_numpy(by_hand(pixels.numpy(), plan)))
    assert torch.allclose(apply_augmentation(pixels, plan), expected, atol=1e-4)


def test_the_normalisation_is_the_callers() -> None:
    def plain(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() * torch.tensor([1.0, 2.0, -3.0]) + 7).movedim(-1, -3)

    out = apply_augmentation(pictures(), planned(STILL), normalise=plain)
    assert torch.allclose(out, plain(pictures()), atol=1e-3)


def test_jitter_moves_by_its_share_at_most_and_repeats_the_edge() -> None:
    plans = [planned(replace(STILL, jitter=0.2), seed=seed) for seed in range(30)]
    for name in ("rows", "cols"):
        source = np.concatenate([getattr(plan, name) for plan in plans])
        assert set(source[:, 8] - 8) == {-3, -2, -1, 0, 1, 2, 3}
        assert source.min() == 0 and source.max() == SIZE - 1
        step, end = np.diff(source, axis=1), source[:, 1:]
        assert ((step == 1) | ((step == 0) & ((end == 0) | (end == SIZE - 1)))).all()
    assert any((plan.rows != plan.cols).any() for plan in plans)
    gain, bias = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("gain", "bias"))
    assert 0.8 <= gain.min() < 0.85 and 1.15 < gain.max() <= 1.2
    assert -25.6 <= bias.min() < -20 and 20 < bias.max() <= 25.6


def test_panoramas_wrap_around_and_turn_by_any_angle() -> None:
    around = np.ones(12, dtype=bool)
    turned = np.concatenate([planned(replace(STILL, yaw=True), panoramic=around, seed=s).cols for s in range(20)])
    assert set(turned[:, 0]) == set(range(SIZE))
    assert (np.diff(turned, axis=1) % SIZE == 1).all()
    moved = planned(replace(STILL, jitter=0.2), panoramic=around)
    assert (np.diff(moved.cols, axis=1) % SIZE == 1).all()
    assert set(moved.cols[:, 0]) <= {13, 14, 15, 0, 1, 2, 3}, "no turn without yaw"


def test_mirrored_rows_read_backwards_and_only_where_it_is_allowed() -> None:
    allowed = np.arange(12) < 6
    plans = [planned(replace(STILL, flip="auto"), mirrorable=allowed, seed=seed) for seed in range(20)]
    mirrored = np.stack([plan.mirrored for plan in plans])
    assert not mirrored[:, 6:].any()
    assert 0.3 < mirrored[:, :6].mean() < 0.7
    for plan in plans:
        assert (plan.cols[plan.mirrored] == np.arange(SIZE)[::-1]).all()
        assert (plan.cols[~plan.mirrored] == np.arange(SIZE)).all()
    assert not planned(replace(STILL, flip="never")).mirrored.any()


def test_a_row_depends_on_no_other_rows_settings_or_number() -> None:
    many = planned(ALL, panoramic=np.arange(12) >= 3, mirrorable=np.arange(12) < 5)
    few = planned(ALL, num_groups=1)
    for name in ("rows", "cols", "gain", "bias", "mirrored"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3], err_msg=name)


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_whole_groups_are_mixed_with_whole_other_groups(settings: dict[str, float]) -> None:
    groups = np.array([7, 7, 2, 2, 2, 7, 9, 9])  # of two and three rows, in any order
    flags = np.zeros(8, dtype=bool)
    for seed in range(20):
        config = replace(STILL, **settings)
        plan = planned(config, groups=groups, panoramic=flags, mirrorable=flags, seed=seed)
        for group in (2, 7, 9):
            mine = groups == group
            assert len(set(groups[plan.partner[mine]])) == 1 and groups[plan.partner[mine]][0] != group
            assert len(set(plan.share[mine])) == 1
            assert plan.box is None or len(np.unique(plan.box[mine], axis=0)) == 1
        assert set(plan.partner[groups == 7]) == set(np.flatnonzero(groups == groups[plan.partner[0]]))


def test_a_box_takes_the_share_that_the_partner_gets() -> None:
    boxes, shares = [], []
    for seed in range(50):
        plan = planned(replace(STILL, cutmix=1.0), seed=seed)
        assert plan.box is not None
        boxes.append(plan.box), shares.append(plan.share)
    box, share = np.concatenate(boxes), np.concatenate(shares)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / SIZE**2
    np.testing.assert_allclose(share, 1 - area, atol=1e-6)
    assert box.min() == 0 and box.max() == SIZE
    assert share.min() < 0.3 and share.max() > 0.9


def test_mixup_and_cutmix_take_turns() -> None:
    plans = [planned(ALL, seed=seed) for seed in range(50)]
    cut = np.concatenate([plan.box[::3, 1] > plan.box[::3, 0] for plan in plans if plan.box is not None])
    assert 0.35 < cut.mean() < 0.65
    blended = np.concatenate([plan.share[::3] for plan in plans])[~cut]
    assert ((blended > 0) & (blended < 1)).mean() > 0.9


def test_targets_are_mixed_by_share_and_a_lone_group_is_not_mixed() -> None:
    plan = planned(replace(STILL, mixup=0.4))
    targets = torch.eye(12)
    expected = np.diag(plan.share) + (1 - plan.share)[:, None] * np.eye(12)[plan.partner]
    np.testing.assert_allclose(mix_targets(targets, plan), expected, atol=1e-6)
    lone = planned(ALL, num_groups=1)
    assert not lone.mixes and (lone.share == 1).all()


def test_the_same_generator_gives_the_same_plan() -> None:
    first, second, other = planned(ALL), planned(ALL), planned(ALL, seed=1)
    for field in fields(AugmentPlan):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    assert (first.gain != other.gain).all()


def test_a_plan_for_other_pictures_is_refused() -> None:
    with pytest.raises(InputError, match=r"planned for B, H, W = \(12, 16, 16\)"):
        apply_augmentation(pictures(9), planned(STILL))
    with pytest.raises(InputError, match="12 groups, 12 panoramic and 2 mirrorable flags"):
        planned(STILL, mirrorable=np.ones(2, dtype=bool))
