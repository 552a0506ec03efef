"""Snakemake as a child process: one reproduction of a profile at a time, and a stop that lets the running step save."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Sequence

import psutil

from spin_utils import artifacts, paths, runtime
from spin_utils.plan import Plan

log = logging.getLogger(__name__)


def run(command: Sequence[str], plans: Sequence[Plan], *, dry_run: bool = False) -> int:
    """Run the scheduler over the steps of some plans; returns its exit status.

    Of two reproductions of one profile in one folder the second waits: each would delete, as not its own, what the
    other has just made. SIGTERM is passed on, and means what Ctrl-C means.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM arrived; the running step has saved its state.
    """
    environment = runtime.child_environment(headless=True)
    if dry_run:
        return subprocess.call(command, env=environment)
    place = paths.artifacts(plans[0].profile.name) / "reproduction"
    with artifacts.lock(place, "another reproduction of this profile is running; waiting for its end") as held:
        _drop_damaged(plans)
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


def _drop_damaged(plans: Sequence[Plan]) -> None:
    """Make the scheduler see that an artifact with a missing or truncated file is not there."""
    for directory in {step.directory for plan in plans for step in plan}:
        manifest = directory / artifacts.MANIFEST
        if manifest.exists() and not artifacts.is_complete(directory):
            log.warning("%s: damaged (a file is missing or cut); it is made again", paths.relative(directory))
            manifest.unlink()


def _pass_on(scheduler: int) -> None:
    """SIGTERM for the scheduler and its steps, which may have got it already: `kill` reaches one process only."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(scheduler)
        for process in [parent, *parent.children(recursive=True)]:
            # A kernel has a session of its own, and is told by the process that runs its notebook.
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == os.getsid(0):
                    process.send_signal(signal.SIGTERM)
