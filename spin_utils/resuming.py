"""What lets a stopped training run go on: its saved state, and the stop signals.

The state is a folder `state-STEP` with safetensors and JSON, nothing pickled. It is written beside and renamed
when complete, so a folder of that name is always whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)


class OtherRunError(ValueError):
    """The saved state belongs to a run with other settings or data. The message names the difference."""


@dataclass(frozen=True)
class SavedState:
    """A training run between two optimizer steps."""

    step: int
    """Optimizer steps done."""
    precision: str
    """Compute precision that the run uses."""
    tensors: dict[str, Tensor]
    """The optimizer's tensors."""


def save_state(work: Path, run: dict[str, Any], state: SavedState) -> None:
    """Write a state to `work`, then remove older ones.

    Args:
        work: the run's folder.
        run: what identifies the run; must be JSON.
        state: to save.
    """
    final = work / f"state-{state.step:08d}"
    if final.exists():
        return
    unfinished = work / f"unfinished-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(state.tensors, unfinished / "state.safetensors")
    description = {"step": state.step, "precision": state.precision, "run": run}
    (unfinished / "state.json").write_text(json.dumps(description, indent=2, sort_keys=True))
    for file in unfinished.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    os.replace(unfinished, final)
    for older in _states(work):
        if older != final:
            shutil.rmtree(older)


def load_state(work: Path, run: dict[str, Any]) -> SavedState | None:
    """The latest state in `work`, or None.

    Raises:
        OtherRunError: it was saved by another run.
    """
    for leftover in work.glob("unfinished-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # several processes may do so at once
    states = _states(work)
    if not states:
        return None
    description = json.loads((states[-1] / "state.json").read_text())
    wanted = json.loads(json.dumps(run))
    for key in sorted(wanted.keys() | description["run"].keys()):
        before, now = description["run"].get(key), wanted.get(key)
        if before != now:
            raise OtherRunError(
                f"{states[-1]}: saved by a run with another {key} ({_difference(before, now)}); "
                "remove the folder to start anew"
            )
    logger.info("going on after step %d from %s", description["step"], states[-1])
    tensors = load_file(states[-1] / "state.safetensors")
    return SavedState(description["step"], description["precision"], tensors)


class StopRequest:
    """Inside the block SIGINT and SIGTERM only set `asked`; a second signal stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("%s: finishing the step and saving; once more stops at once", signal.Signals(number).name)


def _states(work: Path) -> list[Path]:
    return sorted(work.glob("state-" + "[0-9]" * 8))


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        return ", ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in keys)
    return f"{before!r} then, {now!r} now"
