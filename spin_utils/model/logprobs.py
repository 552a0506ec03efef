"""Summed log-probabilities of responses given their prompts, for training and for scoring.

log p(y|x) = sum_j log p(y_j | x, y_<j): the sum over response tokens, including the end token, without length
normalisation (paper, sec. 3). The hidden states come from one packed forward pass, the head is applied to response rows
only, and sums are in float32.

Shape suffixes: R response tokens, D hidden size, V vocabulary, N responses.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from spin_utils.files import processes
from spin_utils.model.base import ModelError
from spin_utils.model.general import (
    check_model,
    on_its_path,
    padding,
    path_of,
    response_logits,
    rounding,
    use_padded,
)
from spin_utils.model.layers import lending
from spin_utils.model.packing import Group, PackedBatch, check_groups, micro_batches, pack, rows_at_once

KEPT_LOGITS = 2**27
"""Largest number of logits whose derivative is kept for the backward pass: 256 MiB in bfloat16."""
CHUNK_LOGITS = 2**25
"""Logits held at once otherwise."""
IDLE = Group([0], ([0],))
"""Dummy work for a process while others have one more micro-batch: sharded weights need all processes."""
HEAD_ELEMENTS = 8 * 2**20
"""Logits held at once in float32 on a CPU while scoring without gradients."""
CACHED_LOGITS = 2**18
"""Logits converted to float32 at once on a CPU, few enough to stay in its cache: 1 MiB."""

logger = logging.getLogger(__name__)

_PROBED: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
"""Models that `check_supported` has already checked."""


def sequence_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Summed log-probability of every response: float32, shape (responses,), in packed order; differentiable."""
    return batch.sums(token_logps(model, batch))


def token_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Log-probability of every response token: float32, shape (R,), in packed order; differentiable."""
    with on_its_path(model), lending(_token_logps, [model]):  # sharded weights are only gathered during a call
        return model(batch)


@torch.no_grad()
def greedy_logps(model: PreTrainedModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Log-probability of every response token, and whether it is the most likely one; each of shape (R,)."""
    with on_its_path(model):
        fast, head = path_of(model) == "fast", model.get_output_embeddings()
        found = _hidden(model, batch) if fast else response_logits(model, batch)
        rows = rows_at_once(HEAD_ELEMENTS, head.weight.shape[0], found.device)
        logps, hits = [], []
        for part, targets in zip(found.split(rows), batch.targets.split(rows), strict=True):
            log_softmax = (head(part) if fast else part).float().log_softmax(-1)
            logps.append(log_softmax.gather(1, targets[:, None])[:, 0])
            hits.append(log_softmax.argmax(-1) == targets)
    return torch.cat(logps), torch.cat(hits)


def _token_logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    if path_of(model) != "fast":
        return _LogitLogps.apply(response_logits(model, batch), batch.targets)
    return _TargetLogps.apply(_hidden(model, batch), model.get_output_embeddings().weight, batch.targets)


def _hidden(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Last hidden states that predict the response tokens, shape (R, D)."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "packed_layout": batch.layout}
    hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    # The gradient of index_select is faster on a CPU; on a GPU its order of summation would be random.
    on_cpu = hidden.device.type == "cpu"
    return hidden[0].index_select(0, batch.sources) if on_cpu else hidden[0][batch.sources]


@torch.no_grad()
def score(
    model: PreTrainedModel,
    groups: Sequence[Group],
    *,
    micro_batch_tokens: int = 0,
    batches: Sequence[Sequence[int]] = (),
    progress: Callable[[int], Any] | None = None,
) -> list[list[float]]:
    """Summed log-probability of every response of every group, without gradients.

    Micro-batches are computed exactly as in training. Several processes share them, and each returns all values.

    Args:
        groups: any number, with any number of responses each.
        micro_batch_tokens: the size of micro-batches of groups of similar length.
        batches: given micro-batches instead, which have every group once, by index.
        progress: called with the number of groups done after each forward pass.

    Returns:
        For each group the values of its responses, in the given order.

    Raises:
        PairsError: an empty prompt or response.
        ModelError: no path is right for the model.
    """
    if not groups:
        return []
    check_supported(model, check_groups(groups))
    results: list[list[float]] = [[] for _ in groups]
    parts = list(batches) or micro_batches([group.tokens for group in groups], micro_batch_tokens)
    parts += [[]] * (-len(parts) % processes.count())  # with sharded weights every round needs all processes
    found: list[tuple[Sequence[int], list[float]]] = []
    for indices in parts[processes.rank() :: processes.count()]:
        batch = pack([groups[i] for i in indices] or [IDLE], model.device)
        found.append((indices, sequence_logps(model, batch).tolist()))
        if progress is not None:
            progress(len(indices))
    for indices, logps in (each for own in processes.gather(found) for each in own):
        values = iter(logps)
        for i in indices:
            results[i] = [next(values) for _ in groups[i].response_ids]
    return results


def check_supported(model: PreTrainedModel, longest_row: int) -> None:
    """Raise if no path is right for a model, and make sure that its own is.

    In addition to `check_model`, scores a few tokens both on the model's path and with its own forward pass, once per
    model. This reveals layers that mix tokens in other ways than by attention. From then on the model has no dropout.

    Raises:
        ModelError: names the model and the reason.
    """
    check_model(model, longest_row)
    if model in _PROBED:
        return
    if path_of(model) != "fast":
        padding(model)
    if path_of(model) == "padded":
        _PROBED.add(model)
        return
    prompt, *responses = ([(7 * i + 3) % model.config.vocab_size for i in ids] for ids in ((1, 2), (4, 5), (8, 9)))
    model.eval()
    with torch.no_grad():
        packed = sequence_logps(model, pack([Group(prompt, tuple(responses))], model.device))
        ids = torch.tensor([prompt + response for response in responses], device=model.device)
        logps = model(input_ids=ids, use_cache=False).logits[:, 1:-1].float().log_softmax(-1)
        plain = logps.gather(2, ids[:, 2:, None]).sum((1, 2))
    if not torch.allclose(packed, plain, **rounding(model)):
        name = type(model).__name__
        found = f"log-probabilities of packed groups ({packed.tolist()}) differ from the model's own ({plain.tolist()})"
        if path_of(model) == "fast":
            raise ModelError(f"{name}: {found}; its layers are changed: use the model as transformers loads it")
        logger.warning("%s: %s; continuing with padded rows, one row per response", name, found)
        use_padded(model)
    _PROBED.add(model)


class _LogitLogps(torch.autograd.Function):
    """log softmax(logits) at the targets, which keeps one derivative for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits_RV: Tensor, targets_R: Tensor) -> Tensor:
        logps_R, slope_RV = _logps_and_slope(logits_RV.clone(), targets_R)
        ctx.save_for_backward(slope_RV)
        return logps_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None]:
        (slope_RV,) = ctx.saved_tensors
        return (slope_RV * grad_R[:, None]).to(slope_RV.dtype), None


class _TargetLogps(torch.autograd.Function):
    """log softmax(hidden W^T) at the targets, in chunks of rows: memory does not grow with the vocabulary.

    Chunks are taken over rows, not over the vocabulary, so that each softmax sees the whole vocabulary. The derivative
    with respect to the logits, onehot - softmax, is kept if it is small and recomputed in the backward pass if not.
    """

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor) -> Tensor:
        vocabulary = len(weight_VD)
        few = len(targets_R) * vocabulary <= KEPT_LOGITS
        ctx.kept = few and any(ctx.needs_input_grad)
        logps_R = hidden_RD.new_empty(len(targets_R), dtype=torch.float32)
        slope_RV = None
        # The same chunks with and without gradients, since rounding can depend on the number of rows.
        for chunk in _chunks(len(targets_R), KEPT_LOGITS if few else CHUNK_LOGITS, vocabulary):
            logps_R[chunk], slope_RV = _logps_and_slope(hidden_RD[chunk] @ weight_VD.T, targets_R[chunk])
        ctx.save_for_backward(hidden_RD, weight_VD, targets_R, slope_RV if ctx.kept else None)
        return logps_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_RD, weight_VD, targets_R, kept_RV = ctx.saved_tensors
        grad_R1 = grad_R[:, None]
        weighted_RD = (hidden_RD * grad_R1).to(hidden_RD.dtype)
        trained = ctx.needs_input_grad[1]
        if kept_RV is not None:
            weight_grad = kept_RV.T @ weighted_RD if trained else None
            return ((kept_RV @ weight_VD) * grad_R1).to(hidden_RD.dtype), weight_grad, None
        hidden_grad_RD = torch.empty_like(hidden_RD)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if trained else None
        for chunk in _chunks(len(targets_R), CHUNK_LOGITS, len(weight_VD)):
            _, slope_CV = _logps_and_slope(hidden_RD[chunk] @ weight_VD.T, targets_R[chunk])
            hidden_grad_RD[chunk] = (slope_CV @ weight_VD) * grad_R1[chunk]
            if weight_grad_VD is not None:
                weight_grad_VD += slope_CV.T @ weighted_RD[chunk]
        return hidden_grad_RD, None if weight_grad_VD is None else weight_grad_VD.to(weight_VD.dtype), None


def _logps_and_slope(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """Target log-probabilities in float32, and onehot - softmax in place of the logits."""
    logps_R = logits_RV.new_empty(len(targets_R), dtype=torch.float32)
    size = rows_at_once(CACHED_LOGITS, logits_RV.shape[1], logits_RV.device)
    for part in _chunks(len(targets_R), size, 1):
        values_PV, targets_P1 = logits_RV[part].float(), targets_R[part, None]
        values_PV -= values_PV.amax(-1, keepdim=True)
        chosen_P1 = values_PV.gather(1, targets_P1)
        sums_P1 = values_PV.exp_().sum(-1, keepdim=True)
        logps_R[part] = (chosen_P1 - sums_P1.log())[:, 0]
        values_PV /= -sums_P1
        values_PV.scatter_(1, targets_P1, 1 + values_PV.gather(1, targets_P1))
        logits_RV[part] = values_PV
    return logps_R, logits_RV


def _chunks(rows: int, elements: int, columns: int) -> list[slice]:
    size = max(1, elements // columns)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
