"""A verdict for every row of the registry, from results alone.

Verdicts are `reproduced`, `not reproduced` and `inconclusive` by the rule of `statistics.verdict`, `not run` where
a measurement is missing, and `not judged` where there is nothing to measure. A table or figure is not run if one of
the rows that belong to it is not, else not reproduced if one of them is not, and reproduced if all are. Beside each
verdict stands what the paper's own numbers say: whether the claim holds for them, and whether the difference is beyond
the noise of its test sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from spin_utils.paper import mt_bench_scores, published
from spin_utils.paper.registry import Row, load
from spin_utils.paper.statistics import Claim, Estimate, StatisticsError, paired, size_margin, verdict
from spin_utils.settings.run import Loss
from spin_utils.training import theory


@dataclass(frozen=True)
class Finding:
    """One judged row. Scores are in points, lengths in tokens, similarities in 0..1, divergences in nats, times as
    ratios, theory as the largest error."""

    id: str
    statement: str
    where: str
    verdict: str
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
    """Why there is no measurement, or why it decides nothing."""
    paper_holds: bool | None = None
    """Whether the claim holds for the paper's own printed numbers."""
    paper_noise: str = ""
    """Status of the paper's difference, from `published.noise`; empty where items or cells are unknown."""


def judge(
    scores: pd.DataFrame,
    stand_ins: Mapping[str, str],
    *,
    times: pd.DataFrame | None = None,
    training: pd.DataFrame | None = None,
    transfer: pd.DataFrame | None = None,
    transfer_stand_ins: Mapping[str, str] | None = None,
    generations: pd.DataFrame | None = None,
    heldout: pd.DataFrame | None = None,
    grades: pd.DataFrame | None = None,
    loss: Loss = "logistic",
    rows: Sequence[Row] | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Judge every row of the registry, in its order.

    Args:
        scores: From `results.load_evaluations`.
        stand_ins: Every task and the benchmark it stands in for, "" for none.
        times: Columns `seed`, `stage`, `iteration`, `seconds`.
        training: From `results.load_training`.
        transfer: As `scores`, of tasks that nothing was trained on, which stand in for the benchmarks of Table 6.
        transfer_stand_ins: As `stand_ins`, of these tasks.
        generations: From `generations.measures`.
        heldout: From `generations.jsd_bounds`.
        grades: From `results.load_mt_bench`.
        loss: The function l of the training records.
        rows: Registry rows; None: the registry of the package.
        seed: Seed of the bootstrap.
    """
    rows = load() if rows is None else rows
    sources = {
        "evaluation of": (scores, stand_ins),
        "evaluation on transfer tasks of": (transfer, transfer_stand_ins or {}),
        "generations of": (generations, None),
        "held-out pairs against": (heldout, None),
        "MT-Bench grades of": (grades, None),
    }
    findings: dict[str, Finding] = {}
    for row in rows:
        blank = Finding(row.id, row.statement, row.where, "not judged", reason=row.reason)
        if row.compute == "contrast":
            name = _source(row)
            findings |= {finding.id: finding for finding in _contrast(row, blank, name, *sources[name], seed)}
        elif row.compute == "times":
            findings[row.id] = _times(row, blank, times)
        elif row.compute == "training":
            findings[row.id] = _training(row, blank, training, loss)
        elif row.compute == "theory":
            error = float(getattr(theory, row.check)())
            status = "reproduced" if error < (row.tolerance or 0) else "not reproduced"
            findings[row.id] = replace(blank, verdict=status, ours=error)
        else:
            findings[row.id] = blank
    for whole in (row for row in rows if row.compute == "parts"):
        parts = [findings[row.id] for row in rows if whole.id in row.part_of]
        findings[whole.id] = _whole(findings[whole.id], parts)
    return list(findings.values())


def _source(row: Row) -> str:
    """Which results a contrast is computed from, in words that a model's name completes."""
    if row.column == "grade":
        return "MT-Bench grades of"
    if row.column == "jsd_bound":
        return "held-out pairs against"
    if row.column in ("generated_tokens", "similarity", "identical"):
        return "generations of"
    return "evaluation on transfer tasks of" if row.benchmark in published.OTHERS else "evaluation of"


def _contrast(
    row: Row,
    blank: Finding,
    source: str,
    table: pd.DataFrame | None,
    stand_ins: Mapping[str, str] | None,
    seed: int,
) -> list[Finding]:
    """A finding on the claim, and with `size` a second one on the size of the difference.

    Without `stand_ins` the contrast is over all tasks of the table.
    """
    assert row.claim is not None
    paper = _paper_contrast(row)
    value = row.value if row.value is not None else paper or 0.0
    finding = replace(blank, verdict="not run", paper=paper)
    if paper is not None:
        point = Estimate(paper, paper, paper, 1.0, 0, 0, "printed")
        finding = replace(finding, paper_holds=verdict(point, row.margin, claim=row.claim, value=value) == "reproduced")
    noise = published.noise(row.contrast, row.benchmark) if row.source == "tables" and row.column == "score" else None
    finding = replace(finding, paper_noise=noise.status if noise else "")
    size = replace(finding, id=f"{row.id}-size", statement=f"{row.statement}: by as much", paper_holds=None)
    try:
        estimate = _estimate(row, source, table, stand_ins, seed)
    except StatisticsError as error:
        return [replace(finding, reason=str(error)), replace(size, reason=str(error))][: 1 + row.size]
    judged = [_judged(finding, estimate, row.claim, row.margin, value)]
    if row.column == "jsd_bound" and table is not None:
        (before,) = (model for model, weight in row.contrast.items() if weight < 0)
        if paired(table, {before: 1}, column=row.column).low <= 0:
            reason = f"the bound of {before} is not above 0, so there is nothing that could fall"
            judged = [replace(judged[0], verdict="inconclusive", reason=reason)]
    if row.size and paper:
        margin = size_margin(paper, row.size_margin)
        judged.append(_judged(size, estimate, "same_size", margin, paper))
    return judged


def _estimate(
    row: Row, source: str, table: pd.DataFrame | None, stand_ins: Mapping[str, str] | None, seed: int
) -> Estimate:
    """Our value of a contrast, shares in points.

    Raises:
        StatisticsError: there is none; the message is the reason that a finding gives.
    """
    if row.column == "grade" and (table is None or table.empty):
        raise StatisticsError("needs a judge model and none was run")
    absent = [model for model in row.contrast if table is None or model not in table["model"].unique()]
    if table is None or absent:
        raise StatisticsError(f"no {source} {', '.join(absent)}")
    if row.column == "grade":
        return mt_bench_scores.estimate(table, row.contrast, category=row.category, seed=seed)
    tasks = None
    if stand_ins is not None:
        tasks = [task for task, other in stand_ins.items() if row.benchmark in (other, "average")]
        if not tasks:
            name = published.BENCHMARK_LABELS[row.benchmark]
            raise StatisticsError(f"no task of this profile stands in for {name}")
    estimate = paired(table, row.contrast, tasks=tasks, column=row.column)
    return estimate.times(100) if row.column in ("score", "identical") else estimate


def _times(row: Row, blank: Finding, times: pd.DataFrame | None) -> Finding:
    """The ratio of two times; its interval is the range over training seeds, so one seed alone decides nothing."""
    assert row.claim is not None
    hours = published.wall_clock_hours().set_index(["stage", "iteration"])["hours"]
    above, below = (tuple(part) for part in row.ratio)
    paper = float(hours[above]) / float(hours[below])
    finding = replace(blank, verdict="not run", paper=paper, paper_holds=True)
    columns = [_seconds(times, *part) for part in (above, below)]
    for part, column in zip((above, below), columns, strict=True):
        if column.empty:
            return replace(finding, reason=f"{part[0]} of iteration {part[1]} was not run")
    ratios = (columns[0] / columns[1]).dropna().tolist()  # by seed
    if not ratios:
        return replace(finding, reason="no training seed has both times")
    if len(ratios) == 1:
        reason = "one training seed has both times, and one ratio has no range"
        return replace(finding, verdict="inconclusive", ours=ratios[0], seeds=1, reason=reason)
    estimate = Estimate(sum(ratios) / len(ratios), min(ratios), max(ratios), 1.0, 0, len(ratios), "range over seeds")
    return _judged(finding, estimate, row.claim, row.margin, paper if row.value is None else row.value)


def _seconds(times: pd.DataFrame | None, stage: str, iteration: int) -> pd.Series[float]:
    """Seconds by training seed."""
    if times is None:
        return pd.Series(dtype=float)
    return times[(times["stage"] == stage) & (times["iteration"] == iteration)].set_index("seed")["seconds"]


def _training(row: Row, blank: Finding, training: pd.DataFrame | None, loss: Loss) -> Finding:
    """Distance of the first logged loss of every SPIN run from log 2; only runs logged from step 1 count."""
    if loss != "logistic":
        return replace(blank, reason=f"the loss of this run is {loss}, which starts elsewhere")
    if training is None or training.empty:
        return replace(blank, verdict="not run", reason="no training records")
    first = training[training["model"].str.fullmatch(r"spin-\d+") & (training["step"] == 1)]
    if first.empty:
        return replace(blank, verdict="not run", reason="no SPIN run has its first step logged")
    error = float((first["loss"] - math.log(2)).abs().max())
    status = "reproduced" if error <= (row.tolerance or 0) else "not reproduced"
    return replace(blank, verdict=status, ours=error, seeds=int(first["seed"].nunique()))


def _judged(finding: Finding, estimate: Estimate, claim: Claim, margin: float, value: float) -> Finding:
    return replace(
        finding,
        verdict=verdict(estimate, margin, claim=claim, value=value),
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
    status = "inconclusive"
    if set(verdicts) == {"reproduced"}:
        status = "reproduced"
    elif "not reproduced" in verdicts:
        status = "not reproduced"
    return replace(finding, verdict=status, reason=agreeing)


def _paper_contrast(row: Row) -> float | None:
    """The paper's value of a contrast, from its printed scores (printed averages, as the paper's gains are)."""
    if row.column not in ("score", "grade") or row.category:
        return None
    total = 0.0
    for model, weight in row.contrast.items():
        if row.source == "tables":
            score = published.score(model, row.benchmark)
        else:
            score = published.figure_score(row.source, model, row.benchmark)
        if score is None:
            return None
        total += weight * score
    return round(total, 2)
