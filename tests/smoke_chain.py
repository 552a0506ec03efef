"""The smoke chain, by the command line or in child processes that can be killed, and what must be the same after it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from spin_utils.files import artifacts

# Imported once by a server that never computes; a child starts from there in milliseconds, so that a kill falls into
# the work and not into an import.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["spin_utils.experiment.run", "spin_utils.experiment.play", "lm_eval.tasks"])

SECRETS = {name: f"marker-of-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")}
"""In the environment of every run of the command line, so that a test can look for them in what it left."""
TIMES = {"seconds", "tokens_per_second", "groups_per_second"}


def command(*arguments: str) -> list[str]:
    """The command line with this Python."""
    return [sys.executable, "-m", "spin_utils", *arguments]


def reproduce(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`spin-repro reproduce` with its products below `home`; output and errors in one text."""
    environment = {**os.environ, "SPIN_HOME": str(home), **SECRETS}
    return subprocess.run(
        command("reproduce", *arguments), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def make(home: Path) -> None:
    """Make the chain below a home, in this process."""
    os.environ["SPIN_HOME"] = str(home)
    from spin_utils.experiment import plan, run
    from spin_utils.files import runtime
    from spin_utils.settings import profiles

    runtime.configure()
    steps = plan.make(profiles.load("smoke"), 0)
    for name in steps.steps:
        run.make(steps, name)


def start(home: Path) -> Any:
    """`make` in a child process."""
    process = CHILDREN.Process(target=make, args=(home,))
    process.start()
    return process


def contents(home: Path, profile: str = "smoke") -> dict[str, str]:
    """Hash of every file of every artifact, without what only says when and how fast it was made.

    Also proves that each artifact is whole, and that no unfinished one is left.
    """
    root = home / "artifacts" / profile
    assert not list(root.glob("*/*.partial"))
    found = {}
    for directory in sorted(root.glob("*/*-*")):
        if directory.name.startswith(("tables-", "first-tables-")):
            continue
        for name in artifacts.verify(directory)["files"]:
            found[f"{directory.name}/{name}"] = _digest(directory / name)
    return found


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name in ("training.json", "state.json"):
        document = json.loads(data)
        rows = [{name: row[name] for name in row.keys() - TIMES} for row in document["rows"]]
        data = json.dumps({**document, "rows": rows}, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()
