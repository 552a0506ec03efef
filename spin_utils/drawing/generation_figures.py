"""Pictures of what the models answer: an example, a radar of tasks, and how self-play converges.

Figures 1 and 6 of the paper have no numbers, so only ours are shown. The convergence figure is not in the paper.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spin_utils.drawing import footnotes
from spin_utils.drawing.figures import estimates
from spin_utils.drawing.style import (
    COLOURS,
    FAINT,
    REAL,
    colour,
    drawable,
    footnote,
    new_figure,
    ours_of,
    say_why_empty,
    style,
)
from spin_utils.drawing.tables import benchmarks
from spin_utils.paper import published
from spin_utils.paper.generations import MODELS, RULE, example, mean_grade
from spin_utils.paper.statistics import Estimate, StatisticsError
from spin_utils.settings.machine import CATEGORIES
from spin_utils.settings.names import label

_TICKS = ("SFT", "iter. 0", "iter. 1", "iter. 2")

MARKERS = dict(zip(MODELS, "osD^", strict=True))
"""Marker of each model in Figure 6."""

_WIDTH = 64
"""Characters of a line of the example."""

_LINES = 14
"""Lines shown of each text in the example; a longer text is cut, with a note."""


@style()
def figure1(generations: pd.DataFrame) -> Figure:
    """Figure 1: a prompt, its real response, and the generations before and after iteration 0.

    Args:
        generations: From `results.load_generations`.
    """
    shown = example(generations, MODELS[:2])
    if shown is None:
        figure = new_figure(1.2)
        say_why_empty(figure.subplots(), "no generations of these models")
        return figure
    answers = {model: row["generated"] for model, row in shown.by_model.items()}
    boxes = [
        ("Prompt", shown.prompt, FAINT),
        ("Ground truth (chosen)", shown.real, REAL),
        ("SFT's generation (rejected at iteration 0)", answers.get("sft", "not run"), COLOURS["sft"]),
        ("Generation after iteration 0", answers.get("spin-0", "not run"), COLOURS["spin-0"]),
    ]
    texts = [_wrapped(text) for _, text, _ in boxes]
    rows = sum(len(lines) + 1.9 for lines in texts)
    figure = new_figure(0.118 * rows + 0.55)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(rows, 0)
    top = 0.0
    for (title, _, tint), lines in zip(boxes, texts, strict=True):
        bottom = top + len(lines) + 1.5
        axes.add_patch(Rectangle((0, top), 1, bottom - top, fc="#f4f4f4", lw=0))
        axes.add_patch(Rectangle((0, top), 0.012, bottom - top, fc=tint, lw=0))
        axes.text(0.03, top + 0.75, title, va="center", fontsize=6.5, fontweight="bold")
        for place, line in enumerate(lines):
            axes.text(0.03, top + 1.75 + place, line, va="center", fontsize=6.5)
        top = bottom + 0.4
    footnote(figure, f"Prompt {shown.id}, training seed {shown.seed}. {RULE}")
    return figure


@style()
def figure6(
    scores: pd.DataFrame, transfer: pd.DataFrame, grades: pd.DataFrame | None = None, *, profile: str = ""
) -> Figure:
    """Figure 6: a radar of the eight categories of MT-Bench, or of our tasks if there are no grades.

    Args:
        scores: From `draw.scores`.
        transfer: The same of tasks that nothing was trained on.
        grades: From `results.load_mt_bench`.
        profile: Named in the title.
    """
    if grades is not None and not grades.empty:
        return _figure6_of_grades(grades, profile)
    own, harder = benchmarks(scores), benchmarks(transfer)
    shown = [table[table["model"].isin(MODELS)] for table in (scores, transfer)]
    together = pd.concat([table for table in shown if not table.empty] or shown[:1])
    means = 100 * together.groupby(["model", "task"])["score"].mean().unstack()
    means = means.reindex(index=list(MODELS), columns=[*own, *harder])
    figure = new_figure(3.8)
    if means.shape[1] < 3 or together.empty:
        say_why_empty(figure.subplots(), "a radar needs the evaluations of three tasks")
        return figure
    starred = [_name(task) + "*" * (harder.get(task, task) != task) for task in means]
    _radar(figure, 111, starred, (25, 50, 75, 100), means)
    figure.legend(loc="outside upper center", ncols=2, title=f"{ours_of(profile)}, points", title_fontsize=7)
    note = {"scores": shown[0], "transfer": shown[1], "models": MODELS, "harder": harder, "absent": _absent(means)}
    note |= {"own": published.other_tasks(own), "starred": published.other_tasks(harder)}
    footnote(figure, footnotes.note("radar", **note))
    return figure


@style()
def _figure6_of_grades(grades: pd.DataFrame, profile: str) -> Figure:
    """Mean grade of each category, SFT and iterations 0 to 2, with intervals below the radar."""
    grades = grades[grades["model"].isin(MODELS)]
    found: dict[tuple[str, str], Estimate] = {}
    for model, category in itertools.product(MODELS, CATEGORIES):
        with suppress(StatisticsError):  # named in the footnote
            found[model, category] = mean_grade(grades, {model: 1.0}, category=category)
    means = pd.DataFrame(index=list(MODELS), columns=list(CATEGORIES), dtype=float)
    for place, e in found.items():
        means.loc[place] = e.difference
    if grades.empty:
        figure = new_figure(1.9)
        say_why_empty(figure.subplots(), "no grades of SFT and iterations 0 to 2")
        return figure
    figure = new_figure(6.6)
    grid = figure.add_gridspec(2, 1)
    names = [category.upper() if category == "stem" else category.capitalize() for category in CATEGORIES]
    _radar(figure, grid[0], names, (2, 4, 6, 8, 10), means)
    rows = figure.add_subplot(grid[1])
    for (model, category), e in found.items():
        y = CATEGORIES.index(category) + 0.17 * (MODELS.index(model) - 1.5)
        rows.plot([e.low, e.high], [y, y], color=colour(model), lw=0.9)
        rows.plot([e.difference], [y], MARKERS[model], color=colour(model), ms=3)
    rows.set_yticks(range(len(names)), names)
    rows.set_ylim(len(CATEGORIES) - 0.5, -0.5)
    rows.set_xlim(0.8, 10.2)
    rows.set_xticks(range(1, 11))
    rows.set_xlabel("grade, with 95 % interval")
    rows.tick_params(axis="y", length=0)
    rows.hlines(np.arange(0.5, len(CATEGORIES) - 1), 0.8, 10.2, color="#e5e5e5", lw=0.5, zorder=0)
    figure.legend(loc="outside upper center", ncols=2, title=f"{ours_of(profile)}: MT-Bench", title_fontsize=7)
    footnote(figure, footnotes.note("grades", grades=grades, missing=_absent(means)))
    return figure


def _radar(figure: Figure, place: Any, names: Sequence[str], ticks: Sequence[int], means: pd.DataFrame) -> None:
    """A round panel with an axis for each name, clockwise from the top, and a closed line for each model.

    Args:
        figure: that the panel is added to.
        place: in the figure, as `add_subplot` takes it.
        names: of the axes.
        ticks: rings that are drawn and labelled; the last is the rim.
        means: a row for each model, a column for each axis.
    """
    axes: Any = figure.add_subplot(place, projection="polar")
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    axes.set_xticks(angles, names, fontsize=6)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = np.sin(angle)
        text.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=-1)
    axes.set_ylim(0, ticks[-1])
    axes.set_yticks(ticks, [""] * len(ticks))
    ground: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
    for ring in ticks:  # above the lines that will cross them
        word = axes.text(np.pi / len(names), ring, str(ring), fontsize=5.5, color="#5c5c5c", bbox=ground, zorder=5)
        word.set(ha="center", va="center")
    axes.grid(color="#d9d9d9", lw=0.4)
    axes.spines["polar"].set(color=FAINT, lw=0.6)
    for model, row in means.dropna(how="all").iterrows():
        line = MARKERS[str(model)] + (":" if model == "sft" else "-")
        axes.plot(
            [*angles, angles[0]], [*row, row.iloc[0]], line, color=colour(str(model)), ms=3, label=label(str(model))
        )


def _absent(means: pd.DataFrame) -> list[str]:
    """Models without any mean, and the single means that are missing."""
    kept = means.dropna(how="all")
    single = [f"{label(str(model))} on {name}" for model, row in kept.iterrows() for name in row.index[row.isna()]]
    return footnotes.missing(MODELS, kept.index) + single


@style()
def convergence(measured: pd.DataFrame, bounds: pd.DataFrame) -> Figure:
    """How far each opponent is from the data: JSD, identical responses, length and similarity.

    Args:
        measured: From `generations.measures`.
        bounds: From `generations.jsd_bounds`.
    """
    surprising = not bounds.empty and bool(bounds["generated_surprise"].notna().any())
    panels = [
        ("JSD, lower bound (nats)", bounds, "jsd_bound", 1),
        ("identical to real (%)", measured, "identical", 100),
        ("mean length (tokens)", measured, "generated_tokens", 1),
        ("similarity to real", measured, "similarity", 1),
    ]
    if surprising:
        panels.append(("surprise (nats per token)", bounds, "generated_surprise", 1))
        panels.append(("distinct word pairs (%)", measured, "distinct", 100))
    figure = new_figure(6.2 if surprising else 4.3)
    jsd, _, length, _, *further = every = figure.subplots(len(panels) // 2, 2).ravel()
    for axes, (title, table, column, factor) in zip(every, panels, strict=True):
        _panel(axes, table, column, "no held-out pairs" if table is bounds else "no generations", factor=factor)
        axes.set_title(title)
    if surprising:
        further[0].axhline(bounds["real_surprise"].mean(), color=REAL, ls=":", lw=1.2)
    if not bounds.empty:
        jsd.axhline(0, color=FAINT, lw=0.6, zorder=0)
    if not measured.empty:
        real = measured[measured["model"] == measured["model"].iloc[0]].groupby("task")["real_tokens"].mean().mean()
        length.axhline(real, color=REAL, ls=":", lw=1.2)
        length.annotate("real", (3, real), (4, 2), textcoords="offset points", fontsize=6, color=REAL)
    note = {"measured": measured, "bounds": bounds, "models": MODELS, "surprising": surprising}
    note["no_generations"] = [] if measured.empty else footnotes.missing(MODELS, measured["model"])
    note["no_pairs"] = [] if bounds.empty else footnotes.missing(MODELS, bounds["model"])
    footnote(figure, footnotes.note("convergence", **note))
    return figure


def _panel(axes: Axes, table: pd.DataFrame, column: str, reason: str, *, factor: float = 1) -> None:
    """One measure by opponent, with intervals; without data, the reason."""
    found = estimates(table, MODELS, column=column, factor=factor)
    if not found:
        say_why_empty(axes, reason)
        return
    nothing = (np.nan,) * 3  # breaks the line
    rows = [(e.difference, e.low, e.high) if (e := found.get(model)) else nothing for model in MODELS]
    values, low, high = map(np.array, zip(*rows, strict=True))
    axes.errorbar(range(4), values, [values - low, high - values], color=COLOURS["spin-2"], marker="o", elinewidth=0.9)
    axes.set_xlim(-0.35, 3.45)
    axes.set_xticks(range(4), _TICKS, fontsize=6)
    axes.margins(y=0.15)


def _wrapped(text: str) -> list[str]:
    """Lines of a text, cut after `_LINES`."""
    lines = [drawable(line) for part in text.splitlines() for line in (textwrap.wrap(part, _WIDTH) or [""])] or [""]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], "… (cut here; whole in the results)"]


def _name(task: str) -> str:
    return textwrap.fill(drawable(task.replace("_", " ")), 12, break_long_words=False)
