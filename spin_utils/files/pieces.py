"""Finished pieces of unfinished work, such as the shards of a sampling run: kept with their hashes until all is done.

A piece without a note of its hash was not finished, and one that differs from its note was damaged: both are made
again. The notes lie in the resume state and go with it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from spin_utils.files import processes
from spin_utils.files.paths import relative
from spin_utils.files.seals import file_hash
from spin_utils.files.writing import sync, write_text

log = logging.getLogger(__name__)

SCRATCH = "scratch"
"""Folder for resume state inside the work directory of an artifact; removed when the artifact is complete."""
_NOTES = "pieces"


def scratch(work: Path) -> Path:
    """The folder for resume state inside a work directory."""
    path = Path(work) / SCRATCH
    path.mkdir(exist_ok=True)
    return path


def keep(work: Path, path: Path) -> None:
    """Note that a file in a work directory is finished; it is on disk when this returns. The first process does so."""
    if processes.rank():
        return
    sync(path)
    write_text(_note(work, path), file_hash(path))


def is_kept(work: Path, path: Path) -> bool:
    """Whether a piece is there as it was written. A damaged one is removed, with a warning."""
    note = _note(work, path)
    if not path.is_file() or not note.is_file():
        return False
    if note.read_bytes() == file_hash(path).encode():
        return True
    log.warning("%s: not what was written (hash); it is made again", relative(path))
    note.unlink()
    path.unlink()
    return False


def kept(work: Path) -> dict[str, str]:
    """Noted hash of every piece, by its name relative to the work directory."""
    folder = scratch(work) / _NOTES
    notes = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(note.relative_to(folder)): note.read_bytes().decode("ascii", "replace") for note in notes}


def _note(work: Path, path: Path) -> Path:
    return scratch(work) / _NOTES / path.relative_to(work)
