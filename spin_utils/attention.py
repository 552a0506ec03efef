"""Attention over packed groups, for unchanged transformers models.

`packed_attention(model)` lets every attention layer of a model call `attend`, which reads the packed
queries, keys and values and the batch's `Layout`; the layout travels as the forward argument
`packed_layout`. Everything else in the model (projections, norms, MLPs) sees packed tokens only.

Shape suffixes: T packed tokens, H query heads, K key heads, G query heads per key head, D head size,
B groups of a tile, S padded group length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from spin_utils.packing import Layout, Tile

NAME = "spin_packed"
"""Under this name transformers finds `attend`."""


class UnsupportedModelError(ValueError):
    """A model cannot work on packed groups. The message says why and what to do."""


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model's attention layers work on packed groups.

    Keep the block open until the backward pass is done when gradients are checkpointed, because the
    recomputation looks the attention up again.
    """
    config = model.config
    before = config._attn_implementation
    if before == NAME:
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def check_model(model: PreTrainedModel, longest_row: int) -> None:
    """Refuse, before any work, a model that cannot work on packed groups.

    Args:
        model: a causal language model of transformers.
        longest_row: tokens of the longest prompt with one response.

    Raises:
        UnsupportedModelError: names the model and the reason.
    """
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"{name}: does not let transformers exchange its attention function, which packed groups need; "
            "use a model of the Llama, Mistral or Qwen family"
        )
    if getattr(model.config, "attention_dropout", 0.0):
        raise UnsupportedModelError(
            f"{name}: packed attention has no dropout; set attention_dropout to 0 in its config"
        )
    _check_window(getattr(model.config, "sliding_window", None), longest_row, name)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and longest_row > positions:
        raise UnsupportedModelError(
            f"{name}: a row of {longest_row} tokens is longer than its {positions} positions; "
            "lower template.max_prompt_tokens or template.max_response_tokens"
        )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: Layout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function in the form that transformers calls.

    Args:
        module: the attention layer, for error messages.
        query: shape (1, H, T, D).
        key: shape (1, K, T, D).
        value: shape (1, K, T, D).
        attention_mask: ignored; the layout says who sees whom.
        scaling: factor on the scores; the inverse root of D if missing.
        dropout: must be 0.
        packed_layout: where the groups are.
        sliding_window: refused if shorter than a row.

    Returns:
        Output of shape (1, T, H, D), and None in place of attention weights.

    Raises:
        UnsupportedModelError: no layout arrived, or dropout, or a sliding window shorter than a row.
    """
    name = type(module).__name__
    if packed_layout is None:
        raise UnsupportedModelError(
            f"{name}: packed_layout did not arrive; the model does not pass forward arguments on"
        )
    if dropout:
        raise UnsupportedModelError(f"{name}: packed attention has no dropout; set attention_dropout to 0")
    _check_window(sliding_window, packed_layout.longest_row, name)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query_THD, key_TKD, value_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    outputs = [
        _attend_tile(
            query_THD[tile.start : tile.stop],
            key_TKD[tile.start : tile.stop],
            value_TKD[tile.start : tile.stop],
            tile,
            scale,
        )
        for tile in packed_layout.tiles
    ]
    return torch.cat(outputs).unsqueeze(0), None


def _attend_tile(query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, tile: Tile, scale: float) -> Tensor:
    """Scores of a whole group at once: the query heads of one key head are folded into rows.

    Three plain matrix products and one softmax per tile are several times faster at short lengths on a CPU
    than one call of scaled_dot_product_attention.
    """
    heads, size = query_THD.shape[1:]
    key_heads = key_TKD.shape[1]
    batch, length = tile.segments.shape

    def spread(x_TN: Tensor) -> Tensor:
        return x_TN.new_zeros(batch * length, x_TN.shape[1]).index_copy(0, tile.slots, x_TN)

    query_BKSGD = spread(query_THD.flatten(1)).view(batch, length, key_heads, -1, size).transpose(1, 2)
    key_BKSD = spread(key_TKD.flatten(1)).view(batch, length, key_heads, size).transpose(1, 2)
    value_BKSD = spread(value_TKD.flatten(1)).view(batch, length, key_heads, size).transpose(1, 2)
    scores = (query_BKSGD.flatten(2, 3) * scale) @ key_BKSD.transpose(2, 3)
    scores = scores.view(batch, key_heads, length, -1, length) + tile.bias(scores.dtype)[:, None, :, None]
    weights = torch.softmax(scores, -1).flatten(2, 3)
    output_BSKGD = (weights @ value_BKSD).view(batch, key_heads, length, -1, size).transpose(1, 2)
    return output_BSKGD.reshape(batch * length, heads, size).index_select(0, tile.slots)


def _check_window(window: int | None, longest_row: int, name: str) -> None:
    if window is not None and longest_row > window:
        raise UnsupportedModelError(
            f"{name}: its sliding window of {window} tokens is shorter than a row of {longest_row}; packed "
            "attention sees whole rows only. Lower template.max_prompt_tokens and template.max_response_tokens to fit the window"
        )


AttentionInterface.register(NAME, attend)
