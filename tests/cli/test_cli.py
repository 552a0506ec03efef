"""The command line: bad input is one clear line and exit status 2, before any work."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import synthetic_results as synthetic
from typer.main import get_command

from spin_utils.cli import main as cli
from spin_utils.cli import notebooks
from spin_utils.drawing import draw
from spin_utils.experiment import plan
from spin_utils.files import hub, paths
from spin_utils.paper import claims, results
from spin_utils.settings import profiles


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = cli.main(arguments)
    return status, capsys.readouterr().out


def test_the_plan_lists_every_step_in_order(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = outcome(capsys, "plan", "--profile", "smoke", "--seeds", "0,1")
    assert status == 0
    names = [line.split()[4] for line in out.splitlines() if "seed 1" in line]
    assert names == [made.name for made in plan.make(profiles.load("smoke"), 1)]
    steps = {row["step"]: row for row in json.loads(outcome(capsys, "plan", "--profile", "smoke", "--json")[1])}
    assert steps["spin-1"]["inputs"] == ["spin-0", "pairs-1", "pairs-0"]


def test_a_profile_in_the_current_folder_is_found_from_any_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "mine.yaml").write_text("extends: smoke\ndpo: null\n")
    given: dict = {}
    monkeypatch.setattr(notebooks, "run", lambda name, parameters, output: given.update(parameters) or output)
    assert cli.main(["run", "01_sft_baseline", "-p", "profile=mine.yaml"]) == 0
    assert given["profile"] == str(home / "mine.yaml")
    assert cli.main(["step", "spin-0", "--profile", "mine.yaml"]) == 0
    assert given["profile"] == str(home / "mine.yaml")


def test_a_changed_profile_has_a_file_of_its_own_which_later_commands_leave_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for iterations in (1, 2, 1):
        changes = ["--set", f"spin.iterations={iterations}", "--name", "mine"]
        said = outcome(capsys, "plan", "--profile", "smoke", *changes)[1]
        assert ("eval-spin-1-dpo" in said) == (iterations == 2)
    written = [profiles.load(str(file)) for file in (home / "artifacts" / "mine").glob("*.yaml")]
    assert sorted((profile.name, profile.spin.iterations) for profile in written) == [("mine", 1), ("mine", 2)]
    status, said = outcome(capsys, "reproduce", "--profile", "smoke", "--data", "rows.jsonl", "--name", "cpu")
    assert (status, "--name cpu: a profile of the kit" in said) == (2, True)
    status, said = outcome(capsys, "report", "--profile", "mine")
    assert status == 2
    assert profiles.load(said.split()[-1]).spin.iterations == 1, "the latest"


def test_help_and_completion_import_nothing_heavy() -> None:
    script = "import sys; from spin_utils.cli.main import main; main(['--help']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "spin-repro reproduce" in result.stdout
    heavy = {"torch", "transformers", "numpy", "pandas", "papermill", "nbformat", "matplotlib", "rich"}
    assert not heavy & set(result.stdout.splitlines()[-1].split())


def test_what_was_fetched_is_said_although_a_later_download_fails(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(kind: hub.Kind, name: str, revision: str) -> Path:
        if kind == "dataset":
            raise hub.HubError(f"{name}: cannot be fetched")
        return Path("snapshot")

    monkeypatch.setattr(hub, "fetch", fetch)
    status, said = outcome(capsys, "fetch", "--profile", "gpu")
    assert status == 2
    model, data = said.splitlines()
    assert re.fullmatch("Qwen/Qwen2.5-0.5B at [0-9a-f]{8}: snapshot", model)
    assert data.endswith("cannot be fetched")
    assert outcome(capsys, "fetch", "--profile", "smoke") == (0, "this profile reads nothing from the hub\n")


def test_two_models_are_compared_on_the_same_items(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = synthetic.write(home, seeds=(0, 1), items=30)
    results.path_of(root, 1, "evaluations", "sft").unlink()
    status, out = outcome(capsys, "compare", "spin-3", "sft", "--json")
    assert status == 0, out
    average = json.loads(out)[-1]
    scores = results.load_evaluations(home / "results" / "cpu")
    means = scores[scores["seed"] == 0].groupby(["model", "task"])["score"].mean().groupby("model").mean() * 100
    assert average["seeds"] == 1, "the other one has only one of the models"
    assert average["difference"] == pytest.approx(means["spin-3"] - means["sft"])
    assert average["spin-3"] - average["sft"] == pytest.approx(average["difference"])
    assert average["low"] < average["difference"] < average["high"]
    assert "no evaluation of spin-9; did you mean 'spin-3'?" in outcome(capsys, "compare", "spin-9", "sft")[1]


def test_a_cell_of_a_table_is_followed_to_the_hashes_of_its_model_file(capsys: pytest.CaptureFixture[str]) -> None:
    name = "SPIN iteration 2"
    with (paths.REPOSITORY / "results" / "cpu" / "tables" / "table4.csv").open(encoding="utf-8") as file:
        cells = {
            (row["row"], row["column"]): row["value"] for row in csv.DictReader(file) if row["quantity"] == "score"
        }
    seeds = json.loads(outcome(capsys, "provenance", "spin-2", "--json")[1])["seeds"]
    found = [json.loads(outcome(capsys, "provenance", "spin-2", "--seed", f"{s}", "--json")[1]) for s in seeds]
    mean = sum(one["points"]["chain_sum"] for one in found) / len(found)
    assert mean == pytest.approx(float(cells[name, "chain_sum"]), abs=1e-3)
    for one in found:
        assert one["label"] == name
        assert re.fullmatch("[0-9a-f]{64}", one["chain"]["spin-2"]["weights_sha256"]["model.safetensors"])
        assert one["chain"]["base"]["settings"]["sha256"]
        assert one["chain"]["data"]["settings"]["families"]
    status, out = outcome(capsys, "provenance", "spin-2")
    assert status == 0
    assert found[0]["chain"]["spin-2"]["weights_sha256"]["model.safetensors"] in out


def test_every_command_shows_examples_that_it_understands(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in get_command(cli.app).commands.items():
        assert cli.main([name, "--help"]) == 0
        examples = capsys.readouterr().out.partition("Examples:")[2].strip().splitlines()
        assert examples, name
        for example in examples:
            words = shlex.split(example.partition(" > ")[0])
            assert words[:2] == ["spin-repro", name]
            command.make_context(name, words[2:])  # refuses what it does not know


def test_the_verdicts_of_one_kind_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [claims.Finding("a", "A holds", "Table 1", "reproduced"), claims.Finding("b", "B", "", "not run")]
    draw.write_verdicts(found, home / "results" / "cpu")
    status, out = outcome(capsys, "verdicts", "--verdict", "not run", "--json")
    assert status == 0
    assert [(row["id"], row["verdict"]) for row in json.loads(out)] == [("b", "not run")]
    assert outcome(capsys, "verdicts")[1].endswith("1 reproduced, 1 not run\n")
    assert "did you mean 'reproduced'?" in outcome(capsys, "verdicts", "--verdict", "reproducd")[1]
    file = home / "results" / "cpu" / "verdicts.csv"
    whole = file.read_text()
    for marked in (f"<<<<<<< HEAD\n{whole}", f"{whole}>>>>>>> other\n"):
        file.write_text(marked)
        assert "verdicts.csv: changed since it was written; run `spin-repro figures" in outcome(capsys, "verdicts")[1]


def test_a_relative_home_is_one_folder_for_all_processes_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIN_HOME", "out")
    with pytest.raises(paths.KitError, match="SPIN_HOME: 'out' is relative; write the whole path, such as /"):
        paths.home()  # in a kernel, which works in another folder
    assert outcome(capsys, "plan", "--profile", "smoke")[0] == 0
    assert os.environ["SPIN_HOME"] == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (paths.WorkError("another process is gone"), 1, "Failed: another process is gone"),
        (paths.KitError("rows.jsonl, row 17"), 2, "Error: rows.jsonl, row 17"),
        (KeyboardInterrupt(), 130, "Interrupted. Finished steps are kept; the same command resumes there."),
    ],
)
def test_what_a_person_can_mend_ends_in_one_line(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "make_all", mock.Mock(side_effect=error))
    assert outcome(capsys, "plan", "--profile", "smoke") == (status, said + "\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "make_all", mock.Mock(side_effect=KeyError("a bug")))
    with pytest.raises(KeyError):
        cli.main(["plan", "--profile", "smoke"])
