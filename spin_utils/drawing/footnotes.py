"""Words from files in `templates/`: whole pages, and notes below tables and figures.

A level is a mean over all training seeds that its model has, and a gain over those that both of its models have, so
that a number is the same in every table, figure and verdict. Neighbouring models may then rest on different seeds;
the note below them says which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import pandas as pd

from spin_utils.paper.statistics import sources
from spin_utils.settings.names import label


def render(template: str, **values: Any) -> str:
    """A page from a file in `templates/`. In those of HTML every value is escaped."""
    return _PAGES.get_template(template).render(**values)


def notes(name: str, **values: Any) -> list[str]:
    """The notes of one macro of `templates/notes.j2`, each once."""
    text = str(getattr(_NOTES.module, name)(**values))
    lines = (re.sub(" +", " ", line).strip() for line in text.splitlines())
    return list(dict.fromkeys(filter(None, lines)))


def note(name: str, **values: Any) -> str:
    """The same as one paragraph."""
    return " ".join(notes(name, **values))


def intervals(table: pd.DataFrame, models: Iterable[str], *, unit: str = "items", group: str = "task") -> str:
    """What the intervals of some models cover, without a full stop; empty if the table has no such model.

    Apart from training seeds, it is `unit` that are counted, and a task is called `group`.
    """
    shown = table[table["model"].isin(list(models))]
    if shown.empty:
        return ""
    sizes = shown.groupby("task")["id"].nunique()
    each = f" ({' to '.join(map(str, sorted({sizes.min(), sizes.max()})))} per {group})" if len(sizes) > 1 else ""
    seeds = shown["seed"].nunique()
    drawn = f" and {seeds} training seeds" if seeds > 1 else "; one training seed (its variation is not covered)"
    found = sum(len(set(sources(sorted(map(str, items.unique()))))) for _, items in shown.groupby("task")["id"])
    whole = f" from {found} sources" if found < sizes.sum() else ""
    return f"95 % intervals over {sizes.sum()} {unit}{each}{whole}{drawn}"


def fewer_seeds(table: pd.DataFrame, models: Iterable[str]) -> str:
    """Which of the models shown lack a training seed that another one has, and what follows; empty if no model does."""
    found = lacking(table, models)
    if not found:
        return ""
    return (
        f"N{found[1:]} A score is averaged over its model's seeds and a gain over the seeds that both models have, so "
        "scores over different seeds are not comparable."
    )


def lacking(table: pd.DataFrame, models: Iterable[str]) -> str:
    """The models alone, after a colon."""
    seeds = {model: sorted(table["seed"][table["model"] == model].unique()) for model in models}
    every = sorted({seed for found in seeds.values() for seed in found})
    few = [
        f"{label(model)} ({', '.join(map(str, found))})" for model, found in seeds.items() if found and found != every
    ]
    return f"not on all of the seeds {', '.join(map(str, every))}: {', '.join(few)}." if few else ""


def grading(grades: pd.DataFrame) -> str:
    """Who graded, what was graded, and how many answers were left out."""
    ungraded = grades[grades["status"] != "graded"].groupby(["model", "status"], sort=False).size()
    return note(
        "judge",
        grades=grades,
        questions=grades["id"].str.partition("/")[0].nunique(),
        versions=sorted(set(grades["judge_models"]) - {""}),
        by_question=grades.assign(task="MT-Bench", id=grades["id"].str.partition("/")[0]),  # of two turns each
        models=list(dict.fromkeys(grades["model"])),
        ungraded=ungraded.unstack(fill_value=0).reindex(columns=["refused", "unparsable"], fill_value=0),
    )


def minus(text: str) -> str:
    """A number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def missing(models: Sequence[str], found: Iterable[str]) -> list[str]:
    """Labels of the models that were not found."""
    return [label(model) for model in models if model not in set(found)]


_LOADER = jinja2.PackageLoader("spin_utils.drawing")
_PAGES = jinja2.Environment(
    loader=_LOADER,
    autoescape=jinja2.select_autoescape(["html.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_NOTES = jinja2.Environment(loader=_LOADER, undefined=jinja2.StrictUndefined).get_template(
    "notes.j2",
    globals={
        "label": label,
        "intervals": intervals,
        "fewer_seeds": fewer_seeds,
        "lacking": lacking,
        "grading": grading,
        "listed": lambda names: " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])),
        "minus": minus,
    },
)
