"""vLLM as the sampler: the real worker script runs whole in another environment, on a stand-in for vLLM itself."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import venv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from spin_utils.cli import main as cli
from spin_utils.experiment import plan, run
from spin_utils.files import paths
from spin_utils.files.paths import KitError, WorkError
from spin_utils.model import base, vllm
from spin_utils.model.packing import Pairs
from spin_utils.model.sampling import Sample, sample
from spin_utils.settings import profiles
from spin_utils.settings.inputs import identity
from spin_utils.settings.machine import VllmSettings
from spin_utils.settings.run import GenerationSettings

EOS = set(range(1, 60, 4))
PROMPTS = [[7 + i, 11, 3 * i % 60, 2][: 2 + i % 3] for i in range(10)]


def environment(folder: Path, *stand_ins: Path) -> str:
    """Python of a new environment with the kit's packages but without the kit."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    found = [*map(str, stand_ins), sysconfig.get_paths()["purelib"]]
    (packages / "found.pth").write_text("\n".join(found) + "\n")
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return environment(tmp_path_factory.mktemp("vllm"), Path(__file__).parents[1] / "stand_ins")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of one shape with other weights."""
    folders = [tmp_path_factory.mktemp(f"model-{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        base.save(tiny_model("llama", seed), byte_tokenizer(), folder)
    return folders


@pytest.fixture
def settings(python: str) -> GenerationSettings:
    vllm = VllmSettings(python=python, processes=1)
    return GenerationSettings(max_new_tokens=8, shard_rows=4, backend="vllm", vllm=vllm)


def draw(model: Path, settings: GenerationSettings, work: Path, seed: int = 0) -> list[Sample]:
    return vllm.answer(model, PROMPTS, eos_ids=EOS, settings=settings, seed=seed, work=work, what="answers")[0]


def test_greedy_answers_are_the_models_own_and_each_call_takes_the_checkpoint_it_is_given(
    checkpoints: list[Path], settings: GenerationSettings, tmp_path: Path
) -> None:
    greedy = replace(settings, temperature=0.0)
    kit = replace(greedy, backend="kit")
    for i, folder in enumerate(checkpoints):
        drawn = draw(folder, greedy, tmp_path / str(i))
        own = sample(base.load(folder, torch.float32), PROMPTS, eos_ids=EOS, settings=kit, seed=0)
        assert [s[:2] for s in drawn] == [s[:2] for s in own]
        assert [s.logp for s in drawn] == pytest.approx([s.logp for s in own], abs=1e-4)
    reasons = {s.finish_reason for s in drawn}
    assert reasons == {"stop", "length"}, "both ends are tested"


def test_an_answer_depends_on_seed_and_prompt_and_not_on_processes_or_shards(
    checkpoints: list[Path], settings: GenerationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,GPU-7")
    alone = draw(checkpoints[0], settings, tmp_path / "one")
    two = replace(settings.vllm, processes=0, tensor_parallel_size=2)
    work = tmp_path / "two"
    assert draw(checkpoints[0], replace(settings, shard_rows=3, vllm=two), work) == alone
    logs = [(work / f"worker-{k}.log").read_text() for k in range(2)]
    assert ["stand-in on GPUs 3,5\n" in logs[0], "stand-in on GPUs 6,GPU-7\n" in logs[1]] == [True, True]
    assert not (work / "worker-2.log").exists(), "as many processes as there are pairs of GPUs"
    assert draw(checkpoints[0], settings, tmp_path / "other", seed=1) != alone
    with pytest.raises(KitError, match=r"3 x 2 GPUs are requested but 4 are visible; lower generation.vllm.processes"):
        vllm.worker_devices(replace(two, processes=3), shards=9)


def test_finished_shards_outlive_a_process_that_fails_and_the_run_goes_on_to_the_same_answers(
    checkpoints: list[Path],
    settings: GenerationSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN", "crash")
    with pytest.raises(WorkError, match=r"(?s)status 1; finished shards are kept.*CUDA out of memory"):
        draw(checkpoints[0], settings, tmp_path / "work")
    (first,) = (tmp_path / "work").glob("*.answers.json")
    before = first.stat().st_mtime_ns
    monkeypatch.delenv("STAND_IN")
    resumed = draw(checkpoints[0], settings, tmp_path / "work")
    assert first.stat().st_mtime_ns == before
    assert resumed == draw(checkpoints[0], settings, tmp_path / "undisturbed")


def test_no_process_outlives_the_run_that_started_it(
    checkpoints: list[Path], settings: GenerationSettings, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = (
        "from spin_utils.model import vllm\n"
        "from spin_utils.settings.machine import VllmSettings\n"
        "from spin_utils.settings.run import GenerationSettings\n"
        "from pathlib import Path, PosixPath\n"
        f"vllm.answer({checkpoints[0]!r}, [[3]], eos_ids={{1}}, settings={settings!r}, seed=0,\n"
        f"    work={tmp_path / 'work'!r}, what='answers')\n"
    )
    environment = {**os.environ, "STAND_IN": f"hang:{pipe}", "PYTHONPATH": str(paths.REPOSITORY)}
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as worker:
        run = subprocess.Popen([sys.executable, "-c", script], env=environment)
        assert select.select([worker], [], [], 60)[0], "the worker has started"
        assert int(worker.readline()) != run.pid
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert select.select([worker], [], [], 60)[0]
        assert worker.read() == "", "the end of the pipe: the worker is gone too"


def test_an_environment_without_vllm_is_refused_before_any_work(
    home: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = environment(tmp_path_factory.mktemp("bare"))
    for python, message in (
        (bare, f"generation.vllm.python: {bare}: lacks vllm; run `{bare} -m pip install vllm`"),
        ("/no/such/python", "generation.vllm.python: /no/such/python: cannot be started (No such file or directory)"),
    ):
        changes = ["--set", "generation.backend=vllm", "--set", f"generation.vllm.python={python}"]
        assert cli.main(["reproduce", "--profile", "smoke", *changes]) == 2
        out = capsys.readouterr().out
        assert message in out
        assert len(out.strip().splitlines()) == 1


def test_settings_that_vllm_cannot_have_are_refused(settings: GenerationSettings) -> None:
    with pytest.raises(ValueError, match=r"vllm.python: ''; write the whole path"):
        GenerationSettings(backend="vllm")
    short = replace(settings, vllm=replace(settings.vllm, max_model_len=100))
    with pytest.raises(KitError, match=r"max_model_len: 100; .* take 93 \+ 8 tokens; set it to at least 101, or to 0"):
        vllm.engine_arguments(Path("model"), short, 93)


def test_other_answers_have_another_key_but_not_for_where_vllm_runs(settings: GenerationSettings) -> None:
    kit = replace(settings, backend="kit")
    assert identity(kit) != identity(settings)
    assert "vllm" not in identity(kit), "the keys of what the kit draws are as they were"
    elsewhere = replace(settings, vllm=VllmSettings(python="/opt/vllm/bin/python", processes=8))
    assert identity(elsewhere) == identity(settings)


def test_pairs_of_a_profile_are_drawn_by_vllm_and_other_weights_show_in_its_health_figure(
    home: Path, python: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STAND_IN", "other weights")
    vllm = {"generation.backend": "vllm", "generation.vllm": {"python": python}}
    made = plan.make(profiles.load("smoke", vllm | {"sft": None, "sft_more": 0}), 0)
    folder = run.make(made, "pairs-0")
    assert len(Pairs([folder / "pairs.arrow"])) == made.profile.demonstrations.spin_rows
    health = json.loads((folder / "vllm.json").read_text())
    assert (health["rows"], health["limit"], health["versions"]) == (24, 0.1, ["0.33.0"])
    assert health["mean_difference"] == pytest.approx(-0.5, abs=0.02)
    assert "the largest difference is above" in caplog.text
