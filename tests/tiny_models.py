"""Tiny random models of the supported families, for every test file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spin_utils.model import base
from spin_utils.settings.inputs import ModelSettings

FAMILIES = ("llama", "mistral", "qwen2")
FAST = (*FAMILIES, "qwen3", "smollm3")
"""All families with a fast path; the last two differ in their layers only."""
VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
ODD = {"llama": {"tie_word_embeddings": True}, "qwen3": {"head_dim": 16}, "smollm3": {"no_rope_layers": [1, 0]}}

# Threads cost more than they bring at this size.
torch.set_num_threads(1)


def tiny_model(family: str, seed: int = 0, vocabulary: int = VOCABULARY, **options: object) -> PreTrainedModel:
    """A model of two layers with grouped query heads and weights large enough that attention matters.

    llama ties its embeddings, qwen2 has biases on queries, keys and values, qwen3 norms of query and key heads, and
    smollm3 layers without rotation. `options` are further fields of the config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = {**SHAPE, "vocab_size": vocabulary, **ODD.get(family, {}), **options}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given))
        for layer in model.model.layers if family == "qwen2" else ():
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                torch.nn.init.normal_(projection.bias, std=0.3)
    return model


def trainable_folder(folder: Path) -> Path:
    """A model with its tokenizer in a folder, as a user has one."""
    folder.mkdir()
    texts = ["What is 3 + 4? Answer: 7", "Spell this word backward: sun"] * 10
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), folder, texts, seed=0)
    return folder


def broken_model(sound: Path, change: Mapping[str, Any], folder: Path) -> Path:
    """A copy of a sound model with one thing changed; tests/malformed/index.yaml says how."""
    shutil.copytree(sound, folder)
    for name, fields in change.get("merge", {}).items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))
    for name, other in change.get("rename", {}).items():
        (folder / name).rename(folder / other)
    for name, text in change.get("write", {}).items():
        (folder / name).write_text(text)
    for name, size in change.get("cut", {}).items():
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
    for name in change.get("delete", []):
        (folder / name).unlink()
    return folder
