"""What a results file holds: its fields and their types, by kind, and the names that models have."""

from __future__ import annotations

import re
from collections.abc import Iterable

SCHEMA = 1
"""Version of all kinds of file; a reader refuses any other."""

Fields = dict[str, type | tuple[type, ...]]
"""Names of fields and what may stand in them."""

_HEAD: Fields = {
    "schema": int,
    "kind": str,
    "profile": str,
    "seed": int,
    "model": str,
    "provenance": dict,
}
"""Fields of every file."""

EVALUATION_FIELDS: Fields = {
    **_HEAD,
    "tasks": dict,
    "average": (int, float),
    "items": list,
}
"""Fields of an evaluation. `seed` is the training seed; `average` the unweighted mean over tasks."""

TASK_FIELDS: Fields = {
    "metric": str,
    "n": int,
    "value": (int, float),
    "stderr": (int, float),
}
ITEM_FIELDS: Fields = {
    "task": str,
    "id": (str, int),
    "score": (int, float),
    "response": str,
    "tokens": int,
}
TRAINING_FIELDS: Fields = {
    **_HEAD,
    "rows": list,
}
"""Fields of a training record; a row has `METRICS` and whatever else the run logs."""

METRICS = ("step", "epoch", "loss", "seconds")
"""In every row of a training record."""
PAIR_METRICS = ("margin", "rewards_real", "rewards_generated")
"""In every row of one on pairs, which is any but SFT."""

GENERATIONS_FIELDS: Fields = {
    **_HEAD,
    "items": list,
}
"""Fields of a model's generations y' to the prompts of SPIN; `model` generated them."""

GENERATION_FIELDS: Fields = {
    "id": str,
    "family": str,
    "prompt": str,
    "real": str,
    "generated": str,
    "real_tokens": int,
    "generated_tokens": int,
    "finish_reason": str,
}
HELDOUT_FIELDS: Fields = {
    **_HEAD,
    "beta": (int, float),
    "items": list,
}
"""Fields of what an iteration did to pairs that no training saw; `model` is its policy, `beta` its lambda."""

DRIFT_FIELDS: Fields = {
    "id": str,
    "real_drift": (int, float),
    "generated_drift": (int, float),
}
"""log p_{theta_t+1} - log p_{theta_t} of the real and of a freshly generated response, in nats."""

MT_BENCH_FIELDS: Fields = {
    **_HEAD,
    "judge": dict,
    "grades": dict,
    "average": (int, float, type(None)),
    "items": list,
}
"""Fields of a model's grades in MT-Bench. `judge`: its name, address, and the models that the endpoint says it used;
`grades`: how many answers were graded, refused and unparsable; `average`: mean of the graded ones, null without any."""

GRADE_FIELDS: Fields = {
    "id": str,
    "category": str,
    "status": str,
    "score": (int, float, type(None)),
    "judgment": str,
    "response": str,
    "tokens": int,
    "finish_reason": str,
    "cut_tokens": int,
}
"""One answer; `id` is question/turn, `score` 1 to 10, or null if the answer is not graded."""

FIELDS = {
    "evaluation": EVALUATION_FIELDS,
    "training": TRAINING_FIELDS,
    "generations": GENERATIONS_FIELDS,
    "heldout": HELDOUT_FIELDS,
    "mt_bench": MT_BENCH_FIELDS,
}
"""Fields of each kind of file."""

LABELS = {
    r"base": "Base model",
    r"sft": "SFT",
    r"spin-(\d{1,4})": "SPIN iteration {}",
    r"dpo": "DPO",
    r"spin-(\d{1,4})-dpo": "SPIN iteration {} + DPO",
    r"spin-(\d{1,4})-epoch-(\d{1,4})": "SPIN iteration {}, epoch {}",
    r"spin-(\d{1,4})-more": "SPIN iteration {}, the epochs after its model",
    r"spin-(\d{1,4})-rows-(\d{1,4})": "SPIN iteration {}, {}/50 of the prompts",
    r"sft-more-(\d{1,4})": "SFT, {} more epochs",
}
"""What a model's name may be, and how it reads. The 50 are the 50k prompts of the paper (Figure 5)."""

LINK_FIELDS: Fields = {
    "manifest_sha256": str,
    "stage": str,
    "key": str,
    "seed": int,
    "seconds": (int, float),
    "started": str,
    "commit": str,
    "device": str,
    "versions": dict,
    "inputs": dict,
}
"""What the provenance of a result says about every artifact behind it, beside `dirty`, which is true or false; base
model and data add their `settings`, checkpoints their `weights_sha256`."""


class ResultsError(ValueError):
    """A results file cannot be trusted. The message names the file, the field and the remedy."""


def iterates(models: Iterable[str]) -> list[str]:
    """The models of SPIN's iterations among some, in order.

    >>> iterates(["spin-10", "sft", "spin-2", "spin-0-epoch-1"])
    ['spin-2', 'spin-10']
    """
    return sorted({model for model in models if re.fullmatch(r"spin-\d+", model)}, key=lambda name: int(name[5:]))


def label(model: str) -> str:
    """How a model's name reads in a table or figure.

    >>> label("spin-3-dpo"), label("sft-more-1")
    ('SPIN iteration 3 + DPO', 'SFT, 1 more epoch')

    Raises:
        ResultsError: The name is not one of the kit's.
    """
    for pattern, text in LABELS.items():
        match = re.fullmatch(pattern, model, re.ASCII)
        if match:
            return text.format(*match.groups()).replace(" 1 more epochs", " 1 more epoch")
    raise ResultsError(f"model is {model[:80]!r}; names look like sft, spin-0, spin-0-epoch-1, spin-0-rows-14, dpo")
