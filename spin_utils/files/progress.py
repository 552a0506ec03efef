"""One progress helper: a bar with the time left for people, one log line per interval otherwise."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm.auto import tqdm

from spin_utils.files.runtime import is_headless

logger = logging.getLogger(__name__)


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
            logger.info("%s: %d %s, %s gone", self.what, self.done, self.unit, _clock(seconds))
            return
        left = seconds / max(1, self.done - self.before) * (self.total - self.done)
        logger.info(
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
