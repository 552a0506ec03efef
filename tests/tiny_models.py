"""Tiny random models of the supported families, for every test file."""

from __future__ import annotations

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FAMILIES = ("llama", "mistral", "qwen2")
FAST = (*FAMILIES, "qwen3", "smollm3")
"""All families with a fast path; the last two differ in their layers only."""
VOCABULARY = 61

# Threads cost more than they bring at this size.
torch.set_num_threads(1)


def tiny_model(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY, **options: object
) -> PreTrainedModel:
    """A model of two layers with grouped query heads and weights large enough that attention matters.

    Args:
        family: llama (tied embeddings), mistral, qwen2 (biases on queries, keys and values), qwen3 (norms of query and
            key heads) or smollm3 (layers without rotation).
        seed: of the random weights.
        dtype: of the weights.
        vocabulary: number of tokens.
        options: further fields of the config.
    """
    shape = {
        "vocab_size": vocabulary,
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
    random_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**(shape | {"tie_word_embeddings": True} | options)))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**(shape | options)))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**(shape | options)))
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                torch.nn.init.normal_(projection.bias, std=0.3)
    else:
        odd = {"qwen3": {"head_dim": 16}, "smollm3": {"no_rope_layers": [1, 0]}}[family]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(shape | odd | options)))
    torch.random.set_rng_state(random_state)
    return model.to(dtype)
