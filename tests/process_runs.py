"""The runs that `test_processes.py` does in one process and `two_processes.py` in two."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from spin_utils import plan, profiles, stages
from spin_utils.lm import PackedLM
from spin_utils.packing import Group
from spin_utils.settings import TrainingSettings

KINDS = ("ddp", "fsdp2")
SPIN = {"learning_rate": 1e-4, "micro_batch_tokens": 30}
SFT = {"optimizer": "adamw", "max_grad_norm": 0.5, "weight_decay": 0.1, "gradient_checkpointing": True}


def settings(changes: dict[str, Any]) -> TrainingSettings:
    base = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 5, "precision": "float32", "micro_batch_tokens": 60}
    return TrainingSettings(**(base | changes))


def pairs() -> list[Group]:
    """13 pairs, so that the last batch has 3 of which one has equal answers: the processes have unequal shares."""
    draw = torch.Generator().manual_seed(0)

    def ids() -> list[int]:
        return torch.randint(2, 61, (int(torch.randint(1, 12, (1,), generator=draw)),), generator=draw).tolist()

    made = [Group(ids(), (ids(), ids())) for _ in range(13)]
    return [Group(g.prompt_ids, (g.response_ids[0],) * 2) if i % 4 == 0 else g for i, g in enumerate(made)]


def singles() -> list[Group]:
    return [Group(group.prompt_ids, group.response_ids[:1]) for group in pairs()]


def ask() -> list[tuple[float, bool]]:
    """Log-likelihoods of many continuations, in shards of a few."""
    lm = PackedLM(tiny_model("llama"), byte_tokenizer(), micro_batch_tokens=10)
    return lm._loglikelihood_tokens(
        [("", list(g.prompt_ids), list(response)) for g in pairs() for response in g.response_ids]
    )


def small_plan(**changes: Any) -> plan.Plan:
    """The smoke profile from a random base model: answers, one iteration and its evaluation."""
    chosen = {"sft": None, "sft_more": 0, "dpo": None, "spin.iterations": 1, "spin.subsets": [], "spin.epochs_shown": 0}
    chosen |= {"generation.shard_rows": 5, "generation.max_new_tokens": 8, "evaluation.batch_size": 1}
    return plan.make(profiles.load("smoke", chosen | changes), seed=0)


def chain(home: Path) -> plan.Plan:
    """Every step of the small plan, in a home of its own."""
    os.environ["SPIN_HOME"] = str(home)
    made = small_plan()
    for step in made:
        stages.run(made, step.name)
    return made
