"""Run one command of the kit in several processes on this machine, with their progress, shutdown and errors.

The workers run what `torchrun` would run on a cluster, and are started with its worker API. Unlike torchrun, this waits
until they have saved when asked to stop, and opens no port: they meet through a file and talk over loopback.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from spin_utils.files import processes, runtime
from spin_utils.files.paths import KitError, WorkError
from spin_utils.settings.run import ProcessSettings

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import PContext, RunProcsResult

    from spin_utils.training.state import StopRequest

STOPPED = 130
"""Exit status of a command that was asked to stop and saved its state."""
_POLL_S = 0.1


def wanted(settings: ProcessSettings) -> bool:
    """Whether workers need to be started: several are requested, and this process is not one of them."""
    return settings.count > 1 and not processes.launched()


def check(settings: ProcessSettings, gpus: int = 0) -> None:
    """Raise `KitError` if `gpus` are asked for and PyTorch cannot use those that are here, if there are fewer than
    processes, or no DeepSpeed for zero3."""
    if settings.count != 1 and settings.sharding == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise KitError("zero3 needs DeepSpeed, which is not installed: pip install -e '.[deepspeed]', or use fsdp2")
    here = len(runtime.visible_gpus()) if gpus else 0
    if not (here or wanted(settings)):
        return
    import torch

    if here and not torch.cuda.is_available():  # it would compute on the CPU
        raise KitError(
            f"{here} GPUs are here, and PyTorch {torch.__version__} can use none: the driver is too old for it, or it "
            "is a build for CPUs; install a build for this driver (https://pytorch.org/get-started/previous-versions), "
            "or hide the GPUs: CUDA_VISIBLE_DEVICES="
        )
    if wanted(settings) and 0 < (devices := torch.cuda.device_count()) < settings.count:
        raise KitError(f"processes.count: {settings.count} processes for {devices} GPUs; each needs its own")


def launch(arguments: Sequence[str], settings: ProcessSettings) -> None:
    """Run a command of the kit in several processes and wait for it.

    The output of the first one appears here. After Ctrl-C, SIGTERM or a kill of this process they finish their step
    and save.

    Raises:
        WorkError: a worker failed or was killed.
        Interrupted: the workers were asked to stop and saved their state.
        KeyboardInterrupt: they were asked to stop and had nothing to save.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes

    from spin_utils.training.loop import Interrupted
    from spin_utils.training.state import StopRequest

    # We report failures in one line. Torch's handlers, which raise an error of its own, would stay for good.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""
    with tempfile.TemporaryDirectory(prefix="spin-") as folder, StopRequest() as stop:
        shared = _environment(settings.count, Path(folder) / "rendezvous")
        ranks = range(settings.count)
        workers = start_processes(
            "spin",
            sys.executable,
            args=dict.fromkeys(ranks, ("-m", "spin_utils", *arguments)),
            envs={rank: shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks},
            logs_specs=DefaultLogsSpecs(folder, redirects=Std.ALL, tee=Std.ALL, local_ranks_filter={0}),
            log_line_prefixes={0: ""},
        )
        ended = _wait(workers, stop)
        failures = {rank: (failure.exitcode, _last_line(ended, rank)) for rank, failure in ended.failures.items()}
    if any(status == STOPPED for status, _ in failures.values()):
        raise Interrupted(next(said for status, said in failures.values() if status == STOPPED))
    if failures and stop.asked:
        raise KeyboardInterrupt
    if failures:
        raise WorkError(_explanation(failures, settings.count))


def _environment(count: int, rendezvous: Path) -> dict[str, str]:
    import torch

    loopback = "lo0" if sys.platform == "darwin" else "lo"
    own = {
        "WORLD_SIZE": str(count),
        processes.RENDEZVOUS: str(rendezvous),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
        "TQDM_DISABLE": "1",  # keep the libraries' progress bars out of the output
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }
    return runtime.child_environment() | own


def _wait(workers: PContext, stop: StopRequest) -> RunProcsResult:
    """Wait until all have ended; torch ends the others when one fails."""
    try:
        while (ended := workers.wait(_POLL_S, period=_POLL_S)) is None:
            for worker in workers.pids().values() if stop.asked else ():
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGTERM)
        return ended
    finally:
        workers.close(signal.SIGKILL)


def _explanation(failures: dict[int, tuple[int, str]], count: int) -> str:
    """The root cause: torch lists failures in order, and some workers only fail because another one is gone."""
    causes = [rank for rank, (_, said) in failures.items() if processes.LOST not in said]
    rank = causes[0] if causes else next(iter(failures))
    status, said = failures[rank]
    if status < 0:
        return (
            f"process {rank} of {count} was killed ({signal.Signals(-status).name}), and the others with it. The saved "
            "state is kept: run the same command again to resume (out of memory? lower micro_batch_tokens, or set "
            "processes.sharding: fsdp2)"
        )
    return f"process {rank} of {count} ended with status {status}: {said}"


def _last_line(ended: RunProcsResult, rank: int) -> str:
    """What a worker said last: the error of a bug, whose traceback is in stderr; the kit's own errors are in stdout."""
    error, said = (Path(files[rank]).read_text(errors="replace") for files in (ended.stderrs, ended.stdouts))
    bugs = re.findall(r"^(?:\[rank\d+\]: )?([\w.]+(?:Error|Exception)\b.*)", error, re.MULTILINE)
    lines = bugs or [line.strip() for text in (error, said) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"
