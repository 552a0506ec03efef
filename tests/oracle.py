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


def padded_logps(model: PreTrainedModel, groups: Sequence[Group]) -> torch.Tensor:
    """The same from one right-padded batch with an attention mask, as other trainers do."""
    rows = [(list(g.prompt_ids), list(r)) for g in groups for r in g.response_ids]
    length = max(len(p) + len(r) for p, r in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    seen = torch.zeros(len(rows), length, dtype=torch.long)
    counted = torch.zeros(len(rows), length - 1)
    for i, (prompt, response) in enumerate(rows):
        stop = len(prompt) + len(response)
        ids[i, :stop] = torch.tensor(prompt + response)
        seen[i, :stop] = 1
        counted[i, len(prompt) - 1 : stop - 1] = 1
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits.float()
    logps = torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0]
    return (logps * counted).sum(1)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of every parameter by name."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
