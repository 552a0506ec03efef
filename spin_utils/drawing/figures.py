"""The paper's figures, ours next to theirs: one function per figure, from data frames to a drawing.

Ours has 95 % intervals (over items and training seeds). The paper's points are its printed ones, or digitised where it
prints no numbers; Figures 1 and 6 have none. What was not run is named below the panels. `convergence` is not in the
paper.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from spin_utils.drawing import footnotes
from spin_utils.drawing.style import (
    COLOURS,
    FAINT,
    HATCHES,
    INK,
    REAL,
    colour,
    drawable,
    footnote,
    new_figure,
    say_why_empty,
    style,
)
from spin_utils.drawing.tables import benchmarks, contrast_of
from spin_utils.evaluation.instructions import NAME
from spin_utils.paper import published
from spin_utils.paper.claims import NOTHING
from spin_utils.paper.generations import MODELS, RULE, example, mean_grade
from spin_utils.paper.results import counted, judged
from spin_utils.paper.statistics import Estimate, StatisticsError, paired
from spin_utils.settings.machine import CATEGORIES
from spin_utils.settings.names import iterates, label, main_chain

CHAIN = main_chain(4)
_CHAIN_TICKS = ("SFT", "iter. 0", "iter. 1", "iter. 2", "iter. 3")
_BARS = ("sft", "dpo", *CHAIN[1:])
_MORE_SFT = ("sft-more-1", "sft-more-2")
_CUT = "Axes may not start at 0; panels of scores span the same number of points."
_EPOCHS = "Dotted: the mean after iteration 1 (interval in Table 4). The paper's points are digitised from its figure."
_SIZES = "Sizes are not to scale. The paper's SFT line is a different run from the one that SPIN starts from."
_OFFSET: dict[str, Any] = {"textcoords": "offset points"}
_HOLLOW: dict[str, Any] = {"linestyle": "--", "marker": "o", "markerfacecolor": "white", "markeredgewidth": 0.9}

_WIDTH = 64
"""Characters of a line of the example."""

_LINES = 14
"""Lines shown of each text in the example; a longer text is cut, with a note."""


@style()
def figure1(generations: pd.DataFrame) -> Figure:
    """Figure 1: a prompt, its real response, and the generations before and after iteration 0."""
    shown = example(generations, MODELS[:2])
    if shown.empty:
        figure = new_figure(1.2)
        say_why_empty(figure.subplots(), "not run\nno generations of these models")
        return figure
    prompt, answers = shown.iloc[0], shown["generated"]
    boxes = [
        ("Prompt", prompt["prompt"], FAINT),
        ("Ground truth (chosen)", prompt["real"], REAL),
        ("SFT's generation (rejected at iteration 0)", answers.get("sft", "not run"), COLOURS["sft"]),
        ("Generation after iteration 0", answers.get("spin-0", "not run"), COLOURS["spin-0"]),
    ]
    texts = [_wrapped(text) for _, text, _ in boxes]
    rows = sum(len(lines) + 1.9 for lines in texts)
    figure = new_figure(0.118 * rows + 0.55)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(rows, 0))
    top = 0.0
    for (title, _, tint), lines in zip(boxes, texts, strict=True):
        bottom = top + len(lines) + 1.5
        axes.add_patch(Rectangle((0, top), 1, bottom - top, fc="#f4f4f4", lw=0))
        axes.add_patch(Rectangle((0, top), 0.012, bottom - top, fc=tint, lw=0))
        axes.text(0.03, top + 0.75, title, va="center", fontsize=6.5, fontweight="bold")
        for place, line in enumerate(lines):
            axes.text(0.03, top + 1.75 + place, line, va="center", fontsize=6.5)
        top = bottom + 0.4
    footnote(figure, f"Prompt {prompt['id']}, training seed {prompt['seed']}. {RULE}")
    return figure


@style()
def figure2(scores: pd.DataFrame, *, profile: str) -> Figure:
    """Figure 2: average score by iteration, and as a control (Table 5) what further epochs of SFT gain."""
    tasks = judged(scores)
    found = _of_enough_seeds(estimates(scores, CHAIN, tasks))
    gains = estimates(scores, CHAIN[1:], tasks, over="sft")
    if "sft" in found:
        gains["sft"] = Estimate(0, 0, 0, 1, 0, 0, "itself")
    control = estimates(scores, _MORE_SFT, tasks, over="sft")
    printed = [published.score(model, "average") or 0.0 for model in CHAIN]
    figure = new_figure(3.4)
    grid = figure.add_gridspec(2, 2)
    ours, theirs, gain = (figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :]))
    _points(ours, range(5), CHAIN, found, COLOURS["spin-2"])
    theirs.plot(range(5), printed, color=INK, **_HOLLOW)
    _ends(ours, [found[model].difference if model in found else np.nan for model in CHAIN], 1)
    _ends(theirs, printed, 2)
    # Side by side, so that no point of theirs covers an interval of ours.
    _points(gain, np.arange(5) - 0.05, CHAIN, gains, COLOURS["spin-2"])
    gain.plot(np.arange(5) + 0.05, [value - printed[0] for value in printed], color=INK, zorder=4, **_HOLLOW)
    gain.axhline(0, color=FAINT, lw=0.6, zorder=1)
    _name_ends(gain, gains["spin-3"].difference if "spin-3" in gains else None, printed[4] - printed[0])
    if control:
        _points(gain, range(5, 5 + len(control)), list(control), control, COLOURS["sft-more"], "s")
        epoch = (published.score("sft-more-1", "average") or 0.0) - printed[0]
        gain.plot(5.1, epoch, color=COLOURS["sft-more"], zorder=4, **(_HOLLOW | {"marker": "s"}))
    ticks = {"xticks": range(5), "xticklabels": ("SFT", *"0123"), "xlabel": "iteration", "xlim": (-2.2, 5.9)}
    ours.set(
        title=f"Ours ({profile}): {len(tasks)} task{'s' * (len(tasks) != 1)}", ylabel="mean score (points)", **ticks
    )
    theirs.set(title="Paper: six benchmarks", **ticks)
    gain.set(title="Gain over SFT (ours: paired, on the same items)", ylabel="points")
    gain.set_xlim(-0.35, 4.55 + len(control))
    gain.set_xticks(range(5 + len(control)), [*_CHAIN_TICKS, *(f"SFT +{model[-1]}" for model in control)])
    gain.margins(y=0.15)
    _frame_panels(ours, theirs, bool(found), scores, tasks)
    after = [label(model) for model in iterates(scores["model"].unique()) if model not in CHAIN]
    further = f" In Table 4 only: {'; '.join(after)}." if after else ""
    further += " SFT +1, +2: after further epochs of SFT." if control else ""
    footnote(figure, _note(counted(scores), [*found, *control], [*CHAIN, *control], _CUT + further))
    return figure


@style()
def figure3(scores: pd.DataFrame, *, profile: str) -> Figure:
    """Figure 3: SFT, DPO and SPIN by benchmark, and on average."""
    measured = [(published.BENCHMARK_LABELS.get(name, task), [task]) for task, name in benchmarks(scores).items()]
    order = list(published.BENCHMARK_LABELS.values())
    measured.sort(key=lambda column: order.index(column[0]) if column[0] in order else len(order))
    columns = [*measured, ("Average", judged(scores))]
    printed = (*published.LEADERBOARD, "average")
    height = 0.8 / len(_BARS)
    everywhere: set[str] = set()
    figure = new_figure(5.4)
    ours, theirs = figure.subplots(1, 2)
    for row, (_, tasks) in enumerate(columns):
        found = estimates(scores, _BARS, tasks) if tasks else {}
        everywhere |= set(found)
        for place, model in enumerate(_BARS):
            y, look = row - 0.4 + (place + 0.5) * height, {"hatch": HATCHES.get(model)}
            if model in found:
                e = found[model]
                ours.barh(y, e.difference, height, color=colour(model), edgecolor="white", lw=0, **look)
                ours.plot([e.low, e.high], [y, y], color="white", lw=1.7)
                ours.plot([e.low, e.high], [y, y], color=INK, lw=0.7)
        if not found:
            ours.text(2, row, "not run", va="center", color=FAINT, fontsize=6)
    for (row, benchmark), (place, model) in itertools.product(enumerate(printed), enumerate(_BARS)):
        y, look = row - 0.4 + (place + 0.5) * height, {"hatch": HATCHES.get(model)}
        score = published.score(model, benchmark) or 0
        theirs.barh(y, score, height * 0.8, fc="white", ec=colour(model), lw=0.9, **look)
    names = [_named([name]).replace(" ", "\n", 1) for name, _ in columns]
    papers = [published.BENCHMARK_LABELS[name] for name in printed]
    for ax, title, shown in ((ours, f"Ours ({profile})", names), (theirs, "Paper", papers)):
        ax.set_yticks(range(len(shown)), shown)
        ax.set(title=title, xlabel="points", xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5))
        ax.tick_params(axis="y", length=0)
    patches = [Patch(fc=colour(model), hatch=HATCHES.get(model), ec="white", lw=0) for model in _BARS]
    models = [label(model).replace("SPIN iteration", "SPIN iter.") for model in _BARS]
    figure.legend(patches, models, loc="outside upper center", ncols=3, handlelength=1.2, columnspacing=1.2)
    reading = f"Gains, paired on the same items, are in Table 3. {footnotes.note('stands_aside', scores=scores)}"
    footnote(figure, _note(scores, everywhere, _BARS, reading))
    return figure


@style()
def figure4(scores: pd.DataFrame, *, profile: str) -> Figure:
    """Figure 4: more epochs of iteration 0 against iteration 1, on two benchmarks and on average."""
    models = ["sft", *(f"spin-0-epoch-{e}" for e in range(1, 6))]
    printed = published.numbers("figure4_epochs").set_index(["benchmark", "epoch"])
    scores, shared = _of_shared_seeds(scores, [*models, "spin-1"])
    note = ""
    figure = new_figure(4.9)
    for row, benchmark in enumerate(("arc", "truthfulqa", "average")):
        tasks = judged(scores)
        if benchmark != "average":  # the paper's own, else the first two of ours
            tasks = [task for task, name in benchmarks(scores).items() if name == benchmark] or tasks[row : row + 1]
        ours, theirs = (figure.add_subplot(3, 2, 2 * row + column) for column in (1, 2))
        found = _of_enough_seeds(estimates(scores, [*models, "spin-1"], tasks)) if tasks else {}
        _points(ours, range(6), models, found, COLOURS["spin-0"])
        theirs.plot(range(6), printed.loc[benchmark]["score"], color=INK, **_HOLLOW)
        _reference(theirs, float(printed.loc[benchmark]["reference"].iloc[0]), INK)
        if "spin-1" in found:
            _reference(ours, found["spin-1"].difference, COLOURS["spin-1"])
        name = published.BENCHMARK_LABELS[benchmark]
        title = f"{name if benchmark in ('average', *tasks) else _named(tasks)} (ours)" if tasks else ""
        ours.set(title=textwrap.fill(title, 24), ylabel="points")  # as long as half a column
        theirs.set_title(f"{name} (paper)")
        for ax in (ours, theirs):
            ax.set(xticks=range(6), xlabel="epoch of iteration 0" if row == 2 else "")
        _frame_panels(ours, theirs, bool(found), scores, tasks)
        note = _note(counted(scores), found, [*models, "spin-1"], f"{shared} {_CUT} {_EPOCHS}") or note
    footnote(figure, note)
    return figure


@style()
def figure5(scores: pd.DataFrame, *, profile: str) -> Figure:
    """Figure 5: prompts used by one epoch of SPIN against more epochs of SFT.

    The paper's sizes are categories: 14, 26 and 50 (thousand there, fiftieths of our prompts here), then one and two
    more epochs of SFT.
    """
    spin = ("sft", "spin-0-rows-14", "spin-0-rows-26", "spin-0-epoch-1")
    more = ("sft", *_MORE_SFT)
    tasks = judged(scores)
    scores, shared = _of_shared_seeds(scores, (*spin, *more[1:]))
    found = _of_enough_seeds(estimates(scores, (*spin, *more[1:]), tasks))
    sizes = published.numbers("figure5_training_size")
    figure = new_figure(3.9)
    ours, theirs = figure.subplots(2, 1)
    lines = (("SFT", more, (0, 4, 5), "sft-more", "s"), ("SPIN", spin, (0, 1, 2, 3), "spin-2", "o"))
    for method, models, places, tint, marker in lines:
        _points(ours, places, models, found, COLOURS[tint], marker)
        values = sizes[sizes["method"] == method]["average"].tolist()
        theirs.plot(places, values, color=COLOURS[tint], **(_HOLLOW | {"marker": marker}))
        for place, (x, value) in enumerate(zip(places, values, strict=True)):
            above = (method, place) not in (("SPIN", 0), ("SFT", 2))  # clear of the lines
            offset, align = ((0, 5), "center") if above else ((4, -9), "left")
            theirs.annotate(f"{value:.2f}", (x, value), offset, ha=align, fontsize=6, **_OFFSET)
        theirs.annotate(
            method, (places[-1], values[-1]), (5, 2) if method == "SFT" else (16, 5), color=COLOURS[tint], **_OFFSET
        )
        if models[-1] in found:
            end = found[models[-1]].difference
            beside = "sft-more-1" in found and method == "SPIN" and found["sft-more-1"].difference > end
            under = (5, -10) if beside else (5, 2)  # below the line of SFT, which passes above
            ours.annotate(method, (places[-1], end), under, color=COLOURS[tint], **_OFFSET)
    averaged = f"{len(tasks)} task{'s' * (len(tasks) != 1)}"
    ours.set(title=f"Ours ({profile}): mean of {averaged}", ylabel="points", xlim=(-0.4, 5.75))
    ours.set_xticks(range(6), ["0", "14/50", "26/50", "all", "+1 ep.", "+2 ep."])
    theirs.set(title="Paper: mean of the six leaderboard benchmarks", ylabel="points", xlim=(-0.4, 5.75))
    theirs.set_xticks(range(6), ["0", "14k", "26k", "50k", "200k", "400k"])
    theirs.set_xlabel("prompts seen by SPIN; further rows seen by SFT")
    _frame_panels(ours, theirs, bool(found), scores, tasks)
    footnote(figure, _note(counted(scores), found, (*spin, *more[1:]), f"{shared} {_CUT} {_SIZES}"))
    return figure


@style()
def figure6(
    scores: pd.DataFrame,
    transfer: pd.DataFrame,
    grades: pd.DataFrame = NOTHING,
    instructions: pd.DataFrame = NOTHING,
    *,
    profile: str,
) -> Figure:
    """Figure 6: a radar of the eight categories of MT-Bench; without grades, of kinds of instructions or our tasks."""
    if not grades.empty:
        title, ticks = ": MT-Bench", [2, 4, 6, 8, 10]
        shown = grades[grades["model"].isin(MODELS)]
        means = pd.DataFrame(index=list(MODELS), columns=list(CATEGORIES), dtype=float)
        for model, category in itertools.product(MODELS, CATEGORIES):
            with suppress(StatisticsError):  # named in the footnote
                means.loc[model, category] = mean_grade(grades, {model: 1.0}, category=category).difference
        names = [category.upper() if category == "stem" else category.capitalize() for category in CATEGORIES]
        note = footnotes.note("grades", grades=shown, missing=_absent(means)) if len(shown) else ""
    else:
        title, ticks = ", points", [25, 50, 75, 100]
        if not instructions.empty:
            scores, transfer, title = instructions, instructions.iloc[:0], f": {NAME}, points"
        own, harder = benchmarks(scores), benchmarks(transfer)
        scores, transfer = (table[table["model"].isin(MODELS)] for table in (scores, transfer))
        parts = [table for table in (scores, transfer) if not table.empty] or [scores]
        means = 100 * pd.concat(parts).groupby(["model", "task"])["score"].mean().unstack()
        means = means.reindex(index=list(MODELS), columns=[*own, *harder])
        names = [
            textwrap.fill(_named([task]), 12, break_long_words=False) + "*" * (harder.get(task, task) != task)
            for task in [*own, *harder]
        ]
        note = footnotes.note(
            "radar",
            instructions=not instructions.empty,
            scores=scores,
            transfer=transfer,
            models=MODELS,
            own=published.other_tasks(own),
            harder=harder,
            starred=published.other_tasks(harder),
            absent=_absent(means),
        )
    figure = new_figure(3.8)
    if len(names) < 3 or means.isna().all(axis=None):
        say_why_empty(figure.subplots(), "a radar needs the measurements of three tasks")
        return figure
    _radar(figure, names, ticks, means)
    figure.legend(loc="outside upper center", ncols=2, title=f"Ours ({profile}){title}", title_fontsize=7)
    footnote(figure, note)
    return figure


def _radar(figure: Figure, names: Sequence[str], ticks: Sequence[int], means: pd.DataFrame) -> None:
    """A round panel with an axis for each column of `means`, clockwise from the top, and a closed line for each row, a
    model. The last of the `ticks` is the rim."""
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    axes.set_xticks(angles, names, fontsize=6)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side, height = np.sin(angle), np.cos(angle)
        text.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
        text.set_verticalalignment("center" if abs(height) < 0.7 else "bottom" if height > 0 else "top")
    axes.tick_params(axis="x", pad=-3)
    axes.set_ylim(0, ticks[-1])
    axes.set_yticks(ticks, [""] * len(ticks))
    ground: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
    for ring in ticks:  # above the lines that will cross them
        word = axes.text(np.pi / len(names), ring, str(ring), fontsize=5.5, color="#5c5c5c", bbox=ground, zorder=5)
        word.set(ha="center", va="center")
    axes.grid(color="#d9d9d9", lw=0.4)
    axes.spines["polar"].set(color=FAINT, lw=0.6)
    for (model, row), marker in zip(means.iterrows(), "osD^", strict=True):
        if row.notna().any():
            look = {"linestyle": ":" if model == "sft" else "-", "color": colour(str(model)), "ms": 3}
            axes.plot([*angles, angles[0]], [*row, row.iloc[0]], marker=marker, label=label(str(model)), **look)


def _absent(means: pd.DataFrame) -> list[str]:
    """Models without any mean, and the single means that are missing."""
    kept = means.dropna(how="all")
    single = [f"{label(str(model))} on {name}" for model, row in kept.iterrows() for name in row.index[row.isna()]]
    return footnotes.missing(MODELS, kept.index) + single


@style()
def convergence(measured: pd.DataFrame, bounds: pd.DataFrame) -> Figure:
    """How far each opponent is from the data: JSD, identical responses, length and similarity."""
    surprising = bool(bounds["generated_surprise"].notna().any())
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
    found = _of_enough_seeds(estimates(table, MODELS, column=column, factor=factor))
    if not found:
        say_why_empty(axes, f"not run\n{reason}")
        return
    nothing = (np.nan,) * 3  # breaks the line
    rows = [(e.difference, e.low, e.high) if (e := found.get(model)) else nothing for model in MODELS]
    values, low, high = map(np.array, zip(*rows, strict=True))
    axes.errorbar(range(4), values, [values - low, high - values], color=COLOURS["spin-2"], marker="o", elinewidth=0.9)
    axes.set_xlim(-0.35, 3.45)
    axes.set_xticks(range(4), _CHAIN_TICKS[:4], fontsize=6)
    axes.margins(y=0.15)


def estimates(
    table: pd.DataFrame,
    models: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    over: str = "",
    column: str = "score",
    factor: float = 100,
) -> dict[str, Estimate]:
    """The mean of each model, times a factor, or its paired difference to another one, as `statistics.paired` has it.

    Models without a measurement are left out; a footnote names them.
    """
    found = {}
    for model in models:
        with suppress(StatisticsError):
            found[model] = paired(table, contrast_of(model, over), tasks=tasks, column=column).times(factor)
    return found


def _of_enough_seeds(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Without models that ran on fewer than half as many seeds as another: a line would join means over other seeds."""
    most = max((estimate.n_seeds for estimate in found.values()), default=0)
    return {model: estimate for model, estimate in found.items() if 2 * estimate.n_seeds >= most}


def _of_shared_seeds(scores: pd.DataFrame, models: Collection[str]) -> tuple[pd.DataFrame, str]:
    """The scores of the training seeds that all models of a figure have, apart from those on too few seeds to be drawn,
    and a sentence that names these seeds if they are not all: points over other seeds cannot be compared."""
    seeds = [set(rows["seed"]) for model, rows in scores.groupby("model") if model in models]
    drawn = [found for found in seeds if 2 * len(found) >= max(map(len, seeds))]
    shared = set.intersection(*drawn) if drawn else set()
    if not shared or shared == set.union(*drawn):
        return scores, ""
    # A model on fewer than half of the seeds may have half of those that are left.
    scores, further = _of_shared_seeds(scores[scores["seed"].isin(shared)], models)
    named = ", ".join(map(str, sorted(map(int, shared))))
    return scores, further or f"The training seeds are those that all of these models have: {named}."


def _points(
    axes: Axes,
    places: Sequence[float] | np.ndarray,
    models: Sequence[str],
    found: Mapping[str, Estimate],
    tint: str,
    marker: str = "o",
) -> None:
    """A solid line with filled markers and interval bars; it breaks where a model is missing."""
    means = [found[model].difference if model in found else np.nan for model in models]
    axes.plot(places, means, color=tint, marker=marker, zorder=3)
    for x, model in zip(places, models, strict=True):
        if model in found:
            axes.plot([x, x], [found[model].low, found[model].high], color=tint, lw=0.9, zorder=2)


def _ends(axes: Axes, values: Sequence[float], digits: int) -> None:
    """The first and the last value, on the outer sides of their points, clear of line and intervals."""
    known = [x for x, value in enumerate(values) if not np.isnan(value)]
    for x, place, align in ((known[0], -5, "right"), (known[-1], 5, "left")) if known else ():
        text = f"{values[x]:.{digits}f}"
        axes.annotate(text, (x, values[x]), (place, 0), ha=align, va="center", fontsize=6, **_OFFSET)


def _name_ends(axes: Axes, ours: float | None, theirs: float) -> None:
    """Say which line is whose, at their ends: the upper name above, the lower one below, so that they never meet."""
    above = ours is None or theirs >= ours
    for name, y, tint, up in (("paper", theirs, INK, above), ("ours", ours, COLOURS["spin-2"], not above)):
        if y is not None:
            place, align = ((7, 1), "bottom") if up else ((7, -1), "top")
            axes.annotate(name, (4, y), place, va=align, fontsize=6, color=tint, **_OFFSET)


def _reference(axes: Axes, y: float, tint: str) -> None:
    axes.axhline(y, color=tint, ls=":", lw=1.2)
    place = axes.get_yaxis_transform()  # next to the panel, clear of the points
    axes.annotate("iter. 1", (1, y), (2, 0), place, va="center", fontsize=6, color=tint, **_OFFSET)


def _frame_panels(ours: Axes, theirs: Axes, drawn: bool, scores: pd.DataFrame, tasks: Sequence[str]) -> None:
    """Panels whose y axes have the same length in points, so that slopes compare; each keeps its own level. If no model
    has a score on these tasks, ours says why."""
    if not drawn:
        theirs.margins(y=0.2)
        none = "no second task" if judged(scores) else "all tasks are at chance or aside"
        say_why_empty(ours, "not run\nno evaluations" if tasks else none)
        return
    limits = [ax.dataLim.intervaly for ax in (ours, theirs)]
    span = max(high - low for low, high in limits) * 1.32
    for ax, (low, high) in zip((ours, theirs), limits, strict=True):
        middle = (low + high) / 2
        ax.set_ylim(middle - span / 2, middle + span / 2)


def _named(tasks: Sequence[str]) -> str:
    return drawable(", ".join(tasks).replace("_", " "))


def _note(scores: pd.DataFrame, found: Collection[str], wanted: Sequence[str], reading: str) -> str:
    """What the interval bars cover and how to read the figure; empty if none of our results are drawn."""
    if not found:
        return ""
    drawn = [model for model in wanted if model in found]
    measured = set(scores["model"].unique())
    few = footnotes.missing([model for model in wanted if model in measured], found)
    missing = [name for name in footnotes.missing(wanted, found) if name not in few]
    return footnotes.note("figure", scores=scores, drawn=drawn, reading=reading, few=few, missing=missing)


def _wrapped(text: str) -> list[str]:
    """Lines of a text, cut after `_LINES`."""
    lines = [drawable(line) for part in text.splitlines() for line in (textwrap.wrap(part, _WIDTH) or [""])] or [""]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], "… (cut here; whole in the results)"]
