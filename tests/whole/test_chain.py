"""The whole chain through the real notebooks and the scheduler, at the smoke profile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import smoke_chain
from smoke_chain import SECRETS, command, reproduce

from spin_utils.files import artifacts, disk, paths
from spin_utils.paper import results

FIGURES = (*(f"figure{n}" for n in range(1, 7)), "training", "convergence")
PRODUCTS = [
    *(f"results/smoke/tables/table{n}.{suffix}" for n in range(1, 9) for suffix in ("md", "csv", "tex")),
    "results/smoke/tables/arms.md",
    *(f"figures/smoke/{name}.{suffix}" for name in FIGURES for suffix in ("pdf", "png")),
    "results/smoke/verdicts.csv",
]


def test_one_command_leaves_results_tables_figures_and_executed_notebooks(finished: Path) -> None:
    for product in PRODUCTS:
        assert (finished / product).stat().st_size > 500, product
    scores = results.load_evaluations(finished / "results" / "smoke")
    chain = {"sft", "spin-0", "spin-1", "sft-more-1"}
    around = {"spin-0-epoch-1", "spin-0-epoch-3", "spin-0-rows-26", "dpo", "spin-1-dpo"}
    assert set(scores["model"]) == chain | around | {"spin-0-arm-two-answers"}
    assert scores.groupby("model").size().eq(16).all()
    training = results.load_training(finished / "results" / "smoke")
    first = training[training["model"] == "spin-0"].iloc[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6), "the policy starts as its own opponent"
    executed = sorted((finished / "results" / "smoke" / "notebooks").glob("*.ipynb"))
    assert {path.name[:2] for path in executed} == {"01", "02", "03", "04", "05"}
    for path in executed:
        cells = nbformat.read(path, as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code"), path.name


def test_every_result_names_what_it_was_made_from(finished: Path) -> None:
    path = results.path_of(finished / "results" / "smoke", 0, "evaluations", "spin-1")
    chain = json.loads(path.read_text())["provenance"]["chain"]
    assert list(chain) == ["data", "base", "sft", "pairs-0", "spin-0", "pairs-1", "spin-1", "eval-spin-1"]
    for directory in finished.glob("artifacts/smoke/[!.]*/[!.]*-*"):
        artifacts.verify(directory)
        digest = disk.file_hash(directory / "manifest.json")
        name = directory.name.rpartition("-")[0]
        assert name not in chain or chain[name]["manifest_sha256"] == digest


def test_secrets_are_nowhere_in_what_a_run_leaves(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert {".ipynb", ".json", ".log", ".safetensors"} <= {path.suffix for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in SECRETS.values() if secret.encode() in content], path


def test_nothing_that_a_run_leaves_is_a_pickle(finished: Path) -> None:
    allowed = {".safetensors", ".json", ".jsonl", ".arrow", ".npy", ".jinja", ".yaml", ".log"}
    for path in finished.glob("artifacts/**/*"):
        if not path.is_file() or ".locks" in path.parts:
            continue
        assert path.suffix in allowed, path
        head = path.read_bytes()[:8]
        assert not head.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)


def test_a_second_run_does_nothing_and_says_so(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("results/**/*.json")}
    log = finished / "artifacts" / "smoke" / "reproduce.log"
    scheduled = log.read_bytes()
    result = reproduce(finished, "--profile", "smoke")
    assert result.returncode == 0
    assert "every step is done." in result.stdout
    assert "report: results/smoke/report.html" in result.stdout
    assert log.read_bytes() == scheduled  # the scheduler, which takes seconds to start, was not asked
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("results/**/*.json")}


def test_results_that_were_deleted_are_written_again_by_the_same_command(finished: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished, home, ignore=lambda folder, _: ["smoke"] if Path(folder).name == "results" else [])
    result = reproduce(home, "--profile", "smoke")
    assert result.returncode == 0, result.stdout
    assert "results/smoke was deleted: tables and figures are drawn again" in result.stdout
    scores = (results.load_evaluations(each / "results" / "smoke") for each in (home, finished))
    pd.testing.assert_frame_equal(*scores)
    assert (home / "results" / "smoke" / "report.html").is_file()


def test_a_chain_killed_in_every_stage_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    for stage in ("data", "sft", "eval-sft", "pairs-0", "spin-0", "spin-0-more", "dpo"):
        process = smoke_chain.start(tmp_path)
        while not any(tmp_path.glob(f"artifacts/smoke/*/{stage}-*.partial")):
            process.join(0.005)
            assert process.exitcode is None, f"{stage}: ended before it was killed"
        process.join(moments.uniform(0, 0.3))
        process.kill()
        process.join()
    both = [smoke_chain.start(tmp_path), smoke_chain.start(tmp_path)]  # of two runs, one waits for the other
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert smoke_chain.contents(tmp_path) == smoke_chain.contents(finished)


@pytest.mark.slow
def test_the_command_killed_as_a_whole_or_in_one_process_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    smaller = ["spin.iterations=1", "sft_more=0", "dpo=null", "spin.subsets=[]"]  # what has a kind of its own
    changes = [word for change in smaller for word in ("--set", change)]
    started = command("reproduce", "--profile", "smoke", "--jobs", "2", "--name", "killed", *changes)
    environment = {**os.environ, "SPIN_HOME": str(tmp_path)}
    moments, kills = random.Random(2), 0
    while True:
        with (tmp_path / "log").open("a") as file:
            process = subprocess.Popen(started, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            process.wait(moments.uniform(5, 30) if kills < 12 else None)
        except subprocess.TimeoutExpired:
            kills += 1
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for victim in tree if moments.random() < 0.5 else [moments.choice(tree)]:
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                    victim.kill()
        if process.wait() == 0:
            break
    assert kills >= 6, (tmp_path / "log").read_text()
    made = smoke_chain.contents(tmp_path, "killed")
    assert {name.split("/")[0].rpartition("-")[0] for name in made} >= {"sft", "spin-0", "spin-0-more", "eval-spin-0"}
    assert made == {name: digest for name, digest in smoke_chain.contents(finished).items() if name in made}
    assert {*results.load_evaluations(tmp_path / "results" / "killed")["model"]} >= {"sft", "spin-0"}
    assert (tmp_path / "results" / "killed" / "tables" / "table4.md").is_file()


def test_the_checkout_itself_is_left_untouched(finished: Path) -> None:
    (first,) = finished.glob("artifacts/smoke/shared/data-*/manifest.json")
    for folder in ("artifacts", "results", "figures"):
        earlier = (paths.REPOSITORY / folder / "smoke").rglob("*")  # of a run that its owner made
        assert all(path.stat().st_mtime < first.stat().st_mtime for path in earlier)
