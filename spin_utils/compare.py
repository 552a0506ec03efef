"""Two models of a run, task by task, on the same items."""

from __future__ import annotations

import pandas as pd

from spin_utils import paths, results
from spin_utils.statistics import paired_bootstrap


def compare(profile: str, model: str, other: str) -> pd.DataFrame:
    """Paired differences between two evaluated models, in points.

    Args:
        profile: name of the profile whose results are read.
        model: such as `spin-3`.
        other: what it is compared with, such as `sft`.

    Returns:
        A row per task and one for their unweighted mean: `task`, the two scores, `difference`, its 95 % interval
        `low` and `high`, `p_value`, `items` and `seeds`.

    Raises:
        ResultsError: no or invalid results.
        StatisticsError: a model was not evaluated, or no training seed has both.
    """
    scores = results.load_evaluations(paths.results(profile))
    if scores.empty:
        raise results.ResultsError(f"{paths.relative(paths.results(profile))}: no evaluations; reproduce it first")
    names = sorted(scores["task"].unique())
    rows = []
    for title, tasks in [*((name, [name]) for name in names), ("average", names)]:
        one, two = (paired_bootstrap(scores, {name: 1}, tasks=tasks).times(100).difference for name in (model, other))
        gain = paired_bootstrap(scores, {model: 1, other: -1}, tasks=tasks).times(100)
        rows.append(
            {
                "task": title,
                model: one,
                other: two,
                "difference": gain.difference,
                "low": gain.low,
                "high": gain.high,
                "p_value": gain.p_value,
                "items": gain.n_items,
                "seeds": gain.n_seeds,
            }
        )
    return pd.DataFrame(rows)
