"""Atomic writes, so that a file is complete or absent; hashes, and storage errors with remedies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from spin_utils.files.paths import KitError, WorkError

SEAL = "sha256"
"""Field of a JSON document with the hash of all its other fields."""
_STORAGE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.EIO, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),  # the last three: of file systems without locks
}
"""Errors of a place and not of the program."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds, the file replaces `path`.

    It is not waited for: after a power cut a file may be the old one or damaged. What cannot be made again is synced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
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


def digest(data: Any) -> str:
    """sha256 of JSON data, the same for equal data."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


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
    return {**content, SEAL: digest(content)}


def is_whole(document: Any) -> bool:
    """Whether a sealed document is unchanged."""
    return isinstance(document, dict) and SEAL in document and document[SEAL] == sealed(document)[SEAL]


@contextlib.contextmanager
def explained(place: Path, kind: type[KitError] = WorkError) -> Iterator[None]:
    """Turn errors of a full or unwritable disk into one that the user can fix, which names the file or else `place`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))  # libraries written in Rust only give it as text
        number = getattr(error, "errno", None) or (int(found[1]) if found else 0)
        if number not in _STORAGE:
            raise
        place = getattr(error, "filename", None) or place
        raise kind(
            f"{place}: {os.strerror(number).lower()}; make room or make it writable there, or set SPIN_HOME to another "
            "disk. Finished work is kept, and the same command resumes from it"
        ) from None


def check_writable(folder: Path) -> None:
    """Raise `KitError` if a folder cannot be created or written to."""
    with explained(folder, KitError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
