"""The loss while a model trains, live in a notebook.

Drawing happens between two steps. It takes at most a fiftieth of the time, and at most one picture is made every
few seconds, whatever the length of a step.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure

from spin_utils.drawing.style import style
from spin_utils.drawing.training_figures import loss_curve
from spin_utils.files import runtime
from spin_utils.settings.run import Loss
from spin_utils.training import trackers

SECONDS = 3.0
"""Minimum time between two pictures."""
SHARE = 0.02
"""Maximum share of the time spent on drawing."""


def watch(loss: Loss = "logistic") -> None:
    """Show the curve of every run that this notebook trains, if it is open in a front end.

    Args:
        loss: the function l of runs on pairs.
    """
    if runtime.in_notebook():
        trackers.WATCHERS[:] = [partial(open_curve, loss=loss)]


def open_curve(
    title: str, clock: Callable[[], float] = time.monotonic, *, loss: Loss = "logistic"
) -> tuple[Callable[[dict[str, float]], None], Callable[[], None]]:
    """Show a curve that grows.

    Args:
        title: a few words for the run.
        clock: seconds.
        loss: as in `watch`.

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
        picture = _picture(loss_curve(pd.DataFrame(rows), title, loss=loss))
        if handle is None:
            handle = display(picture, display_id=True)
        else:
            handle.update(picture)

    def close() -> None:
        if rows:
            draw()

    return add, close


def _picture(figure: Figure) -> Image:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=200)
    return Image(buffer.getvalue(), width=round(130 * figure.get_figwidth()))
