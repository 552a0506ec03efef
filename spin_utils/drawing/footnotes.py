"""Notes below tables and figures: what their intervals cover, and which models have fewer training seeds.

A level is a mean over all training seeds that its model has, and a gain over those that both of its models have, so
that a number is the same in every table, figure and verdict. Neighbouring models may then rest on different seeds;
the note below them says which.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from spin_utils.paper.statistics import sources
from spin_utils.settings.names import label


def intervals(table: pd.DataFrame, models: Iterable[str], *, unit: str = "items", group: str = "task") -> str:
    """What the intervals of some models cover, without a full stop; empty if the table has no such model.

    Args:
        table: Long table with `seed`, `model`, `task` and `id`.
        models: Those that are shown.
        unit: What is counted, apart from training seeds.
        group: What a task is called.
    """
    shown = table[table["model"].isin(list(models))]
    if shown.empty:
        return ""
    sizes = shown.groupby("task")["id"].nunique()
    least, most = int(sizes.min()), int(sizes.max())
    each = "" if len(sizes) == 1 else f" ({least if least == most else f'{least} to {most}'} per {group})"
    seeds = shown["seed"].nunique()
    drawn = f" and {seeds} training seeds" if seeds > 1 else "; one training seed (its variation is not covered)"
    found = sum(len(set(sources(sorted(map(str, items.unique()))))) for _, items in shown.groupby("task")["id"])
    whole = f" from {found} sources" if found < sizes.sum() else ""
    return f"95 % intervals over {sizes.sum()} {unit}{each}{whole}{drawn}"


def fewer_seeds(table: pd.DataFrame, models: Iterable[str]) -> str:
    """Which models lack a training seed that another one has, as sentences; empty if no model does.

    Args:
        table: Long table with `seed` and `model`.
        models: Those that are shown; any that the table does not have are left out.
    """
    runs = table[["model", "seed"]].drop_duplicates()
    seeds = {model: sorted(runs["seed"][runs["model"] == model]) for model in models}
    every = sorted({seed for found in seeds.values() for seed in found})
    lacking = [
        f"{label(model)} ({', '.join(map(str, found))})" for model, found in seeds.items() if found and found != every
    ]
    if not lacking:
        return ""
    return (
        f"Not on all of the seeds {', '.join(map(str, every))}: {', '.join(lacking)}. A score is averaged over its "
        "model's seeds and a gain over the seeds that both models have, so scores over different seeds are not "
        "comparable."
    )


def grading(grades: pd.DataFrame) -> str:
    """Who graded, what was graded, and how many answers were left out."""
    versions = "; ".join(sorted(set(grades["judge_models"]) - {""}))
    questions = grades["id"].str.partition("/")[0].nunique()
    text = (
        f"MT-Bench: {questions} questions of two turns, each answer graded 1 to 10 by {grades['judge'].iloc[0]}"
        f"{f' (answering as {versions})' if versions else ''}; mean of all grades, differences on the answers graded "
        f"for both models. {_intervals_of_grades(grades)} The paper does not say which version of its judge it used."
    )
    missing = []
    for model, statuses in grades.groupby("model", sort=False)["status"]:
        refused, unparsable = (int((statuses == status).sum()) for status in ("refused", "unparsable"))
        if refused or unparsable:
            missing.append(f"{label(str(model))}: {refused} refused by the judge, {unparsable} without a rating")
    return text + (f" Not graded and left out: {'; '.join(missing)}." if missing else "")


def _intervals_of_grades(grades: pd.DataFrame) -> str:
    """What the intervals of grades cover, and which models have fewer training seeds."""
    models = list(dict.fromkeys(grades["model"]))
    drawn = grades.assign(task="MT-Bench", id=grades["id"].str.partition("/")[0])  # both turns of a question together
    sentences = [f"{intervals(drawn, models, unit='questions')}.", fewer_seeds(grades, models)]
    return " ".join(filter(None, sentences))
