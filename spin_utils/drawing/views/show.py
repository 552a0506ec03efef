"""Text output of notebooks: tables of long texts, in full, wrapped and verbatim, and settings.

Model output is never rendered: markup and mathematics are shown as plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML, clear_output, display
from ipywidgets import Output, ValueWidget, VBox
from matplotlib.colors import to_hex

from spin_utils.drawing.views.tokens import PUSH
from spin_utils.files import runtime

_FULL = 2.0  # nats of log policy/opponent at which a token has its full colour
_CELL = "text-align:left; vertical-align:top; padding:0.3em 0.8em"
# JupyterLab breaks any word of a <pre>; here only one that is longer than its column.
_WRAP = "white-space:pre-wrap; word-break:normal; overflow-wrap:anywhere"
_TEXT = f"min-width:7em; {_WRAP}; margin:0; font-size:0.9em; background:none"


def texts(frame: pd.DataFrame) -> HTML:
    """A table of texts and numbers; its index is left out."""
    head = "".join(f'<th style="{_CELL}">{escape(str(name))}</th>' for name in frame.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in frame.itertuples(index=False))
    rows = rows or f'<tr><td colspan="{len(frame.columns)}" style="{_CELL}"><i>nothing to show</i></td></tr>'
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def changes(answers: Mapping[str, Sequence[tuple[str, float]]]) -> HTML:
    """Answers by model, one below the other: each token with its log policy/opponent in nats, which is its colour."""
    lines = "".join(
        f'<tr><th style="{_CELL}">{escape(name)}</th><td style="{_CELL}"><pre style="{_TEXT}">'
        f"{''.join(_token(text, change) for text, change in tokens)}</pre></td></tr>"
        for name, tokens in answers.items()
    )
    key = "Blue: more likely than under the model above, its opponent; orange: less likely; full colour at"
    return HTML(f"<table>{lines}</table><p>{key} {_FULL:g} nats. ∎: the end of the answer.</p>")


def settings(**chosen: Any) -> HTML:
    """Dataclasses of settings, by what they are for, as running text.

    Settings that are left empty or that another source of the same thing needs are not shown.
    """
    lines = []
    for name, values in chosen.items():
        parts = [
            f"{escape(field.name)}&nbsp;<b>{escape(str(value))}</b>"
            for field in (fields(values) if values is not None else ())
            if field.metadata.get("source") in (None, getattr(values, "source", None))
            and not isinstance(value := getattr(values, field.name), dict)
            and not is_dataclass(value)
            and value not in ("", ())
        ]
        lines.append(f"<p><i>{escape(name)}</i>: {', '.join(parts) or 'none'}</p>")
    return HTML("".join(lines))


def controls(draw: Callable[..., Any], **widgets: ValueWidget) -> Any:
    """Draw once for the values that the controls have now; in JupyterLab, again whenever one is moved.

    Args:
        draw: called with the value of every control by name; what it returns is displayed. An iterator shows one
            picture after another in the same place, such as an answer that grows.
        widgets: by the name of the argument that they set.

    Returns:
        When headless, what `draw` returns for the first values, so that it is the output of the cell; else None.
    """
    if runtime.is_headless():
        return list(_drawn(draw, widgets))[-1]

    picture = Output()

    def redraw(_: Any) -> None:
        with picture:
            clear_output(wait=True)
            for shown in _drawn(draw, widgets):
                display(shown)
                clear_output(wait=True)  # when the next one comes

    for name, control in widgets.items():
        control.description = control.description or name
        control.observe(redraw, "value")
    display(VBox([*widgets.values(), picture]))
    # Not captured, as the later ones are: nbclient sends what it captures back to the kernel while the cell runs, and
    # then often does not see that the cell has ended (github.com/jupyter/nbclient/issues/312).
    for shown in _drawn(draw, widgets):
        picture.outputs = ()
        picture.append_display_data(shown)
    return None


def _cell(value: Any) -> str:
    text = escape(str(value))
    # Inside <pre> JupyterLab does not look for mathematics.
    inside = f'<pre style="{_TEXT}">{text}</pre>' if text.strip() else "<i>empty</i>"
    return f'<td style="{_CELL}">{inside}</td>'


def _token(text: str, change: float) -> str:
    ink = "white" if abs(change) > 0.7 * _FULL else "black"
    fill = to_hex(PUSH(0.5 + change / (2 * _FULL)))
    return f'<span title="{change:+.2f} nats" style="background:{fill}; color:{ink}">{escape(text)}</span>'


def _drawn(draw: Callable[..., Any], widgets: dict[str, ValueWidget]) -> Iterator[Any]:
    drawn = draw(**{name: control.value for name, control in widgets.items()})
    yield from drawn if isinstance(drawn, Iterator) else [drawn]
