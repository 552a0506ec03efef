"""From results to tables and figures.

Nothing is read but the files under `results/PROFILE` and the published numbers, so it works without any model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from spin_utils.drawing import figures, generation_figures, style, tables, training_figures
from spin_utils.drawing.tables import Table
from spin_utils.evaluation import suites
from spin_utils.files import paths
from spin_utils.paper import claims, generations, published, results
from spin_utils.paper.claims import Finding
from spin_utils.settings.run import Profile


@dataclass(frozen=True)
class Drawing:
    """All tables, figures and verdicts of a profile's results, not yet written."""

    tables: list[Table]
    findings: list[Finding]
    figures: dict[str, Figure]
    """By file name."""


def everything(profile: Profile) -> list[Path]:
    """Make and write every table, figure and verdict that the results allow.

    Returns:
        The files written. What has no run says so inside.

    Raises:
        ResultsError: No model was evaluated at all, or a results file is not valid.
    """
    return write(compose(profile), profile)


def write(drawing: Drawing, profile: Profile) -> list[Path]:
    """Write what `compose` made to results/PROFILE and figures/PROFILE, and close the figures."""
    folder = paths.results(profile.name)
    written = [path for table in drawing.tables for path in tables.write(table, folder / "tables")]
    written += claims.write(drawing.findings, folder)
    for name, figure in drawing.figures.items():
        written += style.save(figure, paths.figures(profile.name), name)
        figure.clear()
    return written


def compose(profile: Profile) -> Drawing:
    """Make tables, figures and verdicts from the results, without writing any. Errors as in `everything`."""
    folder, read = paths.results(profile.name), cache(results.read_json)
    scores = results.load_evaluations(folder, read=read)
    if scores.empty:
        raise results.ResultsError(
            f"{paths.relative(folder)}: no evaluations; run `spin-repro reproduce --profile {profile.name}` first"
        )
    scores = with_last_epoch(scores, profile.spin.training.epochs)
    results.check_one_run(folder, read=read)
    transfer = results.load_evaluations(folder, kind_folder="transfer", read=read)
    tasks, transfer_tasks = stand_ins(profile, scores), stand_ins(profile, transfer)
    training = results.load_training(folder, read=read)
    times, machine, alone = tables.wall_clock(folder, training, read=read)
    texts = results.load_generations(folder, read=read)
    measured = generations.measures(texts)
    bounds = generations.jsd_bounds(results.load_heldout(folder, read=read))
    grades = results.load_mt_bench(folder, read=read)
    findings = claims.judge(
        scores,
        tasks,
        times=times,
        training=training,
        transfer=transfer,
        transfer_stand_ins=transfer_tasks,
        generations=measured,
        heldout=bounds,
        grades=grades,
        loss=profile.spin.training.loss,
    )
    name = profile.name
    scored = [
        tables.table3(scores, tasks, preferences=profile.dpo.preferences.source if profile.dpo else ""),
        *(make(scores, tasks) for make in (tables.table4, tables.table5)),
        tables.table6(transfer, transfer_tasks, grades),
    ]
    if not published.other_tasks(tasks):  # otherwise their notes on stand-ins say it
        other = tuple(filter(None, [not_the_papers(profile, tasks)]))
        scored = [replace(table, notes=table.notes + other) for table in scored]
    return Drawing(
        tables=[
            tables.table1(results.load_summaries(folder, read=read), tasks, shots=shots(profile)),
            tables.table2(times, machine=machine, alone=alone),
            *scored,
            *(make(texts, measured) for make in (tables.table7, tables.table8)),
        ],
        findings=findings,
        figures={
            "figure1": generation_figures.figure1(texts),
            "figure2": figures.figure2(scores, tasks, profile=name),
            "figure3": figures.figure3(scores, tasks, profile=name),
            "figure4": figures.figure4(scores, tasks, profile=name),
            "figure5": figures.figure5(scores, tasks, profile=name),
            "figure6": generation_figures.figure6(scores, tasks, transfer, transfer_tasks, profile=name)
            if grades.empty
            else generation_figures.figure6_mt_bench(grades, profile=name),
            "training": training_figures.training_curves(training, loss=profile.spin.training.loss),
            "convergence": generation_figures.convergence(measured, bounds),
        },
    )


def with_last_epoch(scores: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """The scores with those of iteration 0 once more, under the name of the epoch after which it ends."""
    last = f"spin-0-epoch-{epochs}"
    if last in set(scores["model"]):
        return scores
    return pd.concat([scores, scores[scores["model"] == "spin-0"].assign(model=last)], ignore_index=True)


def stand_ins(profile: Profile, scores: pd.DataFrame) -> Mapping[str, str]:
    """Every task of the results and the paper's benchmark whose column it fills, empty for none."""
    families = {**profile.demonstrations.families, **profile.demonstrations.transfer}
    measured = sorted(scores["task"].unique())
    if profile.evaluation.suite != "local":
        return {task: task if task in published.BENCHMARK_LABELS else "" for task in measured}
    return {task: families[task].benchmark if task in families else "" for task in measured}


def not_the_papers(profile: Profile, stand_ins: Mapping[str, str]) -> str:
    """What of a profile is not the paper's, and so how to compare, as a sentence; empty if tasks and model are."""
    model = profile.model.source == "hub" and profile.model.name == published.MODEL
    other = ["other tasks"] * published.other_tasks(stand_ins) + ["another model"] * (not model)
    return f"{' and '.join(other).capitalize()} than the paper's: compare directions, not levels." if other else ""


def shots(profile: Profile) -> dict[str, str]:
    """Examples in the prompts of the tasks that have any, for Table 1."""
    suite = suites.SUITES.get(profile.evaluation.suite, {})
    own = {Path(task).stem if paths.is_yaml(task) else task for task in profile.evaluation.tasks}
    return {name: str(suites.shots(name)) for name in suite} | dict.fromkeys(own, "as in its file")


def page(profile: Profile, name: str) -> str:
    """A drawn table (`tables/table4`) or the page of verdicts (`verdicts`) as Markdown."""
    return (paths.results(profile.name) / f"{name}.md").read_text(encoding="utf-8")
