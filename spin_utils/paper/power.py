"""Power: which difference a planned number of items and seeds could detect, and how many would settle a claim.

Both follow from the variance components of a finished run (`statistics.Spread`): more items shrink the item part, more
seeds the seed part.
"""

from __future__ import annotations

from math import ceil, inf

import pandas as pd
from scipy import special

from spin_utils.paper.statistics import POOLED_DF, Claim, Estimate, StatisticsError, paired
from spin_utils.settings.names import ModelName, iterates

MOST = 100
"""Largest multiple of the items or seeds before a claim counts as out of reach."""


def plan(scores: pd.DataFrame, items: int, seeds: int) -> pd.DataFrame:
    """Power of a run with other numbers of items (over all tasks) and seeds, for the main contrasts of a finished one.

    `scores` are of the tasks that the average is over.

    Returns:
        A row per `contrast`, for example `spin-1 over spin-0`, in points: `difference` as measured, the half width of
        its interval now (`half`) and with the planned items and seeds (`planned`), and the smallest true difference
        whose interval would exclude 0 in 80 % of such runs (`detectable`). Contrasts with one seed are left out when
        more are planned.

    Raises:
        StatisticsError: the run has no two models to compare, or one seed of each and more are planned.
    """
    models = set(scores["model"].unique())
    chain = iterates(models)
    pairs = [(name, ModelName.parse(name).opponent) for name in chain]
    if chain:
        others = ("sft", *sorted(name for name in models if ModelName.parse(name).sft_epochs))
        pairs += [(chain[-1], other) for other in others if (chain[-1], other) not in pairs]
    rows, single = [], ""
    for new, old in pairs:
        if old not in models:
            continue
        estimate = paired(scores, {new: 1.0, old: -1.0}).times(100)
        if estimate.n_seeds == 1 < seeds:
            single = (
                f"{new} over {old}: one training seed does not show how much seeds differ; plan with --seeds 1, or run "
                "two"
            )
            continue
        error = estimate.spread.at(items / estimate.n_items, seeds / estimate.n_seeds) ** 0.5
        freedom = _freedom(estimate, items, seeds)
        half, planned = (estimate.high - estimate.low) / 2, float(special.stdtrit(freedom, 0.975) * error)
        rows.append((f"{new} over {old}", estimate.difference, half, planned, detectable(error, freedom)))
    if not rows:
        absent = "no evaluations of SFT and a SPIN iteration on tasks that count; run one seed first"
        raise StatisticsError(single or absent)
    return pd.DataFrame(rows, columns=["contrast", "difference", "half", "planned", "detectable"])


def detectable(error: float, freedom: float) -> float:
    """The smallest true difference, with this standard error, whose 95 % interval would exclude 0 in 80 % of runs."""
    return float(special.stdtrit(freedom, [0.975, 0.8]).sum() * error)


def _freedom(estimate: Estimate, items: int, seeds: int) -> float:
    """Satterthwaite's degrees of freedom for the planned run."""
    more = seeds / estimate.n_seeds
    seed_part = estimate.spread.seeds / more
    total = estimate.spread.at(items / estimate.n_items, more)
    doubt = (total - seed_part) ** 2 / max(1, items - 1)
    doubt += seed_part**2 / (seeds - 1 + POOLED_DF) if seeds > 1 else 0.0
    return max(1.0, total**2 / doubt) if doubt else inf


def to_decide(
    estimate: Estimate, margin: float, *, claim: Claim = "greater", value: float = 0.0
) -> tuple[int, int] | None:
    """How many items (same seeds) or seeds (same items) would settle a claim if the estimate stays the same.

    Either number is 0 if `MOST` times as many would not be enough on their own; None if neither settles it, for example
    when the estimate lies on the border of two verdicts. Arguments as in `statistics.verdict`.
    """
    # From the middle of the interval, so that an undecided claim always needs more than it has.
    x, half = (estimate.low + estimate.high) / 2, (estimate.high - estimate.low) / 2
    distance = {
        "greater": max(x, margin - x),
        "less": max(-x, margin + x),
        "not_less": abs(x + margin),
        "at_least": abs(x - value),
        "at_most": abs(x - value),
        "same_size": abs(abs(x - value) - margin),
    }[claim]
    spread = estimate.spread
    allowed = spread.at() * (distance / half) ** 2 if half else 0.0
    items = _multiple(spread.items + spread.interaction, allowed - spread.seeds)
    seeds = _multiple(spread.interaction + spread.seeds, allowed - spread.items)
    if not items and not seeds:
        return None
    return ceil(items * estimate.n_items), ceil(seeds * estimate.n_seeds)


def _multiple(variance: float, room: float) -> float:
    """By how much to multiply a number of items or seeds so that their variance has room; 0 if that is out of reach."""
    return max(1.0, variance / room) if variance < MOST * room else 0.0


def needed(estimate: Estimate, margin: float, *, claim: Claim = "greater", value: float = 0.0) -> str:
    """How large a run would decide a claim, in words. Arguments as in `to_decide`."""
    found = to_decide(estimate, margin, claim=claim, value=value)
    if found is None:
        return "no run of a feasible size would decide it if the difference stays as measured"
    items, seeds = found
    ways = [f"{items:,} items"] * (items > 0) + [f"{seeds} training seeds"] * (seeds > 0)
    return f"about {' or '.join(ways)} would decide it if the difference stays as measured"
