"""Two models, of one run or of two, task by task, on the same items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.files import paths
from spin_utils.paper import results
from spin_utils.paper.statistics import paired
from spin_utils.settings.inputs import BENCHMARKS
from spin_utils.settings.profiles import nearest


def compare(profile: str, model: str, other: str) -> pd.DataFrame:
    """Paired differences between two evaluated models, in points.

    Args:
        profile: name of the profile whose results are read.
        model: such as `spin-3`; `NAME/spin-3` is that of another profile.
        other: what it is compared with, such as `sft`.

    Returns:
        A row per task that both were given and one for their unweighted mean: `task`, the two scores, `difference`,
        its 95 % interval `low` and `high`, `p_value`, `items` and `seeds`; all over the training seeds that both have.

    Raises:
        ResultsError: no or invalid results, a model that was not evaluated, no training seed or task that has both,
            two runs on different data, or results of two runs in one profile.
    """
    places = {
        name: (paths.results(name.rpartition("/")[0] or profile), name.rpartition("/")[2]) for name in (model, other)
    }
    if len(set(places.values())) == 1:
        raise results.ResultsError(f"{model}: is compared with itself; name another model")
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
            raise results.ResultsError(f"{model} and {other}: no {what} has both; evaluate the missing ones")
    if tested_on[0] != tested_on[1] and not all(names <= _published(*place) for place in places.values()):
        raise results.ResultsError(f"{model} and {other}: their test rows differ, so their items do not pair up")
    both = pd.concat(side[side["seed"].isin(seeds)] for side in sides)
    rows = []
    for title, tasks in [*((name, [name]) for name in sorted(names)), ("average", sorted(names))]:
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


def _published(folder: Path, model: str) -> set[str]:
    """Tasks of a model whose items are the same in every run: benchmarks of the paper, and no rows of the user's that
    are called like one, whose metric is that of all rows."""
    summaries = results.load_summaries(folder)
    own = (summaries["model"] == model) & (summaries["metric"] != "score")
    return {*summaries[own]["task"]} & {*BENCHMARKS}


def _test_rows(folder: Path) -> dict[str, Any] | None:
    """What the test rows of a run depend on: settings and file hashes of its data, without those of other rows."""
    _, chain = next(results.chains(folder))
    if "data" not in chain:
        return None
    data = chain["data"]["settings"]
    others = {"sft_rows", "spin_rows", "transfer", "transfer_rows"}
    if data.get("test"):  # a file or split of their own
        others |= {"train", "validation", "validation_rows", "seed"}
    elif not data.get("validation"):  # held out of the training rows, before those for validation
        others.add("validation_rows")
    return {name: value for name, value in data.items() if name not in others}
