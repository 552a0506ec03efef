"""What notebooks show as text: tables of long texts, whole, wrapped and character for character, and settings.

What a model wrote is never rendered: markup and mathematics in it are shown as they stand.
"""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML

_CELL = "text-align:left; vertical-align:top; padding:0.3em 0.8em"
_TEXT = "min-width:7em; white-space:pre-wrap; overflow-wrap:anywhere; margin:0; font-size:0.9em; background:none"


def show(frame: pd.DataFrame) -> HTML:
    """A table of texts and numbers; its index is left out.

    Args:
        frame: rows to show, few enough to read.
    """
    head = "".join(f'<th style="{_CELL}">{escape(str(name))}</th>' for name in frame.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in frame.itertuples(index=False))
    rows = rows or f'<tr><td colspan="{len(frame.columns)}" style="{_CELL}"><i>nothing to show</i></td></tr>'
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def settings(**chosen: Any) -> HTML:
    """Settings as running text, without those that are left empty.

    Args:
        chosen: dataclasses of settings by what they are for.
    """
    lines = []
    for name, values in chosen.items():
        given = asdict(values) if values is not None else {}
        parts = [
            f"{escape(key)}&nbsp;<b>{escape(str(value))}</b>"
            for key, value in given.items()
            if not isinstance(value, dict) and value not in ("", ())
        ]
        lines.append(f"<p><i>{escape(name)}</i>: {', '.join(parts) or 'none'}</p>")
    return HTML("".join(lines))


def _cell(value: Any) -> str:
    text = escape(str(value))
    # Inside <pre> JupyterLab does not look for mathematics.
    inside = f'<pre style="{_TEXT}">{text}</pre>' if text.strip() else "<i>empty</i>"
    return f'<td style="{_CELL}">{inside}</td>'
