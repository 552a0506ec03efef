"""Sliders and pickers with what they change, and a still picture where no one can move them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.display import clear_output, display
from ipywidgets import Output, ValueWidget, VBox

from spin_utils.files import runtime


def show(draw: Callable[..., Any], **controls: ValueWidget) -> Any:
    """Draw once for the values that the controls have now; in JupyterLab, again whenever one is moved.

    Args:
        draw: called with the value of every control by name; what it returns is displayed.
        controls: widgets by the name of the argument that they set.

    Returns:
        When headless, what `draw` returns for the first values, so that it is the output of the cell; else None.
    """
    first = _drawn(draw, controls)
    if runtime.is_headless():
        return first

    picture = Output()
    # Not captured, as the later ones are: nbclient sends what it captures back to the kernel while the cell runs, and
    # then often does not see that the cell has ended (github.com/jupyter/nbclient/issues/312).
    picture.append_display_data(first)

    def redraw(_: Any) -> None:
        with picture:
            clear_output(wait=True)
            display(_drawn(draw, controls))

    for name, control in controls.items():
        control.description = control.description or name
        control.observe(redraw, "value")
    display(VBox([*controls.values(), picture]))
    return None


def _drawn(draw: Callable[..., Any], controls: dict[str, ValueWidget]) -> Any:
    return draw(**{name: control.value for name, control in controls.items()})
