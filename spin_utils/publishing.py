"""From artifacts to results: what finished steps measured, copied into `results/PROFILE` with where it came from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spin_utils import artifacts, explore, paths, provenance, results
from spin_utils.plan import Plan, Step

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
    pairs = explore.pairs(plan, step.parameters["iteration"]).drop(columns=["identical", "shared_tokens"])
    return [{str(name): value for name, value in row.items()} for row in pairs.to_dict("records")]


def _read(step: Step, name: str) -> dict[str, Any]:
    return json.loads(artifacts.checked(step.directory, name).read_text(encoding="utf-8"))
