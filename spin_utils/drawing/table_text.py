"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.files.writing import write_forms
from spin_utils.paper.statistics import Estimate

DASH = "—"

COLUMNS = (
    "row",
    "column",
    "quantity",
    "value",
    "low",
    "high",
    "paper",
    "difference",
    "verdict",
    "size_verdict",
    "n",
    "seeds",
    "reason",
)
"""Columns of the long form. `difference` is ours minus the paper's; `verdict` judges whether a gain has the paper's
sign, `size_verdict` whether it has the paper's size; `reason` says why a value is missing."""


@dataclass(frozen=True)
class Table:
    """A table ready to be written."""

    number: int
    """The paper's number."""
    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    """What a reader sees; every line has as many cells as the header, the first two are names."""
    frame: pd.DataFrame
    """Long form, a row per cell, with the columns of `COLUMNS`."""
    notes: tuple[str, ...] = ()
    text: int | None = None
    """Number of a column of running text, left-aligned and broken into lines; None: there is none."""


def finish(
    number: int,
    title: str,
    header: Sequence[str],
    lines: Sequence[tuple[str, ...]],
    cells: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    *,
    text: int | None = None,
) -> Table:
    """A table whose notes end with the reasons of its missing cells."""
    frame = pd.DataFrame(cells).reindex(columns=list(COLUMNS))
    reasons = [f"{DASH} {reason}." for reason in frame["reason"].dropna().unique()]
    return Table(number, title, tuple(header), tuple(lines), frame, (*notes, *reasons), text)


def numbers(estimate: Estimate) -> dict[str, Any]:
    """What a cell of the long form holds of an estimate."""
    ours = {"value": estimate.difference, "low": estimate.low, "high": estimate.high}
    return ours | {"n": estimate.n_items, "seeds": estimate.n_seeds}


def rounded(cell: Mapping[str, Any], *, sign: bool = False, digits: int = 1) -> str:
    """The value of a cell, or a dash."""
    if cell.get("value") is None:
        return DASH
    return minus(f"{cell['value']:{'+' if sign else ''}.{digits}f}")


def with_range(cell: Mapping[str, Any], *, sign: bool = False, digits: int = 1) -> str:
    """The value of a cell with its interval, or a dash."""
    if cell.get("value") is None:
        return DASH
    return rounded(cell, sign=sign, digits=digits) + minus(f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]")


def minus(text: str) -> str:
    """A number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def write(table: Table, folder: Path) -> list[Path]:
    """Write table<N>.md, .csv and .tex; the same table gives the same bytes."""
    texts = {"md": markdown(table), "csv": table.frame.to_csv(index=False, float_format="%.6g"), "tex": latex(table)}
    return write_forms(folder / f"table{table.number}", texts)


def markdown(table: Table) -> str:
    """The table with its notes as GitHub Markdown."""
    rule = ["---" if column in (0, 1, table.text) else "---:" for column in range(len(table.header))]
    lines = [
        [_md(cell) if column == table.text else cell for column, cell in enumerate(cells)] for cells in table.lines
    ]
    rows = ["| " + " | ".join(cells) + " |" for cells in (table.header, rule, *lines)]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**Table {table.number}.** {table.title}", "", *rows, "", *notes, ""])


def latex(table: Table) -> str:
    """The table as a booktabs `tabular` with a caption; the notes follow below."""
    columns = "".join(
        "p{9cm}" if column == table.text else "l" if column < 2 else "r" for column in range(len(table.header))
    )
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
        "\\begin{table*}",
        "\\centering",
        f"\\caption{{{_tex(table.title)} (Table {table.number} of the paper).}}",
        "\\resizebox{\\textwidth}{!}{%",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join(map(_tex, table.header)) + " \\\\",
        "\\midrule",
    ]
    for number, cells in enumerate(table.lines):
        if cells[0] and number:
            lines.append("\\addlinespace")
        lines.append(" & ".join(map(_tex, cells)) + " \\\\")
    notes = " ".join(_tex(note) for note in table.notes)
    lines += [
        "\\bottomrule",
        "\\end{tabular}}",
        f"\\par\\smallskip{{\\footnotesize {notes}\\par}}",
        "\\end{table*}",
        "",
    ]
    return "\n".join(lines)


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": r"\newline ",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _md(text: str) -> str:
    """Text as Markdown shows it in a cell, character for character; `$` would begin a formula in JupyterLab."""
    return re.sub(r"([\\`*_~<>|\[\]#$&])", r"\\\1", text).replace("\n", "<br>")
