"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

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
    notes: tuple[str, ...] = field(default=())


def write(table: Table, folder: Path) -> list[Path]:
    """Write table<N>.md, .csv and .tex; the same table gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"md": markdown(table), "csv": table.frame.to_csv(index=False, float_format="%.6g"), "tex": latex(table)}
    paths = []
    for suffix, text in texts.items():
        path = folder / f"table{table.number}.{suffix}"
        partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
        paths.append(path)
    return paths


def markdown(table: Table) -> str:
    """The table with its notes as GitHub Markdown."""
    rule = ["---"] * 2 + ["---:"] * (len(table.header) - 2)
    rows = ["| " + " | ".join(cells) + " |" for cells in (table.header, rule, *table.lines)]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**Table {table.number}.** {table.title}", "", *rows, "", *notes, ""])


def latex(table: Table) -> str:
    """The table as a booktabs `tabular` with a caption; the notes follow below."""
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
        "\\begin{table*}",
        "\\centering",
        f"\\caption{{{_tex(table.title)} (Table {table.number} of the paper).}}",
        "\\resizebox{\\textwidth}{!}{%",
        f"\\begin{{tabular}}{{ll{'r' * (len(table.header) - 2)}}}",
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
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
