"""Attention over packed groups, for unmodified transformers models.

`packed_attention(model)` makes every attention layer of a model call `attend` with the batch's `Layout`, the forward
argument `packed_layout`. Everything else in the model only sees packed tokens.

Shape suffixes: T packed tokens, H query heads, K key heads, N heads of either kind, D head size, B groups of a tile, S
padded group length, Z groups times key heads, Q places times query heads per key head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel

from spin_utils.model import gpu_attention
from spin_utils.model.base import ModelError
from spin_utils.model.packing import Layout, Tile

BLOCK = 64
"""Number of query positions whose scores are computed together."""
NAME = "spin_packed"
"""Name under which `attend` is registered in transformers."""


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model's attention layers work on packed groups; see `general.on_its_path`."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        with gpu_attention.fused_kernels():
            yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed_layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function with the signature that transformers calls; `general.path_of` looks what else a model passes.

    Args:
        query: shape (1, H, T, D); key and value have shape (1, K, T, D).
        attention_mask: ignored; the layout says which tokens see which.
        scaling: factor on the scores; 1 / sqrt(D) if None.
        sliding_window: number of tokens, itself included, that a token sees of its row; None: all of them.
        softcap: c, where scores s become c tanh(s / c) before the mask (Gemma 2); None: they stay as they are.

    Returns:
        Output of shape (1, T, H, D), and None in place of attention weights.

    Raises:
        ModelError: no layout was passed.
    """
    if packed_layout is None:
        name = type(module).__name__
        raise ModelError(f"{name}: got no packed_layout; the model does not pass its forward arguments on")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and sliding_window < packed_layout.longest_row else None
    query_THD, key_TKD, value_TKD = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    given = (query_THD, key_TKD, value_TKD, packed_layout, scale, window)
    if softcap or (window and query.device.type != "cpu"):
        return _plain_attention(*given, softcap).unsqueeze(0), None
    return _Attention.apply(*given).unsqueeze(0), None


class _Attention(torch.autograd.Function):
    """Softmax attention within groups; only queries, keys and values are stored for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        layout: Layout,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        ctx.save_for_backward(query_THD, key_TKD, value_TKD)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return attention_forward(query_THD, key_TKD, value_TKD, layout, scale, window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        query_THD, key_TKD, value_TKD = ctx.saved_tensors
        grads = attention_backward(grad_THD, query_THD, key_TKD, value_TKD, ctx.layout, ctx.scale, ctx.window)
        return (*grads, None, None, None)


def _plain_attention(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of plain operations with autograd's own backward pass, for what the kernels below do not have."""
    key_heads = key_TKD.shape[1]
    outputs = []
    for tile in layout.tiles:
        query_ZQD, key_ZSD, value_ZSD = (_spread(x, tile, key_heads) for x in (query_THD, key_TKD, value_TKD))
        scores = _scaled_product(query_ZQD, key_ZSD.transpose(1, 2), scale)
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        bias_BQS = tile.bias(scores.dtype, window)
        batch, places, keys = bias_BQS.shape
        masked = scores.view(batch, -1, places, scores.shape[1] // places, keys) + bias_BQS[:, None, :, None]
        mixed_ZQD = torch.softmax(masked.view(scores.shape), -1, dtype=torch.float32).to(scores.dtype) @ value_ZSD
        _, back = tile.rows(key_heads)
        rows = mixed_ZQD.reshape(batch * key_heads * places, -1).index_select(0, back)
        outputs.append(rows.view(-1, *query_THD.shape[1:]))
    return torch.cat(outputs)


def attention_forward(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    layout: Layout,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention output, shape (T, H, D), from packed queries (T, H, D), keys and values (T, K, D).

    On a GPU, and for long rows, `gpu_attention.py` takes over, which has no window.
    """
    if query_THD.device.type != "cpu":
        return gpu_attention.forward(query_THD, key_TKD, value_TKD, layout, scale)
    output_THD = torch.empty_like(query_THD, memory_format=torch.contiguous_format)
    key_heads = key_TKD.shape[1]
    per_key = query_THD.shape[1] // key_heads
    for tile in layout.tiles:
        if tile.rows_layout is not None and not window:
            part = slice(tile.start, tile.stop)
            output_THD[part] = gpu_attention.forward(
                query_THD[part], key_TKD[part], value_TKD[part], tile.rows_layout, scale
            )
            continue
        query_ZQD = _spread(query_THD, tile, key_heads)
        key_ZSD, value_ZSD = _spread(key_TKD, tile, key_heads), _spread(value_TKD, tile, key_heads)
        output_ZQD = torch.empty_like(query_ZQD)
        bias = tile.bias(query_ZQD.dtype, window)
        for start, stop in _blocks(tile):
            rows = slice(start * per_key, stop * per_key)
            weights = _weights(query_ZQD[:, rows], key_ZSD[:, :stop], bias[:, start:stop, :stop], scale)
            output_ZQD[:, rows] = weights @ value_ZSD[:, :stop]
        _gather(output_ZQD, tile, output_THD, key_heads)
    return output_THD


def attention_backward(
    grad_THD: Tensor,
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    layout: Layout,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; the attention weights are recomputed."""
    if query_THD.device.type != "cpu":
        return gpu_attention.backward(grad_THD, query_THD, key_TKD, value_TKD, layout, scale)
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query_THD, key_TKD, value_TKD))
    key_heads = key_TKD.shape[1]
    per_key = query_THD.shape[1] // key_heads
    for tile in layout.tiles:
        query_ZQD, grad_ZQD = _spread(query_THD, tile, key_heads), _spread(grad_THD, tile, key_heads)
        key_ZSD, value_ZSD = _spread(key_TKD, tile, key_heads), _spread(value_TKD, tile, key_heads)
        query_grad = torch.empty_like(query_ZQD)
        key_grad = value_grad = torch.empty(0)
        bias = tile.bias(query_ZQD.dtype, window)
        blocks = _blocks(tile)
        for start, stop in reversed(blocks):  # the first in this order covers all keys
            rows = slice(start * per_key, stop * per_key)
            query, grad, key, value = query_ZQD[:, rows], grad_ZQD[:, rows], key_ZSD[:, :stop], value_ZSD[:, :stop]
            weights = _weights(query, key, bias[:, start:stop, :stop], scale)
            value_part = weights.transpose(1, 2) @ grad
            delta = grad @ value.transpose(1, 2)
            delta = torch._softmax_backward_data(delta, weights, -1, delta.dtype)
            query_grad[:, rows] = _scaled_product(delta, key, scale)
            key_part = _scaled_product(delta.transpose(1, 2), query, scale)
            if len(blocks) == 1:
                key_grad, value_grad = key_part, value_part
            elif (start, stop) == blocks[-1]:
                sums = torch.promote_types(key.dtype, torch.float32)
                key_grad, value_grad = key_part.to(sums), value_part.to(sums)
            else:
                key_grad[:, :stop] += key_part
                value_grad[:, :stop] += value_part
        for spread, packed in zip((query_grad, key_grad, value_grad), grads, strict=True):
            _gather(spread.to(packed.dtype), tile, packed, key_heads)
    return grads[0], grads[1], grads[2]


def _spread(x_TND: Tensor, tile: Tile, key_heads: int) -> Tensor:
    """Packed tokens of a tile as (Z, Q, D): Z groups times key heads, Q places times heads per key head."""
    batch, _ = tile.segments.shape
    there, _ = tile.rows(key_heads)
    spread = x_TND.reshape(len(x_TND) * key_heads, -1).index_select(0, there)
    return spread.view(batch * key_heads, -1, x_TND.shape[2])


def _gather(x_ZQD: Tensor, tile: Tile, out_TND: Tensor, key_heads: int) -> None:
    """The inverse of `_spread`, into the tile's part of `out_TND`, which is contiguous."""
    _, back = tile.rows(key_heads)
    out = out_TND[tile.start : tile.stop].view(len(back), -1)
    torch.index_select(x_ZQD.view(-1, out.shape[1]), 0, back, out=out)


def _blocks(tile: Tile) -> list[tuple[int, int]]:
    """Start and stop of each block of queries; a block's keys are all positions before its stop."""
    length = tile.segments.shape[1]
    stops = [*range(BLOCK, length, BLOCK), length] if length > 2 * BLOCK else [length]
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _weights(query_ZQD: Tensor, key_ZSD: Tensor, bias_BQS: Tensor, scale: float) -> Tensor:
    """Attention weights of a block of queries; the softmax sums in float32."""
    scores = _scaled_product(query_ZQD, key_ZSD.transpose(1, 2), scale)
    batch, places, keys = bias_BQS.shape
    scores.view(batch, -1, places, scores.shape[1] // places, keys).add_(bias_BQS[:, None, :, None])
    return torch.softmax(scores, -1)


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a b, scaled before the product is rounded."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


AttentionInterface.register(NAME, attend)
