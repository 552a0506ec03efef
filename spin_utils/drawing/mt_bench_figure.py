"""Figure 6 from a judge's grades: MT-Bench by category, as the paper's radar and again with intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spin_utils.drawing.figure_style import colour, footnote, new_figure, radar_axes, say_why_empty, style
from spin_utils.drawing.generation_figures import MARKERS
from spin_utils.paper import mt_bench_scores
from spin_utils.paper.generations import MODELS
from spin_utils.paper.results import label
from spin_utils.paper.statistics import Estimate, StatisticsError
from spin_utils.settings.mt_bench import CATEGORIES


def figure6(grades: pd.DataFrame, *, profile: str = "paper", seed: int = 0) -> Figure:
    """Figure 6: mean grade of each category, SFT and iterations 0 to 2.

    Args:
        grades: From `results.load_mt_bench`, not empty.
        profile: Named in the title.
        seed: Seed of the bootstrap.
    """
    grades = grades[grades["model"].isin(MODELS)]
    if grades.empty:
        with style():
            figure = new_figure(1.9)
            say_why_empty(figure.subplots(), "no grades of SFT and iterations 0 to 2")
        return figure
    found = {(model, category): _estimate(grades, model, category, seed) for model in MODELS for category in CATEGORIES}
    with style():
        figure = new_figure(6.6)
        grid = figure.add_gridspec(2, 1)
        names = [category.upper() if category == "stem" else category.capitalize() for category in CATEGORIES]
        radar, angles = radar_axes(figure, grid[0], names, (2, 4, 6, 8, 10))
        rows = figure.add_subplot(grid[1])
        for place, model in enumerate(MODELS):
            estimates = [found[model, category] for category in CATEGORIES]
            means = [np.nan if e is None else e.difference for e in estimates]
            tint, line = colour(model), MARKERS[model] + (":" if model == "sft" else "-")
            if any(estimates):
                radar.plot(angles, [*means, means[0]], line, color=tint, ms=3, label=label(model))
            for row, e in enumerate(estimates):
                if e is not None:
                    y = row + 0.17 * (place - 1.5)
                    rows.plot([e.low, e.high], [y, y], color=tint, lw=0.9)
                    rows.plot([e.difference], [y], MARKERS[model], color=tint, ms=3)
        rows.set_yticks(range(len(names)), names)
        rows.set_ylim(len(CATEGORIES) - 0.5, -0.5)
        rows.set_xlim(0.8, 10.2)
        rows.set_xticks(range(1, 11))
        rows.set_xlabel("grade, with 95 % interval")
        rows.tick_params(axis="y", length=0)
        rows.hlines(np.arange(0.5, len(CATEGORIES) - 1), 0.8, 10.2, color="#e5e5e5", lw=0.5, zorder=0)
        figure.legend(loc="outside upper center", ncols=2, title=f"Ours ({profile}): MT-Bench", title_fontsize=7)
        footnote(figure, _note(grades, found))
    return figure


def _estimate(grades: pd.DataFrame, model: str, category: str, seed: int) -> Estimate | None:
    try:
        return mt_bench_scores.estimate(grades, {model: 1.0}, category=category, seed=seed)
    except StatisticsError:
        return None  # named in the footnote


def _note(grades: pd.DataFrame, found: dict[tuple[str, str], Estimate | None]) -> str:
    missing = [label(model) for model in MODELS if model not in set(grades["model"])]
    missing += [
        f"{label(model)} on {category}"
        for (model, category), estimate in found.items()
        if estimate is None and label(model) not in missing
    ]
    note = f"{mt_bench_scores.note(grades)} The paper's radar shows the same categories and prints no numbers."
    return note + (f" Not run: {'; '.join(missing)}." if missing else "")
