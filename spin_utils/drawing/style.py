"""What all figures share: sizes, colours, and files that come out the same twice.

Figures are made with matplotlib's objects, never with pyplot: no global state, no display. Ours is solid with filled
markers, the paper's dashed and hollow. The iterations go from light to dark blue, so their order survives grey printing
and colour-blind eyes; DPO is orange, SFT grey, and their bars have patterns.
"""

from __future__ import annotations

import io
import sys
import textwrap
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib.style
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

_STYLE = Path(__file__).parent / "templates" / "spin.mplstyle"


@contextmanager
def style() -> Iterator[None]:
    """The kit's settings of matplotlib, for the duration of a block, from the defaults and not the user's file."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def new_figure(height: float, width: float = COLUMN_INCHES) -> Figure:
    """An empty figure with its own canvas; sizes in inches. In a notebook it shows itself as the value of a cell."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        shell.display_formatter.formatters["image/png"].for_type(Figure, _picture)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _picture(figure: Figure) -> tuple[str, dict[str, int]]:
    """PNG in base64, as notebooks keep it, and the size to show it at: sharp, and as wide as half a page."""
    width, height = (round(130 * inches) for inches in figure.get_size_inches())
    return png(figure), {"width": width, "height": height}


def png(figure: Figure, dpi: int = 300) -> str:
    """A figure as PNG in base64, drawn in one pass; `savefig` would draw all of it once more to lay it out."""
    buffer, resolution = io.BytesIO(), figure.dpi
    with style():
        figure.dpi = dpi
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        figure.dpi = resolution
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


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.pdf, NAME.png and NAME.svg, without dates or versions: the same figure gives the same bytes.

    It is laid out once, for the first of them.
    """
    paths = []
    with style():
        for suffix, fields in FORMATS.items():
            path = folder / f"{name}.{suffix}"
            with replacing(path) as partial:
                figure.savefig(partial, format=suffix, metadata=dict(fields))  # it writes into them
            figure.set_layout_engine(None)
            paths.append(path)
    return paths


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
    """An empty panel states its reason, such as "not run", instead of showing axes."""
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axes.spines[:].set_visible(False)
    axes.text(0.5, 0.5, reason, ha="center", va="center", color=FAINT, transform=axes.transAxes)


def footnote(figure: Figure, text: str) -> None:
    """A few words below the panels, in small grey letters."""
    if text:
        figure.supxlabel(drawable(textwrap.fill(text, 80)), fontsize=5.5, color="#5c5c5c", x=0.01, ha="left")
