"""Process settings that must hold before the work starts: memory allocator, threads, logging, progress."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

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
