"""Text output of notebooks: tables of long texts, in full, wrapped and verbatim, and settings.

Model output is never rendered: markup and mathematics are shown as plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML, clear_output, display
from ipywidgets import Output, ValueWidget, VBox

from spin_utils.files import runtime

_CELL = "text-align:left; vertical-align:top; padding:0.3em 0.8em"
# JupyterLab breaks any word of a <pre>; here only one that is longer than its column.
_WRAP = "white-space:pre-wrap; word-break:normal; overflow-wrap:anywhere"
_TEXT = f"min-width:7em; {_WRAP}; margin:0; font-size:0.9em; background:none"


def texts(frame: pd.DataFrame) -> HTML:
    """A table of texts and numbers; its index is left out.

    Args:
        frame: rows to show, few enough to read.
    """
    head = "".join(f'<th style="{_CELL}">{escape(str(name))}</th>' for name in frame.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in frame.itertuples(index=False))
    rows = rows or f'<tr><td colspan="{len(frame.columns)}" style="{_CELL}"><i>nothing to show</i></td></tr>'
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def settings(*, without: Collection[str] = (), **chosen: Any) -> HTML:
    """Settings as running text, without those that are left empty or that another source of the same thing needs.

    Args:
        without: names of settings to leave out.
        chosen: dataclasses of settings by what they are for.
    """
    lines = []
    for name, values in chosen.items():
        parts = [
            f"{escape(field.name)}&nbsp;<b>{escape(str(value))}</b>"
            for field in (fields(values) if values is not None else ())
            if field.name not in without
            and all(getattr(values, other) == needed for other, needed in field.metadata.items())
            and not isinstance(value := getattr(values, field.name), dict)
            and not is_dataclass(value)
            and value not in ("", ())
        ]
        lines.append(f"<p><i>{escape(name)}</i>: {', '.join(parts) or 'none'}</p>")
    return HTML("".join(lines))


def controls(draw: Callable[..., Any], **widgets: ValueWidget) -> Any:
    """Draw once for the values that the controls have now; in JupyterLab, again whenever one is moved.

    Args:
        draw: called with the value of every control by name; what it returns is displayed.
        widgets: by the name of the argument that they set.

    Returns:
        When headless, what `draw` returns for the first values, so that it is the output of the cell; else None.
    """
    first = _drawn(draw, widgets)
    if runtime.is_headless():
        return first

    picture = Output()
    # Not captured, as the later ones are: nbclient sends what it captures back to the kernel while the cell runs, and
    # then often does not see that the cell has ended (github.com/jupyter/nbclient/issues/312).
    picture.append_display_data(first)

    def redraw(_: Any) -> None:
        with picture:
            clear_output(wait=True)
            display(_drawn(draw, widgets))

    for name, control in widgets.items():
        control.description = control.description or name
        control.observe(redraw, "value")
    display(VBox([*widgets.values(), picture]))
    return None


def _cell(value: Any) -> str:
    text = escape(str(value))
    # Inside <pre> JupyterLab does not look for mathematics.
    inside = f'<pre style="{_TEXT}">{text}</pre>' if text.strip() else "<i>empty</i>"
    return f'<td style="{_CELL}">{inside}</td>'


def _drawn(draw: Callable[..., Any], widgets: dict[str, ValueWidget]) -> Any:
    return draw(**{name: control.value for name, control in widgets.items()})
