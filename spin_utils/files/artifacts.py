"""Artifact directories: complete with a manifest, or absent.

A stage works in `NAME.partial`, where finished shards and checkpoints survive a kill. When everything is written, the
files are hashed, the manifest is written last, and the directory is renamed. The name ends in a key, a hash of the
settings, the seed and the keys of all inputs: a changed setting makes a new artifact, and nothing is reused by name
alone. Pieces of unfinished work, such as shards of a sampling run, are written whole or not at all: one that is there
is not made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spin_utils import __version__
from spin_utils.files import paths, processes
from spin_utils.files.disk import digest, explained, file_hash, is_whole, replacing, sealed, sync
from spin_utils.files.paths import KitError, relative

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SCHEMA = 1
SCRATCH = "scratch"
"""Folder for resume state inside the work directory of an artifact; removed when the artifact is complete."""
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "lm-eval", "reasoning-gym", "tokenizers", "numpy")


class ArtifactError(KitError):
    """An artifact is missing or damaged. The message names it and the remedy."""


def key(stage: str, settings: Any, **inputs: Any) -> str:
    """Twelve hexadecimal digits that identify a stage with its settings and inputs, usually earlier keys and the seed.

    >>> key("sft", {"learning_rate": 1e-5}, seed=0) == key("sft", {"learning_rate": 1e-5}, seed=0)
    True
    >>> key("sft", {"learning_rate": 1e-5}, seed=0) == key("sft", {"learning_rate": 1e-5}, seed=1)
    False
    """
    return digest({"stage": stage, "version": __version__, "settings": settings, "inputs": inputs})[:12]


def is_complete(directory: Path) -> bool:
    """Whether the artifact exists: a directory with a readable manifest, and all files with the right size."""
    if not (directory / MANIFEST).exists():  # at once: a run asks twice a second of every step to come
        return False
    try:
        files = read_manifest(directory)["files"]
    except ArtifactError:
        return False
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == f["bytes"] for name, f in files.items()
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an artifact. Raises `ArtifactError` if it is missing or damaged."""
    path = directory / MANIFEST
    remedy = f"delete {relative(directory)} and run again"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{relative(directory)}: no {MANIFEST}; run the stage that makes it") from None
    except ValueError:
        raise ArtifactError(f"{relative(path)}: damaged; {remedy}") from None
    if not is_whole(manifest):
        raise ArtifactError(f"{relative(path)}: changed since it was written (hash); {remedy}")
    return dict(manifest)


def verify(directory: Path, *names: str) -> dict[str, Any]:
    """Check files of an artifact, all if none are named, against the hashes in its manifest, and return the manifest.

    `is_complete` only compares sizes, which is fast. This reads every byte, about a second per gigabyte, once whenever
    a step uses the artifact as an input.

    Raises:
        ArtifactError: a file is missing or differs; the message names it.
    """
    manifest, remedy = read_manifest(directory), f"delete {relative(directory)} and run again"
    for name in names or manifest["files"]:
        path, expected = directory / name, manifest["files"].get(name)
        if expected is None or not path.is_file():
            raise ArtifactError(f"{relative(path)}: missing; {remedy}")
        if path.stat().st_size != expected["bytes"] or file_hash(path) != expected["sha256"]:
            raise ArtifactError(f"{relative(path)}: changed since it was written (hash); {remedy}")
    return manifest


def checked(directory: Path, name: str) -> Path:
    """Path of a file in an artifact, after checking its hash. Errors as in `verify`."""
    verify(directory, name)
    return directory / name


def read_json(directory: Path, name: str) -> Any:
    """Content of a JSON file in an artifact. Errors as in `verify`."""
    return json.loads(checked(directory, name).read_text(encoding="utf-8"))


@contextlib.contextmanager
def building(directory: Path, *, stage: str, settings: Any, inputs: Mapping[str, Any], seed: int) -> Iterator[Path]:
    """Make an artifact: yield the work directory, and complete the artifact if the block succeeds.

    Files in the work directory survive an exception, so that the next call resumes from them. Its `scratch` folder is
    for resume state and not part of the artifact. All arguments but `directory` go into the manifest.
    """
    work = directory.with_name(directory.name + ".partial")
    if processes.rank():
        processes.barrier()  # until the folder is there
        yield work
        processes.barrier()  # until the artifact is
        return
    with explained(directory):
        work.mkdir(parents=True, exist_ok=True)
        earlier = scratch(work) / "seconds"  # of a run that was stopped
        spent = json.loads(earlier.read_text()) if earlier.is_file() else 0.0
        started, clock = time.time(), time.monotonic()
        processes.barrier()
        try:
            yield work
        finally:
            seconds = spent + time.monotonic() - clock
            with contextlib.suppress(OSError):  # a full disk raises its own error
                write_json(earlier, round(seconds, 3))
        for leftover in work.rglob(".*.tmp"):  # from a killed writer
            leftover.unlink()
        files = {
            str(p.relative_to(work)): {"sha256": file_hash(p), "bytes": p.stat().st_size}
            for p in sorted(work.rglob("*"))
            if p.is_file() and p.name != MANIFEST and work / SCRATCH not in p.parents
        }
        manifest = {
            "schema": SCHEMA,
            "kind": "artifact",
            "stage": stage,
            "key": directory.name.rpartition("-")[2],
            "settings": settings,
            "inputs": dict(inputs),
            "seed": seed,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(seconds, 3),
            **environment(),
            "files": files,
        }
        write_json(work / MANIFEST, sealed(manifest))
        for path in [*work.rglob("*"), work]:
            sync(path)
        if directory.is_dir():  # left empty by the scheduler, or damaged
            shutil.rmtree(directory)
        os.replace(work, directory)
        sync(directory.parent)
        shutil.rmtree(directory / SCRATCH, ignore_errors=True)  # last: a run killed before the rename resumes from it
        processes.barrier()


def scratch(work: Path) -> Path:
    """The folder for resume state inside a work directory."""
    path = work / SCRATCH
    path.mkdir(exist_ok=True)
    return path


def adopt(directory: Path) -> bool:
    """Reuse the artifact from another profile in this home, if there is one: equal keys mean equal content.

    Files are linked instead of copied if the file system allows it. Returns whether the artifact exists now.
    """
    for other in sorted(directory.parents[2].glob(f"*/{directory.parent.name}/{directory.name}")):
        if is_complete(other):
            with lock(directory):
                if is_complete(directory):  # made by another process while this one waited
                    return True
                copy = directory.with_name(f"{directory.name}.adopted")
                shutil.rmtree(copy, ignore_errors=True)  # of an earlier call that was killed
                shutil.copytree(other, copy, ignore=shutil.ignore_patterns(SCRATCH), copy_function=link)
                if directory.is_dir():
                    shutil.rmtree(directory)
                os.replace(copy, directory)
            return True
    return False


def link(source: Path | str, target: Path | str) -> None:
    """Put a finished file in a second place, as a link if the file system allows it, otherwise as a copy."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


@contextlib.contextmanager
def lock(directory: Path, note: str = "another process is making it; waiting") -> Iterator[int]:
    """Hold the lock on an artifact, and yield its file descriptor; a second process logs that it is waiting.

    The system releases the lock when the process ends, however it ends. If several processes share the work, the first
    holds it for all.
    """
    if processes.rank():
        yield -1
        return
    # The lock file stays: removing it would let two processes hold locks on two files of one name.
    locks = directory.parent / ".locks"
    with contextlib.ExitStack() as stack:
        with explained(locks):
            locks.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(locks / directory.name, "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: %s", relative(directory), note)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; the same data give the same bytes. With several processes, only the first one writes.

    It is on disk before it is there: a piece of unfinished work that is there is not made again.
    """
    if processes.rank():
        return
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
        sync(partial)


def environment() -> dict[str, Any]:
    """`versions`, `commit`, `dirty` and `device`, as stored in manifests and benchmark records."""
    commit = git("rev-parse", "HEAD")
    # Results are products of the code, so changed results do not make the tree dirty.
    changed = git("status", "--porcelain", "--", ".", ":!results", ":!figures", ":!benchmarks/results*")
    return {
        "versions": {
            "spin_utils": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "commit": commit or "unknown",
        "dirty": commit is None or changed != "",
        "device": _device(),
    }


def git(*arguments: str) -> str | None:
    """What a git command prints about the checkout; None if it fails."""
    command = ["git", "-C", str(paths.REPOSITORY), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return device if processes.count() == 1 else f"{device}, {processes.count()} processes"
