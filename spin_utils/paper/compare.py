"""Compare two models, from one run or two, task by task on the same items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.files import paths
from spin_utils.paper import results
from spin_utils.paper.statistics import paired
from spin_utils.settings.inputs import BENCHMARKS
from spin_utils.settings.names import iterates
from spin_utils.settings.profiles import nearest


def compare(profile: str, model: str, other: str) -> pd.DataFrame:
    """Paired differences between two evaluated models, in points.

    Args:
        profile: name of the profile whose results are read.
        model: for example `spin-3`; `NAME/spin-3` is the one from profile NAME, and `NAME` its last iterate.
        other: the model to compare it with, for example `sft`.

    Returns:
        One row per task they share and one for the unweighted mean: `task`, the two scores, `difference`, its 95 %
        interval `low` and `high`, `p_value`, `items` and `seeds`; all over the training seeds they share.

    Raises:
        ResultsError: as `items` does.
    """
    both = items(profile, model, other)
    names = sorted(both["task"].unique())
    rows = []
    for title, tasks in [*((name, [name]) for name in names), ("average", names)]:
        one, two = (paired(both, {name: 1}, tasks=tasks).times(100).difference for name in (model, other))
        gain = paired(both, {model: 1, other: -1}, tasks=tasks).times(100)
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


def place(profile: str, name: str) -> tuple[Path, str]:
    """Results folder and plain name of a model: of `spin-3` in the profile, of `mine/spin-3`, or for the name of
    another run, `mine`, of its last iterate."""
    folder, _, plain = name.rpartition("/")
    if not folder and (paths.results(plain) / "seed-0").is_dir():
        measured = iterates(path.stem for path in paths.results(plain).glob("seed-*/evaluations/spin-*.json"))
        return paths.results(plain), (measured or ["sft"])[-1]
    return paths.results(folder or profile), plain


def items(profile: str, model: str, other: str) -> pd.DataFrame:
    """Scores and answers of two models on the items and training seeds that they share; arguments as in `compare`.

    Returns:
        As from `results.load_evaluations`, with the names given here in the column `model`.

    Raises:
        ResultsError: results are missing or invalid, a model was not evaluated, the two share no training seed or
            task, they were tested on different data, or one profile has results of two runs.
    """
    places = {name: place(profile, name) for name in (model, other)}
    if len(set(places.values())) == 1:
        raise results.ResultsError(f"{model}: compared with itself; name another model")
    sides, tested_on = [], []
    for name, (folder, plain) in places.items():
        results.check_one_run(folder)
        scores = results.load_evaluations(folder)
        if scores.empty:
            raise results.ResultsError(f"{paths.relative(folder)}: no evaluations; reproduce it first")
        if plain not in set(scores["model"]):
            there = nearest(plain, sorted(scores["model"].unique()))
            raise results.ResultsError(f"{paths.relative(folder)}: no evaluation of {plain}{there}")
        sides.append(scores[scores["model"] == plain].assign(model=name))
        tested_on.append(_test_rows(folder))
    seeds, names = (set.intersection(*(set(side[column]) for side in sides)) for column in ("seed", "task"))
    for what, found in (("training seed", seeds), ("task", names)):
        if not found:
            raise results.ResultsError(f"{model} and {other}: no {what} in common; evaluate the missing ones")
    if tested_on[0] != tested_on[1] and not all(names <= _published(*place) for place in places.values()):
        raise results.ResultsError(f"{model} and {other}: their test rows differ, so their items do not pair up")
    return pd.concat(side[side["seed"].isin(seeds) & side["task"].isin(names)] for side in sides)


def _published(folder: Path, model: str) -> set[str]:
    """Tasks of a model whose items are the same in every run: the paper's benchmarks. A family of the user's rows may
    have the same name, but is scored with the metric of rows."""
    summaries = results.load_summaries(folder)
    own = (summaries["model"] == model) & (summaries["metric"] != "score")
    return {*summaries[own]["task"]} & {*BENCHMARKS}


def _test_rows(folder: Path) -> dict[str, Any] | None:
    """What a run's test rows depend on: the settings and file hashes of its data, without those of other splits."""
    _, chain = next(results.chains(folder))
    if "data" not in chain:
        return None
    data = chain["data"]["settings"]
    others = {"sft_rows", "spin_rows", "transfer", "transfer_rows"}
    if data.get("test"):  # from a separate file or split
        others |= {"train", "validation", "validation_rows", "seed"}
    elif not data.get("validation"):  # held out from the training rows, before the validation rows are
        others.add("validation_rows")
    return {name: value for name, value in data.items() if name not in others}
