"""The command line: bad input is one clear line and exit status 2, before any work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import synthetic_results as synthetic

from spin_utils import cli, profiles, results


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = cli.main(arguments)
    return status, capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--profile", "smoek"], "profile 'smoek': unknown; did you mean 'smoke'?"),
        (["plan", "--profile", "smoke", "--set", "spin.training.bta=1"], "did you mean 'beta'?"),
        (["plan", "--profile", "smoke", "--set", "spin.training.beta"], "write an override as name=value"),
        (["plan", "--profile", "smoke", "--seeds", "0,x"], "seeds: '0,x'; write whole numbers"),
        (["plan", "--profile", "smoke", "--seeds", "1,1"], "write each seed once"),
        (["reproduce", "--profile", "smoke", "--model", "/no/such/model"], "/no/such/model: no such model folder"),
        (["reproduce", "--profile", "smoke", "--data", "/no/such/rows.jsonl"], "rows.jsonl"),
        (["step", "spin-9", "--profile", "smoke"], "step 'spin-9': unknown; did you mean 'spin-1'?"),
        (
            ["run", "02_synthetic_generation", "-p", "iterations=1"],
            "no parameter 'iterations'; did you mean 'iteration'?",
        ),
        (["run", "03_spin_trainig"], "did you mean '03_spin_training'?"),
        (["figures", "--profile", "smoke"], "no evaluations; run `spin-repro reproduce --profile smoke` first"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = outcome(capsys, *arguments)
    assert status == 2
    assert message in out
    assert "Traceback" not in out
    assert len(out.strip().splitlines()) == 1


def test_a_broken_row_is_named_before_any_work(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(60)]
    rows[16]["response"] = " "
    path = home / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out = outcome(capsys, "reproduce", "--profile", "smoke", "--data", str(path))
    assert status == 2
    assert "mine.jsonl, row 17" in out
    assert not list(home.glob("artifacts/*/seed-*"))


def test_the_plan_lists_every_step_in_order(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = outcome(capsys, "plan", "--profile", "smoke", "--seeds", "0,1")
    assert status == 0
    names = [line.split()[4] for line in out.splitlines() if "seed 1" in line]
    main = "data base sft eval-sft pairs-0 spin-0 eval-spin-0 pairs-1 spin-1 eval-spin-1"
    epochs = "spin-0-more eval-spin-0-epoch-1 eval-spin-0-epoch-3 spin-0-rows-26 eval-spin-0-rows-26"
    more = "sft-more-1 eval-sft-more-1 preferences dpo eval-dpo spin-1-dpo eval-spin-1-dpo"
    assert " ".join(names) == f"{main} {epochs} {more}"


def test_a_change_on_the_command_line_becomes_a_profile_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--profile", "smoke", "--set", "spin.iterations=1", "--name", "mine"]) == 0
    written = profiles.load(str(home / "artifacts" / "mine" / "profile.yaml"))
    assert (written.name, written.spin.iterations) == ("mine", 1)
    assert "spin-1" not in capsys.readouterr().out


def test_help_answers_within_a_few_seconds() -> None:
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-m", "spin_utils", "--help"], capture_output=True, text=True, check=True)
    assert "spin-repro reproduce" in result.stdout
    assert time.monotonic() - start < 10


def test_two_models_are_compared_on_the_same_items(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write(home, seeds=(0, 1), items=30)
    status, out = outcome(capsys, "compare", "spin-3", "sft", "--json")
    assert status == 0
    rows = {row["task"]: row for row in json.loads(out)}
    scores = results.load_evaluations(home / "results" / "cpu")
    means = scores.groupby(["model", "task"])["score"].mean().groupby("model").mean() * 100
    assert rows["average"]["difference"] == pytest.approx(means["spin-3"] - means["sft"])
    assert rows["average"]["low"] < rows["average"]["difference"] < rows["average"]["high"]
    assert rows["average"]["seeds"] == 2
    status, out = outcome(capsys, "compare", "spin-9", "sft")
    assert status == 2
    assert "no evaluation of spin-9" in out
