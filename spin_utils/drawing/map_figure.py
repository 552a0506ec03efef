"""When does SPIN help? Beta by length of training, one panel per measure. Not in the paper."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from spin_utils.drawing.style import INK, footnote, new_figure, style

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


@style()
def map_figure(summary: pd.DataFrame) -> Figure:
    """Draw the map: each cell's value, in bold if its 95 % interval excludes no effect, and Theorem 5.4's line.

    Args:
        summary: from `paper.map.summary`.
    """
    cells = summary[summary["kind"] == "spin"]
    betas, steps = sorted(cells["beta"].unique()), sorted(cells["steps"].unique())
    shown = {measure: title for measure, title in PANELS.items() if measure in cells}
    rows = -(-len(shown) // 2)
    figure = new_figure(1.8 * rows, 6.9)
    panels = figure.subplots(rows, 2, sharex=True, sharey=True).flat
    for axes, (measure, title) in zip(panels, shown.items(), strict=True):
        _panel(axes, cells, measure, betas, steps)
        axes.set_title(title)
    for axes in figure.axes[-2:]:
        axes.set_xticks(range(len(steps)), [f"{n}" for n in steps])
        axes.set_xlabel(f"optimizer steps at learning rate {cells['rate'].iloc[0]:g}")
    for axes in figure.axes[::2]:
        axes.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axes.set_ylabel("beta")
    fewest, most = cells["seeds"].min(), cells["seeds"].max()
    seeds = f"{most} training seed{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} seeds"
    footnote(
        figure,
        f"{seeds}. Bold: the 95 % interval excludes no effect (50 % told apart, 0 points). Dashed: beta 1/2, "
        "below which an exact iteration overshoots (Theorem 5.4).",
    )
    return figure


def _panel(axes: Axes, cells: pd.DataFrame, measure: str, betas: list[float], steps: list[int]) -> None:
    """One measure: blue where SPIN does better than the neutral value, orange where worse."""
    neutral, factor = (50.0, 100.0) if measure == "accuracy" else (0.0, 1.0)
    grid = cells.pivot(index="beta", columns="steps", values=measure).reindex(index=betas, columns=steps) * factor
    reach = float(np.nanmax(np.abs(grid.to_numpy() - neutral))) or 1.0
    norm = TwoSlopeNorm(neutral, neutral - reach, neutral + reach)
    axes.imshow(grid.to_numpy(), origin="lower", aspect="auto", cmap="PuOr", norm=norm, alpha=0.55)
    for row in cells.to_dict("records"):
        value = row[measure] * factor
        if np.isnan(value):
            continue
        low, high = (factor * row.get(f"{measure}_{end}", neutral / factor) for end in ("low", "high"))
        sure = not low <= neutral <= high
        text = f"{value:.0f}" if measure == "accuracy" else f"{value:+.1f}".replace("-", "−")
        axes.text(
            steps.index(row["steps"]), betas.index(row["beta"]), text, ha="center", va="center", color=INK,
            fontweight="bold" if sure else "normal",
        )  # fmt: skip
    below = [beta for beta in betas if beta < CRITICAL_BETA]
    if below and len(below) < len(betas):
        axes.axhline(len(below) - 0.5, color=INK, lw=0.8, ls="--")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
