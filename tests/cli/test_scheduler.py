"""Scheduling: what each step asks for, which GPUs it takes, and the kit's Snakemake profiles."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from spin_utils.cli import scheduler
from spin_utils.cli.live import Display
from spin_utils.experiment import plan, run
from spin_utils.files import artifacts, runtime
from spin_utils.settings import profiles
from spin_utils.settings.run import Profile

STAND_INS = Path(__file__).parents[1] / "stand_ins" / "slurm"
RESOURCES = {
    "training": {"gpus": 8, "cpus": 5, "memory_gb": 40, "hours": 1.5},
    "generation": {"gpus": 4, "cpus": 3, "memory_gb": 30, "hours": 2},
    "evaluation": {"gpus": 1, "memory_gb": 20, "hours": 3},
}


@pytest.fixture
def clustered(home: Path) -> tuple[str, Profile]:
    """A profile whose kinds of steps ask for different things, and the file to load it by."""
    profile = profiles.load("smoke", {"name": "clustered", "resources": RESOURCES})
    return str(profiles.dump(profile, home / "clustered.yaml")), profile


def snakemake(profile: tuple[str, Profile], cluster: str, *arguments: str, dry_run: bool) -> str:
    command = scheduler.command(*profile, [0], cluster=cluster, dry_run=dry_run)
    at = command.index("snakemake") + 1
    command[at:at] = [*arguments, "--quiet", "host", "--printshellcmds"]
    environment = runtime.child_environment()
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def asked(output: str) -> dict[str, tuple[int, dict[str, int], list[str]]]:
    """Threads, resources and shell command of each rule, from Snakemake's own words."""
    found = {}
    for block in re.split(r"\n(?=(?:local)?rule )", output)[1:]:
        lines = dict(line.strip().partition(": ")[::2] for line in block.splitlines())
        resources = re.findall(r"\b(nodes|gpu|mem_mb|runtime)=(\d+)", lines.get("resources", ""))
        numbers = {key: int(n) for key, n in resources}
        name = block.split()[1].rstrip(":")
        found[name] = int(lines.get("threads", 1)), numbers, shlex.split(lines.get("Shell command", ""))
    return found


def test_what_downloads_runs_where_the_network_is_and_asks_for_nothing_special(clustered: tuple[str, Profile]) -> None:
    _, profile = clustered
    here = [step for step in plan.make(profile, 0) if run.stays_here(profile, step)]
    assert [step.name for step in here] == ["data", "base", "preferences"]
    assert all(run.resources(profile, step) == profile.resources.other for step in here)


def test_a_dry_run_on_slurm_asks_for_each_kinds_resources(clustered: tuple[str, Profile]) -> None:
    rules = asked(snakemake(clustered, "slurm", dry_run=True))
    assert rules["spin-0-seed-0"][1] == {"nodes": 1, "gpu": 8, "mem_mb": 40_000, "runtime": 90}
    assert rules["pairs-0-seed-0"][1] == {"nodes": 1, "gpu": 4, "mem_mb": 30_000, "runtime": 120}
    assert rules["eval-dpo-seed-0"][1] == {"nodes": 1, "gpu": 1, "mem_mb": 20_000, "runtime": 180}
    assert rules["tables"][1] == {"nodes": 1, "gpu": 0, "mem_mb": 12_000, "runtime": 720}
    assert all(re.fullmatch(r"[\w-]+", name) for name in rules), "executors write names into commands unquoted"


def test_a_dry_run_on_one_node_never_asks_for_more_gpus_than_it_has(
    clustered: tuple[str, Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    rules = asked(snakemake(clustered, "node", dry_run=True))
    wanted = {"spin-0-seed-0": 2, "pairs-0-seed-0": 2, "eval-sft-seed-0": 1, "base-seed-0": 0}
    assert {name: rules[name][1]["gpu"] for name in wanted} == wanted
    commands = {name: rules[name][2] for name in wanted}
    assert {name: int(command[command.index("--gpus") + 1]) for name, command in commands.items()} == wanted
    assert rules["eval-sft-seed-0"][0] == max(1, (os.cpu_count() or 1) // 2), "two steps share the cores"


def test_steps_run_side_by_side_only_where_they_ask_for_gpus(
    clustered: tuple[str, Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert scheduler.command(*clustered, [0], dry_run=False)[-1] == "jobs=3"
    assert scheduler.command(*clustered, [0], jobs=2, dry_run=False)[-1] == "jobs=2"
    assert scheduler.command("smoke", profiles.load("smoke"), [0], dry_run=False)[-1] == "jobs=2", "a tiny model"
    plain = scheduler.command("laptop", profiles.load("laptop"), [0], dry_run=False)
    assert plain[-1] == "jobs=1", "on one GPU without reserving it, two steps would be in each other's way"
    assert "--resources" not in plain


def test_a_snakemake_profile_of_the_surroundings_is_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "/no/such/profile")
    looks = [sys.executable, "-c", "import os, sys; sys.exit('SNAKEMAKE_PROFILE' in os.environ)"]
    assert scheduler.run(looks, tmp_path, None) == 0


STEP = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(1)))
pathlib.Path("started").touch()
signal.pause()
"""
SCHEDULER = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: None)
subprocess.call([sys.executable, "-c", {STEP!r}])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_reproductions_own_process_alone_stops_its_steps(
    number: signal.Signals, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    monkeypatch.chdir(tmp_path)
    shown = Display([plan.make(profiles.load("smoke"), 0)], console=Console(file=io.StringIO()))
    watcher = threading.Thread(target=stop)
    watcher.start()
    with runtime.sigterm_as_ctrl_c(), pytest.raises(KeyboardInterrupt):
        scheduler.run([sys.executable, "-c", SCHEDULER], tmp_path, shown)
    watcher.join()
    assert (tmp_path / "saved").exists()


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-5,7")


def test_steps_side_by_side_take_different_gpus(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime.claim_gpus(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        with monkeypatch.context() as other:
            other.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-5,7")  # as another process sees it
            with runtime.claim_gpus(2):
                assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5,7"


def test_a_step_waits_for_gpus_that_another_run_holds(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = contextlib.ExitStack()
    first.enter_context(runtime.claim_gpus(2))
    waits: list[float] = []
    monkeypatch.setattr(runtime.time, "sleep", lambda seconds: (waits.append(seconds), first.close()))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-5,7")
    with runtime.claim_gpus(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,GPU-5"
    assert len(waits) == 1


def test_gpus_are_counted_without_loading_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime.visible_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA A100 (UUID: GPU-2)'\n")
    tool.chmod(0o700)
    assert runtime.visible_gpus() == ["0", "1"]


@pytest.mark.slow
def test_a_step_goes_through_the_slurm_plugin_to_its_artifact(
    clustered: tuple[str, Profile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "slurm"
    calls.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(calls))
    monkeypatch.setenv("PATH", f"{STAND_INS}:{os.environ['PATH']}")
    target = plan.make(clustered[1], 0).directory("sft")
    first_look = ["--slurm-init-seconds-before-status-checks", "1"]
    output = snakemake(clustered, "slurm", str(target / artifacts.MANIFEST), *first_look, dry_run=False)
    artifacts.verify(target)
    assert output.count("has been submitted with SLURM jobid") == 1, "data and base ran here"
    call = (calls / "1.call").read_text().splitlines()
    assert {"--nodes=1", "--gpus=8", "--cpus-per-task=5"} <= set(call)
    assert (call[call.index("--mem") + 1], call[call.index("-t") + 1]) == ("40000", "90")
    assert (calls / "1.state").read_text() == "COMPLETED\n"
