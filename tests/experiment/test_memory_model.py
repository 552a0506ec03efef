"""The memory estimate is held to real runs: peaks of a process, tensors kept by autograd, bytes on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import measure_memory
import pytest
import torch
from safetensors import safe_open
from tiny_models import tiny_model

from spin_utils.experiment import memory
from spin_utils.experiment.sizes import Architecture
from spin_utils.model import logprobs
from spin_utils.model.logprobs import sequence_logps
from spin_utils.model.packing import Group, pack
from spin_utils.settings.run import GenerationSettings, TrainingSettings
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


def measured(what: str) -> list[int]:
    """Growth of a process over its size before the first model, for each of `measure_memory.SIZES`."""
    # glibc gives large tensors back to the kernel, so that the peak is what was held at once.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, str(Path(measure_memory.__file__)), what]
    result = subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    return [peak - found["before"] for peak in found["peaks"]]


def test_the_estimate_of_a_training_run_is_near_its_measured_peak() -> None:
    for size, peak in zip(measure_memory.SIZES, measured("training"), strict=True):
        architecture = architecture_of(measure_memory.model_of(size).config)
        settings, longest = measure_memory.training_settings(size), sum(measure_memory.PAIR)
        need = memory.training(architecture, settings, width=4, longest=longest, fused=True, gpu=False, stage="spin")
        assert 1 / FACTOR < (need.total() - memory.LIBRARIES) / peak < FACTOR, (size, peak, need)


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 4])
def test_the_estimate_of_sampling_is_near_its_measured_peak(width: int) -> None:
    settings = GenerationSettings(max_new_tokens=measure_memory.ANSWER, batch_size=measure_memory.ROWS)
    for size, peak in zip(measure_memory.SIZES, measured(f"sampling, {8 * width} bits"), strict=True):
        architecture = architecture_of(measure_memory.model_of(size).config)
        prompt, answer = measure_memory.PROMPT, measure_memory.ANSWER
        need = memory.sampling(
            architecture, settings, prompt=prompt, answer=answer, width=width, gpu=False, stage="pairs"
        )
        assert 1 / FACTOR < (need.total() - memory.LIBRARIES) / peak < FACTOR, (size, peak, need)


def kept_bytes(layers: int, *, fused: bool, dtype: torch.dtype, checkpointing: bool, monkeypatch: Any) -> int:
    """Bytes of the distinct tensors that autograd keeps in a forward pass, weights left out."""
    if not fused:
        monkeypatch.setattr(logprobs, "fast_layers", lambda model: nullcontext())
    model = tiny_model("mistral", dtype=dtype, num_hidden_layers=layers).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = pack([Group([2] * 8, ([3] * 12, [4] * 12))] * 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps = sequence_logps(model, batch)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del logps
    return size // batch.tokens


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_what_the_estimate_counts(fused: bool, dtype: torch.dtype, monkeypatch: Any) -> None:
    one, three = (kept_bytes(n, fused=fused, dtype=dtype, checkpointing=False, monkeypatch=monkeypatch) for n in (1, 3))
    width = torch.finfo(dtype).bits // 8
    architecture = architecture_of(tiny_model("mistral").config)
    counted = width * memory.kept_per_token(architecture, width, fused)
    assert (three - one) / 2 == pytest.approx(counted, rel=0.06), "root mean squares come on top"


@pytest.mark.parametrize("fused", [True, False])
def test_gradient_checkpointing_keeps_one_hidden_state_a_layer(fused: bool, monkeypatch: Any) -> None:
    one, three = (
        kept_bytes(n, fused=fused, dtype=torch.float32, checkpointing=True, monkeypatch=monkeypatch) for n in (1, 3)
    )
    assert (three - one) / 2 == 4 * tiny_model("mistral").config.hidden_size


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
