"""Answers as coloured tokens, with a bar below each: which ones surprise a model, which ones training pushes.

Text is in a fixed-width font, so that widths are counted and not measured, and drawn character for character: nothing
in it is mathematics or markup.

`scores` are from `measure.token_scores` and `sums` from `measure.answer_sums`; `example` names the one to draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spin_utils.drawing.style import FAINT, FIXED_WIDTH, GENERATED, INK, REAL, drawable, new_figure, style

WIDTH = 6.6
"""Inches: two columns of a paper, the width of a notebook's page."""
COLUMNS = 108
"""Characters of a line."""
LINES = 8
"""Lines shown of one answer; a longer one is cut, with an ellipsis."""
_MARGIN = 0.08
_SIZE = (WIDTH - 2 * _MARGIN) / COLUMNS * 72 / 0.602  # points: its characters are 0.602 of the size wide
_LINE = 0.155  # inches
_BAR = 0.75  # height of the strip of bars below a line, in lines
_SHOWN = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
PUSH = LinearSegmentedColormap.from_list("push", [GENERATED, "#ffffff", REAL])
_SURPRISE = LinearSegmentedColormap.from_list("surprise", ["#7a2e00", GENERATED, "#ffffff"])


def surprise(scores: pd.DataFrame, example: str) -> Figure:
    """How likely each checkpoint finds each token of an answer: white is certain, dark is a surprise."""
    chosen = scores[scores["example"] == example]
    low = min(-1.0, float(chosen["logp"].quantile(0.02)))
    label = "log-probability of the token (nats)"
    return _figure(chosen, "logp", _SURPRISE, Normalize(low, 0), label)


def pushes(scores: pd.DataFrame, example: str, checkpoints: Sequence[str] = ()) -> Figure:
    """What training did to each token of a pair: blue and a bar up is pushed up against the opponent, the first
    checkpoint; orange and a bar down is pushed down.

    Tokens before a grey stroke are the same in both answers: they are pushed alike and cancel in the margin. Of the
    later checkpoints these are drawn, or all; the colours are the same for any choice.
    """
    chosen = scores[scores["example"] == example]
    later = list(dict.fromkeys(chosen["checkpoint"]))[1:]
    chosen = chosen[chosen["checkpoint"].isin(later)]
    high = max(0.01, float(chosen["change"].abs().quantile(0.97)))
    chosen = chosen[chosen["checkpoint"].isin(list(checkpoints) or later)]
    label = "log policy/opponent of the token (nats)"
    return _figure(chosen, "change", PUSH, Normalize(-high, high), label)


@style()
def followed(sums: pd.DataFrame, example: str) -> Figure:
    """The two sums of a pair through training: what the loss sees of all those tokens."""
    chosen = sums[sums["example"] == example]
    names = list(dict.fromkeys(chosen["checkpoint"]))
    figure = new_figure(1.9)
    axes = figure.subplots()
    axes.axhline(0, color=FAINT, lw=0.6, zorder=0)
    for answer, tint, marker in (("real", REAL, "o-"), ("generated", GENERATED, "s--")):
        values = chosen[chosen["answer"] == answer]["change"].to_numpy()
        axes.plot(range(len(names)), values, marker, color=tint)
        axes.annotate(answer, (len(names) - 1, values[-1]), (5, 0), textcoords="offset points", color=tint, va="center")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.2, len(names) - 0.4)
    axes.set_ylabel("log policy/opponent (nats)")
    return figure


@style()
def _figure(chosen: pd.DataFrame, column: str, colours: Colormap, norm: Normalize, label: str) -> Figure:
    """A block for each checkpoint and answer, and the scale of the colours."""
    blocks = []
    for (checkpoint, answer), tokens in chosen.groupby(["checkpoint", "answer"], sort=False):
        total = f"{tokens[column].sum():+.2f}".replace("-", "−")
        blocks.append((f"{checkpoint} · {answer} answer: {total} nats in all", _layout(tokens, column)))
    rows = sum(1.5 + (lines[-1][0] + 1) * (1 + _BAR) for _, lines in blocks)
    height = rows * _LINE + 0.5
    figure = new_figure(height, WIDTH)
    figure.set_layout_engine("none")  # places are counted in characters
    axes = figure.add_axes((_MARGIN / WIDTH, 0.45 / height, 1 - 2 * _MARGIN / WIDTH, rows * _LINE / height))
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(rows, 0)
    top = 0.0
    for title, lines in blocks:
        axes.text(0, top + 0.7, title, va="center", fontsize=7, fontweight="bold")
        for line, start, text, value, shared in lines:
            place = (start, top + 1.3 + line * (1 + _BAR))
            _token(axes, place, text, value, norm, colours)
            if shared:
                axes.plot([place[0], place[0]], [place[1], place[1] + 1 + _BAR], color="#5c5c5c", lw=1.6)
        top += 1.5 + (lines[-1][0] + 1) * (1 + _BAR)
    scale = figure.add_axes((0.25 / WIDTH, 0.28 / height, 1.6 / WIDTH, 0.08 / height))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=scale, orientation="horizontal", extend="neither")
    bar.outline.set_linewidth(0.4)
    figure.text((0.25 + 1.75) / WIDTH, 0.32 / height, label, va="center", fontsize=6.5)
    return figure


def _token(axes: Axes, place: tuple[float, float], text: str, value: float, norm: Normalize, colours: Colormap) -> None:
    """One box with its text, and below it a bar from the place of zero."""
    left, top = place
    fill = colours(norm(value))
    axes.add_patch(Rectangle((left, top + 0.04), len(text), 0.92, fc=fill, ec="white", lw=0.5))
    ink = "white" if np.dot(fill[:3], (0.299, 0.587, 0.114)) < 0.5 else INK
    axes.text(left, top + 0.5, text, va="center_baseline", family=FIXED_WIDTH, fontsize=_SIZE, color=ink)
    share = float(np.clip(norm(value), 0, 1)) - float(norm(0))
    zero = top + 1 + _BAR * 0.92 * (1 - float(norm(0)))
    axes.plot([left, left + len(text)], [zero, zero], color=FAINT, lw=0.3)
    axes.add_patch(Rectangle((left + 0.15, zero), len(text) - 0.3, -share * _BAR * 0.92, fc="#5c5c5c", lw=0))


def _layout(tokens: pd.DataFrame, column: str) -> list[tuple[int, int, str, float, bool]]:
    """Line, first character, text and value of each token, and whether the answers part right before it."""
    placed: list[tuple[int, int, str, float, bool]] = []
    line, at, before = 0, 0, False
    for token, value, shared in zip(tokens["token"], tokens[column], tokens["shared"], strict=True):
        text = _visible(token)
        if at + len(text) > COLUMNS:
            line, at = line + 1, 0
        if line == LINES:
            return [*placed[:-1], (LINES - 1, placed[-1][1], "…", 0.0, False)]
        placed.append((line, at, text, float(value), before and not shared))
        at, before = at + len(text), bool(shared)
        if "\n" in token:
            line, at = line + 1, 0
    return placed


def _visible(token: str) -> str:
    """A token as it is drawn: every character one column wide, and something to see where it is blank."""
    shown = drawable("".join(_SHOWN.get(c, c) for c in token), FIXED_WIDTH) or "▯"
    return shown if len(shown) <= COLUMNS else shown[: COLUMNS - 1] + "…"
