import numpy as np
import pytest
import torch
from torch import nn

from talstack.extract.training.ema import WeightAverage
from talstack.io.errors import ConfigError, ModelError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(value)


def test_the_average_follows_the_corrected_decay() -> None:
    model = network()
    fill(model, 1.0)
    average = WeightAverage(model, 0.3)
    expected = 1.0
    for step, value in enumerate((5.0, -2.0, 7.0, 3.0, 4.0)):
        fill(model, value)
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, 0.3, 0.3
        expected = decay * expected + (1 - decay) * value
    target = network()
    average.copy_to(target)
    for name, tensor in target.state_dict().items():
        wanted = 4.0 if name == "1.num_batches_tracked" else expected
        np.testing.assert_allclose(tensor, wanted, rtol=1e-6, err_msg=name)


def test_a_decay_of_zero_is_the_network_itself_and_updates_leave_it_alone() -> None:
    model, target = network(), network()
    average = WeightAverage(model, 0.0)
    fill(model, 2.5)
    average.update(model)
    average.copy_to(target)
    fill(model, -1.0)
    assert all((tensor == 2.5).all() for tensor in target.parameters())
    assert all(p.requires_grad and p.grad is None for p in target.parameters())


def test_small_steps_are_not_lost_to_half_precision() -> None:
    model = network().to(torch.bfloat16)
    fill(model, 1.0)
    average = WeightAverage(model, 0.999)
    average.num_updates = 10**6
    fill(model, 1.5)
    for _ in range(4):
        average.update(model)
    assert float(average.state()["3.bias"][0]) == pytest.approx(1.5 - 0.5 * 0.999**4, abs=1e-6)
    average.copy_to(model)
    assert model[3].bias.dtype == torch.bfloat16


def test_a_resumed_average_goes_on_alike() -> None:
    model = network()
    whole, half = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    for step in range(6):
        fill(model, float(step))
        whole.update(model)
        if step < 3:
            half.update(model)
    saved = {name: tensor.clone() for name, tensor in half.state().items()}
    resumed = WeightAverage(network(), 0.9)
    resumed.load_state(saved)
    for step in range(3, 6):
        fill(model, float(step))
        resumed.update(model)
    assert all(torch.equal(whole.state()[name], tensor) for name, tensor in resumed.state().items())


def test_what_does_not_fit_is_refused() -> None:
    average = WeightAverage(network(), 0.9)
    state = average.state()
    wrong = {name: tensor for name, tensor in state.items() if name != "0.bias"} | {"3.weight": torch.zeros(2, 5)}
    with pytest.raises(ModelError, match=r"\['0.bias', '3.weight'\]"):
        average.load_state(wrong)
    with pytest.raises(ModelError, match="'head.weight'"):
        average.load_state(state | {"head.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match="decay must lie in"):
        WeightAverage(network(), 1.5)
