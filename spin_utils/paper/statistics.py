"""Intervals for paired comparisons over items and training seeds, and the rule that turns them into verdicts.

All models are scored on the same items, so comparisons use per-item differences: most of what makes an item hard is
common to both models and cancels. Items and training seeds are crossed (every seed answers every item), so the variance
of a mean has three components: items, seeds, and their interaction. They are estimated by an analysis of variance
within tasks and combined with Satterthwaite's approximation (Searle, Casella and McCulloch, Variance Components, 1992,
chapters 4 and 5). docs/statistics.md has the simulated coverage, from benchmarks/coverage.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special  # `scipy.stats` takes a second to import

from spin_utils.files.paths import KitError

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]
Claim = Literal["greater", "less", "not_less", "at_least", "at_most", "same_size"]

DIRECTION_MARGIN = 0.5
"""In points: a smaller gain counts as none. About half of Table 4's mean gain per iteration."""
SIZE_MARGIN = 2.0
"""In points: gains this close to the paper's count as the same size, see `size_margin`."""

LEAST_SOURCES = 10
"""Sources (for example MMLU's subjects) a task needs before its items are treated as clusters. With fewer, the
variance between sources cannot be estimated: in 600 simulations of 120 independent items, 95 % intervals by source
covered the truth in 69 % with two sources, 86 % with five and 93 % with ten."""
SHARES = ("score", "sampled", "identical", "similarity", "told_apart", "discriminator")
"""Columns whose values lie between 0 and 1."""
POOLED_DF = 4
"""Degrees of freedom given to the pooled variance between seeds. A higher number would rely more on all models varying
alike."""

Array = npt.NDArray[np.float64]


class StatisticsError(KitError):
    """The scores do not allow this comparison. The message names what is missing."""


@dataclass(frozen=True)
class Spread:
    """Variance components of an estimate; the three add up to its variance."""

    items: float = 0.0
    """From items, if every seed gave the same answers."""
    interaction: float = 0.0
    """From answers that vary between seeds, differently for each item."""
    seeds: float = 0.0
    """From training seeds that shift all items alike."""

    def at(self, items: float = 1.0, seeds: float = 1.0) -> float:
        """The variance with the numbers of items and seeds multiplied by these factors.

        >>> Spread(items=4, interaction=2, seeds=1).at(items=2, seeds=1)
        4.0
        """
        return self.items / items + self.interaction / (items * seeds) + self.seeds / seeds


@dataclass(frozen=True)
class Estimate:
    """A score, a difference or another contrast of models, with its interval."""

    difference: float
    """The estimate, in the units of its column (for a single model: the mean)."""
    low: float
    high: float
    p_value: float
    """Two-sided, for a true value of 0: one minus the largest level whose interval excludes 0."""
    n_items: int
    """Items over all tasks, each counted once, regardless of seeds."""
    n_seeds: int
    """Training seeds on which all models of the contrast were run."""
    method: str
    """How the interval was computed, in words."""
    spread: Spread = Spread()
    """Variance components, for planning."""

    def times(self, factor: float) -> Estimate:
        """The same estimate in other units, for example shares in points (100)."""
        low, high = sorted((self.low * factor, self.high * factor))
        parts = Spread(*(factor**2 * part for part in (self.spread.items, self.spread.interaction, self.spread.seeds)))
        return replace(self, difference=self.difference * factor, low=low, high=high, spread=parts)


def paired(
    scores: pd.DataFrame,
    contrast: Mapping[str, float],
    *,
    tasks: Sequence[str] | None = None,
    column: str = "score",
) -> Estimate:
    """Estimate a weighted sum of models' means on the same items, with its interval.

    The contrast of training seed s and item i is d[s, i]. The estimate is its mean over tasks of the mean over items
    and seeds; its variance, for S seeds and T tasks of n items, is estimated as

        V = V_items + max(0, V_seeds - V_rest)

    with V_items = sum over tasks of var_i(mean_s d) / (n T^2), V_seeds = var_s(mean over tasks and items) / S, and
    V_rest = sum of MS_interaction / (S n T^2), the interaction, which both include. The interval is Student's t with
    Satterthwaite's degrees of freedom. With one seed V is V_items.

    V_seeds is at least its weighted mean with the variance between seeds of all models, which has `POOLED_DF` degrees
    of freedom (moderated variances: Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3, with a fixed prior). `sources` are
    clusters. For shares near 0 and 1, pseudo-items at both ends of the range, one for a difference and two for a mean
    over all tasks, move the interval but not the estimate (Agresti and Coull 1998; Bonett and Price 2012). They count
    less the more answers lie between right and wrong, as a ROUGE does, and so vary less.

    Args:
        scores: long table with `seed`, `model`, `task`, `id` and `column`.
        contrast: weight of each model: {"spin-0": 1, "sft": -1} for a difference, {"sft": 1} for a mean.
        tasks: tasks in the unweighted mean; None: all in the table.
        column: what to average, for example `tokens` for lengths.

    Raises:
        StatisticsError: a model or task is missing, no seed has all models, or items do not pair up.
    """
    names = sorted(scores["task"].unique() if tasks is None else tasks)
    by_task, seeds, extreme = _contrasts_by_source(scores, contrast, names, column)
    pooled = _pooled_seed_variance(scores, contrast, seeds, names, column) if len(seeds) > 1 else None
    least, most, pseudo = _ends(contrast, column)
    found = crossed(list(by_task.values()), (least, most, pseudo * extreme), pooled=pooled)
    return replace(found, low=max(least, found.low), high=min(most, found.high)) if column in SHARES else found


def crossed(
    tasks: Sequence[tuple[Array, Array]],
    ends: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    pooled: float | None = None,
) -> Estimate:
    """Does the computation of `paired` on arrays; an interval of shares may reach beyond their ends.

    Args:
        tasks: for each task the contrast summed over the items of each cluster, shape (seeds, clusters), and the
            cluster sizes, shape (clusters,); all tasks have the same seeds.
        ends: smallest and largest value of an item and the number of pseudo-items at each end, over all tasks.
        pooled: the contrast's variance between seeds estimated from other models, with `POOLED_DF` degrees of freedom.
    """
    least, most, pseudo = ends
    parts = zip(*(_components(*task, (least, most, pseudo / len(tasks))) for task in tasks), strict=True)
    of_tasks, centres, items, rests, degrees = map(np.array, parts)
    by_seed = of_tasks.mean(axis=0)
    items = items / len(tasks) ** 2
    rest = float(sum(rests)) / len(tasks) ** 2
    seeds, seed_part, seed_degrees, added = len(by_seed), 0.0, 1, 0.0
    if seeds > 1:
        seed_part, seed_degrees = float(by_seed.var(ddof=1)) / seeds, seeds - 1
        if pooled is not None:
            mean = (seed_degrees * seed_part + POOLED_DF * pooled / seeds) / (seed_degrees + POOLED_DF)
            seed_part, seed_degrees = max(seed_part, mean), seed_degrees + POOLED_DF
        added = max(0.0, seed_part - rest)
    variance = float(items.sum()) + added
    doubt = float((items**2 / degrees).sum()) + seed_part * added / seed_degrees
    freedom = max(1.0, variance**2 / doubt) if doubt else np.inf
    spread = Spread(items=max(0.0, float(items.sum()) - rest), interaction=min(rest, float(items.sum())), seeds=added)
    centre, error = float(centres.mean()), spread.at() ** 0.5
    half = float(special.stdtrit(freedom, 0.975)) * variance**0.5
    return Estimate(
        difference=round(float(by_seed.mean()), 9),
        low=round(centre - half, 9),
        high=round(centre + half, 9),
        p_value=float(2 * special.stdtr(freedom, -abs(centre) / error)) if error else float(not centre),
        n_items=sum(int(sizes.sum()) for _, sizes in tasks),
        n_seeds=seeds,
        method=f"paired; items within {len(tasks)} task{'s' * (len(tasks) > 1)}"
        + (f" crossed with {seeds} training seeds" if seeds > 1 else ", one training seed (not covered)")
        + f"; 95% interval from variance components, {min(freedom, 9999):.0f} degrees of freedom",
        spread=spread,
    )


def sources(ids: Sequence[str]) -> list[str]:
    """The cluster of each item of a task: its source, which is its id up to the last slash, or the item itself.

    >>> sources(["a/1", "a/2", "b/1"])  # too few sources
    ['a/1', 'a/2', 'b/1']
    """
    found = [name.rpartition("/")[0] or f"/{name}" for name in ids]
    return found if len(set(found)) >= LEAST_SOURCES else list(ids)


def size_margin(paper: float, most: float = SIZE_MARGIN) -> float:
    """How close to the paper's gain counts as the same size: `most` points, but at most half the gain.

    Without the half, no gain at all would count as the same size as one of the paper's small gains.

    >>> size_margin(5.02), round(size_margin(0.19), 3)
    (2.0, 0.095)
    """
    return min(most, abs(paper) / 2)


def verdict(estimate: Estimate, margin: float, *, claim: Claim = "greater", value: float = 0.0) -> Verdict:
    """Judge a claim by the interval of an estimate; what neither column says is inconclusive.

    | claim | reproduced if | not reproduced if |
    |---|---|---|
    | `greater`: the contrast is above 0 | low > 0 | high < margin |
    | `less`: it is below 0 | high < 0 | low > -margin |
    | `not_less`: no loss beyond the margin | low > -margin | high < -margin |
    | `at_least`: it reaches `value` | low >= value | high < value |
    | `at_most`: it does not exceed `value` | high <= value | low > value |
    | `same_size`: it is as large as `value` | the interval lies within value ± margin | it lies outside |

    The margin is the smallest difference that matters, above 0, and the value is usually the paper's. If both hold, as
    for a small gain that is wholly above 0 and below the margin, the claim is reproduced.
    """
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
) -> tuple[dict[str, tuple[Array, Array]], list[int], float]:
    """Per task, the contrast summed over the items of each source, shape (seeds, sources), and the sources' sizes;
    the seeds; and how extreme the items are. An item without a source is a source of its own."""
    grid = _grid(scores, column)
    seeds_of = {model: {seed for name, seed in grid.runs if name == model} for model in contrast}
    absent = [model for model, found in seeds_of.items() if not found]
    if absent:
        raise StatisticsError(f"no evaluation of {', '.join(absent)}")
    seeds = sorted(set.intersection(*seeds_of.values()))
    if not seeds:
        raise StatisticsError(f"no training seed has all of {', '.join(contrast)}; run the missing ones")
    rows = {model: [grid.runs[model, seed] for seed in seeds] for model in contrast}
    every = sorted({row for found in rows.values() for row in found})
    by_task, answers = {}, []
    for task in tasks:
        values, ids = grid.tasks.get(task, (np.empty((len(grid.runs), 0)), np.empty(0)))
        scored = ~np.isnan(values[every]).all(axis=0)
        gaps = np.isnan(values[every][:, scored])
        if gaps.all(axis=1).any():
            raise StatisticsError(f"task {task!r} was not evaluated for every model and seed; run the missing ones")
        if gaps.any():
            raise StatisticsError(f"task {task!r}: models or seeds were scored on different items; evaluate them again")
        items = sum((weight * values[rows[model]][:, scored] for model, weight in contrast.items()), np.zeros(()))
        drawn = sources([str(item) for item in ids[scored]])
        _, source, sizes = np.unique(drawn, return_inverse=True, return_counts=True)
        sums = np.array([np.bincount(source, weights=row, minlength=len(sizes)) for row in items])
        by_task[task] = sums, sizes.astype(float)
        answers.append(items)
    if not by_task:
        raise StatisticsError("no task counts: all are at chance or aside")
    return by_task, seeds, extremity(answers)


def extremity(answers: Sequence[Array]) -> float:
    """1 if every item, or difference of two, is -1, 0 or 1; the closer to 0 they are, the less.

    >>> extremity([np.array([0.0, 1.0, 1.0])]), extremity([np.array([0.0, 0.25, 0.25])])
    (1.0, 0.25)
    """
    size = sum(float(abs(items).sum()) for items in answers)
    return min(1.0, sum(float((items**2).sum()) for items in answers) / size) if size else 1.0


@dataclass(frozen=True)
class _Grid:
    """A table of scores as arrays, with a row for each run."""

    runs: dict[tuple[str, int], int]
    """The row of each model and seed."""
    tasks: dict[str, tuple[Array, npt.NDArray[np.object_]]]
    """Values of each task, shape (runs, items), NaN where a run has no such item; and the items' ids."""
    means: dict[str, pd.Series]
    """Of each task, over the items that a run has."""
    interactions: dict[tuple[tuple[int, ...], tuple[str, ...]], float | None] = field(default_factory=dict)
    """What `_interaction` found, by seeds and tasks."""


_GRIDS: dict[tuple[int, str], tuple[weakref.ref[pd.DataFrame], float, _Grid]] = {}


def _grid(scores: pd.DataFrame, column: str) -> _Grid:
    """The table's grid, made once: hundreds of contrasts are computed from one table, and pandas is slow at it. Made
    again if the values' sum is another one, for a table that was changed in place."""
    key, total = (id(scores), column), float(np.nansum(scores[column].to_numpy(dtype=float)))
    if key in _GRIDS and _GRIDS[key][0]() is scores and _GRIDS[key][1] == total:
        return _GRIDS[key][2]
    table = scores.pivot(index=["model", "seed"], columns=["task", "id"], values=column).sort_index(axis=1)
    found, ids = (table.columns.get_level_values(level).to_numpy() for level in ("task", "id"))
    values = table.to_numpy(dtype=float)
    runs = {(str(model), int(seed)): row for row, (model, seed) in enumerate(table.index)}
    tasks = {task: (values[:, found == task], ids[found == task]) for task in np.unique(found)}
    grid = _Grid(runs, tasks, {task: pd.DataFrame(items).mean(axis=1) for task, (items, _) in tasks.items()})
    _GRIDS[key] = weakref.ref(scores, lambda _: _GRIDS.pop(key, None)), total, grid
    return grid


def _components(sums: Array, sizes: Array, ends: tuple[float, float, float]) -> tuple[Array, float, float, float, int]:
    """Variance components of one task. `sums` has shape (seeds, clusters), `sizes` (clusters,). A mean over items is a
    ratio of sums over clusters, and a cluster's residual is its sum minus its size times the mean.

    Returns:
        The mean over items for each seed; the mean over both, with the pseudo-items; its variance due to items,
        interaction with seeds included; that due to the interaction alone; the degrees of freedom of the former.
    """
    (seeds, clusters), n = sums.shape, float(sizes.sum())
    by_seed = sums.sum(axis=1) / n
    correction = clusters / max(1, clusters - 1)
    around = sums - by_seed[:, None] * sizes
    rest = 0.0
    if seeds > 1:
        rest = correction * float(((around - around.mean(axis=0)) ** 2).sum()) / (seeds - 1) / seeds / n**2
    own = correction * float((around.mean(axis=0) ** 2).sum()) / n**2
    least, most, pseudo = ends
    # Averaging over seeds leaves this share of one answer's variance, so pseudo-items weigh as much less.
    pseudo *= own / (own + (seeds - 1) * rest) if own else 1.0
    centre = (float(sums.mean(axis=0).sum()) + pseudo * (least + most)) / (n + 2 * pseudo)
    squares = float(((sums.mean(axis=0) - centre * sizes) ** 2).sum())
    squares += pseudo * ((least - centre) ** 2 + (most - centre) ** 2)
    items = correction * squares / (n + 2 * pseudo) ** 2
    return by_seed, centre, items, rest, max(1, clusters - 1)


def _ends(contrast: Mapping[str, float], column: str) -> tuple[float, float, float]:
    """Smallest and largest value of a contrast of shares, and the number of pseudo-items at each end."""
    if column not in SHARES:
        return 0.0, 0.0, 0.0
    weights = list(contrast.values())
    is_difference = abs(sum(weights)) < 1e-9
    return sum(w for w in weights if w < 0), sum(w for w in weights if w > 0), 1.0 if is_difference else 2.0


def _pooled_seed_variance(
    scores: pd.DataFrame, contrast: Mapping[str, float], seeds: Sequence[int], tasks: Sequence[str], column: str
) -> float | None:
    """Variance of a contrast between seeds if all models in the table vary alike from seed to seed: the mean square of
    the interaction of seeds and models times the sum of squared weights. None for a mean, which also includes what all
    models of a seed share, and for tables with fewer than three models on all these seeds."""
    if abs(sum(contrast.values())) > 1e-9:
        return None
    mean_square = _interaction(_grid(scores, column), tuple(seeds), tuple(tasks))
    return None if mean_square is None else mean_square * sum(weight**2 for weight in contrast.values())


def _interaction(grid: _Grid, seeds: tuple[int, ...], tasks: tuple[str, ...]) -> float | None:
    """Mean square of the interaction of seeds and models, computed once. A model under two names counts once, and one
    that no seed changes, the base model, not at all."""
    if (seeds, tasks) in grid.interactions:
        return grid.interactions[seeds, tasks]
    means = np.mean([grid.means[task] for task in tasks], axis=0)
    by_model = pd.Series(means, index=pd.MultiIndex.from_tuples(grid.runs)).unstack()[list(seeds)]
    by_model = by_model.dropna().drop_duplicates()
    table = by_model[by_model.nunique(axis=1) > 1].to_numpy().T
    found = None
    if table.shape[1] >= 3:
        around = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        found = float((around**2).sum()) / ((table.shape[0] - 1) * (table.shape[1] - 1))
    grid.interactions[seeds, tasks] = found
    return found
