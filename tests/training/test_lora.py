"""Adapters compute as peft computes them, merge into ordinary checkpoints, and resume with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import model_of, pairs
from disturbed import after_step
from oracle import gradients, obvious_logps
from tiny_models import tiny_model

from spin_utils.data.rows import write_rows
from spin_utils.experiment import estimate, preflight
from spin_utils.experiment.dpo import dpo, read_settings
from spin_utils.model import base, lora
from spin_utils.model.base import ModelError
from spin_utils.model.logprobs import sequence_logps
from spin_utils.model.packing import pack
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings, SettingsError
from spin_utils.settings.run import LoraSettings, TrainingSettings
from spin_utils.training.loop import Interrupted


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "bloom", "qwen3_moe", "phimoe"])
def test_log_probabilities_and_gradients_are_those_of_pefts_own_forward_pass(family: str) -> None:
    model, groups = model_of(family), pairs(3)
    before = sequence_logps(model, pack(groups)).detach()
    adapted = lora.attach(model, LoraSettings(rank=3, alpha=6), seed=1)
    torch.testing.assert_close(sequence_logps(model, pack(groups)).detach(), before, atol=1e-4, rtol=1e-5)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).normal_(std=0.2)
    weights = torch.randn(6, generator=torch.Generator().manual_seed(1))
    ours = gradients(model, sequence_logps(model, pack(groups)) @ weights)
    theirs = gradients(adapted, obvious_logps(adapted, groups) @ weights)
    assert ours.keys() == set(names)
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    for name, grad in theirs.items():
        own = ours[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(own, grad, atol=1e-4 * largest, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_estimate_counts_the_adapters_that_peft_makes() -> None:
    for family, targets in (("llama", ()), ("mistral", ("q_proj", "down_proj"))):
        model, settings = tiny_model(family), LoraSettings(rank=5, targets=targets)
        architecture = estimate.of_config(model.config, [settings])
        lora.attach(model, settings, seed=0)
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert estimate.trainable(architecture, TrainingSettings(learning_rate=1e-3, lora=settings)) == count


def test_attaching_adapters_starts_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # neither can be started here
    lora.attach(tiny_model("llama"), LoraSettings(), seed=0)


def test_targets_that_are_not_there_or_the_head_are_refused() -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: lora\.targets: .*c_attn"):
        lora.attach(tiny_model("llama"), LoraSettings(targets=("c_attn",)), seed=0)
    with pytest.raises(ModelError, match="has the head"):
        lora.attach(tiny_model("mistral"), LoraSettings(targets=("lm_head", "q_proj")), seed=0)
    with pytest.raises(ModelError, match="PhimoeForCausalLM: lora.targets: it has no linear layer 'router'"):
        lora.attach(model_of("phimoe"), LoraSettings(targets=("router", "q_proj")), seed=0)
    for target in ("q_porj", "embed_tokens"):
        with pytest.raises(ModelError, match=f"LlamaForCausalLM: lora.targets: it has no linear layer '{target}'"):
            lora.attach(tiny_model("llama"), LoraSettings(targets=(target, "v_proj")), seed=0)
    with pytest.raises(SettingsError, match=r"lora: adapters are not sharded; set processes\.sharding to ddp"):
        profiles.load("paper", {"spin.training.lora.rank": 8})


TYPO = {"targets": ["c_attn"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"sft.lora": TYPO},
        {"spin.training.lora": TYPO},
        {"dpo.training.lora": TYPO},
        {"arms": {"two-answers": {"spin.training.lora": TYPO}}},
    ],
)
def test_targets_are_checked_before_any_work_wherever_they_are_set(changes: dict[str, Any]) -> None:
    profile = profiles.load("smoke", changes)
    with pytest.raises(ModelError, match="LlamaForCausalLM: lora.targets: it has no linear layer 'c_attn'"):
        preflight.check_inputs(profile)
    findings = preflight.check(profile, estimate.machine(1, 80)).findings
    assert any("'c_attn'" in finding.text for finding in findings)


def test_a_stopped_run_ends_with_the_same_bytes_in_every_home(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Add {i} and 1.", "chosen": f"{i + 1}", "rejected": f"no {i}"} for i in range(10)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "tiny").mkdir()
    texts = [text for row in rows for text in row.values()]
    model = base.materialise(ModelSettings("tiny", name="llama", hidden_size=32), tmp_path / "tiny", texts, seed=0)
    fixed = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 2, "precision": "float32"}
    adapters = {"lora.rank": 4, "lora.dropout": 0.2}
    settings = read_settings({f"training.{name}": value for name, value in {**fixed, **adapters}.items()})
    whole = dpo(model, pairs, tmp_path / "whole", settings)
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.setenv("SPIN_HOME", str(tmp_path / "elsewhere"))
    with after_step(3), pytest.raises(Interrupted):
        dpo(model, pairs, again / "out", settings)
    resumed = dpo(model, pairs, again / "out", settings)
    for file in ("model.safetensors", "adapters/adapter_model.safetensors", "adapters/adapter_config.json"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
