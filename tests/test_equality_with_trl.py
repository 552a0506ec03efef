"""The whole training step equals TRL's DPOTrainer on the same pairs in the same order."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model

from spin_utils import training
from spin_utils.logprobs import score
from spin_utils.packing import Group
from spin_utils.settings import TrainingSettings
from spin_utils.training import train

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
def test_twenty_steps_equal_trl(family, tmp_path):
    pytest.importorskip("trl")
    from benchmarks import trl_peer

    pairs = _pairs(STEPS * BATCH)
    settings = TrainingSettings(
        learning_rate=1e-4, epochs=1, batch_size=BATCH, max_grad_norm=1.0, precision="float32", micro_batch_tokens=80
    )
    plan = training._Plan(len(pairs), settings, seed=3)
    in_order = [pairs[i] for step in range(STEPS) for i in plan.indices(step)]
    trainer = trl_peer.dpo_trainer(
        tiny_model(family, initializer_range=0.2),
        tiny_model(family, initializer_range=0.2),
        in_order,
        EOS,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        optim="rmsprop",
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_grad_norm=1.0,
        beta=settings.beta,
        bf16=False,
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer.train()
    theirs = [row for row in trainer.state.log_history if "loss" in row]

    model = tiny_model(family, initializer_range=0.2)
    opponent = score(model, pairs, micro_batch_tokens=80)
    ours = train(model, pairs, settings, opponent_logps=opponent, seed=3, work=tmp_path).rows
    assert len(ours) == len(theirs) == STEPS
    for our, their in zip(ours, theirs, strict=True):
        assert our["learning_rate"] == pytest.approx(their["learning_rate"], rel=1e-9)
        assert our["loss"] == pytest.approx(their["loss"], rel=RELATIVE)
        assert our["grad_norm"] == pytest.approx(their["grad_norm"], rel=RELATIVE)
        if our["step"] > 2:  # before, policy and opponent are equal, and the sign of a margin is rounding
            assert our["accuracy"] == pytest.approx(their["rewards/accuracies"], abs=1e-6)
