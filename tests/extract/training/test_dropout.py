import pytest
import torch

from talstack.extract.training.dropout import RowDropout
from talstack.io.errors import ConfigError, InputError


def dropped(layer: RowDropout, *, step: int = 3, first_row: int = 0, num_rows: int = 64, seed: int = 0) -> torch.Tensor:
    layer.set_step(seed, step, first_row, 64)
    return layer(torch.ones(num_rows, 200))


def test_parts_of_a_batch_drop_what_the_whole_drops() -> None:
    layer = RowDropout(0.4)
    parts = [dropped(layer, first_row=row, num_rows=16) for row in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), dropped(layer))


def test_values_are_dropped_by_probability_and_the_others_scaled() -> None:
    out = dropped(RowDropout(0.4))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert (out == 0).float().mean() == pytest.approx(0.4, abs=0.02)
    assert (dropped(RowDropout(1.0)) == 0).all()
    assert (dropped(RowDropout(0.0)) == 1).all()


def test_the_mask_is_a_function_of_seed_and_step_alone() -> None:
    layer = RowDropout(0.5)
    first = dropped(layer)
    torch.rand(5)  # the global generator has no say
    assert torch.equal(dropped(RowDropout(0.5)), first)
    assert not torch.equal(dropped(layer, step=4), first)
    assert not torch.equal(dropped(layer, seed=3, step=0), dropped(layer, seed=0, step=3))
    assert not torch.equal(first[0], first[1])


def test_evaluation_drops_nothing_and_needs_no_step() -> None:
    x = torch.ones(2, 3)
    assert RowDropout(0.5).eval()(x) is x


def test_gradients_pass_where_values_do() -> None:
    layer, x = RowDropout(0.5), torch.ones(64, 10, requires_grad=True)
    layer.set_step(0, 0, 0, 64)
    out = layer(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_training_without_a_place_in_the_batch_is_refused() -> None:
    layer = RowDropout(0.5)
    with pytest.raises(InputError, match="call set_step before"):
        layer(torch.ones(2, 3))
    with pytest.raises(InputError, match="rows 60 to 68 of a batch of 64"):
        dropped(layer, first_row=60, num_rows=8)
    with pytest.raises(ConfigError, match="must lie in"):
        RowDropout(1.2)
