"""Send metric rows to TensorBoard, Weights & Biases or trackio, and to a notebook's live curve.

They are always written as JSON lines too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from spin_utils.files.paths import KitError

Tracker = Callable[[dict[str, float]], None]
"""Takes one metric row, with its `step`."""

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}

TENSORBOARD = "tensorboard"
"""Name of the folder that TensorBoard reads."""
WATCHERS: list[Callable[[str], tuple[Tracker, Callable[[], Any]]]] = []
"""Further receivers of a run's rows: each takes the run's name and returns a tracker and a function that closes it."""


def open_trackers(
    names: Sequence[str], run: str, folder: Path, *, done: int = 0
) -> tuple[list[Tracker], Callable[[], Any]]:
    """Open trackers by name.

    Args:
        folder: TensorBoard's files go in its subfolder `tensorboard`; the others choose their own place.
        done: steps already taken; TensorBoard discards later ones that a killed run wrote.

    Returns:
        The trackers, including those of `WATCHERS`, and a function that closes them. Errors as in `check`.
    """
    opened = [_open(name, run, folder, done) for name in names]
    opened += [watch(run) for watch in WATCHERS]
    return [tracker for tracker, _ in opened], lambda: [close() for _, close in opened]


def check(names: Iterable[str]) -> None:
    """Raise a `KitError` if a tracker is not installed, or does not know for whom."""
    for name in names:
        module = _import(name)
        if name == "wandb":
            try:
                module.login()
            except module.Error as error:
                raise KitError(f"tracker 'wandb': {error} Or set WANDB_MODE=offline.") from error


def _open(name: str, run: str, folder: Path, done: int) -> tuple[Tracker, Callable[[], Any]]:
    module = _import(name)
    if name == "tensorboard":
        writer = module.SummaryWriter(str(folder / TENSORBOARD), purge_step=done + 1)

        def write(row: dict[str, float]) -> None:
            for key, value in row.items():
                writer.add_scalar(key, value, int(row["step"]))

        return write, writer.close
    module.init(project="spin", name=run)
    return lambda row: module.log(row, step=int(row["step"])), module.finish


def _import(name: str) -> Any:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        raise KitError(f"tracker {name!r} is not installed; run: pip install {name}") from error
