"""What is on disk is whole or absent: atomic writes, hashes, strict JSON, and storage errors with remedies."""

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; when the block ends well, the file is on disk and takes its place.

    Args:
        path: of the file; missing folders are made, an earlier file stays until the new one is whole.
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
    """Wait until a file or the names in a folder are on disk."""
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
    """Write one thing in several forms: a file `path`.SUFFIX for every text, by its suffix; returns the files."""
    files = [path.with_name(f"{path.name}.{suffix}") for suffix in texts]
    for file, text in zip(files, texts.values(), strict=True):
        write_text(file, text)
    return files


SEAL = "sha256"
"""Name of the field that holds the hash of all others."""


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def file_hash(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the hash of everything else in it, last.

    >>> is_whole(sealed({"loss": 0.69})), is_whole({**sealed({"loss": 0.69}), "loss": 0.61})
    (True, False)
    """
    content = {name: value for name, value in document.items() if name != SEAL}
    return {**content, SEAL: hashlib.sha256(canonical(content).encode()).hexdigest()}


def is_whole(document: Mapping[str, Any]) -> bool:
    """Whether a document is what was sealed. One without a hash, as earlier versions wrote it, is taken as it is.

    A hash under another name is a damaged name.
    """
    if SEAL in document:
        try:
            return document[SEAL] == sealed(document)[SEAL]
        except ValueError:  # NaN or infinity, which nothing sealed holds
            return False
    return not any(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in document.values())


_LEVELS = 100


class JSONError(ValueError):
    """Text is not JSON, or is JSON that means two things. The readers add the file and the remedy.

    Attributes:
        reason: what is wrong.
        line: where, from 1; 0 if unknown.
        column: where, from 1; 0 if unknown.
    """

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"{reason}, line {line}, column {column}" if line else reason)
        self.reason, self.line, self.column = reason, line, column


def parse_json(text: str, *, allow_nan: bool = False) -> Any:
    """Parse JSON.

    Python keeps the last of two equal keys, reads NaN and Infinity, and gives up on deep nesting and on very long
    numbers with errors of their own; all of these are faults of the text here.

    Args:
        text: one JSON value.
        allow_nan: let NaN and Infinity pass, for a reader that says itself which field holds them.

    Raises:
        JSONError: with the reason, and the place where the parser names one.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    spin_utils.files.disk.JSONError: key 'a' is written twice
    """
    try:
        value = (_LENIENT if allow_nan else _STRICT).decode(text)
    except json.JSONDecodeError as error:
        raise JSONError(error.msg, error.lineno, error.colno) from None
    except RecursionError:
        raise JSONError("nested too deeply") from None
    except JSONError:
        raise
    except ValueError:
        raise JSONError("a number with thousands of digits") from None
    if is_too_deep(value):
        raise JSONError("nested too deeply")
    return value


def is_too_deep(value: Any) -> bool:
    """Whether data has over a hundred levels: a parser may take it, and what copies or writes it later give up."""
    level = [value]
    for _ in range(_LEVELS):
        tables = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level = [part for table in tables for part in table]
        if not level:
            return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JSONError(f"key {twice!r} is written twice")
    return record


def _constant(name: str) -> Any:
    raise JSONError(f"{name} is not a number")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_LENIENT = json.JSONDecoder(object_pairs_hook=_object)


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
