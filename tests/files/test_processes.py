"""Several processes give the result of one, shards are shards, and runs resume in any number of processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from process_runs import KINDS, ask, assert_like_one, chain, in_one, in_two, small_plan
from safetensors.torch import load_file
from torch import nn
from torch.distributed.elastic import multiprocessing

from spin_utils.experiment import estimate, launch, plan, preflight, run
from spin_utils.files import artifacts, paths, processes
from spin_utils.files.paths import KitError, WorkError
from spin_utils.model import base, sharding
from spin_utils.settings import profiles
from spin_utils.settings.run import ProcessSettings
from spin_utils.training.loop import Interrupted


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of the runs of `process_runs`."""
    return in_one(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of them."""
    folder = tmp_path_factory.mktemp("two")
    in_two(folder, KINDS, one["logps"])
    return folder


@pytest.mark.parametrize(("kind", "share", "apart"), [("ddp", 1.0, 0.0), ("fsdp2", 0.5, 1e-4)])
def test_two_processes_train_as_one_does_each_with_its_share_and_resume_each_other(
    one: dict[str, Any], two: Path, kind: str, share: float, apart: float
) -> None:
    # Each micro-batch is the same; only layers that FSDP2 handles take another way than fast_layers does.
    assert_like_one(one, two / kind, share=share, apart=apart)


def test_two_processes_do_so_with_deepspeed_zero3_too(one: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")
    in_two(tmp_path, ["zero3"], one["logps"])
    assert_like_one(one, tmp_path / "zero3", share=0.5, apart=1e-4)


def test_prompts_answered_in_turns_get_the_answers_of_one_process(two: Path, home: Path) -> None:
    made = chain(home)
    for name in ("pairs-0/pairs.arrow", "eval-sft/evaluation.json", "transfer-sft/evaluation.json"):
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


def after(lines: int, file: Path, act: Callable[[], object]) -> threading.Thread:
    """Do something when a file has so many lines."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (not file.exists() or file.read_text().count("\n") < lines):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_launch_stops_and_saves_and_survives_the_loss_of_a_worker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SPIN_HOME", str(tmp_path))
    longer = {"spin.training.epochs": 8, "spin.training.schedule_epochs": 8}
    made = small_plan(**longer, **{"processes.count": 2, "processes.sharding": "fsdp2"})
    assert made.directory("spin-0") == small_plan(**longer).directory("spin-0"), "processes change no key"
    run.make(small_plan(**longer), "pairs-0")
    workers: list[int] = []
    start = multiprocessing.start_processes

    def noting(*given: Any, **named: Any) -> Any:
        context = start(*given, **named)
        workers[:] = context.pids().values()
        return context

    monkeypatch.setattr(multiprocessing, "start_processes", noting)
    partial = made.directory("spin-0").with_name(made.directory("spin-0").name + ".partial")
    metrics = partial / "scratch" / "metrics.jsonl"

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    watcher = after(3, metrics, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"SPIN iteration 0: stopped after step \d+ of 24"):
        run.make(made, "spin-0")
    watcher.join()
    left = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert left == handlers, "what comes next stops as usual"
    (state,) = (partial / "scratch").glob("state-*")
    stopped = int(state.name.removeprefix("state-"))

    watcher = after(stopped + 3, metrics, lambda: os.kill(workers[1], signal.SIGKILL))
    with pytest.raises(WorkError, match=r"process 1 of 2 was killed \(SIGKILL\).*run the same command again"):
        run.make(made, "spin-0")
    watcher.join()
    assert not any(psutil.pid_exists(worker) for worker in workers), "no worker is left behind"

    run.make(made, "spin-0")
    said = capsys.readouterr().out
    assert "Traceback" not in said + caplog.text
    resumed = [int(number) for number in re.findall(r"after step (\d+)\b(?! of)", said)]
    assert resumed[0] == stopped
    assert resumed[1] > stopped, "from a state of the second launch"
    assert "SPIN iteration 0: 24 of 24 steps" in said, "the first worker's progress is shown here"
    folder = made.directory("spin-0")
    rows = json.loads((folder / "training.json").read_text())["rows"]
    assert [row["step"] for row in rows] == list(range(1, 25))

    monkeypatch.setenv("SPIN_HOME", str(tmp_path / "one"))
    alone = run.make(small_plan(**longer), "spin-0")
    found, wanted = load_file(folder / "model.safetensors"), load_file(alone / "model.safetensors")
    assert found.keys() == wanted.keys()
    start = load_file(made.directory("base") / "model.safetensors")
    moved = max(float((wanted[name] - start[name]).abs().max()) for name in wanted)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 0.02 * moved
    assert base.load(folder).config.architectures == base.load(alone).config.architectures


BUG = "[rank0]: Traceback (most recent call last):\n[rank0]:   File x\n[rank0]: ValueError: odd\nnot destroyed"


@pytest.mark.parametrize(
    ("out", "error", "quoted"),
    [("3 of 8 steps", BUG, "ValueError: odd"), ("Failed: no memory", "slow", "Failed: no memory")],
)
def test_of_a_worker_that_died_its_error_is_quoted_wherever_it_is(
    out: str, error: str, quoted: str, tmp_path: Path
) -> None:
    files = {name: tmp_path / name for name in ("out", "error")}
    for name, text in (("out", out), ("error", error)):
        files[name].write_text(text)
    ended = multiprocessing.RunProcsResult(stdouts={0: str(files["out"])}, stderrs={0: str(files["error"])})
    assert launch._last_line(ended, 0) == quoted


@pytest.mark.parametrize("kind", [*KINDS, "deepspeed-zero3"])
def test_the_files_for_accelerate_launch_say_how_processes_start_and_what_the_kit_does_with_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = paths.REPOSITORY / "launch" / f"accelerate-{kind}.yaml"
    given = ["--config_file", str(file), "-m", "spin_utils", "step", "spin-0"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert (arguments.num_processes, arguments.module, arguments.training_script) == (8, True, "spin_utils")
    by_deepspeed = arguments.use_deepspeed
    arguments.deepspeed_fields_from_accelerate_config = ""  # as `accelerate launch` does before it starts them
    environment = prepare_deepspeed_cmd_env(arguments)[1] if by_deepspeed else prepare_multi_gpu_env(arguments)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._chosen("ddp") == kind.removeprefix("deepspeed-")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(KitError, match="zero_stage: 3"):
        processes._chosen("ddp")


def test_deepspeed_that_is_not_installed_is_asked_for_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    launch.check(ProcessSettings(2, "fsdp2"))
    with pytest.raises(KitError, match=r"DeepSpeed, which is not installed: pip install"):
        launch.check(ProcessSettings(2, "zero3"))


@pytest.mark.parametrize("numbers", [1, 2, 3, 7])
def test_parts_of_zero3_are_equal_and_make_the_whole(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    full = torch.arange(1.0, numbers + 1)
    parameter: Any = nn.Parameter(torch.empty(0))
    parameter.ds_tensor = torch.empty(-(-numbers // 3))
    found = []
    for rank in range(3):
        monkeypatch.setattr(processes, "_place", processes._Place(rank, 3, "zero3"))
        found.append(sharding.part(full, parameter))
        assert found[-1].shape == parameter.ds_tensor.shape
    joined = torch.cat(found)
    assert joined[:numbers].equal(full)
    assert not joined[numbers:].any()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KitError, match="2 processes for 1 GPUs"):
        preflight.check_inputs(profiles.load("smoke", {"processes.count": 2}))


def test_gpus_that_pytorch_cannot_use_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # NVML counts them whatever the driver's version
    profile = profiles.load("smoke", {"resources.training.gpus": 2})
    for begin in (lambda: preflight.check_inputs(profile), lambda: run.make(plan.make(profile, 0), "sft")):
        with pytest.raises(KitError, match=r"2 GPUs are here, and PyTorch .* can use none: the driver is too old"):
            begin()
    launch.check(ProcessSettings(1))  # of a step that asks for none
    told = preflight.check(profile, estimate.this_machine()).findings
    assert [finding.state for finding in told if finding.what == "device"] == ["ok", "refused"]


def test_a_step_takes_a_process_for_each_of_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.load("smoke", {"resources": {"training": {"gpus": 8}, "evaluation": {"gpus": 1}}})
    steps = plan.make(profile, 0).steps
    for devices, expected in (("0,1,2,3,4,5,6,7", [8, 1, 1]), ("4,6", [2, 1, 1]), ("", [1, 1, 1])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        counts = [run.processes_of(profile, steps[name]).count for name in ("spin-0", "pairs-0", "eval-sft")]
        assert counts == expected


def test_a_step_of_a_single_process_asks_for_the_gpus_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    profile = profiles.load("paper", {"demonstrations.revision": "0" * 40})
    alone = {step.stage: run.resources(profile, step).gpus for step in plan.make(profile, 0) if step.stage in run.ALONE}
    assert alone == {"data": 0, "base": 0, "mt_answers": 1, "mt_bench": 0}


@pytest.mark.parametrize("count", [2, 3, 8])
def test_work_is_dealt_once_and_evenly(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    sizes = torch.randint(1, 1000, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    assert processes.deal(range(64), sizes) == [list(range(64))]
    monkeypatch.setattr(processes, "_place", processes._Place(0, count))
    hands = processes.deal(range(64), sizes)
    assert sorted(item for hand in hands for item in hand) == list(range(64))
    loads = [sum(sizes[item] for item in hand) for hand in hands]
    assert max(loads) < 1.2 * sum(loads) / count
    assert processes.deal([5], [1])[count - 1] == []
