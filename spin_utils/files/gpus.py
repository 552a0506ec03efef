"""Which GPUs a process uses: steps that run side by side on one node take different ones."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PATIENCE_S = 1.0


def visible() -> list[str]:
    """Names of the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


@contextlib.contextmanager
def claim(count: int) -> Iterator[None]:
    """Use `count` GPUs that no other step uses, until the block ends: sets CUDA_VISIBLE_DEVICES.

    Nothing is claimed where there is no choice: `count` is 0, or no more GPUs are visible, as in a cluster's job.
    The claims are locks on files that the system drops with the process, however it ends.
    """
    devices = visible()
    if not 0 < count < len(devices):
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"spin-repro-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as claims:
        taken = _take(count, devices, folder, claims)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = ",".join(taken)
        log.info("GPUs %s", os.environ[VISIBLE])
        try:
            yield
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _take(count: int, devices: list[str], folder: Path, claims: contextlib.ExitStack) -> list[str]:
    told = False
    while True:
        # One process chooses at a time: two that each hold half of what they need would wait for each other.
        with open(folder / "choosing", "w") as choosing, contextlib.ExitStack() as held:
            fcntl.flock(choosing, fcntl.LOCK_EX)
            taken: list[str] = []
            for device in devices:
                file = held.enter_context(open(folder / device.replace("/", "_"), "w"))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    taken.append(device)
                if len(taken) == count:
                    claims.enter_context(held.pop_all())
                    return taken
        if not told:
            log.info("%d of %d GPUs are free and %d are needed; waiting", len(taken), len(devices), count)
            told = True
        time.sleep(_PATIENCE_S)
