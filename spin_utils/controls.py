"""Sliders and pickers with what they change, and a still picture where no one can move them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipywidgets import ValueWidget, interact

from spin_utils import runtime


def show(draw: Callable[..., Any], **controls: ValueWidget) -> Any:
    """Draw once for the values that the controls have now; in JupyterLab, again whenever one is moved.

    Args:
        draw: called with the value of every control by name; what it returns is displayed.
        controls: widgets by the name of the argument that they set.

    Returns:
        When headless, what `draw` returns for the first values, so that it is the output of the cell; else None.
    """
    if runtime.is_headless():
        return draw(**{name: control.value for name, control in controls.items()})
    interact(draw, **controls)
    return None
