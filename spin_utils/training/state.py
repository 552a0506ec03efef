"""Stopping and resuming a training run: the saved state, and the stop signals.

The state is a folder `state-STEP` with safetensors and JSON; nothing is pickled. It is written under another name and
renamed when complete, so a folder with this name is always whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from spin_utils.files.disk import sync, write_text
from spin_utils.files.paths import KitError

logger = logging.getLogger(__name__)

_TENSORS, _DESCRIPTION = "state.safetensors", "state.json"


@dataclass(frozen=True)
class SavedState:
    """A training run between two optimizer steps."""

    step: int
    """Optimizer steps done."""
    precision: str
    """Compute precision that the run uses."""
    tensors: dict[str, Tensor]
    """The optimizer's tensors."""
    rows: list[dict[str, float]]
    """Metric rows so far."""


def save_state(work: Path, run: dict[str, Any], state: SavedState) -> None:
    """Write a state to `work`, then delete older ones; `run` identifies the run and must be JSON data."""
    final = work / f"state-{state.step:08d}"
    if final.exists():
        return
    unfinished = work / f"unfinished-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(state.tensors, unfinished / _TENSORS)
    description = {"step": state.step, "precision": state.precision, "run": run, "rows": state.rows}
    write_text(unfinished / _DESCRIPTION, json.dumps(description, indent=1, sort_keys=True))
    for file in unfinished.iterdir():
        sync(file)
    os.replace(unfinished, final)
    sync(work)
    for older in _states(work):
        if older != final:
            shutil.rmtree(older)


def load_state(work: Path, run: dict[str, Any]) -> SavedState | None:
    """The latest state in `work`, or None.

    Raises:
        KitError: it was saved by another run.
    """
    for leftover in work.glob("unfinished-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # several processes may do so at once
    if not (states := _states(work)):
        return None
    folder = states[-1]
    description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    before, now = (_flat(each) for each in (description["run"], json.loads(json.dumps(run))))
    if before != now:
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        changed = ", ".join(f"{name}: {before.get(name)!r} then, {now.get(name)!r} now" for name in names)
        raise KitError(f"{folder}: saved by another run ({changed}); remove the folder to start anew")
    logger.info("continuing after step %d from %s", description["step"], folder)
    tensors = load_file(folder / _TENSORS)
    return SavedState(description["step"], description["precision"], tensors, description["rows"])


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """A run's identity with its settings beside the rest."""
    return {**run, **run.get("settings", {}), "settings": None}


class StopRequest:
    """Inside the block SIGINT and SIGTERM only set `asked`; a second Ctrl-C stops at once.

    SIGTERM may arrive any number of times: a scheduler sends it to every process of a job, and the wrapper around a
    notebook forwards it as SIGINT.
    """

    def __init__(self) -> None:
        self.asked = False
        self._interrupted = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        if not self.asked:
            logger.warning(
                "%s: finishing the step and saving; press Ctrl-C again to stop at once", signal.Signals(number).name
            )
        self.asked = True
        self._interrupted = self._interrupted or number == signal.SIGINT


def _states(work: Path) -> list[Path]:
    return sorted(work.glob("state-" + "[0-9]" * 8))
