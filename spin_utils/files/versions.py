"""Versions, commit and device: what a reader of a result needs to know of where it was made, and no more."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from typing import Any

from spin_utils import __version__
from spin_utils.files import processes
from spin_utils.files.paths import REPOSITORY

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "lm-eval", "reasoning-gym", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """`versions`, `commit`, `dirty` and `device`, as manifests and the records of benchmarks hold them."""
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
        pathspec = ["--", ".", ":!results", ":!figures", ":!benchmarks/results*"]
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
