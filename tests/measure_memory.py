"""Peak memory of real training runs, in a process of its own.

Prints by how many bytes the process grew at each of `SIZES`. The peak of a process never falls, so sizes grow and each
peak is its own. The argument is the path of the model, or `lora` for adapters.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
from tiny_models import tiny_model
from transformers import PreTrainedModel

from spin_utils.model import general, lora
from spin_utils.model.packing import Group
from spin_utils.settings.run import LoraSettings, TrainingSettings
from spin_utils.training.loop import train

SIZES: tuple[dict[str, Any], ...] = (
    {"layers": 3, "hidden": 320, "feed_forward": 960, "vocabulary": 4000, "budget": 1024, "checkpointing": True},
    {"layers": 5, "hidden": 448, "feed_forward": 1408, "vocabulary": 8000, "budget": 1536, "checkpointing": False},
)
PAIR = (64, 96, 96)
"""Tokens of prompt, real and generated response."""


def model_of(size: dict[str, Any]) -> PreTrainedModel:
    shape = {"num_hidden_layers": size["layers"], "intermediate_size": size["feed_forward"], "head_dim": 32}
    heads = {"num_attention_heads": size["hidden"] // 32, "num_key_value_heads": size["hidden"] // 64}
    more = {"hidden_size": size["hidden"], "max_position_embeddings": 512, "tie_word_embeddings": False}
    return tiny_model("mistral", vocabulary=size["vocabulary"], **shape, **heads, **more)


def training_settings(size: dict[str, Any], way: str) -> TrainingSettings:
    return TrainingSettings(
        learning_rate=1e-6,
        epochs=1,
        batch_size=size["budget"] // sum(PAIR),
        precision="float32",
        micro_batch_tokens=size["budget"],
        gradient_checkpointing=size["checkpointing"],
        lora=LoraSettings(rank=16) if way == "lora" else None,
    )


def step(size: dict[str, Any], way: str) -> None:
    settings = training_settings(size, way)
    ids = [[(7 * i + k) % size["vocabulary"] for i in range(n)] for k, n in enumerate(PAIR)]
    pairs = [Group(ids[0], (ids[1], ids[2]))] * settings.batch_size
    with tempfile.TemporaryDirectory() as work:
        logps = [(-1.0, -1.0)] * len(pairs)
        model = model_of(size)
        if settings.lora is not None:
            lora.attach(model, settings.lora, seed=0)
        else:
            general._PATHS[model] = way  # type: ignore[assignment]
        train(model, pairs, settings, opponent_logps=logps, seed=0, work=Path(work))


def main() -> None:
    torch.set_num_threads(1)
    lora.attach(tiny_model("mistral"), LoraSettings(rank=1), seed=0)  # loads peft, which is no memory of a run
    before = psutil.Process().memory_info().rss
    growth = []
    for size in SIZES:
        step(size, sys.argv[1])
        gc.collect()
        growth.append(1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) - before)
    sys.stdout.write(json.dumps(growth) + "\n")


if __name__ == "__main__":
    main()
