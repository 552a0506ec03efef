"""From artifacts to results, and from results to tables and figures.

`publish` copies what finished steps measured into `results/PROFILE`, with where it came from. `draw` reads
nothing but those files and the published numbers, so it works without any model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils import artifacts, figure_style, figures, paths, results, table_text, tables, training_figures, verdicts
from spin_utils.plan import Plan
from spin_utils.settings import Profile


def publish(plans: list[Plan]) -> list[Path]:
    """Write the results of every finished evaluation and training run.

    Args:
        plans: one per training seed, of one profile.

    Returns:
        The files under results/PROFILE.
    """
    written = []
    for plan in plans:
        folder = paths.results(plan.profile.name)
        for step in plan:
            if not artifacts.is_complete(step.directory):
                continue
            if step.stage == "evaluation":
                document = json.loads((step.directory / "evaluation.json").read_text())
                path = results.evaluation_path(folder, plan.seed, step.parameters["model"])
            elif step.stage in ("sft", "spin"):
                document = {"schema": results.SCHEMA, "kind": "training"}
                document |= {"rows": json.loads((step.directory / "training.json").read_text())["rows"]}
                path = results.training_path(folder, plan.seed, step.name)
            else:
                continue
            identity = {"profile": plan.profile.name, "seed": plan.seed, "model": path.stem}
            results.write_json(path, {**document, **identity, "provenance": provenance(plan, step.name)})
            written.append(path)
    return written


def provenance(plan: Plan, name: str) -> dict[str, Any]:
    """Where a result comes from: every artifact behind it, with manifest hash, seed, commit, versions and time."""
    chain: dict[str, dict[str, Any]] = {}

    def walk(step: str) -> None:
        for needed in plan.steps[step].inputs:
            walk(needed)
        directory = plan.directory(step)
        manifest = artifacts.read_manifest(directory)
        kept = ("stage", "key", "seed", "seconds", "started", "commit", "dirty", "device", "versions", "inputs")
        digest = artifacts.file_hash(directory / artifacts.MANIFEST)
        chain[step] = {"manifest_sha256": digest, **{field: manifest[field] for field in kept}}

    walk(name)
    return {"step": name, "chain": chain}


def draw(profile: Profile) -> list[Path]:
    """Draw every table and figure that the results allow.

    Returns:
        The files written. What has no run says so inside.
    """
    folder = paths.results(profile.name)
    scores = results.load_evaluations(folder)
    if scores.empty:
        raise results.ResultsError(
            f"{paths.relative(folder)}: no evaluations; run `spin-repro reproduce --profile {profile.name}` first"
        )
    tasks = stand_ins(profile, scores)
    times, machine = wall_clock(folder)
    training = results.load_training(folder)
    drawn = [
        tables.table1(results.load_summaries(folder), tasks),
        tables.table2(times, machine=machine),
        *(make(scores, tasks) for make in (tables.table3, tables.table4, tables.table5)),
    ]
    written = [path for table in drawn for path in table_text.write(table, folder / "tables")]
    written += verdicts.write(verdicts.judge(scores, tasks, times=times, training=training), folder)
    named = {
        "figure2": figures.figure2(scores, tasks, profile=profile.name),
        "figure3": figures.figure3(scores, tasks, profile=profile.name),
        "figure4": figures.figure4(scores, tasks, profile=profile.name, epochs=profile.spin.training.epochs),
        "figure5": figures.figure5(scores, tasks, profile=profile.name, epochs=profile.spin.training.epochs),
        "training": training_figures.training_curves(training),
    }
    for name, figure in named.items():
        written += figure_style.save(figure, paths.figures(profile.name), name)
    return written


def stand_ins(profile: Profile, scores: pd.DataFrame) -> Mapping[str, str]:
    """Every task of the results and the paper's benchmark whose column it fills, empty for none."""
    families = profile.demonstrations.families
    measured = sorted(scores["task"].unique())
    if profile.evaluation.suite == "paper":
        return {task: task for task in measured}
    return {task: families[task].benchmark if task in families else "" for task in measured}


def wall_clock(folder: Path) -> tuple[pd.DataFrame, str]:
    """Measured seconds of generation and training, from the provenance of the evaluations.

    Returns:
        Columns `stage`, `iteration`, `seconds`, a row per training seed; and the device, in words.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    devices = set()
    for path in sorted(folder.glob("seed-*/evaluations/*.json")):
        document = results.read_json(path)
        for name, link in document["provenance"]["chain"].items():
            if link["stage"] in ("pairs", "spin"):
                stage = "generation" if link["stage"] == "pairs" else "training"
                iteration = int(name.split("-")[1])
                rows[document["seed"], name] = {"stage": stage, "iteration": iteration, "seconds": link["seconds"]}
                devices.add(link["device"])
    frame = pd.DataFrame(rows.values(), columns=["stage", "iteration", "seconds"])
    return frame, "; ".join(sorted(devices)) or "this machine"


def page(profile: Profile, name: str) -> str:
    """A drawn table (`tables/table4`) or the page of verdicts (`verdicts`) as Markdown."""
    return (paths.results(profile.name) / f"{name}.md").read_text(encoding="utf-8")
