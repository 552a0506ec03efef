"""Pictures of training that the paper does not have: loss, rewards and margin, and when an iteration of SPIN helps.

`loss` is the function l of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from spin_utils.drawing import footnotes
from spin_utils.drawing.style import FAINT, GENERATED, INK, REAL, colour, footnote, new_figure, say_why_empty, style
from spin_utils.settings.names import iterates, label, main_chain
from spin_utils.settings.run import Loss

PANELS = {
    "accuracy": "Real and generated told apart (%)",
    "drift_real": "Real answers, change in log p (nats)",
    "sampled": "Sampled answers, over SFT (points)",
    "sampled_over_sft": "Sampled answers, over as much SFT",
    "greedy": "Greedy answers, over SFT (points)",
    "greedy_over_sft": "Greedy answers, over as much SFT",
}
CRITICAL_BETA = 0.5
"""Below it an exact iteration overshoots the data: the gap is multiplied by |1 - 1/beta| > 1 (Theorem 5.4)."""
_GAP = "—"
"""In a cell of the map that has no value."""


@style()
def training_curves(training: pd.DataFrame, models: Sequence[str] = (), *, loss: Loss = "logistic") -> Figure:
    """Loss, rewards and margin over the steps of all iterations, one after another.

    Thin lines are training seeds, thick ones the running mean of their mean over a tenth of an iteration.
    Every iteration starts at loss l(0), log 2 for the logistic one, and reward 0: there the policy is its own opponent.

    By default `models`, which are drawn in order, are the paper's iterations and those after them.
    """
    models = models or list(dict.fromkeys([*main_chain(4)[1:], *iterates(training["model"].unique())]))
    present = [model for model in models if (training["model"] == model).any()]
    figure = new_figure(4.2)
    losses, rewards, margin = panels = figure.subplots(3, 1, sharex=True)
    if not present:
        for axes in panels:
            say_why_empty(axes, "not run\nno training records")
        return figure
    total = training[training["model"].isin(present)].groupby("model")["step"].max().sum()
    start = 0.0
    for model in present:
        rows = training[training["model"] == model]
        end = start + float(rows["step"].max())
        curve(losses, rows, "loss", start, colour(model))
        curve(rewards, rows, "rewards_real", start, REAL)
        curve(rewards, rows, "rewards_generated", start, GENERATED, dashes="--")
        curve(margin, rows, "margin", start, colour(model))
        word = "iter." if end - start > total / 8 else ""  # a short one has room for its number only
        name = label(model).replace("SPIN iteration", word).strip()
        losses.text((start + end) / 2, 1.02, name, transform=losses.get_xaxis_transform(), ha="center", fontsize=6.5)
        for axes in panels:
            axes.axvline(end, color=FAINT, lw=0.4, zorder=0)
        start = end
    _mark_start(losses, loss)
    for axes in (rewards, margin):
        axes.axhline(0, color=FAINT, lw=0.6, zorder=0)
    rewards.margins(y=0.2)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    rewards.text(0.01, 0.9, "real", color=REAL, transform=rewards.transAxes, bbox=ground)
    rewards.text(0.01, 0.05, "generated (dashed)", color=GENERATED, transform=rewards.transAxes, bbox=ground)
    for axes, quantity in zip(panels, ("loss", "reward", "margin"), strict=True):
        axes.set_ylabel(f"{quantity} (nats)")
    margin.set(xlabel="optimizer step", xlim=(0, start))
    missing = footnotes.missing(models, present)
    footnote(figure, footnotes.note("training", training=training, models=present, missing=missing))
    return figure


@style()
def loss_curve(training: pd.DataFrame, title: str = "", *, loss: Loss = "logistic") -> Figure:
    """Loss of one run by step, thin as logged and thick as a running mean over a tenth of the run.

    With a column `margin` it is a loss of pairs, which starts at l(0), without it that of SFT, in nats per response
    token.
    """
    pairs = "margin" in training
    figure = new_figure(1.9)
    axes = figure.subplots()
    curve(axes, training.assign(seed=0), "loss", 0, REAL)
    if pairs:
        _mark_start(axes, loss)
    axes.set(title=title, xlabel="optimizer step", ylabel="loss (nats)" if pairs else "loss (nats per token)")
    axes.set_ylim(bottom=min(0, training["loss"].min()))  # l = 1 - t has no floor
    return figure


@style()
def response_lengths(pairs: pd.DataFrame) -> Figure:
    """How long real and generated responses are; `pairs` has a row per pair: `real_tokens`, `generated_tokens`."""
    longest = int(pairs[["real_tokens", "generated_tokens"]].to_numpy().max(initial=1))
    width = max(1, longest // 40)
    edges = [0.5 + width * number for number in range(longest // width + 2)]
    figure = new_figure(1.9)
    axes = figure.subplots()
    real, generated = (f"{kind}, mean {pairs[f'{kind}_tokens'].mean():.1f}" for kind in ("real", "generated"))
    axes.hist(pairs["real_tokens"], edges, color=REAL, alpha=0.35, label=real)
    axes.hist(pairs["generated_tokens"], edges, color=GENERATED, histtype="step", lw=1.2, ls="--", label=generated)
    axes.set(xlabel="response length (tokens, end token included)", ylabel=f"pairs, of {len(pairs)}")
    axes.legend()
    return figure


@style()
def map_figure(summary: pd.DataFrame) -> Figure:
    """Draw the map, from `paper.map.summary`: each cell's value, in bold if its 95 % interval excludes no effect, and
    Theorem 5.4's line."""
    cells = summary[summary["kind"] == "spin"]
    betas, steps = sorted(cells["beta"].unique()), sorted(cells["steps"].unique())
    shown = {measure: title for measure, title in PANELS.items() if measure in cells}
    rows = -(-len(shown) // 2)
    figure = new_figure(1.8 * rows, 6.9)
    panels = figure.subplots(rows, 2, sharex=True, sharey=True).flat
    for axes, (measure, title) in zip(panels, shown.items(), strict=True):
        _map_panel(axes, cells, measure, betas, steps)
        axes.set_title(title)
    for axes in figure.axes[-2:]:
        axes.set_xticks(range(len(steps)), [f"{n}" for n in steps])
        axes.set_xlabel(f"optimizer steps at learning rate {cells['rate'].iloc[0]:g}")
    for axes in figure.axes[::2]:
        axes.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axes.set_ylabel("beta")
    gaps = any(text.get_text() == _GAP for axes in figure.axes for text in axes.texts)
    fewest, most = cells["seeds"].min(), cells["seeds"].max()
    seeds = f"{most} training seed{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} seeds"
    footnote(
        figure,
        f"{seeds}. Bold: the 95 % interval excludes no effect (50 % told apart, 0 points). Dashed: beta 1/2, "
        f"below which an exact iteration overshoots (Theorem 5.4).{f' {_GAP}: not run, or nothing to compare.' * gaps}",
    )
    return figure


def _mark_start(axes: Axes, loss: Loss) -> None:
    """A dotted line at l(0), labelled next to the panel, clear of the curves."""
    start, name = (math.log(2), "log 2") if loss == "logistic" else (1.0, "l(0) = 1")  # of all the others
    axes.axhline(start, color=FAINT, ls=":", lw=1)
    axes.annotate(name, (1, start), (2, 0), axes.get_yaxis_transform(), "offset points", va="center", fontsize=6)


def curve(axes: Axes, rows: pd.DataFrame, column: str, start: float, tint: str, *, dashes: str = "-") -> None:
    """Each seed thin, and the running mean of the mean over seeds thick."""
    by_seed = rows.pivot(index="step", columns="seed", values=column)
    for seed in by_seed:
        axes.plot(start + by_seed.index, by_seed[seed], color=tint, lw=0.4, alpha=0.45)
    smooth = by_seed.mean(axis=1).rolling(max(1, len(by_seed) // 10), center=True, min_periods=1).mean()
    axes.plot(start + smooth.index, smooth, color=tint, lw=1.3, ls=dashes)


def _map_panel(axes: Axes, cells: pd.DataFrame, measure: str, betas: list[float], steps: list[int]) -> None:
    """One measure: blue where SPIN does better than the neutral value, orange where worse."""
    neutral, factor = (50.0, 100.0) if measure == "accuracy" else (0.0, 1.0)
    grid = cells.pivot(index="beta", columns="steps", values=measure).reindex(index=betas, columns=steps) * factor
    reach = float(np.nanmax(np.abs(grid.to_numpy() - neutral))) or 1.0
    norm = TwoSlopeNorm(neutral, neutral - reach, neutral + reach)
    axes.imshow(grid.to_numpy(), origin="lower", aspect="auto", cmap="PuOr", norm=norm, alpha=0.55)
    for y, x in np.argwhere(grid.isna().to_numpy()):
        axes.text(x, y, _GAP, ha="center", va="center", color=INK)
    for row in cells.to_dict("records"):
        value = row[measure] * factor
        if np.isnan(value):
            continue
        low, high = (factor * row.get(f"{measure}_{end}", neutral / factor) for end in ("low", "high"))
        sure = not low <= neutral <= high
        text = f"{value:.0f}" if measure == "accuracy" else footnotes.minus(f"{value:+.1f}")
        axes.text(
            steps.index(row["steps"]), betas.index(row["beta"]), text, ha="center", va="center", color=INK,
            fontweight="bold" if sure else "normal",
        )  # fmt: skip
    below = [beta for beta in betas if beta < CRITICAL_BETA]
    if below and len(below) < len(betas):
        axes.axhline(len(below) - 0.5, color=INK, lw=0.8, ls="--")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
