"""Several processes on this machine for one command of the kit, with its progress, its stop and its errors.

The workers run the command line that a person would give to `torchrun` or `accelerate launch`, so a stage that a
notebook starts and one started on a cluster take the same way. Unlike those launchers this one waits as long as the
workers need to save when they are asked to stop, and opens no port: they find each other over a file and talk on the
loopback interface.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from spin_utils.files import processes, runtime
from spin_utils.files.processes import ProcessesError
from spin_utils.settings.run import ProcessSettings

if TYPE_CHECKING:
    from spin_utils.training.state import StopRequest

log = logging.getLogger(__name__)

STOPPED = 130
"""Exit status of a command that was asked to stop and has saved its state."""
GRACE_S = 10.0
"""Seconds in which workers may end by themselves after one of them failed."""
_POLL_S = 0.05
_ALWAYS_HELD = 8
"""So many processes a machine of fewer cores may be given too, to try out what a larger one will do."""


class LaunchError(RuntimeError):
    """A process of several failed or was killed. The message says which, why, and what to do."""


def wanted(settings: ProcessSettings) -> bool:
    """Whether workers have to be started: several are asked for, and this process is not one of them."""
    return settings.count > 1 and not processes.launched()


def check(settings: ProcessSettings) -> None:
    """Refuse, before any work, more processes than the machine can hold.

    Raises:
        ProcessesError: there are fewer GPUs than processes, many more processes than cores, or no DeepSpeed for zero3.
    """
    if settings.count != 1:
        processes.check_available(settings.sharding)
    if not wanted(settings):
        return
    import torch

    cores = os.cpu_count() or 1
    if not torch.cuda.is_available() and settings.count > max(cores, _ALWAYS_HELD):
        raise ProcessesError(f"processes.count: {settings.count} processes for {cores} cores; use at most one for each")
    if torch.cuda.is_available() and torch.cuda.device_count() < settings.count:
        raise ProcessesError(
            f"processes.count: {settings.count} processes for {torch.cuda.device_count()} GPUs; each needs its own"
        )


def launch(arguments: Sequence[str], settings: ProcessSettings) -> None:
    """Run a command of the kit in several processes, and wait for it.

    The first one's output becomes log lines here. Ctrl-C and SIGTERM let the workers finish their step and save; when
    this process is killed, they do so too.

    Args:
        arguments: of `spin-repro`.
        settings: how many processes.

    Raises:
        ProcessesError: there are fewer GPUs than processes.
        LaunchError: a worker failed or was killed; the message says which and why.
        Interrupted: the workers were asked to stop and have saved their state.
        KeyboardInterrupt: they were asked to stop where there is nothing to save.
    """
    from spin_utils.training.loop import Interrupted
    from spin_utils.training.state import StopRequest  # these need torch

    check(settings)
    with tempfile.TemporaryDirectory(prefix="spin-") as folder, StopRequest() as stop:
        outputs = [Path(folder) / f"{rank}.log" for rank in range(settings.count)]
        workers = [
            _start(arguments, rank, settings.count, Path(folder) / "rendezvous", output)
            for rank, output in enumerate(outputs)
        ]
        reader = threading.Thread(target=_forward, args=(workers[0].stdout, outputs[0]))
        reader.start()
        try:
            failed = _wait(workers, stop)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            reader.join()
        last = [_last_line(output) for output in outputs]
    statuses = [worker.returncode for worker in workers]
    if failed is None and STOPPED in statuses:
        raise Interrupted(last[0])
    if stop.asked and any(statuses):
        raise KeyboardInterrupt
    if failed is not None:
        raise LaunchError(_failure(failed, statuses[failed], settings.count, last[failed]))


def _start(arguments: Sequence[str], rank: int, count: int, rendezvous: Path, output: Path) -> subprocess.Popen[str]:
    environment = runtime.child_environment(headless=True)
    threads = environment.get("OMP_NUM_THREADS", "")  # OpenMP passes over what is no number, and so does this
    cores = (int(threads) if re.fullmatch("[0-9]{1,9}", threads) else 0) or os.cpu_count() or 1
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, processes.RENDEZVOUS: rendezvous}
    place |= {"OMP_NUM_THREADS": max(1, cores // count), "TQDM_DISABLE": 1}  # no bars of libraries among the lines
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        place |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "spin_utils", *arguments],
            env=environment | {name: str(value) for name, value in place.items()},
            stdin=subprocess.PIPE,  # closed to stop the worker, also by the end of this process
            stdout=subprocess.PIPE if rank == 0 else file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal reaches this process only
        )


def _forward(lines: IO[str], output: Path) -> None:
    """Log lines as they come, and keep them."""
    with output.open("w") as file:
        for line in lines:
            file.write(line)
            log.info("%s", line.rstrip())


def _wait(workers: Sequence[subprocess.Popen[str]], stop: StopRequest) -> int | None:
    """Wait for the workers; returns the number of the one that failed first, if one did."""
    failed, deadline = None, math.inf
    while True:
        statuses = [worker.poll() for worker in workers]
        bad = {rank: status for rank, status in enumerate(statuses) if status not in (None, 0, STOPPED)}
        if bad and failed is None:
            failed = min(bad, key=lambda rank: bad[rank] > 0)  # one that was killed before one that noticed
            deadline = time.monotonic() + GRACE_S
        if stop.asked or failed is not None:
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.close()
        if None not in statuses or time.monotonic() > deadline:
            return failed
        time.sleep(_POLL_S)


def _failure(rank: int, status: int, count: int, said: str) -> str:
    which = f"process {rank} of {count}"
    if status < 0:
        return (
            f"{which} was killed ({signal.Signals(-status).name}), and the others with it. What was saved is kept: "
            "run the same again to go on (out of memory? lower micro_batch_tokens, or processes.sharding: fsdp2)"
        )
    return f"{which} ended with status {status}: {said}"


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
