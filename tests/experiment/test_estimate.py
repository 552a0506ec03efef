"""The memory estimate is held to real runs, and the cost model counts what the method needs and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import decoders
import measure_memory
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model

from spin_utils.experiment import cost, estimate
from spin_utils.files import runtime
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.optimizer import MasterOptimizer
from spin_utils.training.state import SavedState, save_state

RUN, MISTRAL = cost.Workload(), cost.Architecture()
LOWEST, HIGHEST = 1 / 1.45, 2.0
"""The estimate lies between these shares of the measured growth of a process.

Too low an estimate kills a run that `check` let pass; too high a one costs nothing but a warning, and how much of its
workspace a process really holds depends on the processor's kernels (shares of up to 1.52 were measured).
"""


@pytest.mark.parametrize("way", ["fast", "packed", "padded", "lora"])
def test_the_estimate_of_a_training_run_is_near_its_measured_peak(way: str) -> None:
    # glibc gives large tensors back to the kernel, so that the peak is what was held at once.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, str(Path(measure_memory.__file__)), way]
    result = subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for size, growth in zip(measure_memory.SIZES, json.loads(result.stdout.splitlines()[-1]), strict=True):
        settings, longest = measure_memory.training_settings(size, way), sum(measure_memory.PAIR)
        adapters = [settings.lora] if settings.lora else []
        architecture = estimate.of_config(measure_memory.model_of(size).config, adapters)
        architecture = dataclasses.replace(architecture, path="fast" if way == "lora" else way)
        fast = way == "fast"
        need = estimate.training_memory(architecture, settings, width=4, longest=longest, fused=fast, gpu=False)
        assert LOWEST < (need.total() - estimate.LIBRARIES) / growth < HIGHEST, (size, growth, need)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_bytes_of_checkpoints_and_saved_states_are_exact(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    architecture = estimate.of_config(model.config)
    model.save_pretrained(tmp_path)
    assert tensor_bytes(tmp_path / "model.safetensors") == estimate.checkpoint(architecture)
    for name in ("rmsprop", "adamw"):
        settings = TrainingSettings(learning_rate=1e-6, optimizer=name)
        optimizer = MasterOptimizer(model, settings, torch.float32)
        save_state(tmp_path / name, {}, SavedState(1, "float32", optimizer.tensors(), []))
        (file,) = (tmp_path / name).glob("state-*/state.safetensors")
        assert tensor_bytes(file) == estimate.optimizer_state(architecture, settings)
        optimizer.close()


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_every_decoder_has_an_estimate(family: str) -> None:
    model = decoders.model_of(family)
    architecture = estimate.of_config(model.config)
    assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters())
    given = {"width": 2, "longest": 64, "fused": False, "gpu": True}
    need = estimate.training_memory(architecture, TrainingSettings(learning_rate=1e-6), **given)
    assert need.total() > estimate.LIBRARIES
    assert cost.forward_flops(architecture, 8, 8) > 0


def tensor_bytes(file: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(file).values())


def test_a_small_forward_pass_equals_counting_by_hand() -> None:
    tiny = cost.Architecture(layers=1, hidden=2, query=2, key_value=1, feed_forward=3, vocabulary=5)
    weights = 2 * (2 + 2 * 1) + 2 * 2 + 3 * 2 * 3
    seen = 1 + 2 + 3  # each of three tokens attends to itself and those before it
    assert cost.forward_flops(tiny, 1, 2) == 2 * weights * 3 + 4 * 2 * seen + 2 * 2 * 5 * 2


def test_generation_one_by_one_is_bound_by_reading_the_weights() -> None:
    alone = cost.generation_hours(dataclasses.replace(RUN, decoded_together=1), MISTRAL)
    reading = RUN.prompts * RUN.generated_tokens * 2 * MISTRAL.parameters / RUN.machine.bandwidth
    assert alone == pytest.approx(reading / (RUN.machine.devices * RUN.utilisation) / 3600, rel=0.01)


def test_free_memory_is_that_of_the_batch_job_or_container_without_the_files_it_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_GROUPS", tmp_path)
    monkeypatch.setattr(runtime, "_OWN_GROUP", tmp_path / "own")
    whole = runtime.free_memory()
    for place in (tmp_path, tmp_path / "slurm" / "job_7"):
        (place / "step_0").mkdir(parents=True)
        (tmp_path / "own").write_text(f"0::/{(place / 'step_0').relative_to(tmp_path)}\n")
        (place / "memory.max").write_text("9000\n")
        (place / "memory.current").write_text("8000\n")
        (place / "memory.stat").write_text("anon 1000\nactive_file 3000\ninactive_file 4000\n")
        assert runtime.free_memory() == 8000 < whole
        (place / "memory.max").write_text("max\n")
        assert runtime.free_memory() > 8000
    job = tmp_path / "memory" / "slurm" / "job_8"  # version 1, as on clusters with Red Hat 8
    (job / "step_0").mkdir(parents=True)
    (tmp_path / "own").write_text("9:cpu,cpuacct:/elsewhere\n4:memory:/slurm/job_8/step_0\n0::/\n")
    (job / "memory.limit_in_bytes").write_text("9000\n")
    (job / "memory.usage_in_bytes").write_text("8000\n")
    (job / "memory.stat").write_text("active_file 1\ntotal_active_file 3000\ntotal_inactive_file 4000\n")
    assert runtime.free_memory() == 8000
