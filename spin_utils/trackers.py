"""Metric rows to TensorBoard, Weights & Biases or trackio, by name, and to a notebook that someone looks at.

JSON lines are always written besides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from spin_utils import runtime

Tracker = Callable[[dict[str, float]], None]
"""Takes one metric row, with its `step`."""

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


TENSORBOARD = "tensorboard"
"""Name of the folder that TensorBoard reads."""


class TrackerError(ValueError):
    """A tracker is unknown or not installed. The message names the remedy."""


def open_trackers(names: Sequence[str], run: str, folder: Path) -> tuple[list[Tracker], Callable[[], None]]:
    """Open trackers by name.

    Args:
        names: any of tensorboard, wandb, trackio.
        run: name of the run.
        folder: where TensorBoard's files go, in a folder `tensorboard`; the others have places of their own.

    Returns:
        The trackers, with the live curve of a notebook if there is one, and a function that closes them.

    Raises:
        TrackerError: an unknown name, or a package that is not installed.
    """
    modules = {name: _import(name) for name in names}
    opened = [_open(name, module, run, folder) for name, module in modules.items()]
    if runtime.in_notebook():
        from spin_utils import live_curve  # draws, which other runs need not be able to

        opened.append(live_curve.open_curve(run))

    def close() -> None:
        for _, closer in opened:
            closer()

    return [tracker for tracker, _ in opened], close


def check(names: Iterable[str]) -> None:
    """Refuse, before any work, a tracker that is unknown or not installed.

    Raises:
        TrackerError: names the tracker and the remedy.
    """
    for name in names:
        _import(name)


def _open(name: str, module: Any, run: str, folder: Path) -> tuple[Tracker, Callable[[], Any]]:
    if name == "tensorboard":
        writer = module.SummaryWriter(str(folder / TENSORBOARD))

        def write(row: dict[str, float]) -> None:
            for key, value in row.items():
                writer.add_scalar(key, value, int(row["step"]))

        return write, writer.close
    module.init(project="spin", name=run)

    def log(row: dict[str, float]) -> None:
        module.log(row, step=int(row["step"]))

    return log, module.finish


def _import(name: str) -> Any:
    if name not in MODULES:
        raise TrackerError(f"tracker {name!r} is unknown; use {', '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        raise TrackerError(f"tracker {name!r} is not installed; run: pip install {name}") from error
