"""Tables 7 and 8: one prompt with its real response and the generations by iteration, and what all prompts say.

The paper shows examples. Its claim about them, that later iterations are more concise than iteration 0 and closer to
the real response, is measured here on all generations and not on the example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from spin_utils.drawing.table_text import DASH, Table, finish, numbers, with_range
from spin_utils.paper import footnotes
from spin_utils.paper.generations import MODELS, RULE, Example, example, similarity
from spin_utils.paper.results import label
from spin_utils.paper.statistics import StatisticsError, paired_bootstrap

_MEASURES = {
    "generated_tokens": ("tokens", 1, 1),
    "similarity": ("similarity", 1, 2),
    "identical": ("identical", 100, 1),
}
"""Column of `generations.measures`; its name in the table, factor and digits."""

_NOTES = (
    "Tokens count the end token where there is one. Similarity: 2 M / (words of both texts), M being the words in "
    "blocks that match in order (Python's difflib.SequenceMatcher); the same words give 1. Identical: share of "
    "generations that are the real response.",
    "Generations are samples at temperature 1, so some of their distance is chance.",
)


def table7(generations: pd.DataFrame, measured: pd.DataFrame, *, seed: int = 0) -> Table:
    """Table 7: generations by iteration for one prompt.

    Args:
        generations: From `results.load_generations`.
        measured: From `generations.measures`, of the same generations.
        seed: Seed of the bootstrap.
    """
    return _table(7, "Generations by iteration for one prompt", example(generations), measured, seed)


def table8(generations: pd.DataFrame, measured: pd.DataFrame, *, seed: int = 0) -> Table:
    """Table 8: the same for a prompt of another family. Arguments as in `table7`."""
    first = example(generations)
    shown = first and example(generations, other_than=[first.family])
    return _table(8, "Generations by iteration for another prompt", shown, measured, seed)


def _table(number: int, title: str, shown: Example | None, measured: pd.DataFrame, seed: int) -> Table:
    cells: list[dict[str, Any]] = []
    lines: list[tuple[str, ...]] = []
    for name, text, counts in _texts(shown):
        cells.append({"row": name, "column": "text", "quantity": "example", "value": text})
        if text is None:
            cells[-1]["reason"] = "no generations at all" if shown is None else _missing(name)
        lines.append((name, "example", DASH if text is None else text, *counts))
    for model, minus, contrast in _contrasts():
        means = [_cell(measured, contrast, column, seed) for column in _MEASURES]
        quantity = "difference to iteration 0" if minus else "mean of all prompts"
        cells += [{"row": label(model), "quantity": quantity, **cell} for cell in means]
        digits = [digits for _, _, digits in _MEASURES.values()]
        values = [with_range(cell, sign=minus, digits=n) for cell, n in zip(means, digits, strict=True)]
        lines.append(("" if minus else label(model), quantity, "", *values))
    first = str(measured["model"].iloc[0]) if len(measured) else "sft"
    real = _cell(measured, {first: 1.0}, "real_tokens", seed)
    cells.append({"row": "Ground truth", "quantity": "mean of all prompts", **real})
    lines.append(("Ground truth", "mean of all prompts", "", with_range(real), "", ""))
    notes = [_means(measured), *_NOTES]
    if shown is not None:
        other = " Table 8 shows a prompt of another family than Table 7." if number == 8 else ""
        notes.insert(0, f"Prompt {shown.id}, family {shown.family}, training seed {shown.seed}. {RULE}{other}")
    header = ["", "", "Text", "Tokens", "Similarity", "Identical, %"]
    return finish(number, title, header, lines, cells, notes, text=2)


def _means(measured: pd.DataFrame) -> str:
    """Over what means and their intervals are, in words."""
    brackets = footnotes.intervals(measured, MODELS, unit="prompts", group="family")
    sentences = [
        f"Means over all prompts, every family counting the same{brackets and f'; in brackets {brackets}'}.",
        "Differences are paired.",
        footnotes.fewer_seeds(measured, MODELS),
    ]
    return " ".join(filter(None, sentences))


def _texts(shown: Example | None) -> list[tuple[str, str | None, tuple[str, str, str]]]:
    """Name, text and numbers of each line of the example; a text is None where there is no generation."""
    nothing = ("", "", "")
    if shown is None:
        return [(name, None, nothing) for name in ("Prompt", "Ground truth", *map(label, MODELS))]
    lines: list[tuple[str, str | None, tuple[str, str, str]]] = [
        ("Prompt", shown.prompt, nothing),
        ("Ground truth", shown.real, (str(shown.real_tokens), "", "")),
    ]
    for model in MODELS:
        if model not in shown.by_model:
            lines.append((label(model), None, (DASH, DASH, DASH)))
            continue
        row = shown.by_model[model]
        cut = " (cut)" if row["finish_reason"] == "length" else ""
        near = f"{similarity(shown.real, row['generated']):.2f}"
        same = "yes" if row["generated"] == shown.real else "no"
        lines.append((label(model), row["generated"], (f"{row['generated_tokens']}{cut}", near, same)))
    return lines


def _contrasts() -> list[tuple[str, bool, Mapping[str, float]]]:
    """Model, whether it is a difference to iteration 0, and the weights of the models."""
    contrasts: list[tuple[str, bool, Mapping[str, float]]] = []
    for model in MODELS:
        contrasts.append((model, False, {model: 1.0}))
        if model != "spin-0":
            contrasts.append((model, True, {model: 1.0, "spin-0": -1.0}))
    return contrasts


def _cell(measured: pd.DataFrame, contrast: Mapping[str, float], column: str, seed: int) -> dict[str, Any]:
    """A mean or a difference with its interval, or the reason for none."""
    name, factor, _ = _MEASURES.get(column, ("tokens", 1, 1))
    if measured.empty:
        return {"column": name, "reason": "no generations at all"}
    absent = [model for model in contrast if model not in measured["model"].unique()]
    if absent:
        return {"column": name, "reason": _missing(*map(label, absent))}
    try:
        estimate = paired_bootstrap(measured, contrast, column=column, seed=seed).times(factor)
    except StatisticsError as error:
        return {"column": name, "reason": str(error)}
    return {"column": name, **numbers(estimate)}


def _missing(*names: str) -> str:
    return f"no generations of {', '.join(names)}"
