"""Snakemake as a child process: one reproduction of a profile at a time, and a stop that lets the running step save."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from spin_utils.files import artifacts, runtime, warm_start

log = logging.getLogger(__name__)


def run(command: Sequence[str], folder: Path, *, warm: bool = False, dry_run: bool = False) -> int:
    """Run the scheduler for the artifacts in a folder; returns its exit status.

    With `warm`, steps and their kernels are forks of one process (`warm_start`).

    Of two reproductions in one folder the second waits: each would delete, as not its own, what the
    other has just made. SIGTERM is passed on, and means what Ctrl-C means.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM arrived; the running step has saved its state.
    """
    environment = runtime.child_environment(headless=True)
    if dry_run:
        return subprocess.call(command, env=environment)
    waiting = "another one is running; waiting for its end"
    steps = warm_start.server(environment) if warm else contextlib.nullcontext(environment)
    with artifacts.lock(folder / "reproduction", waiting) as held, steps as environment:
        # The scheduler holds the lock as well: it may outlive this process.
        process = subprocess.Popen(command, env=environment, pass_fds=(held,))
        try:
            with runtime.sigterm_as_ctrl_c():
                return process.wait()
        except KeyboardInterrupt as request:
            log.error("Stopping: the running step saves its state (Ctrl-C again stops at once).")
            if isinstance(request, runtime.Terminated):
                _pass_on(process.pid)
            process.wait()
            raise


def _pass_on(scheduler: int) -> None:
    """SIGTERM for the scheduler and its steps, which may have got it already: `kill` reaches one process only."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(scheduler)
        for process in [parent, *parent.children(recursive=True)]:
            # A kernel has a session of its own, and is told by the process that runs its notebook.
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == os.getsid(0):
                    process.send_signal(signal.SIGTERM)
