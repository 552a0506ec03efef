"""What averages hide: which items changed from right to wrong and back, and where two answers diverge."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spin_utils.drawing.style import FAINT, GENERATED, REAL, drawable, new_figure, say_why_empty, style
from spin_utils.settings.names import label

_WIDTH = 6.6
_SHADES = LinearSegmentedColormap.from_list("scores", ["#ede8e0", REAL], 101)


@style()
def turns(scores: pd.DataFrame) -> Figure:
    """Every item under every model, and how many became right or wrong from one model to the next.

    `scores` are from `Run.scores`: a row per (task, id), a column per model in order, scores from 0 to 1.
    """
    models = list(scores.columns)
    names = [label(model).replace("SPIN iteration", "iter.") for model in models]
    figure = new_figure(0.16 * len(models) + 2.1, _WIDTH)
    top, bottom = figure.subplots(2, 1, height_ratios=(0.16 * len(models) + 0.3, 1.3))
    ordered = _by_pattern(scores)
    top.imshow(ordered.T, aspect="auto", interpolation="nearest", vmin=0, vmax=1, cmap=_SHADES)
    top.set_yticks(range(len(models)), names)
    tasks = ordered.index.get_level_values("task")
    edges = [0, *(np.flatnonzero(tasks[1:] != tasks[:-1]) + 1), len(tasks)]
    for place in edges[1:-1]:
        top.axvline(place - 0.5, color="white", lw=2.5)
    middles = [(a + b - 1) / 2 for a, b in pairwise(edges)]
    top.set_xticks(middles, [drawable(str(tasks[edge]).replace("_", "\n")) for edge in edges[:-1]])
    top.tick_params(length=0)
    top.spines[:].set_visible(False)
    top.set_title(f"{len(ordered)} items by task: the bluer, the higher the score")
    if len(models) < 2:
        say_why_empty(bottom, "only one model is evaluated")
    else:
        _steps(bottom, scores, names)
    return figure


def _steps(axes: Axes, scores: pd.DataFrame, names: list[str]) -> None:
    change = np.sign(scores.diff(axis=1).iloc[:, 1:])
    right, wrong = (change > 0).sum().to_numpy(), (change < 0).sum().to_numpy()
    places = np.arange(len(right))
    axes.bar(places, right, 0.5, color=REAL)
    axes.bar(places, -wrong, 0.5, color=GENERATED, hatch="////", ec="white", lw=0)
    axes.axhline(0, color=FAINT, lw=0.6)
    for place, up, down in zip(places, right, wrong, strict=True):
        axes.annotate(f"{up} turned right", (place, up), (0, 2), textcoords="offset points", ha="center")
        axes.annotate(f"{down} turned wrong", (place, -down), (0, -8), textcoords="offset points", ha="center")
    axes.set_xticks(places, [f"{a} → {b}" for a, b in pairwise(names)])
    most = max(1, *right, *wrong)
    axes.set(xlim=(-0.6, max(2.4, len(right) - 0.4)), ylim=(-1.35 * most, 1.35 * most), ylabel="items")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")


@style()
def parting(pairs: pd.DataFrame) -> Figure:
    """Share of the real answer that the opponent writes too before the two diverge, by family; from `Run.pairs`."""
    families = sorted(pairs["family"].unique())
    share = pairs["shared_tokens"] / pairs["real_tokens"]
    figure = new_figure(0.3 * len(families) + 0.65)
    axes = figure.subplots()
    for place, family in enumerate(families):
        chosen = pairs["family"] == family
        shown = share[chosen & ~pairs["identical"]]
        jitter = np.linspace(-0.25, 0.25, len(shown))
        axes.plot(shown, place + jitter, "o", color=GENERATED, ms=2, alpha=0.6, mew=0)
        same = int(pairs.loc[chosen, "identical"].sum())
        axes.text(1.04, place, f"{same} of {int(chosen.sum())} identical", va="center", fontsize=6.5)
    axes.set_yticks(range(len(families)), [drawable(family.replace("_", " ")) for family in families])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(families) - 0.5, -0.5))
    axes.set_xlabel("share of the real answer before the two diverge")
    axes.tick_params(axis="y", length=0)
    return figure


def _by_pattern(scores: pd.DataFrame) -> pd.DataFrame:
    """Items of each task from those that are right most often; the same patterns side by side."""
    order = scores.assign(_mean=-scores.mean(axis=1))
    by = ["task", "_mean", *scores.columns]
    return order.sort_values(by, ascending=[True, True, *[False] * len(scores.columns)]).drop(columns="_mean")
