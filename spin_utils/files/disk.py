"""Atomic writes, so that a file is complete or absent; hashes, and storage errors with remedies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from spin_utils.files.paths import KitError

SEAL = "sha256"
"""Field of a JSON document with the hash of all its other fields."""
_SPACE = "free some space there, or move the folder to a larger disk and set SPIN_HOME to it"
_RIGHTS = "make it writable, or set SPIN_HOME to a folder that is"
_IN_THE_WAY = "a file stands where a folder is needed; move it away, or set SPIN_HOME to another folder"
_NO_LOCKS = "the file system has no locks; set SPIN_HOME to a folder on a local disk, or mount it with locks"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EIO: "the disk reports an error; check it, or set SPIN_HOME to a folder on another disk",
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP), _NO_LOCKS),
}


class StorageError(KitError):
    """A file could not be written during a run. The message names the place, the reason and the remedy."""

    exit_status = 1


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds, the file is synced and replaces `path`.

    Args:
        path: of the file; missing folders are created, and an earlier file stays until the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, with the same bytes on every system."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_forms(path: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write the same content in several formats, one file `path`.SUFFIX per text; return the files."""
    files = {path.with_name(f"{path.name}.{suffix}"): text for suffix, text in texts.items()}
    for file, text in files.items():
        write_text(file, text)
    return list(files)


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal data give equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def file_hash(path: Path) -> str:
    """sha256 of a file, read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with a hash of all its other fields added at the end.

    >>> is_whole(sealed({"loss": 0.69})), is_whole({**sealed({"loss": 0.69}), "loss": 0.61})
    (True, False)
    """
    content = {name: value for name, value in document.items() if name != SEAL}
    return {**content, SEAL: hashlib.sha256(canonical(content).encode()).hexdigest()}


def is_whole(document: Any) -> bool:
    """Whether a sealed document is unchanged."""
    return isinstance(document, dict) and SEAL in document and document[SEAL] == sealed(document)[SEAL]


@contextlib.contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turn errors from a full or unwritable disk inside the block into a `StorageError`.

    Args:
        place: what is being written, for errors that name no file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number not in _REMEDIES:
            raise
        where = getattr(error, "filename", None) or place
        raise StorageError(
            f"{where}: {os.strerror(number).lower()}; {_REMEDIES[number]}. "
            "Finished work is kept, and the same command resumes from it"
        ) from None


def check_writable(folder: Path) -> None:
    """Raise if a folder cannot be created or written to.

    Raises:
        KitError: names the folder and the remedy.
    """
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()
    except StorageError as error:
        raise KitError(str(error)) from None


def _error_number(error: BaseException) -> int:
    """The system's error number; libraries written in Rust only give it as text."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0
