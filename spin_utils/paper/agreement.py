"""Agreement: whether a run's scores lie where its profile's committed results predict them.

A user's run replaces the committed results in their checkout, so `numbers` keeps the mean and standard deviation over
training seeds of each model and task. With the same settings the items are the same, and runs differ only by seeds and
rounding: k new seeds should lie within the prediction interval mean ± t sd sqrt(1/S + 1/k) of S committed ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from spin_utils.files.disk import write_text
from spin_utils.paper import results
from spin_utils.paper.statistics import POOLED_DF
from spin_utils.settings.names import label

AVERAGE = "average"
DISAGREES = 0.01
"""A run disagrees if scores as far off as its own would come about by chance in fewer runs than this share."""


@dataclass(frozen=True)
class Agreement:
    """A run compared with the committed results."""

    cells: pd.DataFrame
    """Scores by `model` and `task` in points: `value`, the prediction interval `low` and `high`, `inside`, `p_value`.
    Empty if nothing can be compared."""
    p_value: float
    """For all cells together."""
    statement: str
    """In a sentence."""


def committed(profile: str) -> Path:
    """File with the committed distribution of a profile's scores, which may not exist."""
    return Path(__file__).parent / "numbers" / f"committed_{profile}.csv"


def by_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores in points by `model`, `task` and `seed`, with the number of `items`. The task `average` is that of the
    tasks that are `results.judged`."""
    groups = scores.groupby(["model", "task", "seed"])["score"]
    tasks = groups.agg(value="mean", items="size").reset_index()
    averaged = tasks[tasks["task"].isin(results.judged(scores))].groupby(["model", "seed"])
    average = averaged.agg(value=("value", "mean"), items=("items", "sum")).reset_index()
    return pd.concat([tasks, average.assign(task=AVERAGE)]).assign(value=lambda found: 100 * found["value"])


def distribution(scores: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Mean and standard deviation over training seeds of every model and task in results/PROFILE, whose scores and
    folder these are.

    `seed` and `key` name one evaluation of each model, whose key stands for the settings of all.
    """
    first = {}
    for path in sorted(folder.glob("seed-*/evaluations/*.json")):
        if path.stem not in first:
            document = results.read_json(path)
            provenance = document["provenance"]
            first[path.stem] = document["seed"], provenance["chain"][provenance["step"]]["key"]
    table = summary(by_seed(scores[scores["model"].isin(first)]))
    return table.assign(**{name: [first[m][i] for m in table["model"]] for i, name in enumerate(("seed", "key"))})


def summary(values: pd.DataFrame) -> pd.DataFrame:
    """`items`, number of `seeds`, `mean` and `sd` of every model and task in a table of `by_seed`."""
    made = values.groupby(["model", "task"])
    table = made.agg(items=("items", "first"), seeds=("seed", "size"), mean=("value", "mean"), sd=("value", "std"))
    return table[table["seeds"] > 1].reset_index()


def write(profile: str, scores: pd.DataFrame, folder: Path) -> None:
    """Keep the distribution of a profile's scores as the committed one; arguments as in `distribution`."""
    write_text(committed(profile), distribution(scores, folder).to_csv(index=False, float_format="%.6g"))


def agree(values: pd.DataFrame, expected: pd.DataFrame, keys: Mapping[tuple[str, int], str]) -> Agreement:
    """Compare a run with the committed distribution.

    A few seeds estimate their own variance poorly, so it is moderated by that of all trained models on the task, as in
    `statistics.paired`, and is at least that of one item. All cells together are judged by Simes' test (1986,
    Biometrika 73), which allows for cells that vary together.

    Args:
        values: from `by_seed`.
        expected: from `distribution`.
        keys: for model and training seed, the key of the evaluation under the settings of the run.
    """
    named = zip(expected["model"], expected["seed"], expected["key"], strict=True)
    same = [keys.get((str(model), int(seed))) == key for model, seed, key in named]
    usable = expected[same]
    ours = values.groupby(["model", "task"]).agg(value=("value", "mean"), own_seeds=("seed", "size"))
    cells = usable.merge(ours.reset_index(), on=["model", "task"])
    if cells.empty:
        return Agreement(
            cells, 1.0, "The committed results were made with other settings: there is nothing to compare."
        )
    if (cells["own_seeds"] == cells["seeds"]).all() and np.allclose(cells["value"], cells["mean"], atol=1e-3):
        return Agreement(cells.iloc[:0], 1.0, "These are the committed results themselves.")
    seeded = cells.groupby("model")["sd"].transform("max") > 0  # all but the base model, which no seed changes
    of_task = cells.assign(variance=(cells["sd"] ** 2).where(seeded)).groupby("task")["variance"]
    free = cells["seeds"] - 1
    prior = np.clip(free * (of_task.transform("count") - 1), 0, POOLED_DF)
    degrees = free + prior
    variance = (free * cells["sd"] ** 2 + prior * of_task.transform("mean")) / degrees
    variance = np.maximum(variance.where(seeded, 0.0), (100 / cells["items"]) ** 2)
    error = np.sqrt(variance * (1 / cells["seeds"] + 1 / cells["own_seeds"]))
    half = special.stdtrit(degrees, 0.975) * error
    off = cells["value"] - cells["mean"]
    cells = cells.assign(
        low=np.maximum(0.0, cells["mean"] - half),
        high=np.minimum(100.0, cells["mean"] + half),
        inside=off.abs() <= half,
        p_value=2 * special.stdtr(degrees, -off.abs() / error),
    )
    p_value = float((np.sort(cells["p_value"]) * (len(cells) / np.arange(1, len(cells) + 1))).min())  # Simes
    return Agreement(cells, p_value, _in_words(cells, p_value))


def _in_words(cells: pd.DataFrame, p_value: float) -> str:
    outside, seeds = int((~cells["inside"]).sum()), int(cells["seeds"].max())
    counted = (
        f"{outside} of {len(cells)} scores lie outside their 95 % prediction interval from {seeds} committed training "
        f"seeds; {0.05 * len(cells):.1f} are expected by chance (all together: p = {p_value:.2g})"
    )
    if p_value >= DISAGREES:
        return f"This run agrees with the committed results: {counted}."
    worst = cells.iloc[int(cells["p_value"].argmin())]
    return (
        f"This run does not agree with the committed results: {counted}. Furthest off: {label(worst['model'])}, "
        f"{worst['task']}: {worst['value']:.1f}, predicted {worst['low']:.1f} to {worst['high']:.1f}."
    )
