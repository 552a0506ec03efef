"""The whole training step equals TRL's DPOTrainer on the same pairs in the same order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from decoders import END, pairs
from tiny_models import FAMILIES, tiny_model
from transformers import PreTrainedModel

from spin_utils.data.preferences import encode_preferences
from spin_utils.model import base, lora
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group
from spin_utils.settings import profiles
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.run import LoraSettings, TrainingSettings
from spin_utils.training import loop
from spin_utils.training.loop import train

STEPS, BATCH = 20, 4
RELATIVE = 5e-5
"""Tolerance on loss and gradient norm over all steps; float32 rounding grows while both train (the most measured is
2.2e-5, with adapters on AVX2)."""


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in FAMILIES),
        ("llama", {"nll": 0.3}),
        ("llama", {"lora": LoraSettings(rank=4, alpha=8), "learning_rate": 1e-3}),
    ],
)
def test_twenty_steps_equal_trl(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    load = partial(tiny_model, family, initializer_range=0.2)
    _assert_equal_training(load, pairs(STEPS * BATCH), END, tmp_path, **changes)


@pytest.mark.slow
def test_twenty_steps_on_smollm2_equal_trl(tmp_path: Path) -> None:
    profile = profiles.load("cpu")
    folder = base.materialise(profile.model, tmp_path, [], seed=0)
    tokenizer = base.load_tokenizer(folder)
    template = TemplateSettings("text", "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    rows = [
        {
            "id": str(i),
            "prompt": f"What is {i} times 7?",
            "chosen": f"It is {7 * i}.",
            "rejected": f"Maybe {7 * i + 3}?",
        }
        for i in range(STEPS * BATCH)
    ]
    encoded = encode_preferences(tokenizer, template, rows)
    groups = [Group(row["prompt_ids"], (row["real_ids"], row["generated_ids"])) for row in encoded]
    _assert_equal_training(partial(base.load, folder), groups, tokenizer.eos_token_id, tmp_path, learning_rate=1e-6)


def _assert_equal_training(
    load: Callable[[], PreTrainedModel], groups: list[Group], eos_id: int, work: Path, **changes: Any
) -> None:
    """Train once with TRL and once with the kit and compare every step's loss and gradient norm."""
    from benchmarks import trl_peer

    fixed = {"epochs": 1, "batch_size": BATCH, "max_grad_norm": 1.0, "precision": "float32", "micro_batch_tokens": 80}
    settings = TrainingSettings(**{"learning_rate": 1e-4, **fixed, **changes})
    nll, adapters = settings.nll, settings.lora
    plan = loop.Schedule(len(groups), settings, seed=3)
    in_order = [groups[i] for step in range(STEPS) for i in plan.indices(step)]
    trainer = trl_peer.dpo_trainer(
        lora.attach(load(), adapters, seed=5) if adapters else load(),
        load(),
        in_order,
        eos_id,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        optim="rmsprop",
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_grad_norm=1.0,
        beta=settings.beta,
        **({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll]} if nll else {}),
        bf16=False,
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer.train()
    theirs = [row for row in trainer.state.log_history if "loss" in row]

    model = load()
    if adapters:
        lora.attach(model, adapters, seed=5)
    opponent = score(model, groups, micro_batch_tokens=80)
    ours = train(model, groups, settings, opponent_logps=opponent, seed=3, work=work / "run").rows
    assert len(ours) == len(theirs) == STEPS
    for our, their in zip(ours, theirs, strict=True):
        assert our["learning_rate"] == pytest.approx(their["learning_rate"], rel=1e-9)
        assert our["loss"] == pytest.approx(their["loss"], rel=RELATIVE)
        assert our["grad_norm"] == pytest.approx(their["grad_norm"], rel=RELATIVE)
        if our["step"] > 2:  # before, policy and opponent are equal, and the sign of a margin is rounding
            assert our["accuracy"] == pytest.approx(their["rewards/accuracies"], abs=1e-6)
