"""How sure a number is: paired bootstrap intervals, and verdicts by a stated rule.

All models are scored on the same items, so a difference is judged on per-item differences: much of what makes
an item hard is common to both models and cancels. Items are resampled within their task, because the average
is the unweighted mean over tasks; items that share one of many sources, such as a subject of MMLU, are resampled
together. With several training seeds the seeds are resampled too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]
Claim = Literal["greater", "less", "not_less", "at_least", "at_most", "same_size"]

DIRECTION_MARGIN = 0.5
"""Points: a smaller gain counts as none. Half of what Table 4 gains on average over an iteration."""
SIZE_MARGIN = 2.0
"""Points: gains this close to the paper's count as being of the same size, see `size_margin`."""

LEAST_SOURCES = 10
"""Sources of a task that can be resampled whole, as the ten questions of a category of MT-Bench are. Fewer cannot show
how sources differ: of 600 simulations of 120 items that do not depend on their source, 95 % intervals held the truth in
69 % with two sources, in 86 % with five and in 93 % with ten; drawn by item in 95 to 96 %."""
RANGES = {**dict.fromkeys(("score", "identical", "similarity"), (0.0, 1.0)), "grade": (1.0, 10.0)}
"""Least and greatest value of an item, for the columns that have them."""

Array = npt.NDArray[np.float64]


class StatisticsError(ValueError):
    """The scores do not allow the comparison. The message names what is missing."""


@dataclass(frozen=True)
class Estimate:
    """A score, a difference or another contrast of models, with its interval."""

    difference: float
    """The estimate, in the units of the column it was made from (for one model: its mean)."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    p_value: float
    """Two-sided, for a true value of 0: the smallest level at which the interval leaves 0 out."""
    n_items: int
    """Items over all tasks, each counted once however many seeds answered it."""
    n_seeds: int
    """Training seeds on which all models of the contrast were run."""
    method: str
    """What was resampled, in words."""

    def times(self, factor: float) -> Estimate:
        """The same estimate in other units, such as points for shares (100)."""
        low, high = sorted((self.low * factor, self.high * factor))
        return replace(self, difference=self.difference * factor, low=low, high=high)


def paired_bootstrap(
    scores: pd.DataFrame,
    contrast: Mapping[str, float],
    *,
    tasks: Sequence[str] | None = None,
    column: str = "score",
    resamples: int = 4_000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate a weighted sum of models' means on the same items, with a percentile bootstrap interval.

    One resample draws, within each task, as many items as it has, with replacement and for all models at
    once. Items named SOURCE/NUMBER share a source: then sources are drawn, each with all its items, where a task has
    `LEAST_SOURCES` of them. With one seed the interval covers the choice of items only, and `method` says so.

    Where no resample differs from another, as when two models answer every item alike, the interval is not of width
    0: of m items, a share of 1 - 0.025^(1/m) may be of another kind and yet all m be of this one in one case of 40
    (the rule of three, for 95 %), so each end lies by that share nearer to the end of what is possible.

    Of S > 1 training seeds it also draws S - 1, with replacement. The mean of m draws has the variance
    (S - 1)/S s^2/m, where s^2 is the unbiased variance between seeds; m = S - 1 makes it s^2/S, which is the unbiased
    estimate of what is wanted, and m = S would give two thirds of it for S = 3 (Rao and Wu 1988, J. Am. Stat. Assoc.
    83, whose rescaling is 1 for this m). That is not why intervals may be wide. Items and seeds are crossed, and no
    bootstrap is exact there (McCullagh 2000): one that draws both counts three times what is of a single seed and item
    alone (Owen 2007, Ann. Appl. Stat. 1), so where seeds do not differ otherwise the interval is up to sqrt(3) = 1.7
    times too wide. The opposite error is at the other end: percentiles lie between the seeds that there are. Where the
    difference between seeds is all there is, the interval of two or three is their range, which covers the truth in
    1 - 2^(1 - S) of all cases: 50 % with two seeds, 75 % with three. Few seeds cannot show their own spread.

    Args:
        scores: Long table with `seed`, `model`, `task`, `id` and `column`.
        contrast: Weight of each model: {"spin-0": 1, "sft": -1} for a difference, {"sft": 1} for a mean.
        tasks: Tasks of the unweighted mean; None: all of the table.
        column: What is averaged: `score`, or `tokens` for lengths.
        resamples: Bootstrap resamples.
        level: Coverage of the interval.
        seed: Seed of the resampling. The same arguments give the same result.

    Raises:
        StatisticsError: A model or task is absent, no seed has all models, or items do not pair up.
    """
    names = sorted(scores["task"].unique() if tasks is None else tasks)
    by_task, seeds = _contrasts_by_source(scores, contrast, names, column)
    n_seeds = len(seeds)
    estimate = float(np.mean([sums.mean(axis=0).sum() / sizes.sum() for sums, sizes in by_task.values()]))
    draws = np.mean([_resampled_means(*parts, resamples, seed, task) for task, parts in by_task.items()], axis=0)
    if n_seeds > 1:
        chosen = np.random.default_rng([seed, n_seeds]).integers(0, n_seeds, size=(n_seeds - 1, resamples))
        draws = np.take_along_axis(draws, chosen, axis=0)
    totals = draws.mean(axis=0)
    totals = totals.round(9)  # what differs below depends on the order of summation, not on the data
    low, high = np.quantile(totals, [(1 - level) / 2, (1 + level) / 2])
    if low == high and column in RANGES:
        drawn = len(by_task) * min(len(sizes) for _, sizes in by_task.values())
        share = 1 - ((1 - level) / 2) ** (1 / drawn)
        least, most = _possible(contrast, column)
        low, high = low + share * (least - low), high + share * (most - high)
    below, above = int((totals <= 0).sum()), int((totals >= 0).sum())
    return Estimate(
        difference=round(estimate, 9),
        low=round(float(low), 9),
        high=round(float(high), 9),
        p_value=min(1.0, 2 * (1 + min(below, above)) / (resamples + 1)),
        n_items=sum(int(sizes.sum()) for _, sizes in by_task.values()),
        n_seeds=n_seeds,
        method=f"paired bootstrap of items within {len(names)} task{'s' * (len(names) > 1)}, "
        + (f"and of {n_seeds} training seeds" if n_seeds > 1 else "one training seed: its choice is not covered")
        + f"; {resamples} resamples, {level:.0%} percentile interval",
    )


def _possible(contrast: Mapping[str, float], column: str) -> tuple[float, float]:
    """The least and the greatest value that a contrast can have."""
    ends = [sorted(weight * end for end in RANGES[column]) for weight in contrast.values()]
    return sum(low for low, _ in ends), sum(high for _, high in ends)


def sources(ids: Sequence[str]) -> list[str]:
    """What is resampled whole for each of a task's items: its source, the name before the last slash, or itself.

    >>> sources(["a/1", "a/2", "b/1"])  # too few sources
    ['a/1', 'a/2', 'b/1']
    """
    found = [name.rpartition("/")[0] or f"/{name}" for name in ids]
    return found if len(set(found)) >= LEAST_SOURCES else list(ids)


def size_margin(paper: float, most: float = SIZE_MARGIN) -> float:
    """How near to a gain of the paper is as large as it: `most` points, but at most half of the gain.

    Without that half no gain at all would pass for one of the paper's small ones.

    >>> size_margin(5.02), round(size_margin(0.19), 3)
    (2.0, 0.095)
    """
    return min(most, abs(paper) / 2)


def verdict(estimate: Estimate, margin: float, *, claim: Claim = "greater", value: float = 0.0) -> Verdict:
    """Judge a claim by the interval of an estimate.

    | claim | reproduced if | not reproduced if |
    |---|---|---|
    | `greater`: the contrast is above 0 | low > 0 | high < margin |
    | `less`: it is below 0 | high < 0 | low > -margin |
    | `not_less`: no loss worth mentioning | low > -margin | high < -margin |
    | `at_least`: it reaches `value` | low >= value | high < value |
    | `at_most`: it stays below `value` | high <= value | low > value |
    | `same_size`: it is as large as `value` | the interval lies within value ± margin | it lies outside |

    Everything else is inconclusive: the data allow both. "In the same direction as the paper" (`greater` or
    `less`) and "of the same size" (`same_size`) are separate statements with separate verdicts. With `greater`,
    a gain that is surely smaller than the margin counts as not reproduced unless it is surely above 0.

    Args:
        estimate: The contrast with its interval.
        margin: The smallest difference that counts, in the estimate's units, above 0.
        claim: The rule.
        value: The threshold of `at_least` and `at_most`, or the size of `same_size`, usually the paper's.
    """
    if margin <= 0:
        raise StatisticsError(f"margin is {margin}; give the smallest difference that counts, above 0")
    low, high = estimate.low, estimate.high
    holds, fails = {
        "greater": (low > 0, high < margin),
        "less": (high < 0, low > -margin),
        "not_less": (low > -margin, high < -margin),
        "at_least": (low >= value, high < value),
        "at_most": (high <= value, low > value),
        "same_size": (
            value - margin < low and high < value + margin,
            high < value - margin or low > value + margin,
        ),
    }[claim]
    if holds:
        return "reproduced"
    return "not reproduced" if fails else "inconclusive"


def _contrasts_by_source(
    scores: pd.DataFrame, contrast: Mapping[str, float], tasks: Sequence[str], column: str
) -> tuple[dict[str, tuple[Array, Array]], list[int]]:
    """By task, the contrast summed over the items of each source, of shape (seeds, sources), and the sources' sizes;
    and the seeds. An item without a source is its own."""
    chosen = scores.loc[scores["model"].isin(list(contrast)), ["model", "seed", "task", "id", column]]
    runs = chosen[["model", "seed"]].drop_duplicates()
    seeds_of = {model: set(runs["seed"][runs["model"] == model]) for model in contrast}
    absent = [model for model, found in seeds_of.items() if not found]
    if absent:
        raise StatisticsError(f"no evaluation of {', '.join(absent)}")
    seeds = sorted(set.intersection(*seeds_of.values()))
    if not seeds:
        raise StatisticsError(f"no training seed has all of {', '.join(contrast)}; run the missing ones")
    chosen = chosen[chosen["seed"].isin(seeds) & chosen["task"].isin(list(tasks))]
    table = chosen.pivot(index=["model", "seed"], columns=["task", "id"], values=column).sort_index(axis=1)
    # Plain arrays from here on: a look into the table takes pandas longer than all that follows.
    models, values = table.index.get_level_values("model").to_numpy(), table.to_numpy(dtype=float)
    found, ids = (table.columns.get_level_values(level).to_numpy() for level in ("task", "id"))
    by_task = {}
    for task in tasks:
        columns = np.flatnonzero(found == task)
        if not len(columns):
            raise StatisticsError(f"task {task!r} was not evaluated for {', '.join(contrast)}")
        of_task = values[:, columns]
        if np.isnan(of_task).any():
            raise StatisticsError(f"task {task!r}: models or seeds were scored on different items; evaluate them again")
        items = sum((weight * of_task[models == model] for model, weight in contrast.items()), np.zeros(()))
        drawn = sources([str(item) for item in ids[columns]])
        _, source, sizes = np.unique(drawn, return_inverse=True, return_counts=True)
        sums = np.array([np.bincount(source, weights=row, minlength=len(sizes)) for row in items])
        by_task[task] = sums, sizes.astype(float)
    return by_task, [int(number) for number in seeds]


def _resampled_means(sums: Array, sizes: Array, resamples: int, seed: int, task: str) -> Array:
    """Means over resampled sources. `sums` has shape (seeds, sources), the result (seeds, resamples)."""
    counts = _counts(len(sizes), resamples, seed, zlib.crc32(task.encode()))
    rows = max(1, 2_000_000 // len(sizes))  # a float copy of this many rows of counts at a time
    parts = []
    for start in range(0, resamples, rows):
        drawn = counts[start : start + rows].T.astype(float)
        parts.append((sums @ drawn) / (sizes @ drawn))
    return np.concatenate(parts, axis=1)


@lru_cache(maxsize=16)
def _counts(sources: int, resamples: int, seed: int, stream: int) -> npt.NDArray[np.uint8]:
    """How often each source is drawn in each resample; shape (resamples, sources). A task has its own stream."""
    generator = np.random.default_rng([seed, stream])
    counts = np.empty((resamples, sources), dtype=np.uint8)
    rows = max(1, 2_000_000 // sources)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, sources, size=(min(rows, resamples - start), sources))
        drawn += sources * np.arange(len(drawn))[:, None]  # every resample has numbers of its own
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts
