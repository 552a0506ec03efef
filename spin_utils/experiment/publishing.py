"""From artifacts to results: what finished steps measured, copied into `results/PROFILE` with where it came from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.data.templates import decode_response
from spin_utils.experiment import provenance, stages
from spin_utils.experiment.plan import Plan, Step
from spin_utils.experiment.token_scores import common
from spin_utils.files import artifacts, paths
from spin_utils.model import base
from spin_utils.model.packing import Pairs
from spin_utils.paper import results

log = logging.getLogger(__name__)

Document = tuple[str, str, dict[str, Any]]
"""Kind of the results file (its folder), name of the model, and what the file holds."""


def publish(plans: list[Plan]) -> list[Path]:
    """Write the results of every finished step, and remove those of other runs, such as the ones in the repository.

    Tables are drawn from everything under results/PROFILE, so results of two runs must not stand side by side. What
    was removed comes back when its seeds are asked for again, as long as its artifacts are there. As long as this run
    has no evaluation, there is nothing to draw, and the results of the other one stay as they are.

    Args:
        plans: one per training seed, of one profile.

    Returns:
        The files under results/PROFILE.

    Raises:
        ArtifactError: what a finished step measured is damaged.
    """
    if not any(step.stage == "evaluation" and _is_finished(step) for plan in plans for step in plan):
        return []
    written = []
    for plan in plans:
        for step in plan:
            if not _is_finished(step):
                continue
            for folder, model, document in _documents(plan, step):
                path = results.path_of(paths.results(plan.profile.name), plan.seed, folder, model)
                identity = {"profile": plan.profile.name, "seed": plan.seed, "model": model}
                document = {"schema": results.SCHEMA, **document, **identity}
                results.write_json(path, {**document, "provenance": provenance.chain(plan, step.name)})
                written.append(path)
    others = set(results.files(paths.results(plans[0].profile.name))).difference(written)
    for path in others:
        path.unlink(missing_ok=True)
    if others:
        log.info("%d results of other runs removed from %s", len(others), paths.relative(path.parents[2]))
    return written


def _is_finished(step: Step) -> bool:
    # Not `is_complete`: a lost file of a finished step is to be named, and its numbers not to go missing quietly.
    return (step.directory / artifacts.MANIFEST).exists()


def _documents(plan: Plan, step: Step) -> Iterator[Document]:
    """The results files that a finished step gives."""
    files = artifacts.read_manifest(step.directory)["files"]
    if step.stage in ("evaluation", "transfer"):
        kind = "evaluations" if step.stage == "evaluation" else "transfer"
        yield kind, step.parameters["model"], _read(step, "evaluation.json")
    if step.stage == "mt_bench":
        yield step.stage, step.parameters["model"], {"kind": step.stage, **_read(step, "mt_bench.json")}
    if "training.json" in files:
        more = f"spin-0-epoch-{plan.profile.spin.epochs_shown}"
        model = more if step.stage == "epochs" else step.name
        yield "training", model, {"kind": "training", "rows": _read(step, "training.json")["rows"]}
    if step.stage == "heldout" and (played := _read(step, "heldout.json"))["items"]:
        yield "heldout", step.parameters["model"], {"kind": "heldout", **played}
    if step.stage == "pairs":
        artifacts.verify(step.directory)
        yield "generations", _generator(step), {"kind": "generations", "items": _generations(plan, step)}


def _generator(step: Step) -> str:
    # The base model plays the SFT model's part in a profile that has no SFT of its own.
    return "sft" if step.parameters["iteration"] == 0 else step.inputs[0]


def _generations(plan: Plan, step: Step) -> list[dict[str, Any]]:
    table = pairs(plan, step.parameters["iteration"]).drop(columns=["identical", "shared_tokens"])
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _read(step: Step, name: str) -> dict[str, Any]:
    return json.loads(artifacts.checked(step.directory, name).read_text(encoding="utf-8"))


def pairs(plan: Plan, iteration: int) -> pd.DataFrame:
    """Every pair of an iteration as text and numbers.

    Returns:
        Columns `id`, `family`, `prompt`, `real`, `generated`, `identical`, `shared_tokens` (how many the two answers
        have in common before they part), `real_tokens`, `generated_tokens`, `finish_reason`.
    """
    step = plan.steps[f"pairs-{iteration}"]
    table = Pairs([artifacts.checked(stages.run(plan, step.name), "pairs.arrow")]).table.to_pandas()
    tokenizer = base.load_tokenizer(stages.run(plan, step.inputs[0]))
    rows = {row["id"]: row for row in stages.rows(plan, "spin")}

    both = list(zip(table["real_ids"], table["generated_ids"], strict=True))

    def text(ids: list[int]) -> str:
        return decode_response(tokenizer, plan.profile.template, ids)

    return pd.DataFrame(
        {
            "id": table["id"],
            "family": [rows[i].get("family", "") for i in table["id"]],
            "prompt": [rows[i]["prompt"] for i in table["id"]],
            "real": [text(ids) for ids in table["real_ids"]],
            "generated": [text(ids) for ids in table["generated_ids"]],
            "identical": [list(a) == list(b) for a, b in both],
            "shared_tokens": [common(a, b) for a, b in both],
            "real_tokens": table["real_ids"].str.len(),
            "generated_tokens": table["generated_ids"].str.len(),
            "finish_reason": table["finish_reason"],
        }
    )
