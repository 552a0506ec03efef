"""An iteration's main player on held-out prompts.

The held-out SPIN loss bounds how far the opponent is from the data: by Lemma C.2 no player's loss is below
log 2 - JSD(p+ || p-), so log 2 minus a measured loss is a lower bound on that divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spin_utils.data.templates import decode_response, encode_rows, end_ids, frame
from spin_utils.files import processes
from spin_utils.files.runtime import progress
from spin_utils.model import base
from spin_utils.model.logprobs import score
from spin_utils.model.packing import Group
from spin_utils.model.sampling import sample
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.run import GenerationSettings

FIRST_STREAM = 1 << 40
"""Random streams of held-out prompts, disjoint from those of the iteration's training prompts."""


def drifts(
    opponent: Path,
    policy: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    template: TemplateSettings,
    generation: GenerationSettings,
    seed: int,
    independent: Path | None = None,
) -> list[dict[str, Any]]:
    """Log-ratios of policy and opponent on held-out prompts, for the real response and a fresh one by the opponent.

    Args:
        opponent: checkpoint theta_t, which also generates the responses.
        policy: checkpoint theta_t+1.
        independent: a model that took no part, such as the base model, which says how surprising the texts are.

    Returns:
        For each row `id`, `real_drift` and `generated_drift` (log p_policy - log p_opponent in nats, exactly the same
        if the responses are the same, so that such a pair counts as a tie), and `real_logp`
        (log p_policy of the real response) with its `real_bytes` in UTF-8, of one that was cut only those
        of its beginning. With an independent model also `real_surprise` and `generated_surprise`, its -log p of each
        response, in nats a token.
    """
    tokenizer = base.load_tokenizer(opponent)
    model = base.load_for_inference(opponent)
    encoded = encode_rows(tokenizer, template, rows)
    draw = partial(
        sample,
        model,
        [row.prompt_ids for row in encoded],
        eos_ids=end_ids(tokenizer, template),
        settings=generation,
        seed=seed,
        streams=range(FIRST_STREAM, FIRST_STREAM + len(encoded)),
    )
    with progress(len(encoded), "held-out answers", "prompts") as bar:
        # There are few prompts, and different batches would round differently, so only the first process samples.
        samples = processes.from_first(partial(draw, progress=bar.advance))
    groups = [Group(r.prompt_ids, (r.response_ids, s.token_ids)) for r, s in zip(encoded, samples, strict=True)]
    before = _scored(model, groups)
    del model, draw
    after = _scored(base.load_for_inference(policy), groups)
    surprise: list[dict[str, float]] = [{} for _ in groups]
    if independent is not None:
        logps = _scored(base.load_for_inference(independent), groups)
        for found, group, logp in zip(surprise, groups, logps, strict=True):
            real, generated = (-float(x) / len(ids) for x, ids in zip(logp, group.response_ids, strict=True))
            found |= {"real_surprise": real, "generated_surprise": generated}
    end = frame(tokenizer, template).end_id  # which a response that was too long has lost
    texts = [
        row.row["response"] if row.response_ids[-1] == end else decode_response(tokenizer, template, row.response_ids)
        for row in encoded
    ]
    return [
        {
            "id": row.row["id"],
            "real_drift": a[0] - b[0],
            "generated_drift": a[1] - b[1],
            "real_logp": a[0],
            "real_bytes": len(real.encode()),
            **more,
        }
        for row, real, a, b, more in zip(encoded, texts, after, before, surprise, strict=True)
    ]


def _scored(model: Any, groups: Sequence[Group]) -> list[list[float]]:
    """Log-probabilities of both responses; two equal ones, at two places of a packed row, are rounded differently."""
    logps = score(model, groups, micro_batch_tokens=4096)
    equal = (len(set(map(tuple, group.response_ids))) == 1 for group in groups)
    return [[pair[0]] * 2 if same else pair for pair, same in zip(logps, equal, strict=True)]
