"""The list of everything the paper says that can be checked: `data/registry.yaml`, read strictly."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any, Literal, get_args

import yaml

from spin_utils.paper.published import BENCHMARK_LABELS
from spin_utils.paper.results import ResultsError, label
from spin_utils.paper.statistics import Claim
from spin_utils.settings.machine import CATEGORIES

Measure = Literal["score", "tokens", "generated_tokens", "similarity", "identical", "jsd_bound", "grade"]
"""What a contrast is of: the first two of evaluations, `jsd_bound` of held-out pairs, `grade` of MT-Bench, the others
of generations."""

Compute = Literal["contrast", "times", "training", "theory", "parts", "shown"]

THEORY_CHECKS = (
    "fixed_point_error",
    "necessity_margin",
    "update_law_error",
    "contraction_error",
    "minimum_error",
)
"""Functions of `theory.py` that a row may name."""

_SOURCES = ("tables", "figure4", "figure5", "figure5_sft")
_NEEDS = {
    "contrast": ("contrast", "benchmark", "claim"),
    "times": ("ratio", "claim"),
    "training": ("tolerance",),
    "theory": ("check", "tolerance"),
    "parts": (),
    "shown": ("reason",),
}


class RegistryError(ValueError):
    """A row of the registry is wrong. The message names the row and the field."""


@dataclass(frozen=True)
class Row:
    """One table, figure or claim. The head of the YAML file explains the fields."""

    id: str
    statement: str
    where: str
    compute: Compute
    contrast: dict[str, float] = field(default_factory=dict)
    benchmark: str = ""
    column: Measure = "score"
    category: str = ""
    claim: Claim | None = None
    margin: float = 0.0
    value: float | None = None
    source: str = "tables"
    size: bool = False
    size_margin: float = 0.0
    ratio: list[list[Any]] = field(default_factory=list)
    check: str = ""
    tolerance: float | None = None
    part_of: list[str] = field(default_factory=list)
    reason: str = ""


def load(text: str | None = None) -> list[Row]:
    """Read and check the registry.

    Args:
        text: YAML; None: the file of the package.

    Raises:
        RegistryError: An unknown or missing field, an id given twice, or a name that does not exist.
    """
    if text is None:
        text = (files("spin_utils.paper") / "registry.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    if not isinstance(document, dict) or set(document) != {"defaults", "rows"}:
        raise RegistryError("registry: needs exactly the two keys defaults and rows")
    rows = [_row(number, record, document["defaults"]) for number, record in enumerate(document["rows"])]
    ids = [row.id for row in rows]
    for name in ids:
        if ids.count(name) > 1:
            raise RegistryError(f"registry, {name}: the id is given twice")
    wholes = {row.id for row in rows if row.compute == "parts"}
    for row in rows:
        for whole in row.part_of:
            if whole not in wholes:
                raise RegistryError(f"registry, {row.id}: part_of names {whole!r}, which is no row judged by parts")
    for whole in sorted(wholes - {name for row in rows for name in row.part_of}):
        raise RegistryError(f"registry, {whole}: no row is a part of it")
    return rows


def _row(number: int, record: dict[str, Any], defaults: dict[str, float]) -> Row:
    place = f"registry, {record.get('id', f'row {number}')}"
    known = {f.name for f in fields(Row)}
    for name in record:
        if name not in known:
            raise RegistryError(f"{place}: unknown field {name!r}; there are {', '.join(sorted(known))}")
    for name in ("id", "statement", "where", "compute"):
        if not record.get(name):
            raise RegistryError(f"{place}: no {name}")
    row = Row(**{**defaults, **record})
    if row.compute not in get_args(Compute):
        raise RegistryError(f"{place}: compute is {row.compute!r}; use {', '.join(get_args(Compute))}")
    for name in _NEEDS[row.compute]:
        if record.get(name) is None:
            raise RegistryError(f"{place}: compute {row.compute} needs {name}")
    if row.claim is not None and row.claim not in get_args(Claim):
        raise RegistryError(f"{place}: claim is {row.claim!r}; use {', '.join(get_args(Claim))}")
    if row.claim in ("at_least", "at_most") and row.value is None:
        raise RegistryError(f"{place}: claim {row.claim} needs value")
    if min(row.margin, row.size_margin) <= 0:
        raise RegistryError(f"{place}: margins must be above 0")
    if row.benchmark and row.benchmark not in BENCHMARK_LABELS:
        raise RegistryError(f"{place}: benchmark {row.benchmark!r} is not one of {', '.join(BENCHMARK_LABELS)}")
    if row.column not in get_args(Measure):
        raise RegistryError(f"{place}: column is {row.column!r}; use {', '.join(get_args(Measure))}")
    if row.category and (row.column != "grade" or row.category not in CATEGORIES):
        raise RegistryError(f"{place}: category {row.category!r}; use column grade and one of {', '.join(CATEGORIES)}")
    if row.source not in _SOURCES:
        raise RegistryError(f"{place}: source is {row.source!r}; use {', '.join(_SOURCES)}")
    if row.check and row.check not in THEORY_CHECKS:
        raise RegistryError(f"{place}: check is {row.check!r}; use {', '.join(THEORY_CHECKS)}")
    for model in row.contrast:
        try:
            label(model)
        except ResultsError as error:
            raise RegistryError(f"{place}: {error}") from error
    return row
