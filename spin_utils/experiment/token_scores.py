"""Answers token by token: how likely checkpoints find each token of a few demonstrations or pairs.

The numbers are the terms of the sums that training works with: log p(y|x) = sum_j log p(y_j | x, y_<j).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spin_utils.data.templates import EncodedRow, encode_rows
from spin_utils.experiment import stages
from spin_utils.experiment.plan import Plan, training_of
from spin_utils.experiment.self_play import training_pairs
from spin_utils.model import base
from spin_utils.model.logprobs import check_supported, token_logps
from spin_utils.model.packing import Group, pack

REAL, GENERATED = "real", "generated"


@dataclass(frozen=True)
class Example:
    """A demonstration or a pair to look at."""

    name: str
    """Id of its row."""
    group: Group
    """The prompt with the real response, and with the generated one if it is a pair."""


def demonstrations(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    """The first demonstration of each family among some rows.

    Args:
        plan: for its template and tokenizer.
        rows: such as `stages.rows(plan, "validation")`, not empty.
    """
    tokenizer = base.load_tokenizer(stages.run(plan, "base"))
    first: dict[str, EncodedRow] = {}
    for encoded in encode_rows(tokenizer, plan.profile.template, rows):  # which may leave out rows that are too long
        first.setdefault(encoded.row.get("family", ""), encoded)
    chosen = [first[family] for family in sorted(first)]
    return [Example(str(row.row["id"]), Group(row.prompt_ids, (row.response_ids,))) for row in chosen]


def pairs(plan: Plan, model: str) -> list[Example]:
    """The first pair of each family whose two answers differ, of those that a model is trained on.

    If no two differ, the first pair.

    Args:
        plan: whose pairs for `model` are made already.
        model: step such as `spin-0`.
    """
    found: dict[str, Example] = {}
    trained_on = training_pairs(plan, model)
    families = {row["id"]: row.get("family", "") for row in stages.rows(plan, "spin")}
    ids = trained_on.table["id"].to_pylist()
    for place, name in enumerate(ids):
        family = families.get(name, "")
        if family not in found and _differ(group := trained_on[place]):
            found[family] = Example(str(name), group)
    return [found[family] for family in sorted(found)] or [Example(str(ids[0]), trained_on[0])]


def moments(plan: Plan, model: str) -> dict[str, Path]:
    """Checkpoints of a training run in order: its start, the epochs that were kept, its end.

    Iteration 0 keeps its epochs; of other runs there are the start and the end.

    Args:
        plan: the run.
        model: step such as `sft` or `spin-0`, made if need be.

    Returns:
        Folders by name: the name of the start, then `epoch 1`, ... or the model's own name. Of a base model itself.
    """
    folder = stages.run(plan, model)
    if model == "base":
        return {model: folder}
    start = plan.steps[model].inputs[0]
    kept = {int(path.name.removeprefix("epoch-")): path for path in folder.glob("epoch-*")}
    if kept:
        kept[training_of(plan.profile, model).epochs] = folder
    after = {f"epoch {epoch}": kept[epoch] for epoch in sorted(kept)} or {model: folder}
    return {start: stages.run(plan, start), **after}


@torch.no_grad()
def score(examples: Sequence[Example], checkpoints: Mapping[str, Path]) -> pd.DataFrame:
    """Log-probability of every token under every checkpoint, computed in float32.

    Args:
        examples: few: they are scored in one pass each.
        checkpoints: folders by name, such as `moments` gives; the first one is what the others are compared with.

    Returns:
        A row per checkpoint, example and token: `checkpoint`, `example`, `answer` (real or generated), `place` (from
        0), `token` (its text), `shared` (whether the two answers agree up to and with this token), `logp` and
        `change`, the logp less that under the first checkpoint; in nats.
    """
    rows: list[dict[str, Any]] = []
    for checkpoint, folder in checkpoints.items():
        tokenizer, model = base.load_tokenizer(folder), base.load(folder)
        check_supported(model, max(example.group.longest_row for example in examples))
        for example in examples:
            logps = iter(token_logps(model, pack([example.group]).to(model.device)).tolist())
            for token in _tokens(tokenizer, example):
                rows.append({"checkpoint": checkpoint, **token, "logp": next(logps)})
        del model
    frame = pd.DataFrame(rows)
    first = frame.groupby(["example", "answer", "place"], sort=False)["logp"].transform("first")
    return frame.assign(change=frame["logp"] - first)


def sums(frame: pd.DataFrame) -> pd.DataFrame:
    """Sums over the tokens of each answer: `example`, `checkpoint`, `answer`, `logp`, `change`, in the given order."""
    by = ["example", "checkpoint", "answer"]
    return frame.groupby(by, sort=False)[["logp", "change"]].sum().reset_index()


def common(real: Sequence[int], generated: Sequence[int]) -> int:
    """Number of tokens at the start of two answers that are the same.

    >>> common([1, 2, 3], [1, 2, 4, 3]), common([1, 2], [1, 2])
    (2, 2)
    """
    differs = (place for place, (a, b) in enumerate(zip(real, generated, strict=False)) if a != b)
    return next(differs, min(len(real), len(generated)))


def _tokens(tokenizer: Any, example: Example) -> Iterator[dict[str, Any]]:
    answers = example.group.response_ids
    agreed = common(*answers) if len(answers) > 1 else 0
    for answer, ids in zip((REAL, GENERATED), answers, strict=False):
        for place, token in enumerate(ids):
            text = _text(tokenizer, int(token))
            where = {"example": example.name, "answer": answer, "place": place}
            yield {**where, "token": text, "shared": place < agreed}


def _text(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    # SentencePiece drops the space before the first word of what it decodes.
    piece = tokenizer.convert_ids_to_tokens(token) or ""
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text


def _differ(group: Group) -> bool:
    real, generated = group.response_ids
    return list(real) != list(generated)
