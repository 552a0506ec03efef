"""Every command of the README, of CONTRIBUTING and of docs/ works as it stands there, at the size of a test.

`documents.py` holds the rules. Pages share one home, which starts with a finished smoke reproduction, so that a command
finds what others made: that is what happens to a reader, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import documents
import pytest
from filelock import FileLock
from typer.main import get_command

from spin_utils.cli import main as cli
from spin_utils.files import runtime, warm_start
from spin_utils.paper import published, results
from spin_utils.settings import profiles
from spin_utils.settings.inputs import SettingsError

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
    with FileLock(finished.with_suffix(".lock")):  # a test sets the clock of its files back for a while
        shutil.copytree(finished, folder, dirs_exist_ok=True)
    documents.prepare(folder)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(next(folder.glob("artifacts/smoke/seed-0/sft-*")))
    shutil.copyfile(documents.ROOT / "profiles" / "smoke_preferences.jsonl", folder / "pairs.jsonl")
    with warm_start.server(os.environ) as served, pytest.MonkeyPatch.context() as patch:
        for name in served.keys() - os.environ.keys():
            patch.setenv(name, served[name])
        type_in(folder, documents.commands("docs/your-data.md")[0])  # rows.jsonl
        yield folder


def type_in(folder: Path, command: str) -> str:
    """Run a command of a page in a checkout; returns what it says."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", documents.at_smoke(command)],
        cwd=folder,
        env=environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, f"{documents.at_smoke(command)}\n{result.stdout}"
    return result.stdout


def environment(folder: Path) -> dict[str, str]:
    jupyter = {f"JUPYTER_{kind}_DIR": str(folder / ".jupyter") for kind in ("CONFIG", "RUNTIME")}
    return {**runtime.child_environment(headless=True), "SPIN_HOME": str(folder), "BROWSER": "true", **jupyter}


TYPED: set[str] = set()
"""Commands typed so far, at the size of a test: what two pages say need be typed once only."""


@pytest.mark.parametrize("page", documents.PAGES)
def test_the_commands_of_a_page_run(page: str, checkout: Path) -> None:
    for command in documents.commands(page):
        if command in (*documents.NOT_RUN, *documents.SLOW, *documents.SERVERS) or documents.at_smoke(command) in TYPED:
            continue
        type_in(checkout, command)
        TYPED.add(documents.at_smoke(command))
    for product in PRODUCTS.get(page, []):
        assert (checkout / product).exists(), product
    if page == "docs/your-data.md":
        scores = results.load_evaluations(checkout / "results" / "sums")
        assert scores.groupby("model").size().to_dict() == {"sft": 6, "spin-0": 6, "spin-0-arm-two-answers": 6}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in documents.PAGES if {*documents.commands(page)} & {*documents.SLOW}])
def test_the_slow_commands_of_a_page_run_after_its_others(page: str, checkout: Path) -> None:
    for command in documents.commands(page):
        if command not in (*documents.NOT_RUN, *documents.SERVERS):
            said = type_in(checkout, command)
    if page == "docs/add-a-benchmark.md":
        assert "colours" in said
    if page == "docs/run-an-ablation.md":
        assert (checkout / "results" / "hinge" / "tables" / "table4.md").is_file()
    if page == "docs/command-line.md":
        assert (checkout / "benchmarks" / "results" / "sample_vs_generate.json").is_file(), "not in the repository"


@pytest.mark.parametrize("command", documents.SERVERS)
def test_a_server_starts_and_stops(command: str, checkout: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, said = f"http://127.0.0.1:{port}/", ""
    with subprocess.Popen(
        f"exec timeout -k 10 120 {documents.at_smoke(command)} PORT={port}",
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
    said = [command for page in documents.PAGES for command in documents.commands(page)]
    for command in (*documents.NOT_RUN, *documents.SLOW, *documents.SERVERS):
        assert command in said, f"{command}: no page says it any more; take it off the list"


def test_commands_within_sentences_exist() -> None:
    commands = set(get_command(cli.app).commands)
    targets = set(re.findall(r"^([a-z-]+):", (documents.ROOT / "Makefile").read_text(), re.M))
    templates = [str(path.relative_to(documents.ROOT)) for path in (documents.ROOT / ".github").rglob("*.*")]
    for page in [*documents.PAGES, "REPRODUCING.md", *templates]:
        text = (documents.ROOT / page).read_text()
        assert set(re.findall(r"`make ([a-z]+)\b", text)) <= targets, page
        assert set(re.findall(r"`(?:\.venv/bin/)?spin-repro ([a-z]+)", text)) <= commands, page


def test_links_lead_somewhere() -> None:
    for page in [*documents.PAGES, "REPRODUCING.md", "CHANGELOG.md"]:
        path = documents.ROOT / page
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if not target.startswith("http"):
                file, _, place = target.partition("#")
                other = (path.parent / file).resolve() if file else path
                assert other.exists(), f"{page}: {target}"
                headings = re.findall(r"^#+ (.*)", other.read_text(), re.M) if place else []
                anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert place in {"", *anchors}, f"{page}: {target}"


def test_profiles_shown_on_a_page_can_be_loaded(checkout: Path) -> None:
    for page in documents.PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", (documents.ROOT / page).read_text(), re.M | re.S):
            (checkout / "shown.yaml").write_text(block)
            profiles.load(str(checkout / "shown.yaml"))


def test_settings_that_a_line_of_a_page_names_are_accepted_together_by_cpu() -> None:
    pages = {page: (documents.ROOT / page).read_text() for page in documents.PAGES}
    lines = [(page, line) for page, text in pages.items() for line in text.splitlines()]
    given = [(page, re.findall(r"`'?([a-z_]+\.[a-z_.]+=[^`']+)'?`", line)) for page, line in lines]
    assert sum(page == "docs/run-an-ablation.md" for page, found in given if found) > 5
    for page, found in given:
        try:
            profiles.load("cpu", profiles.parse_overrides(found))
        except SettingsError as error:
            raise AssertionError(f"{page}: {', '.join(found)}") from error


def test_every_test_that_a_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (documents.ROOT / "docs" / "speed.md").read_text())
    assert named
    for file, name in named:
        (path,) = (documents.ROOT / "tests").rglob(file)
        assert f"def {name}(" in path.read_text(), f"{file}::{name}"


def test_the_numbers_of_the_errata_are_those_of_the_published_tables() -> None:
    text = (documents.ROOT / "docs" / "errata.md").read_text().partition("## The released code")[0]
    table = published.leaderboard()
    gain = table.loc["spin-3-dpo", "average_recomputed"] - table.loc["spin-3", "average_recomputed"]
    printed = table.loc["spin-3-dpo", "average_printed"] - table.loc["spin-3", "average_printed"]
    values = [table.loc["spin-3-dpo", "average_printed"], table.loc["spin-3-dpo", "average_recomputed"], printed, gain]
    for model, benchmark, sign in (("spin-0", "gsm8k", 1), ("spin-3", "gsm8k", 1), ("spin-3", "mmlu", -1)):
        values.append(sign * (table.loc[model, benchmark] - table.loc["sft", benchmark]))
    values.append(table.loc["sft", "winogrande"] - table.loc["spin-3", "winogrande"])
    assert re.findall(r"\b\d+\.\d\d\b", text) == [f"{value:.2f}" for value in values]
