"""Promises of the SPIN losses (paper, eq. 4.7 and Assumption 5.1)."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spin_utils.settings.run import Loss
from spin_utils.training.loss import link, spin_loss

LOSSES = get_args(Loss)
FORMULAS = {
    "logistic": lambda t: math.log1p(math.exp(-t)),
    "hinge": lambda t: max(0.0, 1 - t),
    "correlation": lambda t: 1 - t,
    "exponential": lambda t: math.exp(-t),
}
LOGPS = st.floats(-200, 0, width=32)


def _loss(policy_real, policy_generated, opponent_real, opponent_generated, beta):
    return spin_loss(
        policy_real_logps=torch.tensor([policy_real]),
        policy_generated_logps=torch.tensor([policy_generated]),
        opponent_real_logps=torch.tensor([opponent_real]),
        opponent_generated_logps=torch.tensor([opponent_generated]),
        beta=beta,
    )


@given(LOGPS, LOGPS, st.sampled_from([0.1, 1.0, 5.0]))
def test_at_the_opponent_the_loss_is_exactly_log_2_and_the_margin_exactly_0(real, generated, beta):
    result = _loss(real, generated, real, generated, beta)
    assert result.losses.item() == torch.tensor(2.0).log().item()
    assert result.margins.item() == result.real_rewards.item() == result.generated_rewards.item() == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("t", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_every_loss_is_its_formula(loss, t):
    assert link(torch.tensor(t, dtype=torch.float64), loss).item() == pytest.approx(FORMULAS[loss](t), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_meets_assumption_5_1(loss):
    t = torch.linspace(-4, 4, 161, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(link(t, loss).sum(), t)
    assert (slope <= 0).all()
    assert slope[80] < 0
    assert (slope.diff() >= -1e-12).all()


def test_margin_and_rewards_follow_equation_4_7():
    result = _loss(-3.0, -9.0, -4.0, -7.0, beta=0.5)
    assert result.real_rewards.item() == 0.5
    assert result.generated_rewards.item() == -1.0
    assert result.margins.item() == 1.5
    assert result.losses.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-6)


def test_large_margins_neither_overflow_nor_vanish():
    assert _loss(-2000.0, 0.0, 0.0, -2000.0, beta=5.0).losses.item() == 20000.0
    assert _loss(0.0, -2000.0, -2000.0, 0.0, beta=5.0).losses.item() == 0.0
