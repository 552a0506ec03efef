"""This process: its allocator, log lines and signals, its progress reports, its GPUs and its precision."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ENVIRONMENT = {
    # glibc otherwise hands every large tensor back to the kernel: 1.3 times slower training on a CPU.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONHASHSEED": "0",
}
"""Set for every kernel and subprocess that the kit starts, where the user has not set them."""
HEADLESS = "SPIN_HEADLESS"
"""Set to 1 where nobody watches: bars become log lines, and controls still pictures."""
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
_PATIENCE_S = 1.0
WORTH = 1.5
"""How many times faster bfloat16 must be to be taken. Below that float32 is exact for little; and a near tie would be
decided by chance, another way in every process."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and line end, and halves of characters."""


def child_environment(*, headless: bool) -> dict[str, str]:
    """Environment for a kernel or subprocess: the caller's, completed by `ENVIRONMENT`."""
    environment = {**ENVIRONMENT, **os.environ}
    if headless:
        environment[HEADLESS] = "1"
    return environment


def ensure_environment() -> None:
    """Start this command again, in its place, if `ENVIRONMENT` is not set: it counts from a process's start only."""
    if any(name not in os.environ for name in ENVIRONMENT):
        arguments = [sys.executable, "-m", "spin_utils", *sys.argv[1:]]
        os.execve(sys.executable, arguments, child_environment(headless=is_headless()))


def trim_memory() -> None:
    """Give the kernel back what the allocator keeps and nobody uses.

    Under `ENVIRONMENT` it gives nothing back by itself, and as rows have ever other lengths its heap breaks into holes
    and grows. Nothing happens where the C library is not glibc.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_headless() -> bool:
    """Whether nobody watches: run by papermill or without a terminal or notebook front end."""
    return os.environ.get(HEADLESS) == "1"


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: a scheduler or another program wants what a person wants with Ctrl-C."""


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Inside the block the first SIGTERM raises `Terminated`; further ones ask for the same and change nothing."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook that someone looks at."""
    return "ipykernel" in sys.modules and not is_headless()


def configure_logging() -> None:
    """The kit's own log lines, plain, on standard output; of the libraries only warnings."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that is not UTF-8 has no minus sign and no dash
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_without_controls)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
    logging.getLogger("spin_utils").setLevel(logging.INFO)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # warns of options that the kit sets on purpose


def _without_controls(record: logging.LogRecord) -> bool:
    """Lines quote file names, keys and answers, which must not move a terminal's cursor or be what it cannot write."""
    record.msg = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), record.getMessage())
    record.args = ()
    return True


def configure() -> None:
    """Set up a notebook's kernel or a stage: log lines, no bar for every model that is loaded, and none headless."""
    import transformers

    configure_logging()
    transformers.utils.logging.disable_progress_bar()
    if is_headless():
        import datasets

        datasets.disable_progress_bars()


def progress(total: int, what: str, unit: str = "it", done: int = 0, interval: float = 30.0) -> Progress:
    """Start to report progress; use it as a context manager and call `advance`.

    Args:
        total: units of work; 0 if unknown.
        what: a few words for the work.
        unit: name of the unit.
        done: units finished before, as after a resumption.
        interval: seconds between log lines when no one watches.

    Example:
        >>> with progress(2, "scoring", "pairs") as bar:
        ...     bar.advance(2)
    """
    return Progress(total, what, unit, done, interval)


class Progress:
    """A running report. State: units done and the time of the last line."""

    def __init__(self, total: int, what: str, unit: str, done: int, interval: float) -> None:
        self.total, self.what, self.unit, self.done, self.interval = total, what, unit, done, interval
        self.before = done
        self.started = self.told = time.monotonic()
        self.bar = tqdm(total=total or None, initial=done, desc=what, unit=unit) if _watched() else None

    def advance(self, units: int = 1, note: str = "") -> None:
        """Report finished units, with a short note such as the loss. Estimates may go over the total."""
        self.done = min(self.done + units, self.total) if self.total else self.done + units
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(units)
        elif time.monotonic() - self.told >= self.interval:
            self._tell(note)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None and self.done > self.before:
            self._tell("")

    def _tell(self, note: str) -> None:
        self.told = time.monotonic()
        seconds = self.told - self.started
        if not self.total:
            log.info("%s: %d %s, %s gone", self.what, self.done, self.unit, _clock(seconds))
            return
        left = seconds / max(1, self.done - self.before) * (self.total - self.done)
        log.info(
            "%s: %d of %d %s, %s gone, %s left%s",
            self.what,
            self.done,
            self.total,
            self.unit,
            _clock(seconds),
            _clock(left),
            f", {note}" if note else "",
        )


def _watched() -> bool:
    return not is_headless() and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    if VISIBLE_GPUS in os.environ:
        return [name.strip() for name in os.environ[VISIBLE_GPUS].split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


@contextlib.contextmanager
def claim_gpus(count: int) -> Iterator[None]:
    """Use `count` GPUs that no other step uses, until the block ends: sets CUDA_VISIBLE_DEVICES.

    Nothing is claimed where there is no choice: `count` is 0, or no more GPUs are visible, as in a cluster's job.
    The claims are locks on files that the system drops with the process, however it ends.
    """
    devices = visible_gpus()
    if not 0 < count < len(devices):
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"spin-repro-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as claims:
        taken = _take(count, devices, folder, claims)
        before = os.environ.get(VISIBLE_GPUS)
        os.environ[VISIBLE_GPUS] = ",".join(taken)
        log.info("GPUs %s", os.environ[VISIBLE_GPUS])
        try:
            yield
        finally:
            if before is None:
                del os.environ[VISIBLE_GPUS]
            else:
                os.environ[VISIBLE_GPUS] = before


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


def choose_precision(setting: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """Compute precision for a setting; `auto` takes bfloat16 where its matrix products are much faster.

    Processors without bfloat16 units emulate it, up to a hundred times slower than float32, so a CPU is measured, once
    in a process.

    Args:
        setting: bfloat16, float32 or auto. Training has it in its settings; sampling and scoring are always `auto`.
        device: where the model is.
    """
    import torch

    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[setting]
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return _fast_on_this_cpu()


@cache
def _fast_on_this_cpu() -> torch.dtype:
    import torch

    gain = _seconds_of_a_product(torch.float32) / _seconds_of_a_product(torch.bfloat16)
    chosen = torch.bfloat16 if gain >= WORTH else torch.float32
    log.info("precision auto: %s; bfloat16 is %.2g times as fast as float32", chosen, gain)
    return chosen


def _seconds_of_a_product(dtype: torch.dtype, budget: float = 0.1) -> float:
    """The fastest of many tries, in processor time of one thread: other work on the machine would stretch the clock's,
    and leave no try of several threads undisturbed."""
    import torch

    inputs, weight = (torch.ones(384, 384, dtype=dtype) for _ in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.nn.functional.linear(inputs, weight)
        best, stop = float("inf"), time.thread_time() + budget
        while (started := time.thread_time()) < stop:
            torch.nn.functional.linear(inputs, weight)
            best = min(best, time.thread_time() - started)
        return best
    finally:
        torch.set_num_threads(threads)
