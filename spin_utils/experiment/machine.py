"""What a machine has: devices, free memory and disk, and how fast it multiplies and reads, measured in two seconds."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spin_utils.files import paths
from spin_utils.paper import cost_model
from spin_utils.settings.inputs import SettingsError


@dataclass(frozen=True)
class Machine:
    """Where a profile is to run."""

    kind: Literal["cpu", "cuda"]
    name: str
    """In words."""
    devices: int
    memory: float
    """Free bytes of one device (of the host for a CPU)."""
    disk: float
    """Free bytes where the artifacts go; infinite if not known."""
    flops: float
    """Operations a second of one device in the compute precision, of matrix products."""
    bandwidth: float
    """Bytes read a second by one device."""
    width: int
    """Bytes of a number where a profile says `precision: auto`."""


def chosen(gpus: int, gigabytes: float) -> Machine:
    """The machine that is described, or this one if none is.

    Raises:
        SettingsError: only half of a machine is described.
    """
    if bool(gpus) != bool(gigabytes) or gpus < 0 or not 0 <= gigabytes < math.inf:
        raise SettingsError("check: --gpus and --gpu-memory describe another machine together, such as 8 and 80")
    return described(gpus, gigabytes) if gpus else here()


def here() -> Machine:
    """This machine, measured."""
    import torch

    from spin_utils.files.runtime import choose_precision

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = choose_precision("auto", device)
    precision = str(dtype).removeprefix("torch.")
    count = torch.cuda.device_count() if cuda else 1
    threads = torch.get_num_threads()
    return Machine(
        kind="cuda" if cuda else "cpu",
        name=f"{count} x {torch.cuda.get_device_name()}" if cuda else f"CPU, {threads} threads, in {precision}",
        devices=count,
        memory=min(torch.cuda.mem_get_info(i)[0] for i in range(count)) if cuda else free_memory(),
        disk=free_disk(),
        flops=_product_rate(device, dtype),
        bandwidth=_read_rate(device),
        width=torch.finfo(dtype).bits // 8,
    )


def described(gpus: int, gigabytes: float) -> Machine:
    """A machine that is not this one: GPUs with so much memory, the speed of an A100's data sheet, and any disk."""
    sheet = cost_model.Run()
    name = f"{gpus} x GPU with {gigabytes:g} GB, as fast as an A100"
    return Machine("cuda", name, gpus, gigabytes * 1e9, float("inf"), sheet.peak_flops, sheet.bandwidth, 2)


def free_memory() -> float:
    """Bytes that a new process may take: what the system has, or less where the process's group is limited."""
    import psutil

    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such limits on this system
    return free


def free_disk() -> float:
    """Free bytes where artifacts are written."""
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def _product_rate(device: Any, dtype: Any) -> float:
    """Operations a second of products of the shape of a training step's."""
    import torch

    rows, inner, columns = (8192, 4096, 4096) if device.type == "cuda" else (1024, 576, 1536)
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(inner, columns, dtype=dtype, device=device)
    return 2.0 * rows * inner * columns * _times_a_second(lambda: (a @ b)[0, 0].item())


def _read_rate(device: Any) -> float:
    """Bytes a second of a sum over much more than a cache holds."""
    import torch

    values = torch.ones(2**26, device=device)
    return values.nbytes * _times_a_second(lambda: values.sum().item())


def _times_a_second(call: Callable[[], Any], seconds: float = 0.5) -> float:
    call()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        call()
        done += 1
    return done / (time.perf_counter() - started)
