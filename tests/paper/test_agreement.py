"""Whether a run agrees with the committed results: intervals that hold what they promise, and few false alarms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spin_utils.paper import agreement

MODELS, TASKS, ITEMS = [f"spin-{t}" for t in range(10)], 6, 150


def runs(rng: np.random.Generator, seeds: int, spread: float) -> pd.DataFrame:
    """Scores of models whose accuracy on a task moves with the training seed, for all models and for each."""
    level = rng.uniform(0.2, 0.8, (1, 1, TASKS))
    shared, own = rng.normal(0, spread, (seeds, 1, TASKS)), rng.normal(0, spread, (seeds, len(MODELS), TASKS))
    shares = rng.binomial(ITEMS, np.clip(level + shared + own, 0.01, 0.99)) / ITEMS
    index = pd.MultiIndex.from_product([range(seeds), MODELS, range(TASKS)], names=["seed", "model", "task"])
    tasks = pd.DataFrame({"value": 100 * shares.ravel(), "items": ITEMS}, index=index).reset_index()
    average = tasks.groupby(["model", "seed"])["value"].mean().reset_index()
    return pd.concat([tasks, average.assign(task=agreement.AVERAGE, items=ITEMS * TASKS)])


def expected(values: pd.DataFrame) -> pd.DataFrame:
    return agreement.summary(values).assign(seed=0, key="k")


KEYS = {(model, 0): "k" for model in MODELS}


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("spread", [0.0, 0.04])
def test_a_new_run_lies_in_its_prediction_intervals_as_often_as_they_say(seeds: int, spread: float) -> None:
    rng, inside, alarms = np.random.default_rng(seeds + 1), [], 0
    for _ in range(60):
        values = runs(rng, seeds + 1, spread)
        found = agreement.agree(values[values["seed"] >= seeds], expected(values[values["seed"] < seeds]), KEYS)
        assert len(found.cells) == len(MODELS) * (TASKS + 1)
        inside.append(found.cells["inside"].mean())
        alarms += found.p_value < agreement.DISAGREES
    assert 0.93 < np.mean(inside) < 0.985
    assert alarms <= 2


def test_a_run_that_is_off_is_told_where_and_one_of_other_settings_is_not_compared() -> None:
    values = runs(np.random.default_rng(0), 9, 0.01)
    committed, own = values[values["seed"] < 8], values[values["seed"] == 8].copy()
    assert agreement.agree(own, expected(committed), KEYS).statement.startswith("This run agrees")
    off = (own["model"] == "spin-2") & (own["task"] == 4)
    own.loc[off, "value"] -= 40
    found = agreement.agree(own, expected(committed), KEYS)
    assert found.p_value < agreement.DISAGREES
    assert "does not agree" in found.statement
    assert "Furthest off: SPIN iteration 2, 4: " in found.statement
    assert not found.cells.loc[(found.cells["model"] == "spin-2") & (found.cells["task"] == 4), "inside"].any()
    partly = agreement.agree(own, expected(committed), {**KEYS, ("spin-2", 0): "other"})
    assert "spin-2" not in set(partly.cells["model"])
    assert "other settings" in agreement.agree(own, expected(committed), {}).statement
    assert "themselves" in agreement.agree(committed, expected(committed), KEYS).statement


def test_one_item_more_or_less_is_no_disagreement_where_no_seed_differs() -> None:
    values = runs(np.random.default_rng(0), 4, 0.0)
    values["value"] = 50.0
    own = values[values["seed"] == 3].copy()
    own["value"] += 100 / own["items"]
    assert agreement.agree(own, expected(values[values["seed"] < 3]), KEYS).cells["inside"].all()


def test_a_model_that_no_seed_changes_makes_no_interval_of_the_others_narrower() -> None:
    values = runs(np.random.default_rng(0), 4, 0.04)
    base = values[(values["model"] == "spin-0") & (values["seed"] == 0)].assign(model="base")
    both = pd.concat([values, *(base.assign(seed=seed) for seed in range(4))])
    without, with_base = (
        agreement.agree(table[table["seed"] == 3], expected(table[table["seed"] < 3]), KEYS | {("base", 0): "k"})
        for table in (values, both)
    )
    cells = with_base.cells[with_base.cells["model"] != "base"]
    pd.testing.assert_frame_equal(cells.reset_index(drop=True), without.cells)
    own = with_base.cells[with_base.cells["model"] == "base"]
    assert ((own["high"] - own["low"]) * own["items"] / 100 < 8).all(), "a few items either way"
