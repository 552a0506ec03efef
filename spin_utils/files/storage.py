"""What the kit says when something cannot be written: the place, the reason and the remedy, instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

_ROOM = "make room there, or move the folder to a larger disk and set SPIN_HOME to it"
_RIGHTS = "make it writable, or set SPIN_HOME to a folder that is"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENOTDIR: "a file stands where a folder is needed; move it away, or set SPIN_HOME to another folder",
    errno.EEXIST: "a file stands where a folder is needed; move it away, or set SPIN_HOME to another folder",
    errno.EIO: "the disk reports an error; check it, or set SPIN_HOME to a folder on another one",
}


class StorageError(RuntimeError):
    """Something could not be written in the middle of a run. The message names the place, the reason and the remedy."""


class UnwritableError(ValueError):
    """A folder that a run would write to cannot be written; found before any work."""


@contextlib.contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turn the errors of a full or unwritable disk inside the block into a `StorageError`.

    Args:
        place: what is being written, named where the error itself names no file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _number(error)
        if number not in _REMEDIES:
            raise
        where = getattr(error, "filename", None) or place
        raise StorageError(
            f"{where}: {os.strerror(number).lower()}; {_REMEDIES[number]}. "
            "What is finished is kept, and the same command goes on from there"
        ) from None


def check_writable(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be made or written to.

    Raises:
        UnwritableError: names the folder and the remedy.
    """
    probe = folder / f".{os.getpid()}.tmp"
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()
    except StorageError as error:
        raise UnwritableError(str(error)) from None
    except OSError as error:
        raise UnwritableError(f"{folder}: {os.strerror(_number(error)).lower()}; {_RIGHTS}") from None


def _number(error: BaseException) -> int:
    """The system's number of an error; libraries in Rust only tell it in words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0
