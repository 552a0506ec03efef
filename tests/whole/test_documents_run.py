"""Every command of the README, of CONTRIBUTING and of docs/ works as it stands there, at the size of a test.

Pages share one home, which starts with a finished smoke reproduction, so that a command finds what others made: that is
what happens to a reader, too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from spin_utils.cli import main as cli
from spin_utils.files import paths, runtime, warm_start
from spin_utils.paper import published, results
from spin_utils.settings import profiles
from spin_utils.settings.inputs import SettingsError

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
SERVER = "make lab"
"""It runs until it is stopped: it is started, waited for and stopped."""

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
_WITH_PROFILE = ("reproduce", "power", "plan", "step", "report", "verdicts", "compare", "provenance", "figures")


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


PRODUCTS = {
    "README.md": ["path/to/result/model.safetensors"],
    "docs/your-data.md": ["results/sums/verdicts.csv", "figures/sums/figure2.png"],
    "docs/your-model.md": ["artifacts/mine/seed-0"],
    "docs/add-a-benchmark.md": ["results/with-colours/notebooks/04_benchmark_evaluation.ipynb"],
    "docs/read-the-results.md": ["results/smoke/report.html"],
    "docs/command-line.md": ["spin-repro.bash"],
}
"""Files that a page's commands leave, beside what they say."""


@pytest.fixture(scope="module")
def checkout(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a checkout after `make reproduce PROFILE=smoke`, with the files that the pages speak of.

    Its `spin-repro` is a fork of a process that has imported everything, or half of the time would go to imports.
    """
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(finished, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("figures"))
    prepare(folder)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(next(folder.glob("artifacts/smoke/seed-0/sft-*")))
    shutil.copyfile(ROOT / "profiles" / "smoke_preferences.jsonl", folder / "pairs.jsonl")
    with warm_start.server(os.environ) as served, pytest.MonkeyPatch.context() as patch:
        for name in served.keys() - os.environ.keys():
            patch.setenv(name, served[name])
        type_in(folder, commands("docs/your-data.md")[0])  # rows.jsonl
        yield folder


def type_in(folder: Path, command: str) -> str:
    """Run a command of a page in a checkout; returns what it says."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", at_smoke(command)],
        cwd=folder,
        env=environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, f"{at_smoke(command)}\n{result.stdout}"
    return result.stdout


def environment(folder: Path) -> dict[str, str]:
    jupyter = {f"JUPYTER_{kind}_DIR": str(folder / ".jupyter") for kind in ("CONFIG", "RUNTIME")}
    return {**runtime.child_environment(), "SPIN_HOME": str(folder), "BROWSER": "true", **jupyter}


TYPED: set[str] = set()
"""Commands typed so far, at the size of a test: what two pages say need be typed once only."""


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, checkout: Path, finished: Path) -> None:
    for command in commands(page):
        if command in (*NOT_RUN, *SLOW, SERVER) or at_smoke(command) in TYPED:
            continue
        type_in(checkout, command)
        TYPED.add(at_smoke(command))
    for product in PRODUCTS.get(page, []):
        assert (checkout / product).exists(), product
    if page == "docs/your-data.md":
        scores = results.load_evaluations(checkout / "results" / "sums")
        assert scores.groupby("model").size().to_dict() == {"sft": 6, "spin-0": 6, "spin-0-arm-two-answers": 6}
    if page == "docs/read-the-results.md":  # its last command redraws them
        drawn = {path.name: path.read_bytes() for path in (finished / "figures" / "smoke").glob("*.p[dn][fg]")}
        assert drawn == {name: (checkout / "figures" / "smoke" / name).read_bytes() for name in drawn}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if {*commands(page)} & {*SLOW}])
def test_the_slow_commands_of_a_page_run_after_its_others(page: str, checkout: Path) -> None:
    for command in commands(page):
        if command not in (*NOT_RUN, SERVER):
            said = type_in(checkout, command)
    if page == "docs/add-a-benchmark.md":
        assert "colours" in said
    if page == "docs/run-an-ablation.md":
        assert (checkout / "results" / "hinge" / "tables" / "table4.md").is_file()
    if page == "docs/speed.md":
        assert (checkout / "benchmarks" / "results" / "sample_vs_generate.json").is_file(), "not in the repository"


def test_the_server_starts_and_stops(checkout: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, said = f"http://127.0.0.1:{port}/", ""
    with subprocess.Popen(
        f"exec timeout -k 10 120 {at_smoke(SERVER)} PORT={port}",
        shell=True,
        cwd=checkout,
        env=environment(checkout),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as server:
        assert server.stdout
        while address not in said and (line := server.stdout.readline()):
            said += line
        os.killpg(server.pid, signal.SIGTERM)
    assert address in said, said


def test_what_is_not_run_stands_in_a_page() -> None:
    said = [command for page in PAGES for command in commands(page)]
    for command in (*NOT_RUN, *SLOW, SERVER):
        assert command in said, f"{command}: no page says it any more; take it off the list"


def test_commands_within_sentences_exist() -> None:
    commands = set(get_command(cli.app).commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    templates = [str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.*")]
    for page in [*PAGES, "REPRODUCING.md", *templates]:
        text = (ROOT / page).read_text()
        assert set(re.findall(r"`make ([a-z]+)\b", text)) <= targets, page
        assert set(re.findall(r"`(?:\.venv/bin/)?spin-repro ([a-z]+)", text)) <= commands, page


def test_profiles_shown_on_a_page_can_be_loaded(checkout: Path) -> None:
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
            (checkout / "shown.yaml").write_text(block)
            profiles.load(str(checkout / "shown.yaml"))


def test_settings_that_a_line_of_a_page_names_are_accepted_together_by_cpu_and_about_rows_with_your_rows() -> None:
    pages = {page: (ROOT / page).read_text() for page in PAGES}
    lines = [(page, line) for page, text in pages.items() for line in text.splitlines()]
    given = [(page, re.findall(r"`'?([a-z_]+\.[a-z_.]+=[^`']+)'?`", line)) for page, line in lines]
    assert sum(page == "docs/run-an-ablation.md" for page, found in given if found) > 5
    rows = {"demonstrations": {"source": "file", "train": "rows.jsonl"}}
    for page, found in given:
        try:
            yours = rows if page == "docs/your-data.md" else {}
            profiles.load("cpu", yours | profiles.parse_overrides(found))
        except SettingsError as error:
            raise AssertionError(f"{page}: {', '.join(found)}") from error


def test_every_test_that_a_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "speed.md").read_text())
    assert named
    for file, name in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {name}(" in path.read_text(), f"{file}::{name}"


def test_the_numbers_of_the_errata_are_those_of_the_published_tables() -> None:
    text = (ROOT / "docs" / "errata.md").read_text().partition("## The released code")[0]
    table = published.leaderboard()
    gain = table.loc["spin-3-dpo", "average_recomputed"] - table.loc["spin-3", "average_recomputed"]
    printed = table.loc["spin-3-dpo", "average_printed"] - table.loc["spin-3", "average_printed"]
    values = [table.loc["spin-3-dpo", "average_printed"], table.loc["spin-3-dpo", "average_recomputed"], printed, gain]
    for model, benchmark, sign in (("spin-0", "gsm8k", 1), ("spin-3", "gsm8k", 1), ("spin-3", "mmlu", -1)):
        values.append(sign * (table.loc[model, benchmark] - table.loc["sft", benchmark]))
    values.append(table.loc["sft", "winogrande"] - table.loc["spin-3", "winogrande"])
    assert re.findall(r"\b\d+\.\d\d\b", text) == [f"{value:.2f}" for value in values]
