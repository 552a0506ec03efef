"""Pictures of what the models answer: an example, a radar of tasks, and how self-play converges.

Figures 1 and 6 of the paper have no numbers, so only ours are shown. The convergence figure is not in the paper.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

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
    radar_axes,
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


def figure1(generations: pd.DataFrame) -> Figure:
    """Figure 1: a prompt, its real response, and the generations before and after iteration 0.

    Args:
        generations: From `results.load_generations`.
    """
    with style():
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
        return figure6_mt_bench(grades, profile=profile)
    own, harder = benchmarks(scores), benchmarks(transfer)
    together = pd.concat([frame for frame in (scores, transfer) if not frame.empty] or [scores])
    tasks = [*own, *harder]
    means = together.groupby(["model", "task"])["score"].mean() * 100
    absent = []
    with style():
        figure = new_figure(3.8)
        if len(tasks) < 3 or not set(MODELS) & set(together["model"]):
            say_why_empty(figure.subplots(), "a radar needs the evaluations of three tasks")
            return figure
        names = [_name(task) + ("*" if harder.get(task, task) != task else "") for task in tasks]
        axes, angles = radar_axes(figure, 111, names, (25, 50, 75, 100))
        for model in MODELS:
            values = np.array([means.get((model, task), np.nan) for task in tasks], dtype=float)
            if np.isnan(values).all():
                absent.append(label(model))
                continue
            absent += [f"{label(model)} on {task}" for task, value in zip(tasks, values, strict=True) if value != value]
            tint, dashes = colour(model), ":" if model == "sft" else "-"
            line = np.append(values, values[0])
            axes.plot(angles, line, MARKERS[model] + dashes, color=tint, ms=3, label=label(model))
        figure.legend(loc="outside upper center", ncols=2, title=f"{ours_of(profile)}, points", title_fontsize=7)
        footnote(figure, f"{_radar_note(own, harder, absent)} {_radar_seeds(scores, transfer)}")
    return figure


def figure6_mt_bench(grades: pd.DataFrame, *, profile: str = "") -> Figure:
    """Figure 6: mean grade of each category, SFT and iterations 0 to 2.

    Args:
        grades: From `results.load_mt_bench`, not empty.
        profile: Named in the title.
    """
    grades = grades[grades["model"].isin(MODELS)]
    if grades.empty:
        with style():
            figure = new_figure(1.9)
            say_why_empty(figure.subplots(), "no grades of SFT and iterations 0 to 2")
        return figure
    found = {(model, category): _grade(grades, model, category) for model in MODELS for category in CATEGORIES}
    with style():
        figure = new_figure(6.6)
        grid = figure.add_gridspec(2, 1)
        names = [category.upper() if category == "stem" else category.capitalize() for category in CATEGORIES]
        radar, angles = radar_axes(figure, grid[0], names, (2, 4, 6, 8, 10))
        rows = figure.add_subplot(grid[1])
        for place, model in enumerate(MODELS):
            row_of = [found[model, category] for category in CATEGORIES]
            means = [np.nan if e is None else e.difference for e in row_of]
            tint, line = colour(model), MARKERS[model] + (":" if model == "sft" else "-")
            if any(row_of):
                radar.plot(angles, [*means, means[0]], line, color=tint, ms=3, label=label(model))
            for row, e in enumerate(row_of):
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
        figure.legend(loc="outside upper center", ncols=2, title=f"{ours_of(profile)}: MT-Bench", title_fontsize=7)
        footnote(figure, _grades_note(grades, found))
    return figure


def convergence(measured: pd.DataFrame, bounds: pd.DataFrame) -> Figure:
    """How far each opponent is from the data: JSD, identical responses, length and similarity.

    Args:
        measured: From `generations.measures`.
        bounds: From `generations.jsd_bounds`.
    """
    with style():
        surprising = not bounds.empty and bool(bounds["generated_surprise"].notna().any())
        figure = new_figure(6.2 if surprising else 4.3)
        (jsd, same), (length, near), *rest = figure.subplots(3 if surprising else 2, 2)
        _panel(jsd, bounds, "jsd_bound", "no held-out pairs")
        _panel(same, measured, "identical", "no generations", factor=100)
        _panel(length, measured, "generated_tokens", "no generations")
        _panel(near, measured, "similarity", "no generations")
        jsd.set_title("JSD, lower bound (nats)")
        same.set_title("identical to real (%)")
        length.set_title("mean length (tokens)")
        near.set_title("similarity to real")
        for surprise, varied in rest:
            _panel(surprise, bounds, "generated_surprise", "no held-out pairs")
            surprise.axhline(bounds["real_surprise"].mean(), color=REAL, ls=":", lw=1.2)
            surprise.set_title("surprise (nats per token)")
            _panel(varied, measured, "distinct", "no generations", factor=100)
            varied.set_title("distinct word pairs (%)")
        if not bounds.empty:
            jsd.axhline(0, color=FAINT, lw=0.6, zorder=0)
        if not measured.empty:
            real = measured[measured["model"] == measured["model"].iloc[0]].groupby("task")["real_tokens"].mean().mean()
            length.axhline(real, color=REAL, ls=":", lw=1.2)
            length.annotate("real", (3, real), (4, 2), textcoords="offset points", fontsize=6, color=REAL)
        footnote(figure, _convergence_note(measured, bounds))
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


def _convergence_note(measured: pd.DataFrame, bounds: pd.DataFrame) -> str:
    """What each panel shows, what its intervals cover, and what is missing."""
    pairs = footnotes.intervals(bounds, MODELS, unit="held-out pairs")
    prompts = footnotes.intervals(measured, MODELS, unit="prompts", group="family")
    sentences = [
        "JSD: Jensen-Shannon divergence of data and model. Its lower bound is log\u00a02\u00a0−\u00a0loss (Lemma "
        "C.2) on newly sampled held-out pairs, along the direction that the next iteration learnt, scaled by "
        "cross-validation. It is only as tight as that direction allows: a falling bound "
        "does not prove a falling JSD, and one below 0 tells us nothing.",
        pairs and f"{pairs}. They treat the fitted scale as fixed, so they leave out the uncertainty of the fit.",
        "Other panels: responses to SPIN's prompts, sampled at temperature 1.",
        "Surprise: -log p under the base model, on held-out prompts; dotted: the real responses."
        if not bounds.empty and bounds["generated_surprise"].notna().any()
        else "",
        prompts and f"{prompts}. Axes may not start at 0.",
    ]
    for table, name in ((measured, "generations of"), (bounds, "held-out pairs against")):
        missing = [label(model) for model in MODELS if model not in set(table["model"])]
        sentences.append(f"No {name} {', '.join(missing)}." if missing and not table.empty else "")
        sentences.append(footnotes.fewer_seeds(table, MODELS))
    return " ".join(filter(None, dict.fromkeys(sentences)))


def _radar_note(measured: Mapping[str, str], transfer: Mapping[str, str], absent: list[str]) -> str:
    own = published.other_tasks(measured)
    note = (
        "The paper's radar shows the eight categories of MT-Bench and prints no numbers to compare with. "
        f"Ours shows {'the tasks of this profile' if own else 'other benchmarks of the paper'}. "
        "Intervals are in Tables 4 and 6."
    )
    if not transfer:
        note += " Tasks of Table 6: not run."
    elif published.other_tasks(transfer):
        note += " * tasks that no model was trained on, from Table 6."
    return note + (f" Not run: {'; '.join(absent)}." if absent else "")


def _radar_seeds(scores: pd.DataFrame, transfer: pd.DataFrame) -> str:
    """How many training seeds the means are over, and which models have fewer."""
    tables = [frame[frame["model"].isin(MODELS)] for frame in (scores, transfer)]
    seeds = len({seed for frame in tables for seed in frame["seed"]})
    sentences = [
        f"Means over {seeds} training seeds." if seeds > 1 else "One training seed.",
        *(footnotes.fewer_seeds(frame, MODELS) for frame in tables),
    ]
    return " ".join(filter(None, dict.fromkeys(sentences)))


def _grade(grades: pd.DataFrame, model: str, category: str) -> Estimate | None:
    try:
        return mean_grade(grades, {model: 1.0}, category=category)
    except StatisticsError:
        return None  # named in the footnote


def _grades_note(grades: pd.DataFrame, found: dict[tuple[str, str], Estimate | None]) -> str:
    missing = [label(model) for model in MODELS if model not in set(grades["model"])]
    missing += [
        f"{label(model)} on {category}"
        for (model, category), estimate in found.items()
        if estimate is None and label(model) not in missing
    ]
    note = f"{footnotes.grading(grades)} The paper's radar shows the same categories and prints no numbers."
    return note + (f" Not run: {'; '.join(missing)}." if missing else "")


def _wrapped(text: str) -> list[str]:
    """Lines of a text, cut after `_LINES`."""
    lines = [drawable(line) for part in text.splitlines() for line in (textwrap.wrap(part, _WIDTH) or [""])] or [""]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], "… (cut here; whole in the results)"]


def _name(task: str) -> str:
    return textwrap.fill(drawable(task.replace("_", " ")), 12, break_long_words=False)
