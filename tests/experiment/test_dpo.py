"""Promises of `spin-repro dpo`: refused early, trained by the one trainer, resumed, and never overwritten."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_utils.cli import main as cli
from spin_utils.experiment import play
from spin_utils.experiment.dpo import dpo, read_settings
from spin_utils.files import artifacts, runtime
from spin_utils.files.paths import KitError
from spin_utils.model import base
from spin_utils.settings.inputs import ModelSettings
from spin_utils.training.step import StepRunner

SETTINGS = ["training.learning_rate=1e-3", "training.batch_size=4", "training.precision=float32"]


def rows(count: int = 10) -> list[dict[str, str]]:
    return [{"prompt": f"Add {i} and 1.", "chosen": f"{i + 1}", "rejected": f"no {i}"} for i in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    texts = [text for row in rows() for text in row.values()]
    return base.materialise(ModelSettings("tiny", name="llama", hidden_size=32), path, texts, seed=0)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture(autouse=True)
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that the command would otherwise start itself again for."""
    for name, value in runtime.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def arguments(model: Path, pairs: Path, out: Path, *changes: str) -> list[str]:
    given = ["dpo", "--model", str(model), "--pairs", str(pairs), "--out", str(out)]
    return given + [part for change in (*SETTINGS, *changes) for part in ("--set", change)]


def settings(**changes: Any) -> Any:
    base = {"training.learning_rate": 1e-3, "training.batch_size": 4, "training.precision": "float32"}
    return read_settings(base | {f"training.{name}": value for name, value in changes.items()})


def test_the_result_is_a_checkpoint_that_prefers_the_chosen_answers(model: Path, pairs: Path, tmp_path: Path) -> None:
    out = dpo(model, pairs, tmp_path / "out", settings(epochs=6))
    metrics = json.loads((out / "training.json").read_text())["rows"]
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "the reference is the start model"
    assert metrics[-1]["accuracy"] == 1
    trained, start = (base.load(folder).state_dict() for folder in (out, model))
    assert not all(torch.equal(trained[name], start[name]) for name in start)
    assert base.load_tokenizer(out).chat_template == base.load_tokenizer(model).chat_template
    assert artifacts.verify(out)["stage"] == "dpo"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "out", "pairs.jsonl"]


def test_a_second_call_does_nothing_and_another_run_is_not_written_over_it(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = dpo(model, pairs, tmp_path / "out", settings(epochs=1))
    monkeypatch.setattr(play, "train", lambda *given, **named: pytest.fail("trained again"))
    assert dpo(model, pairs, out, settings(epochs=1)) == out
    with pytest.raises(KitError, match="out: exists, but was not made from this model"):
        dpo(model, pairs, out, settings(epochs=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(KitError, match="mine: exists"):
        dpo(model, pairs, tmp_path / "mine", settings(epochs=1))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dpo(model, pairs, tmp_path / "whole", settings())
    step = StepRunner.__call__

    def stopping(self: Any, *given: Any) -> Any:
        row = step(self, *given)
        if self.optimizer.steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return row

    command = arguments(model, pairs, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(StepRunner, "__call__", stopping)
        assert cli.main(command) == 130
    assert "stopped after step 2 of 6" in capsys.readouterr().out
    assert not (tmp_path / "stopped").exists()
    monkeypatch.setattr(play, "score", lambda *given, **named: pytest.fail("scored again"))
    assert cli.main(command) == 0
    for name in ("model.safetensors", "opponent_logps.npy", "pairs.arrow"):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/no/such/model"}, "/no/such/model: no such model folder"),
        ({"pairs": "pair.jsonl"}, "pairs.jsonl?"),
        ({"set": "beta=1"}, "beta: unknown setting; known: training, template, seed"),
        ({"set": "training.trackers=[trackio]"}, "tracker 'trackio' is not installed; run: pip install trackio"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2_before_any_work(
    change: dict[str, Any], message: str, model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / change.get("pairs", "pairs.jsonl")
    changes = [change["set"]] if "set" in change else []
    assert cli.main(arguments(Path(change.get("model", model)), named, tmp_path / "out", *changes)) == 2
    out = capsys.readouterr().out
    assert message in out
    assert len(out.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"pairs.jsonl", ".locks"}


def test_the_command_starts_again_with_the_environment_that_makes_it_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    runtime.ensure_environment()
    assert not started
    monkeypatch.delenv("MALLOC_TOP_PAD_")
    monkeypatch.setattr(sys, "argv", ["spin-repro", "dpo", "--model", "x"])
    runtime.ensure_environment()
    program, command, environment = started[0]
    assert command == [program, "-m", "spin_utils", "dpo", "--model", "x"]
    assert runtime.ENVIRONMENT.items() <= environment.items()
