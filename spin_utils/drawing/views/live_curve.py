"""The loss while a model trains, live in a notebook; drawn between two steps, at most every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import pandas as pd
from IPython.display import display

from spin_utils.drawing.training_figures import loss_curve
from spin_utils.files import runtime
from spin_utils.settings.run import Loss
from spin_utils.training import trackers

SECONDS = 3.0
"""Minimum time between two pictures."""
SHARE = 0.02
"""Maximum share of the time spent on drawing."""


def watch(loss: Loss = "logistic") -> None:
    """Show the curve of every run that this notebook trains, if it is open in a front end."""
    if "ipykernel" in sys.modules and not runtime.is_headless():
        trackers.WATCHERS[:] = [partial(open_curve, loss=loss)]


def open_curve(title: str, *, loss: Loss = "logistic") -> tuple[Callable[[dict[str, float]], None], Callable[[], None]]:
    """Show a curve that grows; `loss` is the function l of a run on pairs.

    Returns:
        A function that takes one metric row (`step`, `loss`, and `margin` if it is of pairs), and one that draws the
        last picture.
    """
    rows: list[dict[str, float]] = []
    picture: Any = display(display_id=True)
    due = monotonic()

    def add(row: dict[str, float]) -> None:
        nonlocal due
        rows.append(row)
        begun = monotonic()
        if begun >= due:
            draw()
            drawn = monotonic()
            due = drawn + max(SECONDS, (drawn - begun) / SHARE)

    def draw() -> None:
        if rows:
            picture.update(loss_curve(pd.DataFrame(rows), title, loss=loss))

    return add, draw
