"""The whole chain through the real notebooks and the scheduler, at the smoke profile."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from spin_utils import artifacts, paths, results

FIGURES = (*(f"figure{n}" for n in range(1, 7)), "training", "convergence")
PRODUCTS = [
    *(f"results/smoke/tables/table{n}.{suffix}" for n in range(1, 9) for suffix in ("md", "csv", "tex")),
    *(f"figures/smoke/{name}.{suffix}" for name in FIGURES for suffix in ("pdf", "png")),
    "results/smoke/verdicts.csv",
]

SECRETS = {name: f"marker-of-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")}
"""Set for every run, so that a test can look for them in what the run leaves."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "spin_utils", *arguments]


def reproduce(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPIN_HOME": str(home), **SECRETS}
    return subprocess.run(
        command("reproduce", *arguments), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def contents(home: Path) -> dict[str, str]:
    """Hash of every file that a model's numbers are made of, by path below the artifacts."""
    root = home / "artifacts" / "smoke"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".arrow", ".jsonl", ".npy")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished smoke reproduction."""
    home = tmp_path_factory.mktemp("home")
    result = reproduce(home, "--profile", "smoke", "--jobs", "2")
    assert result.returncode == 0, result.stdout
    (home / "output.log").write_text(result.stdout)
    return home


def test_one_command_leaves_results_tables_figures_and_executed_notebooks(finished: Path) -> None:
    for product in PRODUCTS:
        assert (finished / product).stat().st_size > 500, product
    scores = results.load_evaluations(finished / "results" / "smoke")
    chain = {"sft", "spin-0", "spin-1", "sft-more-1"}
    around = {"spin-0-epoch-1", "spin-0-epoch-3", "spin-0-rows-26", "dpo", "spin-1-dpo"}
    assert set(scores["model"]) == chain | around
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
    path = results.evaluation_path(finished / "results" / "smoke", 0, "spin-1")
    chain = json.loads(path.read_text())["provenance"]["chain"]
    assert list(chain) == ["data", "base", "sft", "pairs-0", "spin-0", "pairs-1", "spin-1", "eval-spin-1"]
    for directory in finished.glob("artifacts/smoke/*/*-*"):
        artifacts.verify(directory)
        digest = artifacts.file_hash(directory / "manifest.json")
        name = directory.name.rpartition("-")[0]
        assert name not in chain or chain[name]["manifest_sha256"] == digest


def test_secrets_are_nowhere_in_what_a_run_leaves(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert {".ipynb", ".json", ".log", ".safetensors"} <= {path.suffix for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in SECRETS.values() if secret.encode() in content], path


def test_nothing_that_a_run_leaves_is_a_pickle(finished: Path) -> None:
    allowed = {".safetensors", ".json", ".jsonl", ".arrow", ".npy", ".jinja", ".yaml"}
    for path in finished.glob("artifacts/**/*"):
        if not path.is_file() or ".locks" in path.parts:
            continue
        assert path.suffix in allowed, path
        head = path.read_bytes()[:8]
        assert not head.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)


def test_the_crate_of_a_run_leads_from_every_result_to_model_and_data(finished: Path) -> None:
    environment = {**os.environ, "SPIN_HOME": str(finished)}
    subprocess.run(command("crate", "--profile", "smoke"), env=environment, check=True, capture_output=True)
    archive = zipfile.ZipFile(finished / "results" / "smoke" / "run.crate.zip")
    entities = {entity["@id"]: entity for entity in json.loads(archive.read("ro-crate-metadata.json"))["@graph"]}
    actions = [entity for entity in entities.values() if entity["@type"] == "CreateAction"]
    maker = {result["@id"]: action for action in actions for result in listed(action, "result")}
    for name in archive.namelist():
        if name.startswith("results/seed-"):
            before, reached = [name], set()
            while before:
                action = maker[before.pop()]
                reached.add(action["name"].partition(",")[0])
                assert f"{action['@id'].replace('#make', '#')}-settings".replace("#-", "#") in entities
                inputs = [other["@id"] for other in listed(action, "object")]
                before += [other for other in inputs if other in maker]
            assert {"data", "base"} <= reached, name
    executed = [name for name in archive.namelist() if name.startswith("results/notebooks/")]
    assert len(executed) > 5


def listed(entity: dict[str, Any], name: str) -> list[dict[str, str]]:
    value = entity.get(name, [])
    return value if isinstance(value, list) else [value]


def test_a_second_run_does_nothing_and_says_so(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("results/**/*.json")}
    result = reproduce(finished, "--profile", "smoke")
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("results/**/*.json")}


def test_figures_are_redrawn_with_the_same_bytes_from_results_alone(finished: Path, tmp_path: Path) -> None:
    kept = {product: (finished / product).read_bytes() for product in PRODUCTS}
    (tmp_path / "results").symlink_to(finished / "results")
    environment = {**os.environ, "SPIN_HOME": str(tmp_path)}
    subprocess.run(command("figures", "--profile", "smoke"), env=environment, check=True, capture_output=True)
    assert {product: (tmp_path / product).read_bytes() for product in PRODUCTS} == kept


def test_a_chain_killed_in_every_stage_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    # In one process, without notebooks, so that a kill falls into the work and not into an import.
    script = (
        "from spin_utils import plan, profiles, runtime, stages\n"
        "runtime.configure()\n"
        "steps = plan.make(profiles.load('smoke'), 0)\n"
        "for step in steps: stages.run(steps, step.name)\n"
    )
    environment = {**os.environ, "SPIN_HOME": str(tmp_path)}
    moments = random.Random(0)
    for stage in ("sft", "pairs-0", "spin-0", "dpo"):
        process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"{stage}, seed 0:"):
                break
        time.sleep(moments.uniform(0.5, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    assert contents(tmp_path) == contents(finished)


def test_own_model_and_own_rows_run_through_the_same_command(finished: Path, tmp_path: Path) -> None:
    model = next(finished.glob("artifacts/smoke/seed-0/sft-*"))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Add {i} and {i + 1}."},
                {"role": "assistant", "content": str(2 * i + 1)},
            ]
        }
        for i in range(60)
    ]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        "--model",
        str(model),
        "--data",
        str(data),
        "--name",
        "mine",
        "--set",
        "spin.iterations=1",
        "--set",
        "sft_more=0",
        "--set",
        "dpo=null",
        "--set",
        "spin.epochs_shown=0",
        "--set",
        "spin.subsets=[]",
        "--jobs",
        "2",
    ]
    result = reproduce(tmp_path, "--profile", "smoke", *own)
    assert result.returncode == 0, result.stdout
    scores = results.load_evaluations(tmp_path / "results" / "mine")
    assert scores.groupby("model").size().to_dict() == {"sft": 6, "spin-0": 6}
    assert (tmp_path / "figures" / "mine" / "figure2.png").is_file()


def test_the_checkout_itself_is_left_untouched(finished: Path) -> None:
    assert not (paths.REPOSITORY / "artifacts" / "smoke").exists()
    assert not (paths.REPOSITORY / "results" / "smoke").exists()
