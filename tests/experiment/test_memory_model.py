"""The memory estimate is held to real runs: peaks of a process, tensors kept by autograd, bytes on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure_memory
import pytest
import torch
from safetensors import safe_open
from tiny_models import tiny_model

from spin_utils.experiment import memory
from spin_utils.experiment.sizes import Architecture
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.optimizer import MasterOptimizer
from spin_utils.training.state import SavedState, save_state

FACTOR = 1.35
"""The estimate lies within this factor of the measured growth of a process."""


def architecture_of(config: Any) -> Architecture:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Architecture(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=config.num_attention_heads * size,
        key_value=config.num_key_value_heads * size,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        heads=config.num_attention_heads,
        tied=config.tie_word_embeddings,
        biased=config.model_type == "qwen2",
    )


def test_the_estimate_of_a_training_run_is_near_its_measured_peak() -> None:
    # glibc gives large tensors back to the kernel, so that the peak is what was held at once.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, str(Path(measure_memory.__file__))]
    result = subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for size, growth in zip(measure_memory.SIZES, json.loads(result.stdout.splitlines()[-1]), strict=True):
        architecture = architecture_of(measure_memory.model_of(size).config)
        settings, longest = measure_memory.training_settings(size), sum(measure_memory.PAIR)
        need = memory.training(architecture, settings, width=4, longest=longest, fused=True, gpu=False, stage="spin")
        assert 1 / FACTOR < (need.total() - memory.LIBRARIES) / growth < FACTOR, (size, growth, need)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_bytes_of_checkpoints_and_saved_states_are_exact(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    architecture = architecture_of(model.config)
    assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    assert tensor_bytes(tmp_path / "model.safetensors") == memory.checkpoint(architecture)
    for name in ("rmsprop", "adamw"):
        settings = TrainingSettings(learning_rate=1e-6, optimizer=name)
        optimizer = MasterOptimizer(model, settings, torch.float32)
        save_state(tmp_path / name, {}, SavedState(1, "float32", optimizer.tensors(), []))
        (file,) = (tmp_path / name).glob("state-*/state.safetensors")
        assert tensor_bytes(file) == memory.optimizer_state(architecture, settings)
        optimizer.close()


def tensor_bytes(file: Path) -> int:
    with safe_open(file, framework="pt") as tensors:
        return sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
