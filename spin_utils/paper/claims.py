"""The paper's claims, and a verdict on each from our results alone.

`registry.yaml` lists everything the paper says that can be checked. Verdicts are `reproduced`, `not reproduced` and
`inconclusive` by the rule of `statistics.verdict`, `not run` if a measurement is missing, and `not judged` if there is
nothing to measure. A table or figure is not run if one of its claims was not run, otherwise not reproduced if one was
not reproduced, and reproduced if all were. Each verdict also states what the paper's own numbers say: whether the claim
holds for them, and whether the difference is beyond the noise of its test sets.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
import yaml
from pydantic import Field, PositiveFloat

from spin_utils.paper import power, published
from spin_utils.paper.generations import mean_grade
from spin_utils.paper.results import Model, Part, ResultsError, judged
from spin_utils.paper.statistics import Claim, Estimate, StatisticsError, paired, size_margin, verdict
from spin_utils.settings.names import iterates
from spin_utils.settings.profiles import nearest

EVALUATED, TRANSFERRED, GENERATED = "evaluation of", "evaluation on transfer tasks of", "generations of"
HELD_OUT, GRADED = "held-out pairs against", "MT-Bench grades of"
SOURCES = {
    **dict.fromkeys(("score", "tokens"), EVALUATED),
    **dict.fromkeys(("generated_tokens", "similarity", "identical"), GENERATED),
    **dict.fromkeys(("jsd_bound", "told_apart"), HELD_OUT),
    "grade": GRADED,
}
"""The results that a quantity of a contrast comes from, in words that end before a model's name."""

Outcome = Literal["reproduced", "not reproduced", "inconclusive", "not run", "not judged"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

NOTHING = pd.DataFrame(columns=["seed", "model", "step", "stage", "iteration", "seconds"])
"""What was not measured."""


class Entry(Part):
    """One table, figure or claim. The comment at the top of `registry.yaml` explains the fields."""

    id: str
    statement: str
    where: str
    compute: Literal["contrast", "times", "training", "theory", "parts", "shown"]
    margin: PositiveFloat
    size_margin: PositiveFloat
    contrast: dict[Model, float] = Field(default_factory=dict)
    benchmark: str = ""
    column: Annotated[str, Field(pattern=f"^({'|'.join(SOURCES)})$")] = "score"
    category: str = ""
    claim: Claim | None = None
    value: float | None = None
    source: Literal["tables", "figure4", "figure5", "figure5_sft"] = "tables"
    size: bool = False
    ratio: list[list[Any]] = Field(default_factory=list)
    check: str = ""
    tolerance: float = 0.0
    part_of: list[str] = Field(default_factory=list)
    reason: str = ""


@cache
def registry() -> list[Entry]:
    """Every row of the registry."""
    document = yaml.safe_load((Path(__file__).parent / "registry.yaml").read_text(encoding="utf-8"))
    return [Entry(**{**document["defaults"], **row}) for row in document["rows"]]


@dataclass(frozen=True)
class Finding:
    """One judged row. Scores are in points, lengths in tokens, similarities in 0..1, divergences in nats, times are
    ratios, and theory checks give the largest error to 12 decimals (more would differ between machines)."""

    id: str
    statement: str
    where: str
    verdict: Outcome
    paper: float | None = None
    """The paper's value of the same quantity."""
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Items behind `ours`."""
    seeds: int | None = None
    """Training seeds behind `ours`."""
    reason: str = ""
    """Why there is no measurement, or why it settles nothing."""
    paper_holds: bool | None = None
    """Whether the claim holds for the paper's own printed numbers."""
    paper_noise: str = ""
    """Status of the paper's difference, from `published.noise`; empty if items or cells are unknown."""


def exact(rows: Sequence[Entry]) -> Future[dict[str, float]]:
    """Errors of the checks of the theory among rows of the registry, computed once: in a process of its own if torch,
    which nothing else here needs, is not there yet, because to import it takes two seconds. Whoever is about to read
    results calls this first."""
    return _errors(*(row.check for row in rows if row.compute == "theory"))


@cache
def _errors(*checks: str) -> Future[dict[str, float]]:
    def found() -> dict[str, float]:
        if "torch" in sys.modules:
            from spin_utils.training import theory

            return {check: getattr(theory, check)() for check in checks}
        return json.loads(subprocess.check_output([sys.executable, "-m", "spin_utils.training.theory", *checks]))

    return ThreadPoolExecutor(1).submit(found)


def judge(
    scores: pd.DataFrame,
    *,
    times: pd.DataFrame = NOTHING,
    training: pd.DataFrame = NOTHING,
    transfer: pd.DataFrame = NOTHING,
    generations: pd.DataFrame = NOTHING,
    heldout: pd.DataFrame = NOTHING,
    grades: pd.DataFrame = NOTHING,
    loss: str = "logistic",
    rows: Sequence[Entry] | None = None,
) -> list[Finding]:
    """Judge every row of the registry, in order, by the tables that `draw.compose` loads.

    Args:
        scores: From `results.load_evaluations`, like `transfer`, with each task's benchmark or "" as `benchmark`.
        times: Columns `seed`, `stage`, `iteration`, `seconds`.
        generations: From `generations.measures`; `heldout` from `generations.jsd_bounds`.
        loss: The loss function l used in training, and what changes its start.
        rows: Other than the package's registry.
    """
    rows = registry() if rows is None else rows
    tables = {EVALUATED: scores, TRANSFERRED: transfer, GENERATED: generations, HELD_OUT: heldout, GRADED: grades}
    findings: dict[str, Finding] = {}
    for row in rows:
        blank = Finding(row.id, row.statement, row.where, "not judged", reason=row.reason)
        if row.compute == "contrast":
            source = SOURCES[row.column]
            if source == EVALUATED and row.benchmark in published.OTHERS:
                source = TRANSFERRED
            findings |= {finding.id: finding for finding in _contrast(row, blank, source, tables[source])}
        elif row.compute == "times":
            findings[row.id] = _times(row, blank, times)
        elif row.compute == "training":
            findings[row.id] = _training(row, blank, training, loss)
        elif row.compute == "theory":
            error = exact(rows).result()[row.check]
            status: Outcome = "reproduced" if error < row.tolerance else "not reproduced"
            findings[row.id] = replace(blank, verdict=status, ours=round(error, 12))
        else:
            findings[row.id] = blank
    for whole in (row for row in rows if row.compute == "parts"):
        parts = [findings[row.id] for row in rows if whole.id in row.part_of]
        findings[whole.id] = _whole(findings[whole.id], parts)
    return list(findings.values())


def _contrast(row: Entry, blank: Finding, source: str, table: pd.DataFrame) -> list[Finding]:
    """A finding on the claim, and if `size` is set a second one on the size of the difference."""
    assert row.claim is not None
    paper = _paper_contrast(row)
    value = row.value if row.value is not None else paper or 0.0
    noise = published.noise(row.contrast, row.benchmark) if row.source == "tables" and row.column == "score" else None
    finding = replace(blank, verdict="not run", paper=paper, paper_noise=noise.status if noise else "")
    size = replace(finding, id=f"{row.id}-size", statement=f"{row.statement}: by as much")
    if paper is not None:
        point = Estimate(paper, paper, paper, 1.0, 0, 0, "printed")
        finding = replace(finding, paper_holds=verdict(point, row.margin, claim=row.claim, value=value) == "reproduced")
    try:
        estimate = _estimate(row, source, table)
    except StatisticsError as error:
        return [replace(finding, reason=str(error)), replace(size, reason=str(error))][: 1 + row.size]
    judged = [_judged(finding, estimate, row.claim, row.margin, value)]
    if row.column == "jsd_bound":
        (before,) = (model for model, weight in row.contrast.items() if weight < 0)
        if paired(table, {before: 1}, column=row.column).low <= 0:
            reason = f"the bound for {before} is not above 0, so it cannot fall"
            judged = [replace(judged[0], verdict="inconclusive", reason=reason)]
    if row.size and paper:
        margin = size_margin(paper, row.size_margin)
        judged.append(_judged(size, estimate, "same_size", margin, paper))
    return judged


def _estimate(row: Entry, source: str, table: pd.DataFrame) -> Estimate:
    """Our value of a contrast, with shares in points; over all tasks, unless the table names their benchmarks.

    Raises:
        StatisticsError: it cannot be estimated; the message becomes the finding's reason.
    """
    if row.column == "grade" and table.empty:
        raise StatisticsError("needs a judge model and none was run")
    absent = [model for model in row.contrast if model not in table["model"].unique()]
    if absent:
        raise StatisticsError(f"no {source} {', '.join(absent)}")
    if row.column == "grade":
        return mean_grade(table, row.contrast, category=row.category)
    tasks = None
    if "benchmark" in table:
        known = table[["task", "benchmark"]].drop_duplicates().itertuples(index=False)
        tasks = [task for task, other in known if row.benchmark in (other, "average")]
        if not tasks:
            raise StatisticsError(f"this profile does not measure {published.BENCHMARK_LABELS[row.benchmark]}")
        tasks = [task for task in judged(table) if task in tasks]
        if not tasks:
            raise StatisticsError("at chance before any training here, so it judges nothing")
    estimate = paired(table, row.contrast, tasks=tasks, column=row.column)
    return estimate.times(100) if row.column in ("score", "identical") else estimate


def _times(row: Entry, blank: Finding, times: pd.DataFrame) -> Finding:
    """The ratio of two times; its interval is the range over training seeds, so a single seed settles nothing."""
    assert row.claim is not None
    hours = published.numbers("wall_clock_hours").set_index(["stage", "iteration"])["hours"]
    above, below = (tuple(part) for part in row.ratio)
    paper = float(hours[above]) / float(hours[below])
    finding = replace(blank, verdict="not run", paper=paper, paper_holds=True)
    table = times.pivot(index="seed", columns=["stage", "iteration"], values="seconds")
    for part in (above, below):
        if part not in table:
            return replace(finding, reason=f"{part[0]} of iteration {part[1]} was not run")
    ratios = (table[above] / table[below]).dropna().tolist()  # by seed
    if not ratios:
        return replace(finding, reason="no training seed has both times")
    if len(ratios) == 1:
        reason = "only one training seed has both times, and a single ratio has no range"
        return replace(finding, verdict="inconclusive", ours=ratios[0], seeds=1, reason=reason)
    estimate = Estimate(sum(ratios) / len(ratios), min(ratios), max(ratios), 1.0, 0, len(ratios), "range over seeds")
    return _judged(finding, estimate, row.claim, row.margin, paper if row.value is None else row.value)


def _training(row: Entry, blank: Finding, training: pd.DataFrame, loss: str) -> Finding:
    """Distance of every SPIN run's first logged loss from log 2; only runs logged from step 1 count."""
    if loss != "logistic":
        return replace(blank, reason=f"this run's loss is {loss}, which does not start at log 2")
    if training.empty:
        return replace(blank, verdict="not run", reason="no training records")
    first = training[training["model"].isin(iterates(training["model"].unique())) & (training["step"] == 1)]
    if first.empty:
        return replace(blank, verdict="not run", reason="no SPIN run logged its first step")
    error = float((first["loss"] - math.log(2)).abs().max())
    status: Outcome = "reproduced" if error <= row.tolerance else "not reproduced"
    return replace(blank, verdict=status, ours=error, seeds=int(first["seed"].nunique()))


def _judged(finding: Finding, estimate: Estimate, claim: Claim, margin: float, value: float) -> Finding:
    outcome = verdict(estimate, margin, claim=claim, value=value)
    undecided = outcome == "inconclusive" and estimate.n_items
    return replace(
        finding,
        verdict=outcome,
        reason=power.needed(estimate, margin, claim=claim, value=value) if undecided else finding.reason,
        ours=estimate.difference,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n_items or None,
        seeds=estimate.n_seeds,
    )


def _whole(finding: Finding, parts: Sequence[Finding]) -> Finding:
    """The verdict on a table or figure from its claims."""
    verdicts = [part.verdict for part in parts]
    missing = [part.id for part in parts if part.verdict == "not run"]
    agreeing = f"{verdicts.count('reproduced')} of {len(parts)} claims reproduced"
    if missing:
        return replace(finding, verdict="not run", reason=f"{agreeing}; not run: {', '.join(missing)}")
    status: Outcome = "inconclusive"
    if set(verdicts) == {"reproduced"}:
        status = "reproduced"
    elif "not reproduced" in verdicts:
        status = "not reproduced"
    return replace(finding, verdict=status, reason=agreeing)


def _paper_contrast(row: Entry) -> float | None:
    """The paper's value of a contrast, from its printed scores (printed averages, as the paper's gains are)."""
    if row.column not in ("score", "grade") or row.category:
        return None
    scores = [published.score(model, row.benchmark, row.source) for model in row.contrast]
    known = [weight * score for weight, score in zip(row.contrast.values(), scores, strict=True) if score is not None]
    return round(sum(known), 2) if len(known) == len(scores) else None


def read(results: Path, outcome: str = "") -> pd.DataFrame:
    """The verdicts written under results/PROFILE, all or those with one outcome.

    Raises:
        ResultsError: Nothing was judged yet, or there is no such verdict.
    """
    if outcome not in ("", *OUTCOMES):
        raise ResultsError(f"verdict {outcome!r}: unknown{nearest(outcome, OUTCOMES)}")
    path = results / "verdicts.csv"
    again = f"run `spin-repro figures --profile {results.name}` to write them"
    if not path.is_file():
        raise ResultsError(f"{path}: no verdicts; {again}")
    try:
        table = pd.read_csv(path)
        whole = bool(table["verdict"].isin(OUTCOMES).all())
    except (ValueError, KeyError):  # pandas' parsers raise kinds of ValueError
        whole = False
    if not whole:
        raise ResultsError(f"{path}: changed since it was written; {again}")
    return table[table["verdict"] == outcome] if outcome else table


def tally(outcomes: Iterable[str]) -> str:
    """How often each verdict was given, in words."""
    counts = Counter(outcomes)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
