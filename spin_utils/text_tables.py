"""Tables of long texts for notebooks: whole, wrapped, and character for character.

What a model wrote is never rendered: markup and mathematics in it are shown as they stand.
"""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML

_CELL = "text-align:left; vertical-align:top; padding:0.3em 0.8em"
_TEXT = "white-space:pre-wrap; overflow-wrap:anywhere; margin:0; font-size:0.9em; background:none"


def show(frame: pd.DataFrame) -> HTML:
    """A table of texts and numbers; its index is left out.

    Args:
        frame: rows to show, few enough to read.
    """
    head = "".join(f'<th style="{_CELL}">{escape(str(name))}</th>' for name in frame.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in frame.itertuples(index=False))
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def _cell(value: Any) -> str:
    # Inside <pre> JupyterLab does not look for mathematics.
    return f'<td style="{_CELL}"><pre style="{_TEXT}">{escape(str(value))}</pre></td>'
