"""Limits of time and memory for somebody else's code that runs in this process: a chat template is a program."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

_PAGES = Path("/proc/self/statm")


class _Late(BaseException):
    """No `Exception`: jinja2 passes over those while it computes constants, and would begin again without a limit."""


@contextlib.contextmanager
def within(seconds: float, gigabytes: int) -> Iterator[None]:
    """End the block where it computes too long, or asks for more memory than the process has and this much more.

    Nothing is limited outside the main thread, which alone can be woken, and no memory where the system does not say
    how much there is in use (not Linux).

    Args:
        seconds: of processor time, so that a busy machine ends nothing.
        gigabytes: beyond what the process has.

    Raises:
        TimeoutError, MemoryError: out of the middle of the block.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with _memory(gigabytes):
            yield
    except _Late:
        raise TimeoutError from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _memory(gigabytes: int) -> Iterator[None]:
    """Let the process have some more address space, and no more than that."""
    if not _PAGES.is_file():
        yield
        return
    import resource  # there on Linux

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(_PAGES.read_text().split()[0]) * resource.getpagesize()
    limits = [limit for limit in (used + gigabytes * 2**30, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
