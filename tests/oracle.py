"""The slow, obvious way to the numbers of the fast path: one sequence at a time, nothing shared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from spin_utils.model.packing import Group


def obvious_logps(model: PreTrainedModel, groups: Sequence[Group]) -> torch.Tensor:
    """Summed log-probability of every response, each from a forward pass of its own."""
    sums = []
    for group in groups:
        for response in group.response_ids:
            ids = torch.tensor([[*group.prompt_ids, *response]], device=model.device)
            logps = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float()[0, :-1], -1)
            token_logps = logps.gather(1, ids[0, 1:, None])[:, 0]
            sums.append(token_logps[len(group.prompt_ids) - 1 :].sum())
    return torch.stack(sums)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of every parameter by name."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
