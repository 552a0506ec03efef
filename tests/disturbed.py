"""Training runs that something happens to."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from spin_utils.files import processes
from spin_utils.training.step import StepRunner

STOP = partial(signal.raise_signal, signal.SIGTERM)


@contextmanager
def after_step(number: int, act: Callable[[], object] = STOP, rank: int = 0) -> Iterator[None]:
    """Do something in one process right after a step of the runs in this block."""
    step = StepRunner.__call__

    def disturbed(runner: Any, *arguments: Any) -> Any:
        row = step(runner, *arguments)
        if runner.optimizer.steps == number and processes.rank() == rank:
            act()
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRunner, "__call__", disturbed)
        yield
