"""What all figures share: sizes, colours, and files that come out the same twice.

Figures are made with matplotlib's objects, never with pyplot, so drawing leaves no global state behind and
needs no display. Ours is solid with filled markers, the paper's is dashed and hollow. The iterations go from
light to dark blue, so their order survives grey printing and colour-blind eyes; DPO is orange, SFT grey, and
their bars have patterns.
"""

from __future__ import annotations

import io
import textwrap
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from spin_utils.files.disk import replacing
from spin_utils.settings.names import ModelName, main_chain

COLUMN_INCHES = 3.3
"""Width of a column of a two-column paper."""

ITERATES = ("#6bb7e8", "#2f8ac9", "#135c9a", "#08264a")
COLOURS = {
    "base": "#d9d9d9",
    "sft": "#b3b3b3",
    "sft-more": "#5c5c5c",
    **dict(zip(main_chain(4)[1:], ITERATES, strict=True)),
    "dpo": "#e69f00",
    "spin-3-dpo": "#c24a00",
}
"""Colour of a model, everywhere."""

HATCHES = {"sft": "....", "dpo": "////"}
"""Patterns for bars that would look the same as their neighbours in grey."""

INK = "#1a1a1a"
FAINT = "#9a9a9a"
REAL, GENERATED = ITERATES[2], COLOURS["spin-3-dpo"]
"""Colours of real and generated responses."""

FONT, FIXED_WIDTH = "DejaVu Sans", "DejaVu Sans Mono"
"""They ship with matplotlib, so every machine has them."""

_STYLE: dict[str, Any] = {
    "font.family": FONT,
    "text.parse_math": False,  # dollar signs are in names and texts of users
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "spin",  # names inside are drawn by chance otherwise
    "savefig.dpi": 300,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}


@contextmanager
def style() -> Iterator[None]:
    """The kit's settings of matplotlib, for the duration of a block, from the defaults and not the user's file."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _STYLE.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        yield


def new_figure(height: float, width: float = COLUMN_INCHES) -> Figure:
    """An empty figure with its own canvas; sizes in inches. In a notebook it shows itself as the value of a cell."""
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, _picture)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _picture(figure: Figure) -> tuple[str, dict[str, int]]:
    """PNG in base64, as notebooks keep it, and the size to show it at: sharp, and as wide as half a page."""
    return png(figure), {
        "width": round(130 * figure.get_figwidth()),
        "height": round(130 * figure.get_figheight()),
    }


def png(figure: Figure, dpi: int = 300) -> str:
    """A figure as PNG in base64."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return b64encode(buffer.getvalue()).decode()


def colour(model: str) -> str:
    """Colour of a model; variants of a model (epochs, subsets) have its colour, iterations after 3 that of 3."""
    name = ModelName.parse(model)
    if name.dpo and name.iteration is not None:
        return COLOURS["spin-3-dpo"]
    if name.iteration is None:
        return COLOURS["sft-more" if name.sft_epochs else model]
    return ITERATES[min(name.iteration, 3)]


FORMATS = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}
"""File formats of a figure, and the metadata left out of each."""
LARGEST_SVG = 150_000
"""Bytes: a larger one, of many points, draws slowly and is left out."""


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.pdf, NAME.png and, unless it is large, NAME.svg.

    The same figure gives the same bytes: no dates, no versions inside.
    """
    paths = []
    with style():
        for suffix, fields in FORMATS.items():
            path = folder / f"{name}.{suffix}"
            with replacing(path) as partial:
                figure.savefig(partial, format=suffix, metadata=dict(fields))  # it writes into them
            if suffix == "svg" and path.stat().st_size > LARGEST_SVG:
                path.unlink()
            else:
                paths.append(path)
    return paths


def radar_axes(figure: Figure, place: Any, names: Sequence[str], ticks: Sequence[int]) -> tuple[Axes, Any]:
    """A round panel with an axis for each name, clockwise from the top, and the angles of a closed line around it.

    Args:
        figure: that the panel is added to.
        place: in the figure, as `add_subplot` takes it.
        names: of the axes.
        ticks: rings that are drawn and labelled; the last is the rim.
    """
    axes = figure.add_subplot(place, projection="polar")
    axes.set_theta_zero_location("N")  # type: ignore[attr-defined]
    axes.set_theta_direction(-1)  # type: ignore[attr-defined]
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
    return axes, np.append(angles, angles[0])


def drawable(text: str, font: str = FONT) -> str:
    """A user's or model's text, with an empty box for every character that the font lacks.

    >>> drawable("7 汉")
    '7 ▯'
    """
    return "".join(c if c in " \n" or ord(c) in _characters(font) else "▯" for c in text)


@cache
def _characters(font: str) -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=font))).get_charmap())


def say_why_empty(axes: Axes, reason: str) -> None:
    """An empty panel states its reason instead of showing axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("")
    axes.set_ylabel("")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.text(0.5, 0.5, f"not run\n{reason}", ha="center", va="center", color=FAINT, transform=axes.transAxes)


def ours_of(profile: str) -> str:
    """Title of the panels with our numbers."""
    return f"Ours ({profile})" if profile else "Ours"


def footnote(figure: Figure, text: str) -> None:
    """A few words below the panels, in small grey letters."""
    if text:
        figure.supxlabel(drawable(textwrap.fill(text, 80)), fontsize=5.5, color="#5c5c5c", x=0.01, ha="left")


def same_span(*axes: Axes, pad: float = 0.12) -> None:
    """Give panels y axes of equal length in points, so that slopes compare; each keeps its own level."""
    limits = [ax.dataLim.intervaly for ax in axes]
    span = max(high - low for low, high in limits) * (1 + 2 * pad)
    for ax, (low, high) in zip(axes, limits, strict=True):
        middle = (low + high) / 2
        ax.set_ylim(middle - span / 2, middle + span / 2)
