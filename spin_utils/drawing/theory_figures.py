"""Pictures of the theory: every point in them is exact, nothing is sampled or trained on text.

Distributions are log-probabilities of K answers, shape (K,): `data` is log p_data, `opponent` log p_t and `start`
log p_0. `beta` is the paper's lambda, and each of `betas` has a line or panel of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from spin_utils.drawing.style import COLOURS, FAINT, GENERATED, INK, ITERATES, REAL, footnote, new_figure, style
from spin_utils.training import theory
from spin_utils.training.loss import link

_SHADES = (*ITERATES, COLOURS["spin-3-dpo"], COLOURS["sft-more"])
_DASHES = ("-", "--", "-.", ":")


@style()
def losses() -> Figure:
    """The losses of Assumption 5.1 over the margin t: convex, decreasing, slope below 0 at 0."""
    margins = torch.linspace(-3, 3, 301, dtype=torch.float64)
    figure = new_figure(2.1)
    axes = figure.subplots()
    for name, shade, dash in zip(theory.LOSSES, cycle(_SHADES), cycle(_DASHES), strict=False):
        axes.plot(margins, link(margins, name), color=shade, ls=dash, label=name)
    axes.plot(0, math.log(2), "o", color=_SHADES[0])
    axes.annotate("log 2", (0, math.log(2)), (-4, -8), textcoords="offset points", ha="right", fontsize=6)
    axes.axvline(0, color=FAINT, lw=0.6, zorder=0)
    axes.set(ylim=(0, 4), xlabel="margin t: reward of y minus reward of y' (nats)", ylabel="loss")
    axes.legend()
    return figure


@style()
def fixed_point(data: Tensor, opponent: Tensor, betas: Sequence[float]) -> Figure:
    """Theorem 5.2: around p_t = p_data the loss only rises; elsewhere moving to the data lowers it for some lambda.

    `betas` are those of the left panel.
    """
    direction = opponent - data
    shifts = np.linspace(-2, 2, 81)
    lambdas = np.linspace(0, 3, 121)
    figure = new_figure(2.2)
    left, right = figure.subplots(1, 2)
    for beta, shade, dash in zip(betas, cycle(_SHADES), cycle(_DASHES), strict=False):
        policies = [(data + shift * direction).log_softmax(0) for shift in shifts]
        values = [float(theory.population_loss(policy, data, data, beta=beta)) for policy in policies]
        left.plot(shifts, values, color=shade, ls=dash, label=f"λ = {beta:g}")
    left.axhline(math.log(2), color=FAINT, ls=":", lw=1)
    left.plot(0, math.log(2), "o", color=INK, zorder=5)
    left.set(title="opponent = data", xlabel="policy: steps away from the data", ylabel="loss (nats)")
    left.set_ylim(math.log(2) - 0.05, math.log(2) + 0.8)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, columnspacing=1.2)
    gains = [float(theory.population_loss(data, opponent, data, beta=beta)) for beta in lambdas]
    right.plot(lambdas, gains, color=REAL)
    right.axhline(math.log(2), color=FAINT, ls=":", lw=1)
    right.text(0.3, math.log(2), "staying: log 2", va="bottom", fontsize=6)
    right.set(title="opponent ≠ data", xlabel="λ, policy at the data")
    return figure


@style()
def updates(opponent: Tensor, data: Tensor, betas: Sequence[float]) -> Figure:
    """Theorem 5.4: the next policy for several lambda, by the law (bars) and by optimisation (crosses)."""
    rows = math.ceil(len(betas) / 2)
    figure = new_figure(0.45 + 1.35 * rows)
    panels = np.atleast_1d(figure.subplots(rows, min(2, len(betas)), sharey=True)).ravel()
    for axes, beta in zip(panels, betas, strict=False):
        law = theory.update_law(opponent, data, beta=beta)
        found = theory.best_response(opponent, data, beta=beta).exp().numpy()
        _bars(axes, opponent, law, data, ("opponent", "next policy, by the law"))
        axes.plot(np.arange(len(data)), found, "x", color=INK, ms=4, mew=0.8, label="next policy, by optimisation")
        axes.set_title(f"λ = {beta:.3g}")
    for axes in panels[len(betas) :]:
        axes.set_visible(False)
    for axes in panels[:: min(2, len(betas))]:
        axes.set_ylabel("probability")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@style()
def after(start: Tensor, data: Tensor, beta: float, iterations: int) -> Figure:
    """The policy after some exact iterations, 0 or more, between where it started and the data."""
    policy = theory.iterate(start, data, beta=beta, iterations=iterations)[-1]
    figure = new_figure(1.9)
    axes = figure.subplots()
    _bars(axes, start, policy, data, ("start", "policy"))
    distance = float(theory.divergence(data, policy))
    axes.set_title(f"λ = {beta:.3g}, after {iterations} iterations: KL(data ‖ policy) = {distance:.2g} nats")
    axes.set(ylabel="probability", ylim=(0, 1))
    axes.legend(ncols=3, loc="upper right")
    return figure


@style()
def distances(start: Tensor, data: Tensor, betas: Sequence[float], iterations: int = 6) -> Figure:
    """The gap to the data over exact iterations: times |1 - 1/lambda| each, so it shrinks above 1/2 only."""
    floor = 1e-4
    figure = new_figure(2.3)
    axes = figure.subplots()
    for beta, shade, dash in zip(betas, cycle(_SHADES), cycle(_DASHES), strict=False):
        gaps = theory.gap(theory.iterate(start, data, beta=beta, iterations=iterations), data).clamp(min=floor)
        axes.plot(range(iterations + 1), gaps, color=shade, ls=dash, marker="o", ms=3)
        factor = abs(1 - 1 / beta)
        shown = 1 if factor == 0 else int((gaps <= 90).sum()) - 1
        text = f"λ = {beta:g}: " + (f"× {factor:.3g}" if factor else "exact in one step")
        place = (5, -2) if factor else (5, 4)
        axes.annotate(text, (shown, gaps[shown]), place, textcoords="offset points", fontsize=6, color=shade)
    axes.set(yscale="log", ylim=(floor / 1.6, 1000), ylabel="range of log p/p_data (nats)")
    axes.yaxis.set_major_formatter("{x:g}")  # the usual one writes mathematics, which is off
    axes.set(xlim=(-0.2, iterations + 2.5), xticks=range(iterations + 1), xlabel="iteration")
    footnote(figure, f"Gaps below {floor:g}, and those of 0, are drawn at {floor:g}.")
    return figure


@style()
def early_stopping(opponent: Tensor, data: Tensor, betas: Sequence[float]) -> Figure:
    """Gradient descent inside one iteration: the loss falls to log 2 - JSD, the policy meets the data or passes it.

    The loss depends on the policy through f = lambda log p/p_t alone. With a learning rate proportional to
    1/lambda^2 the descent in f, and so the upper panel, is the same for every lambda, while the policy
    p_t exp(f/lambda) goes further the smaller lambda is.
    """
    bound = math.log(2) - float(theory.pair_divergence(opponent, data))
    floor, steps = 1e-5, 1000
    figure = new_figure(3.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    path = theory.descend(opponent, data, beta=1.0, steps=steps, learning_rate=0.2)
    for beta, shade, dash in zip(betas, cycle(_SHADES), cycle(_DASHES), strict=False):
        policies = (opponent + (path - opponent) / beta).log_softmax(-1)
        distance = theory.divergence(data, policies)
        bottom.plot(range(1, steps + 1), distance[1:], color=shade, ls=dash, label=f"λ = {beta:g}")
    values = [float(theory.population_loss(policy, opponent, data, beta=1.0)) for policy in path]
    top.plot(range(1, steps + 1), values[1:], color=INK)
    top.axhline(bound, color=FAINT, ls=":", lw=1)
    top.text(1, bound, "log 2 − JSD", va="bottom", fontsize=6)
    top.set(ylabel="loss (nats)", title="the same for every λ")
    bottom.set(xscale="log", yscale="log", xlabel="gradient step", ylabel="KL(data ‖ policy) (nats)")
    bottom.set_ylim(bottom=floor)
    for axis in (bottom.xaxis, bottom.yaxis):
        axis.set_major_formatter("{x:g}")
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside upper center", ncols=4, columnspacing=1.2)
    return figure


def _bars(axes: Axes, before: Tensor, now: Tensor, data: Tensor, names: tuple[str, str]) -> None:
    """Three log-distributions side by side, answer by answer."""
    answers = np.arange(len(data))
    axes.bar(answers - 0.27, before.exp().numpy(), 0.27, color=COLOURS["sft"], label=names[0])
    axes.bar(answers, now.exp().numpy(), 0.27, color=REAL, label=names[1])
    axes.bar(answers + 0.27, data.exp().numpy(), 0.27, fc="white", ec=GENERATED, lw=0.9, label="data")
    axes.set_xticks(answers, [f"$y_{i + 1}$" for i in answers], parse_math=True)
