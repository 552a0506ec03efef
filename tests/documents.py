"""What the documents say can be typed, and the rules by which a test can afford to type it."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

from spin_utils.files import paths

ROOT = paths.REPOSITORY
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
"""Documents whose commands are run."""

NOT_RUN = {
    "make test": "it would run itself",
    "make lint": "`.ci/run` calls it beside the tests",
    ".venv/bin/python -m pytest tests/model/test_packing.py": "part of these tests",
    ".venv/bin/python -m pytest tests/training/test_loss.py": "part of these tests",
    ".venv/bin/python -m pytest -m slow": "the slow tests would run themselves",
    ".venv/bin/python -m pytest -m gpu": "for a machine with a GPU",
    "SPIN_SCREENSHOTS=shots .venv/bin/python -m pytest tests/whole/test_browser.py": "part of these tests",
    ".venv/bin/python -m benchmarks.search": "half an hour on a real model",
    ".venv/bin/python -m benchmarks.coverage": "minutes; test_statistics.py runs its functions",
    ".venv/bin/python docs/make_map.py": "writes into the repository; test_rooms.py calls its functions",
}
"""Commands that no test types, and why."""
SLOW = (
    ".venv/bin/python -m benchmarks --runs 3 --only sample_vs_generate",
    # docs/your-data.md runs it by another name
    ".venv/bin/spin-repro reproduce --model path/to/model --data rows.jsonl --set 'template={kind: chat}' --name mine",
    ".venv/bin/spin-repro reproduce --profile with-colours.yaml",
    ".venv/bin/spin-repro compare spin-3 sft --profile with-colours.yaml",
    ".venv/bin/spin-repro reproduce --profile hinge.yaml",
    ".venv/bin/spin-repro compare hinge/spin-3 cpu/spin-3",
)
"""Commands that only `python -m pytest -m slow` types."""
SERVERS = ("make lab",)
"""Commands that run until they are stopped: they are started, waited for and stopped."""

SMALL = """\
# The profile smoke without the experiments around its main chain.
extends: smoke
sft_more: 0
dpo: null
spin: {iterations: 1, epochs_shown: 0, subsets: []}
"""

_SPIN_REPRO = """\
#!{python}
import os
import sys
from spin_utils.files import warm_start
arguments = sys.argv[1:]
if arguments[0] in {with_profile} and "--profile" not in arguments:
    changed = {{"--model", "--data", "--set"}} & set(arguments)
    arguments += ["--profile", "small.yaml" if changed else "smoke"]
if arguments[0] == "reproduce" and "--jobs" not in arguments:
    arguments += ["--jobs", "2"]
command = [sys.executable, "-m", "spin_utils", *arguments]
if arguments[0] != "--show-completion":  # which looks for the shell among its parents
    command = warm_start.command(command)
os.execv(command[0], command)
"""
_WITH_PROFILE = (
    "reproduce",
    "power",
    "plan",
    "step",
    "report",
    "verdicts",
    "compare",
    "provenance",
    "figures",
)


def commands(page: str) -> list[str]:
    """The commands of a page's bash blocks in order, without comments: a line, or several up to the end of a text.

    >>> commands("docs/several-gpus.md")[0]
    '.venv/bin/spin-repro reproduce --profile smoke --jobs 2'
    """
    found: list[str] = []
    for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S):
        end, going_on = "", False
        for line in block.splitlines():
            if end or going_on:
                found[-1] += f"\n{line}"
            elif line.strip():
                line = re.sub(r"\s+#.*", "", line)
                found.append(line)
            here = re.search(r"<<\s*'?(\w+)'?", line)
            end = "" if line == end else here.group(1) if here else end
            going_on = line.endswith("\\")
    return found


def at_smoke(command: str) -> str:
    """A command at the size of a test.

    The profile `cpu` is `smoke`, or `small` where a profile extends it, and the last iteration is the first. The
    `spin-repro` of `prepare` has these profiles as defaults.
    """
    command = command.replace("extends: cpu", "extends: small.yaml")
    command = re.sub(r"\bcpu\b", "smoke", command).replace("spin-3", "spin-0")
    if command.startswith("make ") and "PROFILE=" not in command:
        command += " PROFILE=smoke"
    return command


def prepare(folder: Path) -> None:
    """Make a folder look like a checkout after `make setup`: links to its files, and this Python in .venv/bin."""
    written = ("results", "figures", "benchmarks")
    for path in ROOT.iterdir():
        if not (folder / path.name).exists() and path.name not in (".git", ".venv", "artifacts", *written):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    python = shlex.quote(sys.executable)
    scripts = {
        "spin-repro": _SPIN_REPRO.format(python=sys.executable, with_profile=_WITH_PROFILE),
        "python": f'#!/bin/sh\nexec {python} "$@"\n',
        "jupyter": f'#!/bin/sh\nname=$1; shift; exec {python} -m jupyter$name "$@"\n',
    }
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, text in scripts.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    (folder / ".venv" / ".ready").touch()
    (folder / "small.yaml").write_text(SMALL)
