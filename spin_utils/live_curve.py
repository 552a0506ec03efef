"""The loss while a model trains, for whoever watches in a notebook.

Drawing happens between two steps. It takes at most a fiftieth of the time, and at most one picture is made every
few seconds, whatever the length of a step.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
from IPython.display import Image, display

from spin_utils.figure_style import style
from spin_utils.training_figures import loss_curve

SECONDS = 3.0
"""Least time between two pictures."""
SHARE = 0.02
"""Largest share of the time that goes into drawing."""


def open_curve(
    title: str, clock: Callable[[], float] = time.monotonic
) -> tuple[Callable[[dict[str, float]], None], Callable[[], None]]:
    """Show a curve that grows.

    Args:
        title: a few words for the run.
        clock: seconds.

    Returns:
        A function that takes one metric row (`step`, `loss`, and `margin` if it is of pairs), and one that draws the
        last picture.
    """
    rows: list[dict[str, float]] = []
    handle: Any = None
    due = clock()

    def add(row: dict[str, float]) -> None:
        nonlocal due
        rows.append(row)
        if clock() >= due:
            begun = clock()
            draw()
            due = clock() + max(SECONDS, (clock() - begun) / SHARE)

    def draw() -> None:
        nonlocal handle
        picture = _picture(pd.DataFrame(rows), title)
        if handle is None:
            handle = display(picture, display_id=True)
        else:
            handle.update(picture)

    def close() -> None:
        if rows:
            draw()

    return add, close


def _picture(rows: pd.DataFrame, title: str) -> Image:
    buffer = io.BytesIO()
    figure = loss_curve(rows, title)
    with style():
        figure.savefig(buffer, format="png", dpi=200)
    return Image(buffer.getvalue(), width=round(130 * figure.get_figwidth()))
