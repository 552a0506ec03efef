"""What the notebooks look at: small data frames about demonstrations, pairs and training runs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from spin_utils import artifacts, models, stages
from spin_utils.pairs import Pairs
from spin_utils.plan import Plan
from spin_utils.sampling import sample
from spin_utils.templates import decode_response, encode_prompt, encode_rows, end_ids


def demonstrations(plan: Plan, split: str = "sft") -> pd.DataFrame:
    """One demonstration of each family: `family`, `prompt`, `response`."""
    rows = pd.DataFrame(stages.rows(plan, split), columns=["family", "prompt", "response"])
    return rows.fillna("").drop_duplicates("family").sort_values("family").reset_index(drop=True)


def lengths(plan: Plan, split: str = "sft") -> pd.DataFrame:
    """Rows and mean tokens of each family: `rows`, `prompt_tokens`, `response_tokens`."""
    tokenizer = models.load_tokenizer(stages.run(plan, "base"))
    encoded = encode_rows(tokenizer, plan.profile.template, stages.rows(plan, split))
    frame = pd.DataFrame(
        {
            "family": [row.row.get("family", "") for row in encoded],
            "prompt_tokens": [len(row.prompt_ids) for row in encoded],
            "response_tokens": [len(row.response_ids) for row in encoded],
        }
    )
    means = frame.groupby("family").mean().round(1)
    return means.assign(rows=frame.groupby("family").size())[["rows", "prompt_tokens", "response_tokens"]]


def pairs(plan: Plan, iteration: int) -> pd.DataFrame:
    """Every pair of an iteration as text and numbers.

    Returns:
        Columns `id`, `family`, `prompt`, `real`, `generated`, `identical`, `real_tokens`, `generated_tokens`,
        `finish_reason`.
    """
    step = plan.steps[f"pairs-{iteration}"]
    table = Pairs([artifacts.checked(stages.run(plan, step.name), "pairs.arrow")]).table.to_pandas()
    tokenizer = models.load_tokenizer(stages.run(plan, step.inputs[0]))
    rows = {row["id"]: row for row in stages.rows(plan, "spin")}

    def text(ids: list[int]) -> str:
        return decode_response(tokenizer, plan.profile.template, ids)

    return pd.DataFrame(
        {
            "id": table["id"],
            "family": [rows[i].get("family", "") for i in table["id"]],
            "prompt": [rows[i]["prompt"] for i in table["id"]],
            "real": [text(ids) for ids in table["real_ids"]],
            "generated": [text(ids) for ids in table["generated_ids"]],
            "identical": [list(a) == list(b) for a, b in zip(table["real_ids"], table["generated_ids"], strict=True)],
            "real_tokens": table["real_ids"].str.len(),
            "generated_tokens": table["generated_ids"].str.len(),
            "finish_reason": table["finish_reason"],
        }
    )


def answers(plan: Plan, model: str, rows: list[dict[str, Any]], temperature: float = 0.0) -> pd.DataFrame:
    """What a checkpoint answers to some demonstrations' prompts.

    Args:
        plan: the run.
        model: step such as `sft` or `spin-0`.
        rows: demonstrations, such as the first ones of `stages.rows(plan, "validation")`.
        temperature: 0 for the most likely answer, 1 to sample.

    Returns:
        Columns `family`, `prompt`, `real`, `answer`.
    """
    folder = stages.run(plan, model)
    artifacts.verify(folder)
    tokenizer = models.load_tokenizer(folder)
    samples = sample(
        models.load(folder, torch.bfloat16),
        [encode_prompt(tokenizer, plan.profile.template, row["prompt"]) for row in rows],
        eos_ids=end_ids(tokenizer, plan.profile.template),
        settings=replace(plan.profile.generation, temperature=temperature),
        seed=plan.seed,
    )
    frame = pd.DataFrame(rows, columns=["family", "prompt", "response"]).rename(columns={"response": "real"})
    return frame.assign(answer=[decode_response(tokenizer, plan.profile.template, s.token_ids) for s in samples])


def training(plan: Plan, step: str) -> pd.DataFrame:
    """Metrics of a training run, one row per logged optimizer step."""
    return pd.DataFrame(json.loads(artifacts.checked(stages.run(plan, step), "training.json").read_text())["rows"])


def evaluation(plan: Plan, model: str) -> pd.DataFrame:
    """Scores of a checkpoint item by item: `task`, `id`, `score`, `response`, `tokens`, `prompt`, `real`."""
    path = artifacts.checked(stages.run(plan, f"eval-{model}"), "evaluation.json")
    items = pd.DataFrame(json.loads(path.read_text())["items"])
    local = plan.profile.evaluation.suite == "local"
    rows = {row["id"]: row for row in stages.rows(plan, "test")} if local else {}
    return items.assign(
        prompt=[rows.get(i, {}).get("prompt", "") for i in items["id"]],
        real=[rows.get(i, {}).get("response", "") for i in items["id"]],
    )
