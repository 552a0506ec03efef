"""The command line in a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECRETS = {name: f"marker-of-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")}
"""In the environment of every run, so that a test can look for them in what it left."""


def command(*arguments: str) -> list[str]:
    """The command line with this Python."""
    return [sys.executable, "-m", "spin_utils", *arguments]


def reproduce(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`spin-repro reproduce` with its products below `home`; output and errors in one text."""
    environment = {**os.environ, "SPIN_HOME": str(home), **SECRETS}
    return subprocess.run(
        command("reproduce", *arguments), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
