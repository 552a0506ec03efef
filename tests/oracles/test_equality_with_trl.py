"""The whole training step equals TRL's DPOTrainer on the same pairs in the same order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
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

STEPS, BATCH, EOS = 20, 4, 1
RELATIVE = 2e-5
"""Tolerance on loss and gradient norm over all steps; float32 rounding grows while both train."""


def _pairs(n):
    draw = torch.Generator().manual_seed(0)

    def ids(low, high, end=()):
        length = int(torch.randint(low, high, (1,), generator=draw))
        return [*torch.randint(2, 61, (length,), generator=draw).tolist(), *end]

    return [Group(ids(1, 12), (ids(0, 12, [EOS]), ids(0, 12, [EOS]))) for _ in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_equal_trl(family: str, tmp_path: Path) -> None:
    _assert_equal_training(
        lambda: tiny_model(family, initializer_range=0.2), _pairs(STEPS * BATCH), EOS, 1e-4, tmp_path
    )


def test_twenty_steps_with_the_likelihood_of_the_real_answer_equal_trl(tmp_path: Path) -> None:
    _assert_equal_training(
        lambda: tiny_model("llama", initializer_range=0.2), _pairs(STEPS * BATCH), EOS, 1e-4, tmp_path, nll=0.3
    )


def test_twenty_steps_with_adapters_equal_trl_with_the_same_adapters(tmp_path: Path) -> None:
    settings = LoraSettings(rank=4, alpha=8)
    load = partial(tiny_model, "llama", initializer_range=0.2)
    _assert_equal_training(load, _pairs(STEPS * BATCH), EOS, 1e-3, tmp_path, adapters=settings)


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
    pairs = [Group(row["prompt_ids"], (row["real_ids"], row["generated_ids"])) for row in encoded]
    _assert_equal_training(lambda: base.load(folder), pairs, tokenizer.eos_token_id, 1e-6, tmp_path)


def _assert_equal_training(
    load: Callable[[], PreTrainedModel],
    pairs: list[Group],
    eos_id: int,
    learning_rate: float,
    work: Path,
    nll: float = 0.0,
    adapters: LoraSettings | None = None,
) -> None:
    """Train once with TRL and once with the kit and compare every step's loss and gradient norm."""
    from benchmarks import trl_peer

    settings = TrainingSettings(
        learning_rate=learning_rate,
        epochs=1,
        batch_size=BATCH,
        max_grad_norm=1.0,
        precision="float32",
        micro_batch_tokens=80,
        nll=nll,
        lora=adapters,
    )
    plan = loop.Schedule(len(pairs), settings, seed=3)
    in_order = [pairs[i] for step in range(STEPS) for i in plan.indices(step)]
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
    opponent = score(model, pairs, micro_batch_tokens=80)
    ours = train(model, pairs, settings, opponent_logps=opponent, seed=3, work=work / "run").rows
    assert len(ours) == len(theirs) == STEPS
    for our, their in zip(ours, theirs, strict=True):
        assert our["learning_rate"] == pytest.approx(their["learning_rate"], rel=1e-9)
        assert our["loss"] == pytest.approx(their["loss"], rel=RELATIVE)
        assert our["grad_norm"] == pytest.approx(their["grad_norm"], rel=RELATIVE)
        if our["step"] > 2:  # before, policy and opponent are equal, and the sign of a margin is rounding
            assert our["accuracy"] == pytest.approx(their["rewards/accuracies"], abs=1e-6)
