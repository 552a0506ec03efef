"""Peak memory of real training runs and samplings, in a process of its own: prints one JSON object.

    python tests/measure_memory.py            sizes are those of `SIZES`, the smallest first

The peak of a process never falls, so sizes grow and each peak is its own.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import MistralConfig, MistralForCausalLM

from spin_utils.model.packing import Group
from spin_utils.model.sampling import sample
from spin_utils.settings.run import GenerationSettings, TrainingSettings
from spin_utils.training.loop import train

SIZES: tuple[dict[str, Any], ...] = (
    {"layers": 3, "hidden": 320, "feed_forward": 960, "vocabulary": 4000, "budget": 1024, "checkpointing": True},
    {"layers": 5, "hidden": 448, "feed_forward": 1408, "vocabulary": 8000, "budget": 1536, "checkpointing": False},
)
PAIR = (64, 96, 96)
"""Tokens of prompt, real and generated response."""
ROWS, PROMPT, ANSWER = 192, 120, 8


def model_of(size: dict[str, Any]) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=size["vocabulary"],
        hidden_size=size["hidden"],
        intermediate_size=size["feed_forward"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["hidden"] // 32,
        num_key_value_heads=size["hidden"] // 64,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
    )
    return MistralForCausalLM(config)


def training_settings(size: dict[str, Any]) -> TrainingSettings:
    return TrainingSettings(
        learning_rate=1e-6,
        epochs=1,
        batch_size=size["budget"] // sum(PAIR),
        precision="float32",
        micro_batch_tokens=size["budget"],
        gradient_checkpointing=size["checkpointing"],
    )


def step(size: dict[str, Any]) -> None:
    settings = training_settings(size)
    ids = [[(7 * i + k) % size["vocabulary"] for i in range(n)] for k, n in enumerate(PAIR)]
    pairs = [Group(ids[0], (ids[1], ids[2]))] * settings.batch_size
    with tempfile.TemporaryDirectory() as work:
        logps = [(-1.0, -1.0)] * len(pairs)
        train(model_of(size), pairs, settings, opponent_logps=logps, seed=0, work=Path(work))


def draw(size: dict[str, Any], dtype: torch.dtype) -> None:
    settings = GenerationSettings(max_new_tokens=ANSWER, batch_size=ROWS)
    model = model_of(size).to(dtype)
    sample(model, [[2] * PROMPT] * ROWS, eos_ids=(), settings=settings, seed=0)


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def main() -> None:
    torch.set_num_threads(1)
    work = {
        "training": step,
        "sampling, 16 bits": partial(draw, dtype=torch.bfloat16),
        "sampling, 32 bits": partial(draw, dtype=torch.float32),
    }[sys.argv[1]]
    before = psutil.Process().memory_info().rss
    peaks = []
    for size in SIZES:
        work(size)
        gc.collect()
        peaks.append(peak())
    sys.stdout.write(json.dumps({"before": before, "peaks": peaks}) + "\n")


if __name__ == "__main__":
    main()
