"""Promises of `spin-repro dpo`: refused early, trained by the one trainer, resumed, and never overwritten."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from disturbed import after_step

from spin_utils.cli import main as cli
from spin_utils.data.rows import write_rows
from spin_utils.experiment import play
from spin_utils.experiment.dpo import dpo, read_settings
from spin_utils.files import artifacts, runtime
from spin_utils.files.paths import KitError
from spin_utils.model import base
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings
from spin_utils.settings.run import DpoRunSettings

pytestmark = pytest.mark.usefixtures("home", "settled")
SETTINGS = ["training.learning_rate=1e-3", "training.batch_size=4", "training.precision=float32"]


def rows(count: int = 10) -> list[dict[str, str]]:
    return [{"prompt": f"Add {i} and 1.", "chosen": f"{i + 1}", "rejected": f"no {i}"} for i in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    texts = [text for row in rows() for text in row.values()]
    made = base.materialise(ModelSettings("tiny", name="llama", hidden_size=32), path, texts, seed=0)
    (made / "generation_config.json").write_text('{"eos_token_id": 2, "num_return_sequences": 3}')  # no valid one
    return made


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", rows())


def arguments(model: Path, pairs: Path, out: Path, *changes: str) -> list[str]:
    given = ["dpo", "--model", str(model), "--pairs", str(pairs), "--out", str(out)]
    return given + [part for change in (*SETTINGS, *changes) for part in ("--set", change)]


def settings(*changes: str) -> DpoRunSettings:
    return read_settings(profiles.parse_overrides([*SETTINGS, *changes]))


def test_the_result_is_a_checkpoint_that_prefers_the_chosen_answers(model: Path, pairs: Path, tmp_path: Path) -> None:
    out = dpo(model, pairs, tmp_path / "out", settings("training.epochs=6"))
    metrics = json.loads((out / "training.json").read_text())["rows"]
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "the reference is the start model"
    assert metrics[-1]["accuracy"] == 1
    trained, start = (base.load(folder).state_dict() for folder in (out, model))
    assert not all(torch.equal(trained[name], start[name]) for name in start)
    assert base.load_tokenizer(out).chat_template == base.load_tokenizer(model).chat_template
    assert (out / "generation_config.json").read_bytes() == (model / "generation_config.json").read_bytes()
    assert artifacts.verify(out)["stage"] == "dpo"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "out", "pairs.jsonl"]


def test_a_second_call_does_nothing_and_another_run_is_not_written_over_it(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = settings("training.epochs=1")
    out = dpo(model, pairs, tmp_path / "out", once)
    monkeypatch.setattr(play, "train", lambda *given, **named: pytest.fail("trained again"))
    assert dpo(model, pairs, out, once) == out
    with pytest.raises(KitError, match="out: exists, but was not made from this model"):
        dpo(model, pairs, out, settings())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(KitError, match="mine: exists"):
        dpo(model, pairs, tmp_path / "mine", once)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dpo(model, pairs, tmp_path / "whole", settings())
    command = arguments(model, pairs, tmp_path / "stopped")
    with after_step(2, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert cli.main(command) == 130
    assert "stopped after step 2 of 6" in capsys.readouterr().out
    assert not (tmp_path / "stopped").exists()
    monkeypatch.setattr(play, "score", lambda *given, **named: pytest.fail("scored again"))
    assert cli.main(command) == 0
    for name in ("model.safetensors", "opponent_logps.npy", "pairs.arrow"):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / name).read_bytes(), name


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
