"""Compare two models, from one run or two, task by task on the same items."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from spin_utils.files import paths
from spin_utils.paper import results
from spin_utils.paper.statistics import paired
from spin_utils.settings.names import iterates
from spin_utils.settings.profiles import nearest


def compare(profile: str, model: str, other: str) -> pd.DataFrame:
    """Paired differences between two evaluated models, in points.

    Args:
        profile: name of the profile whose results are read.
        model: for example `spin-3`; `NAME/spin-3` is the one from profile NAME, and `NAME` its last iterate.
        other: the model to compare it with, for example `sft`.

    Returns:
        One row per task they share and one for the unweighted mean of those that Table 4 averages, if any: `task`,
        the two scores, `difference`, its 95 % interval `low` and `high`, `p_value`, `items` and `seeds`; all over the
        training seeds they share. Errors as in `items`.
    """
    both = items(profile, model, other)
    folders = dict.fromkeys(place(profile, name)[0] for name in (model, other))
    tables = {folder.name: results.load_evaluations(folder) for folder in folders}
    others = pd.concat(table.assign(model=f"{run}/" + table["model"]) for run, table in tables.items())
    shared = others["task"].isin(both["task"]) & others["seed"].isin(both["seed"])
    every = pd.concat([both, others[shared & ~others["model"].isin([model, other])]])
    names = sorted(both["task"].unique())
    averaged, rows = results.judged(both), []
    for title, tasks in [*((name, [name]) for name in names), *[("average", averaged)] * bool(averaged)]:
        levels = {name: paired(both, {name: 1}, tasks=tasks).times(100).difference for name in (model, other)}
        gain = paired(every, {model: 1, other: -1}, tasks=tasks).times(100)
        numbers = {name: getattr(gain, name) for name in ("difference", "low", "high", "p_value")}
        rows.append({"task": title, **levels, **numbers, "items": gain.n_items, "seeds": gain.n_seeds})
    return pd.DataFrame(rows)


def place(profile: str, name: str) -> tuple[Path, str]:
    """Results folder and plain name of a model: of `spin-3` in the profile, of `mine/spin-3`, or for the name of
    another run, `mine`, of its last iterate."""
    folder, _, plain = name.rpartition("/")
    if not folder and results.training_seeds(paths.results(plain)):
        measured = iterates(path.stem for path in paths.results(plain).glob("seed-*/evaluations/spin-*.json"))
        return paths.results(plain), (measured or ["sft"])[-1]
    return paths.results(folder or profile), plain


def items(profile: str, model: str, other: str) -> pd.DataFrame:
    """Scores and answers of two models on the items and training seeds that they share, as `results.load_evaluations`
    gives them, with the names given here in the column `model`; arguments as in `compare`.

    Raises:
        ResultsError: results are missing or invalid, a model was not evaluated, the two share no training seed or
            task, they were tested on different data, or one profile has results of two runs.
    """
    places = {name: place(profile, name) for name in (model, other)}
    if len(set(places.values())) == 1:
        raise results.ResultsError(f"{model}: compared with itself; name another model")
    sides, asked = [], []
    for name, (folder, plain) in places.items():
        results.check_one_run(folder)
        scores, summaries = results.load_evaluations(folder), results.load_summaries(folder)
        if scores.empty:
            raise results.ResultsError(f"{paths.relative(folder)}: no evaluations; reproduce it first")
        if not (scores["model"] == plain).any():
            there = nearest(plain, sorted(scores["model"].unique()))
            raise results.ResultsError(f"{paths.relative(folder)}: no evaluation of {plain}{there}")
        sides.append(scores[scores["model"] == plain].assign(model=name))
        own = summaries[summaries["model"] == plain]
        asked.append(dict(zip(own["task"], own["rows_sha256"], strict=True)))
    seeds, names = (set.intersection(*(set(side[column]) for side in sides)) for column in ("seed", "task"))
    if not (seeds and names):
        raise results.ResultsError(f"{model} and {other}: no seed or no task in common; evaluate the missing ones")
    differing = sorted(name for name in names if asked[0][name] != asked[1][name])  # or not known: NaN in old results
    if differing and len({folder for folder, _ in places.values()}) == 2:
        raise results.ResultsError(
            f"{model} and {other}: their test rows of {', '.join(differing)} are not known to be the same, so items do "
            "not pair up; reproduce both on the same rows"
        )
    return pd.concat(side[side["seed"].isin(seeds) & side["task"].isin(names)] for side in sides)
