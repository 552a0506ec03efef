"""Artifact directories: complete with a manifest, or absent.

A stage works in `NAME.partial`, where finished shards and checkpoints survive a kill. When everything is
written, the files are hashed, the manifest is written last, and the directory is renamed. The name ends
in a key: a hash of the settings, the seed and the keys of all inputs, so that a changed setting makes a
new artifact and nothing is reused by name alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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

from spin_utils import __version__, processes
from spin_utils.paths import REPOSITORY, relative
from spin_utils.writing import write_text

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SCHEMA = 1
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "lm-eval", "reasoning-gym", "tokenizers", "numpy")
_SCRATCH = "scratch"  # resume state inside NAME.partial; removed before the rename


class ArtifactError(RuntimeError):
    """An artifact is missing or damaged. The message names it and the remedy."""


def key(stage: str, settings: Any, **inputs: Any) -> str:
    """Twelve hexadecimal digits that stand for a stage, its settings and its inputs.

    Args:
        stage: name of the stage.
        settings: JSON data.
        inputs: JSON data by name; usually the keys of earlier artifacts and the seed.

    >>> key("sft", {"learning_rate": 1e-5}, seed=0) == key("sft", {"learning_rate": 1e-5}, seed=0)
    True
    >>> key("sft", {"learning_rate": 1e-5}, seed=0) == key("sft", {"learning_rate": 1e-5}, seed=1)
    False
    """
    text = canonical({"stage": stage, "version": __version__, "settings": settings, "inputs": inputs})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def file_hash(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(directory: Path) -> bool:
    """Whether the artifact exists: a directory with a readable manifest whose files have their sizes."""
    try:
        manifest = read_manifest(directory)
    except ArtifactError:
        return False
    files = manifest["files"]
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == f["bytes"] for name, f in files.items()
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        ArtifactError: no manifest, or not one of this kit's.
    """
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{relative(directory)}: no {MANIFEST}; run the stage that makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ArtifactError(f"{relative(path)}: damaged; delete {relative(directory)} and run again") from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("schema") != SCHEMA
        or not isinstance(manifest.get("files"), dict)
    ):
        raise ArtifactError(f"{relative(path)}: not a manifest of schema {SCHEMA}; delete the folder and run again")
    return manifest


def verify(directory: Path) -> dict[str, Any]:
    """Hash every file of an artifact against its manifest, which is returned.

    Raises:
        ArtifactError: a file is missing or differs; the message names it.
    """
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        path = Path(directory) / name
        if not path.is_file():
            raise ArtifactError(f"{relative(path)}: missing; delete {relative(directory)} and run again")
        if path.stat().st_size != expected["bytes"] or file_hash(path) != expected["sha256"]:
            raise ArtifactError(
                f"{relative(path)}: not what was written (hash); delete {relative(directory)} and run again"
            )
    return manifest


@contextlib.contextmanager
def building(directory: Path, *, stage: str, settings: Any, inputs: Mapping[str, Any], seed: int) -> Iterator[Path]:
    """Make an artifact: yields the work directory, and completes the artifact when the block ends well.

    What a stage leaves in the work directory survives an exception, so the next call goes on from there.
    A `scratch` folder in it holds resume state and is not part of the artifact.

    Args:
        directory: where the artifact will be; its name ends in the key.
        stage: name of the stage.
        settings: resolved settings, as JSON data.
        inputs: what it was made from, as JSON data.
        seed: training or sampling seed.
    """
    directory = Path(directory)
    work = directory.with_name(directory.name + ".partial")
    if processes.rank():
        processes.barrier()  # until the folder is there
        yield work
        processes.barrier()  # until the artifact is
        return
    work.mkdir(parents=True, exist_ok=True)
    started, clock, spent = time.time(), time.monotonic(), _spent(work)
    processes.barrier()
    try:
        yield work
    finally:
        seconds = spent + time.monotonic() - clock
        (scratch(work) / "seconds").write_text(f"{seconds:.3f}")
    shutil.rmtree(work / _SCRATCH)
    for leftover in work.rglob(".*.tmp"):  # of a writer that was killed
        leftover.unlink()
    files = {
        str(p.relative_to(work)): {"sha256": file_hash(p), "bytes": p.stat().st_size}
        for p in sorted(work.rglob("*"))
        if p.is_file() and p.name != MANIFEST
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
    write_json(work / MANIFEST, manifest)
    _sync(work)
    if directory.is_dir():  # left empty by the scheduler, or damaged
        shutil.rmtree(directory)
    os.replace(work, directory)
    processes.barrier()


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the right to make an artifact; another run waits, and says so."""
    if processes.rank():
        processes.barrier()  # until the first process holds it for all
        yield
        return
    # The lock file stays: removing it would let two processes hold locks on two files of one name.
    locks = directory.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / directory.name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is making it; waiting", relative(directory))
            fcntl.flock(file, fcntl.LOCK_EX)
        processes.barrier()
        yield


def scratch(work: Path) -> Path:
    """The folder for resume state inside a work directory."""
    path = Path(work) / _SCRATCH
    path.mkdir(exist_ok=True)
    return path


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all, with the same bytes for the same data; of several processes the first writes."""
    if processes.rank():
        return
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def environment() -> dict[str, Any]:
    """Versions, commit and device: only what a reader of the result needs, never the whole environment."""
    commit, dirty = _commit()
    return {
        "versions": {"spin_utils": __version__, "python": platform.python_version(), **_versions()},
        "commit": commit,
        "dirty": dirty,
        "device": _device(),
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _commit() -> tuple[str, bool]:
    # Results are products of the tree, not part of what makes them: they do not make it dirty.
    try:
        git = ["git", "-C", str(REPOSITORY)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        pathspec = ["--", ".", ":!results", ":!figures"]
        status = subprocess.run([*git, "status", "--porcelain", *pathspec], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
    return commit, bool(status.stdout.strip())


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return device if processes.count() == 1 else f"{device}, {processes.count()} processes"


def _spent(work: Path) -> float:
    path = work / _SCRATCH / "seconds"
    return float(path.read_text()) if path.is_file() else 0.0


def _sync(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
