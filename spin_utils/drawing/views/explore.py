"""What the notebooks look at: small data frames about demonstrations, pairs and training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spin_utils.data import templates
from spin_utils.data.templates import decode_response, encode_prompts, encode_rows, end_ids
from spin_utils.experiment import run
from spin_utils.experiment.plan import Plan
from spin_utils.experiment.publish import pair_table
from spin_utils.files import artifacts, hub
from spin_utils.files.paths import KitError
from spin_utils.model import base
from spin_utils.model.sampling import sample
from spin_utils.settings.names import main_chain

BREAK = " ⏎ "
"""A line break in a box of one line, from which a browser takes real ones away."""


def demonstrations(plan: Plan) -> pd.DataFrame:
    """One demonstration of each family: `family`, `prompt`, `response`."""
    rows = pd.DataFrame(run.rows(plan, "sft"), columns=["family", "prompt", "response"])
    return rows.drop_duplicates("family").sort_values("family").reset_index(drop=True)


def training_text(plan: Plan, row: str | int = 1) -> str:
    """A row as it is trained on: its text with every special token, and which tokens carry the loss.

    `row` is its id, or its place among the training rows, from 1. The data are made, and a base model that is not on
    the hub.

    Raises:
        KitError: there is no such row.
    """
    if "data" not in plan.steps:
        raise KitError(f"profile {plan.profile.name}: has no training rows; choose one that does")
    rows = run.rows(plan, "sft")
    found = {str(place): own for place, own in enumerate(rows, 1)} | {own["id"]: own for own in rows}
    if str(row) not in found:
        raise KitError(f"row {row}: no row has this id; give an id, or a number from 1 to {len(rows)}")
    settings = plan.profile.model
    if settings.source == "hub" and not artifacts.is_complete(plan.directory("base")):
        folder = hub.fetch("model", settings.name, settings.revision, weights=False)
    else:
        folder = base.resolve(run.make(plan, "base"))
    return templates.training_text(base.tokenizer_of(folder), plan.profile.template, found[str(row)])


def lengths(plan: Plan) -> pd.DataFrame:
    """Rows and mean tokens of each family: `rows`, `prompt_tokens`, `response_tokens`."""
    tokenizer = base.load_tokenizer(run.make(plan, "base"))
    encoded = encode_rows(tokenizer, plan.profile.template, run.rows(plan, "sft"))
    counts = [(row.row["family"], len(row.prompt_ids), len(row.response_ids)) for row in encoded]
    by_family = pd.DataFrame(counts, columns=["family", "prompt_tokens", "response_tokens"]).groupby("family")
    return by_family.mean().round(1).assign(rows=by_family.size())[["rows", "prompt_tokens", "response_tokens"]]


def made_pairs(plan: Plan) -> pd.DataFrame:
    """The pairs of every iteration that has them, from `publish.pair_table`, with a column `iteration`."""
    made = [t for t in range(plan.profile.spin.iterations) if artifacts.is_complete(plan.directory(f"pairs-{t}"))]
    return pd.concat([pair_table(plan.directory(f"pairs-{t}")).assign(iteration=t) for t in made], ignore_index=True)


def answers(plan: Plan, checkpoints: Mapping[str, Path], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The most likely answers of checkpoints, such as those of `iterates`, to the prompts of rows like demonstrations.

    Returns:
        Columns `family`, `prompt`, `real`, and one for each checkpoint.
    """
    frame = pd.DataFrame(rows, columns=["family", "prompt", "response"]).rename(columns={"response": "real"})
    for name, folder in checkpoints.items():
        artifacts.verify(folder)
        tokenizer = base.load_tokenizer(folder)
        samples = sample(
            base.load_for_inference(folder),
            encode_prompts(tokenizer, plan.profile.template, [row["prompt"] for row in rows], rows),
            eos_ids=end_ids(tokenizer, plan.profile.template),
            settings=replace(plan.profile.generation, temperature=0.0),
            seed=plan.seed,
        )
        frame[name] = [decode_response(tokenizer, plan.profile.template, s.token_ids) for s in samples]
    return frame


def iterates(plan: Plan) -> dict[str, Path]:
    """Folders, by name, of the starting model and of every iteration made so far; none of released checkpoints."""
    if plan.profile.released:
        return {}
    chain = [plan.steps["pairs-0"].inputs[0], *main_chain(plan.profile.spin.iterations)[1:]]
    return {name: plan.directory(name) for name in chain if artifacts.is_complete(plan.directory(name))}


def prompts(plan: Plan) -> list[str]:
    """Some prompts to try, held out if possible, each in one line (`BREAK`); empty if no model has been made."""
    if not iterates(plan):
        return []
    rows = (run.rows(plan, "validation") or run.rows(plan, "spin"))[:20]
    return [row["prompt"].replace("\n", BREAK) for row in rows]


def evaluation(plan: Plan, model: str) -> pd.DataFrame:
    """Scores of a checkpoint item by item: `task`, `id`, `score`, `response`, `tokens`, `prompt`, `real`.

    Raises:
        KitError: it was not evaluated yet.
    """
    step = f"eval-{model}"
    if not artifacts.is_complete(plan.directory(step)):
        command = f"spin-repro step {step} --profile {plan.profile.name} --seed {plan.seed}"
        raise KitError(f"{step}: not made yet; make it with `{command}`, or in a notebook with run.make({step!r})")
    items = run.Run(plan).evaluation(model)
    local = plan.profile.evaluation.suite == "local"
    rows = {(row["family"], row["id"]): row for row in run.rows(plan, "test")} if local else {}
    asked = [rows.get(item, {}) for item in zip(items["task"], items["id"], strict=True)]  # further tasks have own ids
    return items.assign(
        prompt=[row.get("prompt", "") for row in asked], real=[row.get("response", "") for row in asked]
    )


def before(plan: Plan, model: str) -> str:
    """The model that an evaluated one was trained from, or SFT if that is not evaluated."""
    trained = plan.steps[f"eval-{model}"].inputs[0]
    return next((name for name in plan.steps[trained].inputs if f"eval-{name}" in plan.steps), "sft")


def turned(plan: Plan, model: str) -> pd.DataFrame:
    """An evaluation item by item, together with that of the model `before` it; both must be made.

    Returns:
        The columns of `evaluation`, `response_before`, `score_before` and `turn`: right, wrong or same.
    """
    now, then = evaluation(plan, model), evaluation(plan, before(plan, model))
    both = now.merge(then[["task", "id", "score", "response"]], on=["task", "id"], suffixes=("", "_before"))
    change = both["score"] - both["score_before"]
    return both.assign(turn=np.select([change > 0, change < 0], ["right", "wrong"], "same"))
