"""The SPIN objective (paper, eq. 4.7) as pure functions of summed log-probabilities.

    L = E[ l( beta log p_theta(y|x)/p_theta_t(y|x) - beta log p_theta(y'|x)/p_theta_t(y'|x) ) ]

with the policy p_theta, the opponent p_theta_t, the real response y and the generated response y'. With the
logistic loss and pairs from elsewhere this is DPO: real is chosen, generated is rejected.

Follow-up work changes the margin or adds terms: DPO-positive (Pal et al. 2024, arXiv 2402.13228) lowers it where the
real response became less likely, T-SPIN (Wang et al. 2026, arXiv 2601.08198) leaves the opponent out of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spin_utils.settings.run import Loss


class SpinLoss(NamedTuple):
    """Loss and its parts, one value per pair; only `losses` carries gradients."""

    losses: Tensor
    """l(margin)."""
    margins: Tensor
    """Real reward minus generated reward, and minus DPO-positive's penalty if there is one: the argument of l."""
    real_rewards: Tensor
    """beta (log p_theta(y|x) - log p_theta_t(y|x)), or beta log p_theta(y|x) if it is reference-free."""
    generated_rewards: Tensor
    """The same for the generated response."""


def spin_loss(
    *,
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    beta: float,
    loss: Loss = "logistic",
    positive: float = 0.0,
    reference_free: bool = False,
) -> SpinLoss:
    """The loss of each pair.

    Args:
        policy_real_logps: log p_theta(y|x) summed over tokens, float32, of any shape, one element per pair.
        policy_generated_logps: log p_theta(y'|x), likewise.
        opponent_real_logps: log p_theta_t(y|x), likewise.
        opponent_generated_logps: log p_theta_t(y'|x), likewise.
        beta: the paper's lambda.
        loss: the function l, one of `link`.
        positive: weight of DPO-positive's penalty max(0, log p_theta_t(y|x) - log p_theta(y|x)), which is subtracted
            inside l (arXiv 2402.13228, eq. 3).
        reference_free: the reward is beta log p_theta, without the opponent (arXiv 2601.08198, eq. 6 and 7).

    Example:
        >>> same = dict(policy_real_logps=torch.tensor([-3.0]), opponent_real_logps=torch.tensor([-3.0]))
        >>> also = dict(policy_generated_logps=torch.tensor([-8.0]), opponent_generated_logps=torch.tensor([-8.0]))
        >>> spin_loss(**same, **also, beta=0.1).losses
        tensor([0.6931])
    """
    compared = 0.0 if reference_free else 1.0
    real_rewards = beta * (policy_real_logps - compared * opponent_real_logps)
    generated_rewards = beta * (policy_generated_logps - compared * opponent_generated_logps)
    margins = real_rewards - generated_rewards
    if positive:
        margins = margins - beta * positive * torch.relu(opponent_real_logps - policy_real_logps)
    return SpinLoss(link(margins, loss), margins.detach(), real_rewards.detach(), generated_rewards.detach())


def link(margins: Tensor, loss: Loss) -> Tensor:
    """l(t), convex and decreasing with l'(0) < 0 (paper, Assumption 5.1)."""
    if loss == "logistic":
        return F.softplus(-margins)  # log(1 + exp(-t))
    if loss == "hinge":
        return torch.relu(1 - margins)
    if loss == "correlation":
        return 1 - margins
    assert loss == "exponential"
    return torch.exp(-margins)
