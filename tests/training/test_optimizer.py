"""Promises of the optimizer: equal to torch.optim, exact masters, the schedule of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

from spin_utils.settings.run import TrainingSettings
from spin_utils.training import optimizer as module
from spin_utils.training.loop import Schedule
from spin_utils.training.optimizer import MasterOptimizer


def _settings(**changes):
    return TrainingSettings(**({"learning_rate": 1e-3, "epochs": 1} | changes))


def _network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.Tanh(), torch.nn.Linear(33, 3))


def _data(step):
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize(("name", "weight_decay"), [("rmsprop", 0.0), ("adamw", 0.0), ("adamw", 0.1)])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_float32_steps_equal_torch_optim(name, weight_decay, clip, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50)
    network, expected = _network(), _network()
    if name == "rmsprop":
        reference = torch.optim.RMSprop(expected.parameters(), lr=1e-3, alpha=0.99, eps=1e-8, foreach=False)
    else:
        reference = torch.optim.AdamW(expected.parameters(), lr=1e-3, weight_decay=weight_decay, fused=True)
    ours = MasterOptimizer(
        network, _settings(optimizer=name, weight_decay=weight_decay, max_grad_norm=clip), torch.float32
    )
    for step in range(12):
        for half in (0, 1):
            for net in (network, expected):
                (net(_data(2 * step + half)).square().mean() / 2).backward()
        norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), clip or 1e9)
        torch.testing.assert_close(ours.grad_norm(), norm, rtol=1e-6, atol=0)
        reference.step()
        reference.zero_grad()
        ours.step(1e-3)
    for got, wanted in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)
        if name == "adamw" and not clip:
            assert torch.equal(got, wanted)


def test_bfloat16_weights_are_the_rounded_masters_and_small_steps_are_kept():
    network = _network()
    start = [p.detach().clone() for p in network.parameters()]
    ours = MasterOptimizer(network, _settings(), torch.bfloat16)
    assert all(torch.equal(m, s) for m, s in zip(ours.masters, start, strict=True))
    for step in range(3):
        network(_data(step).bfloat16()).float().square().mean().backward()
        ours.step(1e-6)
    for parameter, master, before in zip(network.parameters(), ours.masters, start, strict=True):
        assert torch.equal(parameter, master.bfloat16())
        assert (master != before).any()
        assert (master - before).abs().max() < 1e-4


def test_gradients_of_micro_batches_are_summed_in_float32():
    network = torch.nn.Linear(1, 1, bias=False).bfloat16()
    ours = MasterOptimizer(network, _settings(), torch.bfloat16)
    for value in (256.0, *[1.0] * 8):
        (network.weight * value).sum().backward()
    assert ours.gradients[0].item() == 264.0  # in bfloat16 every 1 is lost beside 256
    assert network.weight.grad is None


def test_a_weight_without_a_gradient_in_a_step_takes_none_from_the_step_before():
    network = torch.nn.Linear(1, 1)
    ours = MasterOptimizer(network, _settings(), torch.float32)
    (network.weight + network.bias).sum().backward()
    ours.step(1e-3)
    bias = network.bias.detach().clone()
    network.weight.sum().backward()
    ours.add_up()
    assert ours.grad_norm() == 1.0
    ours.step(1e-3)
    assert torch.equal(network.bias, bias)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("total", "ratio"), [(10, 0.1), (37, 0.25), (5, 0.0)])
def test_the_schedule_is_that_of_transformers(schedule, total, ratio):
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(theirs, reference, math.ceil(total * ratio), total)
    settings = _settings(learning_rate=0.5, warmup_ratio=ratio, schedule=schedule, batch_size=1)
    plan = Schedule(total, settings, seed=0)
    for step in range(total):
        assert plan.learning_rate(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-15)
        reference.step()
        scheduler.step()
