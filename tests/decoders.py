"""Tiny random models of many families of decoders, each with what is odd about it, and the path that it takes."""

from __future__ import annotations

import random
from collections.abc import Collection

import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spin_utils.model.packing import Group

END = 1
SHAPE = tiny_models.SHAPE | {"num_hidden_layers": 3, "max_position_embeddings": 64, "initializer_range": 0.25}
WINDOW = {"sliding_window": 5}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("fast", {"tie_word_embeddings": True}),
    "mistral": ("fast", WINDOW),
    "qwen2": ("fast", {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}),
    "qwen3": ("fast", {"head_dim": 16}),
    "smollm3": ("fast", {"no_rope_layers": [1, 0, 1]}),
    "gemma2": ("packed", {"head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **WINDOW}),
    "gemma3_text": ("packed", {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2, **WINDOW}),
    "phi3": ("packed", WINDOW),
    "olmo2": ("packed", {}),
    "granite": ("packed", {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.2}),
    "cohere": ("packed", {"logit_scale": 0.3}),
    "mixtral": ("packed", {**EXPERTS, "output_router_logits": True}),
    "qwen3_moe": ("packed", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "gpt_neox": ("packed", {"rotary_pct": 0.5}),
    "gpt2": ("packed", {"n_inner": 48}),
    "opt": ("packed", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1}),
    "minicpm3": (
        "packed",  # queries and keys compressed, values of another width
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    # Its config refuses to be without a pad token.
    "modernbert-decoder": ("packed", {"local_attention": 4, "cls_token_id": 0, "sep_token_id": 0}),
    "gemma3n_text": (
        "packed",  # a layer that reads the keys and values of another
        {
            "head_dim": 8,
            "num_kv_shared_layers": 1,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": tiny_models.VOCABULARY,
            "activation_sparsity_pattern": [0.0] * 3,
            "laurel_rank": 4,
            **WINDOW,
        },
    ),
    "gemma4_text": (
        "packed",  # heads of another size in every full layer
        {
            "head_dim": 8,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": tiny_models.VOCABULARY,
            **WINDOW,
        },
    ),
    # Its positions count padding.
    "trocr": ("padded", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}),
    "gpt_oss": ("padded", {"head_dim": 8, **EXPERTS, **WINDOW}),  # an attention sink in every head
    "bloom": ("padded", {}),  # ALiBi
    "falcon": ("padded", {"new_decoder_architecture": True, "num_kv_heads": 2, "hidden_dropout": 0.1}),
    "phimoe": ("packed", EXPERTS),  # a router that is a linear layer by its class
    "falcon_h1": ("padded", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
}


def model_of(family: str, **options: object) -> PreTrainedModel:
    """A tiny random model with every weight away from its neutral start: norms, biases, experts."""
    given = {**SHAPE, **FAMILIES[family][1], **options}
    if family == "gemma3_text":
        given["num_hidden_layers"] = 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given), dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    return model.eval()


def pairs(count: int, seed: int = 0, longest: int = 12, identical: Collection[int] = ()) -> list[Group]:
    """Random pairs of prompts and two answers, which are equal in those with the given numbers."""
    draw = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [draw.randrange(2, tiny_models.VOCABULARY) for _ in range(draw.randint(1, most))]

    made = [Group(ids(longest), ([*ids(longest), END], [*ids(longest), END])) for _ in range(count)]
    return [Group(g.prompt_ids, g.response_ids[:1] * 2) if i in identical else g for i, g in enumerate(made)]
