"""Summed log-probabilities of responses given their prompts, for training and for scoring.

log p(y|x) = sum_j log p(y_j | x, y_<j): the sum over response tokens, the end token included, with no
normalisation by length (paper, sec. 3). The hidden states come from one packed forward pass, the head is
applied to response rows only, and the sums are float32.

Shape suffixes: R response tokens, D hidden size, V vocabulary, N responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from spin_utils.attention import check_model, packed_attention
from spin_utils.packing import Group, PackedBatch, check_groups, micro_batches, pack

HEAD_ELEMENTS = 24 * 2**20
"""Logits held at once; a chunk has this many divided by the vocabulary rows."""


def sequence_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Summed log-probability of every response of a batch.

    Args:
        model: a causal language model that `check_model` accepts.
        batch: packed groups, on the model's device.

    Returns:
        float32, shape (responses,), in the order of the groups; differentiable.
    """
    return torch.zeros(batch.responses, device=batch.owners.device).index_add(
        0, batch.owners, token_logps(model, batch)
    )


def token_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Log-probability of every response token: float32, shape (R,), in packed order; differentiable."""
    with packed_attention(model):
        hidden = model.get_decoder()(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            packed_layout=batch.layout,
        ).last_hidden_state
    hidden_RD = hidden[0].index_select(0, batch.sources)
    return _TargetLogps.apply(hidden_RD, model.get_output_embeddings().weight, batch.targets)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    groups: Sequence[Group],
    *,
    micro_batch_tokens: int,
    progress: Callable[[int], Any] | None = None,
) -> list[list[float]]:
    """Summed log-probability of every response of every group, without gradients.

    Args:
        model: a causal language model of transformers; its training mode does not matter.
        groups: any number, with any number of responses each.
        micro_batch_tokens: token budget of one forward pass.
        progress: called with the number of groups done after each forward pass.

    Returns:
        For each group the values of its responses, in the given order.

    Raises:
        PackingError: an empty prompt or response.
        UnsupportedModelError: the model cannot work on packed groups.
    """
    if not groups:
        return []
    check_groups(groups)
    check_model(model, max(group.longest_row for group in groups))
    device = model.get_output_embeddings().weight.device
    results: list[list[float]] = [[] for _ in groups]
    for indices in micro_batches([group.tokens for group in groups], micro_batch_tokens):
        values = iter(sequence_logps(model, pack([groups[i] for i in indices]).to(device)).tolist())
        for i in indices:
            results[i] = [next(values) for _ in groups[i].response_ids]
        if progress is not None:
            progress(len(indices))
    return results


class _TargetLogps(torch.autograd.Function):
    """log softmax(hidden W^T) at the targets, in chunks of rows: memory does not grow with the vocabulary.

    Chunks go over rows, not over the vocabulary, so that each product sums over the whole vocabulary at
    once in float32 inside the matrix product. The logits are computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_RD, weight_VD, targets_R)
        logps_R = hidden_RD.new_empty(len(targets_R), dtype=torch.float32)
        for rows in _chunks(len(targets_R), weight_VD.shape[0]):
            logps_CV = torch.log_softmax((hidden_RD[rows] @ weight_VD.T).float(), -1)
            logps_R[rows] = logps_CV.gather(1, targets_R[rows, None])[:, 0]
        return logps_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_RD, weight_VD, targets_R = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_RD)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        for rows in _chunks(len(targets_R), weight_VD.shape[0]):
            # d logp / d logits = onehot - softmax
            delta_CV = torch.softmax((hidden_RD[rows] @ weight_VD.T).float(), -1).neg_()
            delta_CV.scatter_add_(1, targets_R[rows, None], torch.ones_like(grad_R[rows, None]))
            delta_CV = (delta_CV * grad_R[rows, None]).to(hidden_RD.dtype)
            grad_hidden[rows] = delta_CV @ weight_VD
            grad_weight += delta_CV.T @ hidden_RD[rows]
        return grad_hidden, grad_weight.to(weight_VD.dtype), None


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, HEAD_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
