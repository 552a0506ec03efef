"""A run on two pages of A4, to print and to hand out: what was found, Table 4, and the figures."""

from __future__ import annotations

import io
import textwrap
from base64 import b64decode
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imread

from spin_utils.drawing import draw, tables
from spin_utils.drawing.report import FIGURES
from spin_utils.drawing.style import FIXED_WIDTH, FORMATS, INK, drawable, png, style
from spin_utils.files import paths
from spin_utils.files.disk import replacing
from spin_utils.paper import results
from spin_utils.settings.run import Profile

_A4 = (8.27, 11.69)
_MARGIN = 0.07
"""Of the page, on each side."""
_DPI = 220


def write(profile: Profile) -> Path:
    """Write results/PROFILE/summary.pdf from the results alone.

    Raises:
        ResultsError: nothing was evaluated, or a results file is not valid.
    """
    drawn = draw.compose(profile)
    path = paths.results(profile.name) / "summary.pdf"
    with style(), replacing(path) as partial, PdfPages(partial, metadata=dict(FORMATS["pdf"])) as pages:
        for page in (_first(profile, drawn), _second(profile, drawn)):
            pages.savefig(page)
    return path


def _first(profile: Profile, drawn: draw.Drawing) -> Figure:
    facts = draw.facts(profile, drawn)
    seeds = len(facts["seeds"])
    told = [
        f"{facts['items']} held-out items of {facts['tasks']} tasks, {seeds} training seed{'s' * (seeds > 1)}. "
        + draw.not_the_papers(profile, tables.benchmarks(drawn.scores)),
        f"Tables, figures and claims of the paper: {facts['tally']}.",
        f"Entry test: {facts['entry']}." if facts["entry"] else "",
        facts["agreement"].statement if facts["agreement"] else "",
    ]
    page = Figure(figsize=_A4)
    page.text(_MARGIN, 0.95, f"SPIN, reproduced at the profile {drawable(profile.name)}", fontsize=16, weight="bold")
    page.text(_MARGIN, 0.932, "The paper: Self-Play Fine-Tuning, arXiv 2401.01335", fontsize=8, color="#5c5c5c")
    text = "\n".join(textwrap.fill(drawable(line), 116) for line in filter(None, told))
    page.text(_MARGIN, 0.915, text, fontsize=8.5, va="top", linespacing=1.5)
    _table(_axes(page, 0.60, 0.185), drawn.tables[3])
    _picture(page, drawn, "figure2", 0, 0.645)
    _picture(page, drawn, "figure5", 1, 0.645)
    lines = [f"{finding.verdict:<15} {finding.statement} ({finding.reason})" for finding in facts["wholes"]]
    text = "\n".join(textwrap.fill(drawable(line), 122, subsequent_indent=" " * 16) for line in lines)
    page.text(_MARGIN, 0.26, "Tables and figures, one by one", fontsize=9, weight="bold")
    page.text(_MARGIN, 0.25, text, fontsize=6.2, va="top", linespacing=1.4, family=FIXED_WIDTH)
    return page


def _second(profile: Profile, drawn: draw.Drawing) -> Figure:
    page = Figure(figsize=_A4)
    for column, (upper, lower) in enumerate((("figure3", "training"), ("figure4", "convergence"))):
        _picture(page, drawn, upper, column, 0.95)
        _picture(page, drawn, lower, column, 0.43)
    _, links = next(results.chains(paths.results(profile.name)))
    link = list(links.values())[-1]
    made = f"Made from commit {link['commit'][:12]} on {link['device']}, torch {link['versions']['torch']}."
    page.text(_MARGIN, 0.02, drawable(made), fontsize=7, color="#5c5c5c")
    return page


def _axes(page: Figure, bottom: float, height: float, left: float = _MARGIN, width: float = 1 - 2 * _MARGIN) -> Axes:
    axes = page.add_axes((left, bottom, width, height))
    axes.set_axis_off()
    return axes


def _table(axes: Axes, table: tables.Table) -> None:
    header, rows = tables.compact(table.frame)
    axes.set_title(f"Table {table.number}. {table.title}, in points", fontsize=9, weight="bold")
    drawn = axes.table(rows, colLabels=header, loc="upper center", edges="horizontal", cellLoc="right")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(6.8)
    drawn.auto_set_column_width(list(range(len(header))))
    drawn.scale(1, 1.25)
    for (row, column), cell in drawn.get_celld().items():
        cell.set(edgecolor="#cccccc", linewidth=0.5)
        cell.get_text().set(color=INK, weight="bold" if row == 0 else "normal")
        if column == 0:
            cell.get_text().set_horizontalalignment("left")


def _picture(page: Figure, drawn: draw.Drawing, name: str, column: int, top: float) -> None:
    """A figure of the run in one of two columns, as wide as that, below its title."""
    picture = imread(io.BytesIO(b64decode(png(drawn.figures[name], _DPI))))
    width = 0.5 - _MARGIN - 0.01
    height = width * _A4[0] / _A4[1] * picture.shape[0] / picture.shape[1]
    axes = _axes(page, top - height, height, _MARGIN + column * (width + 0.02), width)
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_title(FIGURES[name], fontsize=8, weight="bold")
