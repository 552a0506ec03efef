"""Is vLLM the policy that the kit trains? Its log-probabilities beside the kit's, on some answers.

A health figure only: the opponent's log-probabilities are always computed by the kit, since a difference between two
engines would look like a drift of the policy.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spin_utils.model import models
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group
from spin_utils.model.vllm_shards import Answer
from spin_utils.settings.machine import VllmSettings

log = logging.getLogger(__name__)

MICRO_BATCH_TOKENS = 4096


def compare(
    model: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], settings: VllmSettings
) -> dict[str, Any]:
    """Differences of the two log-probabilities, vLLM's less the kit's, in nats per token of an answer.

    Args:
        model: folder of the weights that answered.
        prompts: token ids.
        answers: one for each prompt.
        settings: how many rows, evenly spread over all, and the limit above which a warning is due.

    Returns:
        JSON data: `rows` compared, `mean_difference`, `largest_difference` (absolute), the `limit`.
    """
    rows = np.unique(np.linspace(0, len(prompts) - 1, min(settings.checked_rows, len(prompts))).astype(int)).tolist()
    groups = [Group(list(prompts[i]), (answers[i][0],)) for i in rows]
    ours = score(models.load_for_inference(model), groups, micro_batch_tokens=MICRO_BATCH_TOKENS)
    differences = np.array([(answers[i][2] - own) / len(answers[i][0]) for i, (own,) in zip(rows, ours, strict=True)])
    health = {
        "rows": len(rows),
        "mean_difference": float(differences.mean()),
        "largest_difference": float(np.abs(differences).max()),
        "limit": settings.largest_difference,
    }
    text = "log-probabilities of vLLM less the kit's, nats per token of %(rows)d answers: mean %(mean_difference).4f, "
    log.info(text + "largest %(largest_difference).4f", health)
    if health["largest_difference"] > settings.largest_difference:
        log.warning(
            "the largest difference is above generation.vllm.largest_difference (%s): the answers may be of another "
            "model, template or precision than what is trained; look into it before you trust this run",
            settings.largest_difference,
        )
    return health
