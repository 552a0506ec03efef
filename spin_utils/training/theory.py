"""The theory in section 5 of the paper, on a model small enough to compute exactly.

There is one prompt with K possible answers. A policy is a vector of K log-probabilities, the loss of eq. 4.7 is a
finite sum over all pairs of a real and a generated answer, and its minimum is found to machine precision. Nothing is
sampled, so the theorems can be checked as equalities.

Log-probabilities are float64 tensors of shape (K,).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor

from spin_utils.files.paths import KitError
from spin_utils.settings.run import Loss
from spin_utils.training.loss import link, spin_loss

LOSSES: tuple[Loss, ...] = get_args(Loss)
"""The losses that satisfy Assumption 5.1."""


def distribution(weights: Sequence[float]) -> Tensor:
    """Log-probabilities proportional to positive weights.

    >>> distribution([1, 1, 2]).exp().tolist()
    [0.25, 0.25, 0.5]
    """
    tensor = torch.tensor(weights, dtype=torch.float64)
    if tensor.ndim != 1 or len(tensor) < 2 or not bool((tensor > 0).all()) or not bool(tensor.isfinite().all()):
        raise KitError(f"weights are {list(weights)}; give at least two positive finite numbers")
    return (tensor / tensor.sum()).log()


def random_distribution(answers: int, seed: int) -> Tensor:
    """Log-probabilities with standard normal logits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(answers, dtype=torch.float64, generator=generator).log_softmax(0)


def check_lambdas(values: Sequence[float]) -> list[float]:
    """Values of lambda as floats; a `KitError` if there is none, or one is not above 0."""
    numbers = [float(value) for value in values]
    if not numbers or not all(0 < value < math.inf for value in numbers):
        raise KitError(f"lambdas are {list(values)}; give at least one number, all above 0")
    return numbers


def population_loss(policy: Tensor, opponent: Tensor, data: Tensor, *, beta: float, loss: Loss = "logistic") -> Tensor:
    """Eq. 4.7 without sampling: the sum over real answers y ~ data and generated answers y' ~ opponent.

    The policy may carry gradients; beta is the paper's lambda.

    >>> same = distribution([1, 2, 3])
    >>> round(float(population_loss(same, same, same, beta=0.1)), 12) == round(math.log(2), 12)
    True
    """
    answers = len(policy)
    real, generated = torch.arange(answers).repeat_interleave(answers), torch.arange(answers).repeat(answers)
    values = spin_loss(
        policy_real_logps=policy[real],
        policy_generated_logps=policy[generated],
        opponent_real_logps=opponent[real],
        opponent_generated_logps=opponent[generated],
        beta=beta,
        loss=loss,
    ).losses
    return ((data[real] + opponent[generated]).exp() * values).sum()


def gradient(policy: Tensor, opponent: Tensor, data: Tensor, *, beta: float, loss: Loss = "logistic") -> Tensor:
    """Gradient of the population loss with respect to the policy's logits, shape (K,)."""
    logits = policy.clone().requires_grad_()
    population_loss(logits.log_softmax(0), opponent, data, beta=beta, loss=loss).backward()
    assert logits.grad is not None
    return logits.grad


def best_response(opponent: Tensor, data: Tensor, *, beta: float) -> Tensor:
    """The policy that minimises the population loss, by Newton's method from the opponent (step 1 of sec. 4.1).

    The loss is convex in the logits, so a zero gradient means the global minimum. Adding a constant to all logits
    changes nothing, so the Hessian gets a ones term in that direction.

    Raises:
        KitError: The method did not converge.
    """

    def objective(logits: Tensor) -> Tensor:
        return population_loss(logits.log_softmax(0), opponent, data, beta=beta)

    logits, slope, exact = opponent.clone(), gradient(opponent, opponent, data, beta=beta), 0
    for _ in range(200):
        if slope.abs().max() < 1e-14 * beta or exact == 3:
            break
        curvature = torch.autograd.functional.hessian(objective, logits) + torch.ones_like(slope)
        step = torch.linalg.solve(curvature, -slope)
        size, before, decrease = 1.0, objective(logits), float(slope @ step)
        if -decrease < 1e-12 * before:  # below the loss's rounding; full Newton steps are safe here
            exact += 1
        else:
            while objective(logits + size * step) > before + 1e-4 * size * decrease:
                size /= 2
        logits = (logits + size * step).detach()
        slope = gradient(logits, opponent, data, beta=beta)
    if not slope.abs().max() <= 1e-9 * beta:
        raise KitError(f"no minimum reached at beta {beta}: gradient {float(slope.abs().max()):.1e}")
    return logits.log_softmax(0)


def update_law(opponent: Tensor, data: Tensor, *, beta: float) -> Tensor:
    """Theorem 5.4: p_{t+1} proportional to p_t (p_data / p_t)^(1 / lambda)."""
    return (opponent + (data - opponent) / beta).log_softmax(0)


def iterate(start: Tensor, data: Tensor, *, beta: float, iterations: int) -> Tensor:
    """Policies of exact self-play under the update law, shape (iterations + 1, K), starting with `start`."""
    policies = [start]
    for _ in range(iterations):
        policies.append(update_law(policies[-1], data, beta=beta))
    return torch.stack(policies)


def gap(policy: Tensor, data: Tensor) -> Tensor:
    """Largest minus smallest log p/p_data over answers: 0 only at the data, and independent of the normalisation.

    The update law multiplies it by exactly |1 - 1/lambda|.
    """
    ratio = policy - data
    return ratio.amax(-1) - ratio.amin(-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p || q) in nats."""
    return (p.exp() * (p - q)).sum(-1)


def pair_divergence(opponent: Tensor, data: Tensor) -> Tensor:
    """JSD of Lemma C.2 in nats, between (real, generated) pairs and the same pairs swapped.

    The unconstrained minimum of the logistic loss is log 2 minus this. It measures how well the best discriminator can
    tell which answer of a pair is real.
    """
    forward = data[:, None] + opponent[None, :]
    swapped = opponent[:, None] + data[None, :]
    middle = torch.logaddexp(forward, swapped) - math.log(2)
    towards = (forward.exp() * (forward - middle)).sum() + (swapped.exp() * (swapped - middle)).sum()
    return towards / 2


def descend(opponent: Tensor, data: Tensor, *, beta: float, steps: int, learning_rate: float) -> Tensor:
    """Policies along plain gradient descent from the opponent, shape (steps + 1, K)."""
    policies = [opponent]
    for _ in range(steps):
        slope = gradient(policies[-1], opponent, data, beta=beta)
        policies.append((policies[-1] - learning_rate * slope).log_softmax(0))
    return torch.stack(policies)


def fixed_point_error(seed: int = 0) -> float:
    """Theorem 5.2, sufficiency: if p_t = p_data the policy does not move, for every loss and lambda.

    The largest deviation over random data distributions, of the loss from l(0) and of the gradient from 0.
    """
    return max(
        max(abs(_excess(data, data, beta, loss)), float(gradient(data, data, data, beta=beta, loss=loss).abs().max()))
        for data, _ in _cases((2, 3, 6), seed)
        for loss in LOSSES
        for beta in (0.05, 0.1, 0.6, 1.0, 5.0)
    )


def necessity_margin(seed: int = 0) -> float:
    """Theorem 5.2, necessity: if p_t != p_data, for some lambda the data distribution has a lower loss than p_t.

    The maximum over losses and random cases of min over lambda of loss(p_data) - l(0); negative if it holds.
    """
    return max(
        min(_excess(data, opponent, beta, loss) for beta in (0.001, 0.01, 0.1, 0.5, 1.0))
        for data, opponent in _cases((2, 3, 6), seed)
        for loss in LOSSES
    )


def update_law_error(seed: int = 0) -> float:
    """Theorem 5.4: largest difference in log-probability between the law and the minimum found by optimisation."""
    return max(
        float((best_response(opponent, data, beta=beta) - update_law(opponent, data, beta=beta)).abs().max())
        for data, opponent in _cases((2, 5), seed)
        for beta in (0.1, 0.6, 1.0, 5.0)
    )


def contraction_error(seed: int = 0) -> float:
    """Consequence of Theorem 5.4: largest relative error of gap(t+1) = |1 - 1/lambda| gap(t)."""
    data, start = random_distribution(5, seed), random_distribution(5, seed + 100)
    worst = 0.0
    for beta in (0.1, 0.4, 0.5, 0.6, 1.0, 5.0):
        gaps = gap(iterate(start, data, beta=beta, iterations=3), data)
        worst = max(worst, float((gaps[1:] - abs(1 - 1 / beta) * gaps[:-1]).abs().max() / gaps.max()))
    return worst


def minimum_error(seed: int = 0) -> float:
    """Lemma C.2: largest difference between the minimum of the loss and log 2 - JSD."""
    return max(
        abs(
            float(population_loss(best_response(opponent, data, beta=beta), opponent, data, beta=beta))
            - (math.log(2) - float(pair_divergence(opponent, data)))
        )
        for data, opponent in _cases((2, 4), seed)
        for beta in (0.6, 1.0, 5.0)
    )


def _excess(data: Tensor, opponent: Tensor, beta: float, loss: Loss) -> float:
    """Loss of the data distribution minus l(0), the loss of the opponent."""
    at_zero = float(link(torch.zeros((), dtype=torch.float64), loss))
    return float(population_loss(data, opponent, data, beta=beta, loss=loss)) - at_zero


def _cases(sizes: Sequence[int], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A random data distribution and a random opponent for each number of answers."""
    for answers in sizes:
        yield random_distribution(answers, seed + answers), random_distribution(answers, seed + 100 + answers)


if __name__ == "__main__":  # for `claims.exact`
    json.dump({check: globals()[check]() for check in sys.argv[1:]}, sys.stdout)
