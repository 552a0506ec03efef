"""Promises of several processes: the result of one, shards that are shards, and runs that go on in any number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from process_runs import KINDS, SFT, SPIN, ask, chain, pairs, settings, singles, small_plan
from safetensors.torch import load_file
from tiny_models import tiny_model

from spin_utils import artifacts, cli, launching, models, paths, plan, processes, profiles, runtime, stages
from spin_utils import training_step
from spin_utils.dpo import _command, read_settings
from spin_utils.logprobs import score
from spin_utils.notebooks import StageError
from spin_utils.training import Interrupted, train

LASTING = ("step", "loss", "margin", "accuracy", "drift_real", "skipped", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of the runs of `process_runs`."""
    folder = tmp_path_factory.mktemp("one")
    logps = score(tiny_model("llama"), pairs(), micro_batch_tokens=40)
    made: dict[str, Any] = {"logps": logps}
    for name, family, groups, changes, opponent in (
        ("spin", "llama", pairs(), SPIN, logps),
        ("sft", "mistral", singles(), SFT, None),
    ):
        model = tiny_model(family)
        result = train(model, groups, settings(changes), opponent_logps=opponent, seed=1, work=folder / name)
        made[name], made[f"{name} weights"] = result.rows, {n: p.detach() for n, p in model.named_parameters()}
    return made


@pytest.fixture(scope="module")
def two(one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of them, started by torchrun."""
    folder = tmp_path_factory.mktemp("two")
    for kind in KINDS:
        (folder / kind).mkdir()
        stopped_in_one(folder / f"one-stopped-{kind}", one["logps"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    script = Path(__file__).with_name("two_processes.py")
    environment = runtime.child_environment(headless=True) | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(script), str(folder)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.returncode == 0, run.stdout
    return folder


def stopped_in_one(work: Path, logps: list[list[float]]) -> None:
    """Leave the state of a run that was stopped after step 3."""
    step = training_step.StepRunner.__call__

    def stopping(runner: Any, *arguments: Any) -> Any:
        row = step(runner, *arguments)
        if runner.optimizer.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training_step.StepRunner, "__call__", stopping)
        train(tiny_model("llama"), pairs(), settings(SPIN), opponent_logps=logps, seed=1, work=work)


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], family: str) -> float:
    """Largest difference of a weight, as a part of the largest way that a weight has gone in training."""
    start = dict(tiny_model(family).named_parameters())
    assert found.keys() == wanted.keys()
    apart = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
    return apart / max(float((wanted[name] - start[name]).abs().max()) for name in wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_does(one: dict[str, Any], two: Path, kind: str) -> None:
    found = json.loads((two / kind / "found.json").read_text())
    for name, family in (("spin", "llama"), ("sft", "mistral")):
        assert len(found[name]) == len(one[name]) == 6
        for row, wanted in zip(found[name], one[name], strict=True):
            for key in LASTING:
                assert row.get(key) == pytest.approx(wanted.get(key), rel=1e-4, abs=1e-5), (name, key)
        print(distance(load_file(two / kind / f"{name}.safetensors"), one[f"{name} weights"], family))
        assert distance(load_file(two / kind / f"{name}.safetensors"), one[f"{name} weights"], family) < 0.01


def test_fsdp2_spreads_weights_gradients_and_optimizer_state_and_ddp_does_not(two: Path) -> None:
    for kind, share in (("ddp", 1.0), ("fsdp2", 0.5)):
        parts = json.loads((two / kind / "found.json").read_text())["parts"]
        assert len(parts) == 2
        total = parts[0].pop("all")
        assert parts[1].pop("all") == total == sum(p.numel() for p in tiny_model("llama").parameters())
        for name in ("weights", "masters", "gradients", "square_avg"):
            held = [part[name] for part in parts]
            assert sum(held) == 2 * share * total
            assert max(held) < share * total * 1.02 or share == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_opponents_log_probabilities_are_those_of_one_process(one: dict[str, Any], two: Path, kind: str) -> None:
    found = np.array(json.loads((two / kind / "found.json").read_text())["logps"])
    wanted = np.array(one["logps"])
    # Each micro-batch is the same; only layers that FSDP2 handles take another way than fast_layers does.
    assert (found == wanted).all() if kind == "ddp" else np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_in_two_processes_goes_on_in_one_and_the_other_way(
    one: dict[str, Any], two: Path, kind: str
) -> None:
    said = json.loads((two / kind / "found.json").read_text())["stopped"]
    assert "stopped after step 3 of 6" in said, "a signal to one process stops both at the same step"
    model = tiny_model("llama")
    result = train(
        model, pairs(), settings(SPIN), opponent_logps=one["logps"], seed=1, work=two / kind / "stopped"
    )
    assert [row["step"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    print(distance({n: p.detach() for n, p in model.named_parameters()}, one["spin weights"], "llama"))
    assert distance({n: p.detach() for n, p in model.named_parameters()}, one["spin weights"], "llama") < 0.01
    assert distance(load_file(two / kind / "resumed.safetensors"), one["spin weights"], "llama") < 0.01


def test_prompts_answered_in_turns_get_the_answers_of_one_process(two: Path, home: Path) -> None:
    made = chain(home)
    for name in ("pairs-0/pairs.arrow", "eval-sft/evaluation.json", "eval-sft/transfer.json"):
        step, _, file = name.partition("/")
        path = made.directory(step) / file
        other = two / "home" / path.relative_to(home)
        assert other.read_bytes() == path.read_bytes(), name
    assert json.loads((two / "likelihoods.json").read_text()) == [list(answer) for answer in ask()]
    spin = two / "home" / made.directory("spin-0").relative_to(home)
    assert artifacts.verify(spin)["device"].endswith(", 2 processes")
    rows = [json.loads((folder / "training.json").read_text())["rows"] for folder in (spin, made.directory("spin-0"))]
    for row, wanted in zip(*rows, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    assert sorted(p.name for p in spin.iterdir()) == sorted(p.name for p in made.directory("spin-0").iterdir())
