"""This process: its allocator, logging and signals, its progress reports, its GPUs and its precision."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import auto, std

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ENVIRONMENT = {
    # glibc otherwise returns every large tensor to the kernel: training on a CPU is 1.3 times slower.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONHASHSEED": "0",
}
"""Set for every kernel and subprocess that the kit starts, unless the user has set them."""
HEADLESS = "SPIN_HEADLESS"
"""Set to 1 if nobody is watching: progress bars become log lines, and controls become static pictures."""
EVENTS, STEP = "SPIN_EVENTS", "SPIN_STEP"
"""File to which `tell` appends, for the display of a reproduction, and the name under which this process does."""
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_PATIENCE_S = 5.0
_TOLD_S = 0.5  # seconds between two reports of progress
WORTH = 1.5
"""How many times faster bfloat16 has to be to be chosen. Below that, float32 costs little and is more precise, and a
near tie would be decided by chance in each process."""
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} elapsed, {remaining} left{postfix}"


def child_environment() -> dict[str, str]:
    """Environment for a kernel or subprocess, which nobody watches: the caller's plus `ENVIRONMENT`."""
    return {**ENVIRONMENT, **os.environ, HEADLESS: "1"}


def ensure_environment() -> None:
    """Restart this command in place if `ENVIRONMENT` is not set, because setting it later has no effect."""
    if any(name not in os.environ for name in ENVIRONMENT):
        arguments = [sys.executable, "-m", "spin_utils", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**ENVIRONMENT, **os.environ})


def socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder for sockets, whose paths are limited to about 100 characters: TMPDIR may be too long."""
    return tempfile.TemporaryDirectory(prefix="spin-", dir="/tmp")


def trim_memory() -> None:
    """Return unused memory to the kernel.

    Under `ENVIRONMENT` the allocator returns nothing by itself, and rows of varying lengths fragment its heap, which
    grows. Does nothing if the C library is not glibc.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> float:
    """Bytes that a new process can use: the system's free memory, within any limit of a container or batch job."""
    import psutil

    free = float(psutil.virtual_memory().available)
    for group, limit_of, used_of, read in _memory_groups():
        for place in (group, *group.parents):  # a batch job's limit is that of a group above this process's own
            with contextlib.suppress(OSError, ValueError, KeyError):  # no such file, or "max": no limit here
                limit, used = (int((place / f"memory.{name}").read_text()) for name in (limit_of, used_of))
                parts = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                # Files that were read count as used until somebody needs the memory.
                free = min(free, limit - used + int(parts[f"{read}active_file"]) + int(parts[f"{read}inactive_file"]))
    return free


def _memory_groups() -> Iterator[tuple[Path, str, str, str]]:
    """This process's control groups (Linux, versions 2 and 1), and what they call their limit, their use and files."""
    lines = _OWN_GROUP.read_text().splitlines() if _OWN_GROUP.is_file() else []
    for kinds, group in (line.split(":", 2)[1:] for line in lines):
        if not kinds:
            yield _GROUPS / group.strip("/"), "max", "current", ""
        elif "memory" in kinds.split(","):
            yield _GROUPS / "memory" / group.strip("/"), "limit_in_bytes", "usage_in_bytes", "total_"


def is_headless() -> bool:
    """Whether nobody is watching: in a notebook or a step that the kit runs itself."""
    return os.environ.get(HEADLESS) == "1"


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Inside the block SIGTERM raises `KeyboardInterrupt`, as Ctrl-C does, unless one of the two did before."""
    asked = False

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        if number == signal.SIGTERM and asked:
            return
        asked = True
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by a shell, for a job in the background
    numbers = [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGINT]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def configure_logging() -> None:
    """Log the kit's own lines plainly to standard output, and only warnings from libraries."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s", force=True)
    ours = logging.getLogger("spin_utils")
    ours.setLevel(logging.INFO)
    ours.handlers = [_Told(logging.WARNING)]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # warns of options that the kit sets on purpose


def tell(**event: Any) -> None:
    """Append an event to the file in `EVENTS`, a line of JSON; does nothing if there is no such variable."""
    if EVENTS in os.environ and os.environ.get("RANK", "0") == "0":
        line = json.dumps({"step": os.environ.get(STEP, ""), "time": time.time(), **event})
        with contextlib.suppress(OSError), open(os.environ[EVENTS], "a", encoding="utf-8") as file:
            file.write(line + "\n")


@contextlib.contextmanager
def telling_of(step: str) -> Iterator[None]:
    """Tell that a step begins; inside the block, what this process and its children tell is about it."""
    before = os.environ.get(STEP)
    os.environ[STEP] = step
    tell()
    try:
        yield
    finally:
        os.environ.pop(STEP) if before is None else os.environ.update({STEP: before})


class _Told(logging.Handler):
    """Warnings and errors as events."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(level=record.levelname, text=record.getMessage())


def configure() -> None:
    """Set up a notebook's kernel or a stage: log lines, no bar for every model that is loaded, and none headless."""
    import transformers

    configure_logging()
    transformers.utils.logging.disable_progress_bar()
    if is_headless():
        import datasets

        datasets.disable_progress_bars()


@contextlib.contextmanager
def progress(total: int, what: str, unit: str = "it", done: int = 0, interval: float = 30.0) -> Iterator[Progress]:
    """Report the progress of a block: a bar for people, one log line per interval (in seconds) when nobody watches.

    >>> with progress(2, "scoring", "pairs") as bar:
    ...     bar.advance(2)

    Args:
        total: units of work; 0 if unknown.
        done: units finished earlier, before a resumption.
    """
    how: dict[str, Any] = {"total": total or None, "desc": what, "unit": unit, "initial": done}
    if not is_headless() and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        with auto.tqdm(**how) as bar:
            yield Progress(bar)
        return
    how |= {"bar_format": _LINE, "file": _LogLines(), "mininterval": interval, "miniters": 1, "smoothing": 0}
    # TQDM_DISABLE is for the bars of libraries; the delay: no line before anything is done.
    with std.tqdm(**how, disable=False, leave=False, delay=1e-3) as bar:
        reported = Progress(bar)
        reported.tell()
        yield reported
        reported.tell()
        if bar.n > done:
            bar.display()


@dataclass
class Progress:
    """What a block reports its progress to."""

    bar: std.tqdm
    told: float = 0.0
    """When it was last told to the display."""

    @property
    def done(self) -> int:
        """Units finished so far."""
        return int(self.bar.n)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Report finished units, with a short note such as the loss. Estimates may exceed the total."""
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(min(units, self.bar.total - self.bar.n) if self.bar.total else units)
        if time.monotonic() > self.told + _TOLD_S:
            self.tell()

    def tell(self) -> None:
        """Tell the display of a reproduction how far it is."""
        self.told, bar = time.monotonic(), self.bar
        tell(what=bar.desc, done=int(bar.n), total=bar.total or 0, unit=bar.unit, note=str(bar.postfix or ""))


class _LogLines(io.StringIO):
    """Where a bar is written when nobody watches: each of its states is a log line."""

    def write(self, text: str) -> int:
        if line := text.strip():
            log.info("%s", line)
        return len(text)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: those in CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    if VISIBLE_GPUS in os.environ:
        return [name.strip() for name in os.environ[VISIBLE_GPUS].split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


@contextlib.contextmanager
def claim_gpus(count: int) -> Iterator[None]:
    """Reserve `count` GPUs that no other step uses until the block ends; this process sees no others from now on.

    Does nothing if there is no choice: `count` is 0, or no more GPUs are visible, as in a cluster job. The reservations
    are file locks, which the system releases when the process ends, however it ends.
    """
    devices = visible_gpus()
    if not 0 < count < len(devices):
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"spin-repro-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as claims:
        while len(taken := _take(count, devices, folder, claims)) < count:
            log.info("%d of %d GPUs are free and %d are needed; waiting", len(taken), len(devices), count)
            claims.close()
            time.sleep(_PATIENCE_S)
        os.environ[VISIBLE_GPUS] = ",".join(taken)
        log.info("GPUs %s", os.environ[VISIBLE_GPUS])
        yield


def _take(count: int, devices: list[str], folder: Path, claims: contextlib.ExitStack) -> list[str]:
    """Up to `count` GPUs that are free now, whose locks are held by `claims`."""
    taken: list[str] = []
    for device in devices:
        with contextlib.suppress(Timeout):
            claims.enter_context(FileLock(folder / device.replace("/", "_"), timeout=0))
            taken.append(device)
        if len(taken) == count:
            break
    return taken


def choose_precision(setting: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """Compute precision for a setting; `auto` chooses bfloat16 if its matrix products are much faster.

    Processors without bfloat16 units emulate it, up to a hundred times slower than float32, so a CPU is measured once
    per process. Sampling and scoring always use `auto`.
    """
    import torch

    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[setting]
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return _fast_on_this_cpu()


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of matrix products as large as in a training step: what this machine could do. Takes half a second."""
    import torch
    from torch.utils.benchmark import Timer

    rows, inner, columns = (8192, 4096, 4096) if device.type == "cuda" else (1024, 576, 1536)
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(inner, columns, dtype=dtype, device=device)
    timer = Timer("(a @ b)[0, 0].item()", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2.0 * rows * inner * columns / timer.blocked_autorange(min_run_time=0.5).median


@cache
def _fast_on_this_cpu() -> torch.dtype:
    import torch

    gain = _seconds_of_a_product(torch.float32) / _seconds_of_a_product(torch.bfloat16)
    chosen = torch.bfloat16 if gain >= WORTH else torch.float32
    log.info("precision auto: %s; bfloat16 is %.2g times as fast as float32", chosen, gain)
    return chosen


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    """The fastest of many repetitions, in processor time of one thread, which other load affects least."""
    import torch
    from torch.utils.benchmark import Timer

    given = {name: torch.ones(384, 384, dtype=dtype) for name in ("inputs", "weight")}
    timer = Timer("torch.nn.functional.linear(inputs, weight)", globals=given, timer=time.thread_time, num_threads=1)
    return min(timer.blocked_autorange(min_run_time=0.1).times)
