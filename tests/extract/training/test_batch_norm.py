"""Frozen batch norms, and batch norm over two processes beside one that has the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from talstack.extract.training.batch_norm import (
    SyncedBatchNorm2d,
    convert_batch_norm,
    freeze_batch_norm_parameters,
    set_batch_norm_mode,
)
from talstack.io.errors import ConfigError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.BatchNorm2d(4)
    )


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("mode", "follows"),
    [("train", [True, True, True]), ("partial", [True, False, False]), ("frozen", [False, False, False])],
)
def test_frozen_layers_keep_statistics_and_parameters(mode: str, follows: list[bool]) -> None:
    model = network()
    freeze_batch_norm_parameters(model, mode)  # type: ignore[arg-type]
    before = [{name: t.clone() for name, t in layer.state_dict().items()} for layer in norms(model)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model.train()
        set_batch_norm_mode(model, mode)  # type: ignore[arg-type]
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8) + 1).square().sum().backward()
        optimizer.step()
    for layer, old, moves in zip(norms(model), before, follows, strict=True):
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(layer.state_dict()[name], old[name]) is not moves, name
    assert model[0].weight.grad is not None, "the convolutions still learn"


def test_another_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="'off': expected train, partial or frozen"):
        set_batch_norm_mode(network(), "off")  # type: ignore[arg-type]


def test_alone_a_converted_network_is_what_it_was() -> None:
    plain, converted = network(), convert_batch_norm(network())
    assert all(isinstance(layer, SyncedBatchNorm2d) for layer in norms(converted))
    assert converted.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(plain(x), converted(x))
    assert torch.equal(plain.eval()(x), converted.eval()(x))
    set_batch_norm_mode(converted.train(), "partial")
    assert [layer.training for layer in norms(converted)] == [True, False, False]


# Two layers, so that gradients cross processes twice. A mean far from zero shows a variance that loses digits.
PROCESS = """
import sys, torch
from datetime import timedelta
from torch import distributed, nn
from talstack.extract.training.batch_norm import convert_batch_norm
torch.set_num_threads(1)
folder, rank = sys.argv[1], int(sys.argv[2])
meeting = f"file://{folder}/meeting"
distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=120))
given = torch.load(f"{folder}/given.pt", weights_only=True)
model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None))
model.load_state_dict(given["state"])
convert_batch_norm(model)
rows = slice(0, 2) if rank == 0 else slice(2, 5)
x = given["x"][rows].contiguous(memory_format=torch.channels_last).requires_grad_()
out = model(x)
assert out.is_contiguous(memory_format=torch.channels_last)
(out * given["slope"][rows]).sum().backward()
gradients = [p.grad for p in model.parameters()]
for gradient in gradients:
    distributed.all_reduce(gradient)
model.eval()
found = {"out": out.detach(), "grad": x.grad, "parameters": gradients, "state": model.state_dict(), "eval": model(x)}
torch.save({k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in found.items()}, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_norm_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None))
    x = (torch.randn(5, 3, 6, 6) * torch.tensor([1.0, 0.1, 3.0])[:, None, None] + 20).requires_grad_()
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 2)
        model[2].bias.uniform_(-1, 1)
    slope = torch.randn(5, 4, 4, 4)
    torch.save({"state": model.state_dict(), "x": x.detach(), "slope": slope}, tmp_path / "given.pt")
    command = [sys.executable, "-P", "-c", PROCESS, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    out = model(x)
    (out * slope).sum().backward()
    torch.testing.assert_close(torch.cat([part["out"] for part in found]), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([part["grad"] for part in found]), x.grad, atol=1e-5, rtol=1e-5)
    for part in found:
        torch.testing.assert_close(part["parameters"], [p.grad for p in model.parameters()], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(dict(part["state"]), dict(model.state_dict()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([part["eval"] for part in found]), model.eval()(x), atol=1e-4, rtol=1e-4)
