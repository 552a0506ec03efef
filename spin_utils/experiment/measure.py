"""Measurements of trained models: evaluations, held-out pairs, and log-probabilities token by token.

Token scores are the terms of the sums used in training: log p(y|x) = sum_j log p(y_j | x, y_<j).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spin_utils.data.rows import count_by_family, read_rows
from spin_utils.data.templates import EncodedRow, encode_rows
from spin_utils.evaluation import heldout
from spin_utils.experiment import play, run
from spin_utils.experiment.plan import Plan, Step, stream, training_of
from spin_utils.files import artifacts
from spin_utils.files.runtime import progress
from spin_utils.model import base
from spin_utils.model.logprobs import check_supported, token_logps
from spin_utils.model.packing import Group, common, pack
from spin_utils.settings.names import ModelName


def make_evaluation(plan: Plan, step: Step, work: Path) -> None:
    """Score a model on the profile's tasks, or for `transfer` on other tasks: evaluation.json."""
    from spin_utils.evaluation.harness import evaluate  # lm-eval takes seconds

    settings, transfer = plan.profile.evaluation, step.stage == "transfer"
    folder = plan.checkpoint(step.parameters["model"])
    model, tokenizer = base.load_for_inference(folder), base.load_tokenizer(folder)
    # Those that are a benchmark of Table 6 are measured with the other tasks.
    chosen = {name: task for name, task in settings.big_bench.items() if bool(task.benchmark) == transfer}
    settings = replace(settings, big_bench=chosen)
    if transfer:
        settings = replace(settings, suite="paper_others" if settings.suite == "paper" else "local", tasks=())
    local, split = settings.suite == "local", "transfer" if transfer else "test"
    rows = read_rows(plan.directory("data") / f"{split}.jsonl") if local else []
    answers = count_by_family(rows, settings.limit) * (1 + settings.samples)
    with progress(answers, step.name, "answers") as bar:
        result = evaluate(
            model,
            tokenizer,
            rows or None,
            # The paper's harness gives its benchmarks as plain text, without a chat template.
            template=plan.profile.template if local else None,
            settings=settings,
            independent=plan.directory("base") if "base" in step.inputs[2:] else None,
            work=artifacts.scratch(work),
            progress=bar.advance,
        )
    artifacts.write_json(work / "evaluation.json", result)


def make_heldout(plan: Plan, step: Step, work: Path) -> None:
    """Log-ratios of policy and opponent on held-out pairs; empty if nothing is held out."""
    profile, model = plan.profile, step.parameters["model"]
    opponent, policy = (plan.directory(name) for name in step.inputs[:2])
    rows = read_rows(plan.directory("data") / "validation.jsonl")
    items: list[dict[str, Any]] = []
    if rows:
        items = heldout.drifts(
            opponent,
            policy,
            rows,
            template=profile.template,
            generation=profile.generation,
            independent=plan.directory("base") if "base" in step.inputs else None,
            seed=stream(plan.seed, ModelName.parse(model).iteration or 0),
        )
    artifacts.write_json(work / "heldout.json", {"beta": training_of(profile, model).beta, "items": items})


def demonstration_examples(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Group]:
    """The first demonstration of each family, by the id of its row: the prompt with its real response."""
    tokenizer = base.load_tokenizer(run.make(plan, "base"))
    first: dict[str, EncodedRow] = {}
    for encoded in encode_rows(tokenizer, plan.profile.template, rows):  # may drop rows that are too long
        first.setdefault(encoded.row.get("family", ""), encoded)
    return {row.row["id"]: Group(row.prompt_ids, (row.response_ids,)) for _, row in sorted(first.items())}


def pair_examples(plan: Plan, model: str) -> dict[str, Group]:
    """The first of a model's training pairs in each family whose responses differ; if none differ, the first pair.

    By the id of its row; of several generated responses to a prompt it has the first one.
    """
    found: dict[str, int] = {}
    trained_on = play.training_pairs(plan, model)
    families = {row["id"]: row.get("family", "") for row in run.rows(plan, "spin")}
    ids = trained_on.table["id"].to_pylist()[:: trained_on.answers]
    for place, name in enumerate(ids):
        family = families.get(name, "")
        if family not in found:
            real, generated, *_ = map(list, trained_on[place].response_ids)
            if real != generated:
                found[family] = place
    chosen = [found[family] for family in sorted(found)] or [0]
    return {ids[i]: Group(trained_on[i].prompt_ids, trained_on[i].response_ids[:2]) for i in chosen}


def moments(plan: Plan, model: str) -> dict[str, Path]:
    """Checkpoints of a training run in order, by name: the start's name, then `epoch 1`, ... or the model's name.

    Only iteration 0 keeps its epochs. For a base model, only itself.
    """
    folder = run.make(plan, model)
    if model == "base":
        return {model: folder}
    start = plan.steps[model].inputs[0]
    kept = {int(path.name.removeprefix("epoch-")): path for path in folder.glob("epoch-*")}
    if kept:
        kept[training_of(plan.profile, model).epochs] = folder
    after = {f"epoch {epoch}": kept[epoch] for epoch in sorted(kept)} or {model: folder}
    return {start: run.make(plan, start), **after}


@torch.no_grad()
def token_scores(examples: Mapping[str, Group], checkpoints: Mapping[str, Path]) -> pd.DataFrame:
    """Log-probability of every token under every checkpoint, computed in float32.

    Args:
        examples: by name, as from `pair_examples`; only a few, since each is scored in its own pass.
        checkpoints: folders by name, as from `moments`; the others are compared with the first.

    Returns:
        One row per checkpoint, example and token: `checkpoint`, `example`, `answer` (real or generated), `place` (from
        0), `token` (its text), `shared` (whether the two responses agree up to and including this token), `logp` and
        `change`, the logp minus the one under the first checkpoint; in nats.
    """
    rows: list[dict[str, Any]] = []
    for checkpoint, folder in checkpoints.items():
        tokenizer, [model] = base.load_tokenizer(folder), base.load_to_compare([folder])
        check_supported(model, max(group.longest_row for group in examples.values()))
        for example, group in examples.items():
            logps = iter(token_logps(model, pack([group], model.device)).tolist())
            for token in _tokens(tokenizer, group.response_ids):
                rows.append({"checkpoint": checkpoint, "example": example, **token, "logp": next(logps)})
        del model
    frame = pd.DataFrame(rows)
    first = frame.groupby(["example", "answer", "place"], sort=False)["logp"].transform("first")
    return frame.assign(change=frame["logp"] - first)


def answer_sums(frame: pd.DataFrame) -> pd.DataFrame:
    """Sums over the tokens of each response: `example`, `checkpoint`, `answer`, `logp`, `change`, in that order."""
    by = ["example", "checkpoint", "answer"]
    return frame.groupby(by, sort=False)[["logp", "change"]].sum().reset_index()


def _tokens(tokenizer: Any, answers: Sequence[Sequence[int]]) -> Iterator[dict[str, Any]]:
    agreed = common(*answers) if len(answers) > 1 else 0
    for answer, ids in zip(("real", "generated"), answers, strict=False):
        for place, token in enumerate(ids):
            text = tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)
            piece = tokenizer.convert_ids_to_tokens(int(token)) or ""
            if piece.startswith("▁") and not text.startswith(" "):  # SentencePiece drops the space before a first word
                text = f" {text}"
            yield {"answer": answer, "place": place, "token": text, "shared": place < agreed}
