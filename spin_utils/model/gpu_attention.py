"""Attention in rows, for a GPU and for long rows on a CPU, where one large kernel beats many small products.

Each response becomes a row with a copy of its prompt in front, padded on the right, so that plain causal attention is
exact and PyTorch's fused kernels need no mask (docs/speed.md).

Shape suffixes: T packed tokens, H query heads, K key heads, N heads of either kind, D head size, R rows, L row length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from spin_utils.model.packing import Layout

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Rows:
    """Where the packed tokens are in the rectangle of rows."""

    there: Tensor
    """Shape (R, L): packed token at each position; padding repeats the row's first token."""
    back: Tensor
    """Shape (T,): position of each packed token in the flattened rectangle; for prompt tokens, in their first row."""
    repeats: tuple[tuple[Tensor, Tensor], ...]
    """Prompt tokens and their positions in a further row, one pair per further response."""


def fused_kernels() -> AbstractContextManager[None]:
    """Inside the block attention does not use cuDNN, which spends a millisecond planning for each new shape."""
    return sdpa_kernel(_KERNELS)


def forward(query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, layout: Layout, scale: float) -> Tensor:
    """See `attention.attention_forward`."""
    rows = rows_of(layout)
    output_RHLD = _causal(scale, *(x[rows.there].transpose(1, 2) for x in (query_THD, key_TKD, value_TKD)))
    return output_RHLD.transpose(1, 2).flatten(0, 1)[rows.back]


def backward(
    grad_THD: Tensor, query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, layout: Layout, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `attention.attention_backward`. Equal calls give equal bytes."""
    rows = rows_of(layout)
    leaves = [x[rows.there].transpose(1, 2).detach().requires_grad_() for x in (query_THD, key_TKD, value_TKD)]
    with torch.enable_grad():
        output_RHLD = _causal(scale, *leaves)  # recomputing is cheaper than storing it
    grad_RLHD = grad_THD.new_zeros(*rows.there.shape, *grad_THD.shape[1:])
    grad_RLHD.flatten(0, 1)[rows.back] = grad_THD
    with _equal_bytes():
        query_grad, key_grad, value_grad = torch.autograd.grad(output_RHLD, leaves, grad_RLHD.transpose(1, 2))
    return _packed(query_grad, rows), _packed(key_grad, rows), _packed(value_grad, rows)


@contextmanager
def _equal_bytes() -> Iterator[None]:
    """Inside the block every kernel sums in a fixed order."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    options: Any = torch.utils.deterministic
    filled = options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # with warn_only the kernels would only warn
    options.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        options.fill_uninitialized_memory = filled


def _packed(grad_RNLD: Tensor, rows: Rows) -> Tensor:
    """Gradients of packed tokens: those of all places where a token stands."""
    grad = grad_RNLD.transpose(1, 2).flatten(0, 1)
    packed_TND = grad[rows.back]
    for tokens, places in rows.repeats:
        packed_TND[tokens] += grad[places]
    return packed_TND


def _causal(scale: float, query_RHLD: Tensor, key_RKLD: Tensor, value_RKLD: Tensor) -> Tensor:
    per_key = query_RHLD.shape[1] // key_RKLD.shape[1]
    if query_RHLD.dtype not in (torch.bfloat16, torch.float16) and per_key > 1:
        # No other kernel of a GPU shares keys among heads.
        key_RKLD, value_RKLD = (x.repeat_interleave(per_key, 1) for x in (key_RKLD, value_RKLD))
        per_key = 1
    return F.scaled_dot_product_attention(
        query_RHLD, key_RKLD, value_RKLD, is_causal=True, scale=scale, enable_gqa=per_key > 1
    )


def rows_of(layout: Layout) -> Rows:
    """Built once per batch and shared by all layers."""
    if "rows" in layout.memory:
        return layout.memory["rows"]
    there: list[list[int]] = []
    back: list[int] = []
    repeats: dict[int, tuple[list[int], list[int]]] = {}
    token = 0
    for group in layout.groups:
        prompt = len(group.prompt_ids)
        head = range(token, token + prompt)
        token += prompt
        for number, size in enumerate(map(len, group.response_ids)):
            place = len(there) * layout.longest_row
            if number == 0:
                back += range(place, place + prompt)
            else:
                tokens, places = repeats.setdefault(number, ([], []))
                tokens += head
                places += range(place, place + prompt)
            back += range(place + prompt, place + prompt + size)
            padding = layout.longest_row - prompt - size
            there.append([*head, *range(token, token + size), *[head.start] * padding])
            token += size
    put = partial(torch.tensor, device=layout.device)
    further = tuple((put(tokens), put(places)) for tokens, places in repeats.values())
    layout.memory["rows"] = Rows(put(there), put(back), further)
    return layout.memory["rows"]
