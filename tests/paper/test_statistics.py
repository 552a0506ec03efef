"""Intervals agree with closed forms, cover as often as they say, and verdicts follow their rule."""

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.coverage import World, coverage
from spin_utils.paper.statistics import Estimate, StatisticsError, crossed, paired, verdict

DIFFERENCE = {"new": 1.0, "old": -1.0}


def long_table(arrays):
    """From {model: {task: (seeds, items)}} to the long table."""
    return pd.DataFrame(
        [
            {"seed": s, "model": model, "task": task, "id": str(i), "score": float(value)}
            for model, tasks in arrays.items()
            for task, array in tasks.items()
            for s, row in enumerate(np.atleast_2d(array))
            for i, value in enumerate(row)
        ]
    )


def binary(rng, seeds=1):
    """Two models that share what makes an item hard."""
    arrays = {"old": {}, "new": {}}
    for task in ("a", "b"):
        hard = rng.random(80)
        for model, ability in (("old", 0.5), ("new", 0.6)):
            arrays[model][task] = (hard + 0.2 * rng.normal(size=(seeds, 80)) < ability).astype(float)
    return arrays


def standard_error(values):
    return values.std(ddof=1) / math.sqrt(len(values))


def test_items_that_share_a_source_are_drawn_together():
    rng = np.random.default_rng(3)
    subjects = np.repeat(rng.normal(0.3, 1, size=40), 25)  # 25 items a subject, which differ little
    gains = subjects + rng.normal(0, 0.1, size=1000)
    table = long_table({"old": {"a": np.zeros(1000)}, "new": {"a": gains}})
    apart = paired(table, DIFFERENCE)
    number = table["id"].astype(int)
    shared = table.assign(id=[f"subject-{n // 25}/{n % 25}" for n in number])
    together = paired(shared, DIFFERENCE)
    assert together.difference == pytest.approx(apart.difference)
    assert together.n_items == apart.n_items == 1000
    error = standard_error(gains.reshape(40, 25).mean(axis=1))
    assert together.low == pytest.approx(together.difference - 1.96 * error, abs=0.3 * error)
    assert apart.high - apart.low < 0.3 * (together.high - together.low), "as if all items were independent"


@pytest.mark.parametrize("sources", [1, 2, 9])
def test_few_sources_are_not_drawn_whole(sources):
    table = long_table(binary(np.random.default_rng(13)))
    apart = paired(table, DIFFERENCE)
    number = table["id"].astype(int)
    together = paired(table.assign(id=[f"book-{n % sources}/{n}" for n in number]), DIFFERENCE)
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high), abs=0.01)


def test_the_average_is_over_tasks_not_items_and_so_is_its_error():
    rng = np.random.default_rng(2)
    small, large = rng.normal(1, 1, size=50), rng.normal(0, 1, size=800)
    estimate = paired(long_table({"m": {"small": small, "large": large}}), {"m": 1})
    error = math.sqrt(standard_error(small) ** 2 + standard_error(large) ** 2) / 2
    assert estimate.difference == pytest.approx((small.mean() + large.mean()) / 2)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_answers_that_never_differ_leave_room_for_those_that_were_not_asked():
    right = long_table({name: {"a": np.ones(50), "b": np.ones(50)} for name in DIFFERENCE})
    gain, level = paired(right, DIFFERENCE), paired(right, {"new": 1})
    assert gain.difference == 0 < gain.high == -gain.low < 0.05
    assert level.difference == 1
    assert level.low < 0.98, "100 right answers do not show that all are"
    assert verdict(gain.times(100), 0.5, claim="not_less") == "inconclusive"
    many = long_table({name: {"a": np.ones(2000)} for name in DIFFERENCE})
    assert verdict(paired(many, DIFFERENCE).times(100), 0.5, claim="not_less") == "reproduced"


def test_the_variance_is_that_of_a_two_way_analysis_of_variance():
    array = np.random.default_rng(4).normal(size=(4, 30)) + np.random.default_rng(5).normal(size=(4, 1))
    n_seeds, n = array.shape
    found = crossed([(array, np.ones(n))])
    by_item, by_seed, mean = array.mean(0), array.mean(1), array.mean()
    items = n_seeds * ((by_item - mean) ** 2).sum() / (n - 1)
    seeds = n * ((by_seed - mean) ** 2).sum() / (n_seeds - 1)
    rest = sum((array[s, i] - by_item[i] - by_seed[s] + mean) ** 2 for s in range(n_seeds) for i in range(n))
    rest /= (n - 1) * (n_seeds - 1)
    assert found.spread.at() == pytest.approx((items + seeds - rest) / (n * n_seeds))
    assert (found.difference, found.low + found.high) == pytest.approx((mean, 2 * mean))


def test_where_seeds_are_all_there_is_the_interval_is_that_of_their_t_test():
    means = np.array([0.0, 1.0, 3.0])
    found = crossed([(np.repeat(means[:, None], 5, axis=1), np.ones(5))])
    assert "2 degrees of freedom" in found.method
    assert (found.high - found.low) / 2 == pytest.approx(4.303 * means.std(ddof=1) / math.sqrt(3), rel=1e-3)


def test_few_seeds_borrow_the_spread_of_the_other_models_of_the_table():
    rng = np.random.default_rng(15)
    arrays = {f"m{number}": {"a": rng.normal(size=(2, 1)) + np.zeros((2, 40))} for number in range(6)}
    arrays["m1"]["a"] = arrays["m0"]["a"] + 0.01 * np.arange(40)  # two seeds that happen to agree
    table = long_table(arrays)
    with_others = paired(table, {"m1": 1, "m0": -1})
    alone = paired(table[table["model"].isin(["m0", "m1"])], {"m1": 1, "m0": -1})
    assert with_others.high - with_others.low > 2 * (alone.high - alone.low)
    again = table[table["model"] == "m5"].assign(model="m5 under another name")
    base = again.assign(model="base", score=0.5)  # no seed changes it
    assert paired(pd.concat([table, again, base]), {"m1": 1, "m0": -1}) == with_others


WORLDS = [
    World(seeds=1, items=50),
    World(seeds=2, items=50, seed_sd=0.05),
    World(seeds=3, items=50, seed_sd=0.02),
    World(seeds=8, items=50),
    World(seeds=8, items=50, share=0.03),
    World(seeds=3, items=50, cluster=5),
    World(seeds=1, items=50, share=0.97, mean=True),
    World(seeds=1, tasks=1, items=300, share=0.14, graded=True),
    World(seeds=3, tasks=1, items=300, share=0.5, graded=True),
    World(seeds=1, tasks=1, items=300, share=0.14, graded=True, mean=True),
]


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_intervals_cover_the_truth_as_often_as_they_say(world):
    # 400 repetitions know the coverage to within 0.022; docs/statistics.md has more worlds and repetitions
    held, _ = coverage(world, repetitions=400, seed=9)
    assert 0.925 <= held <= 0.985


def test_a_table_that_was_changed_in_place_is_read_again():
    table = long_table(binary(np.random.default_rng(5), seeds=3))
    assert paired(table, DIFFERENCE).difference != 0
    table["score"] = 1.0
    assert paired(table, DIFFERENCE).difference == 0


def test_only_seeds_with_all_models_are_compared():
    table = long_table(binary(np.random.default_rng(10), seeds=3))
    cut = table[~((table["model"] == "new") & (table["seed"] == 1))]
    assert paired(cut, DIFFERENCE).n_seeds == 2
    key = list(zip(table["model"], table["seed"], strict=True))
    never = table[[pair in (("new", 1), ("old", 0)) for pair in key]]
    with pytest.raises(StatisticsError, match="no training seed has all of new, old"):
        paired(never, DIFFERENCE)


def test_what_cannot_be_compared_is_named():
    table = long_table(binary(np.random.default_rng(11)))
    with pytest.raises(StatisticsError, match="no evaluation of dpo"):
        paired(table, {"dpo": 1, "old": -1})
    with pytest.raises(StatisticsError, match="'mmlu' was not evaluated"):
        paired(table, DIFFERENCE, tasks=["mmlu"])
    with pytest.raises(StatisticsError, match="no task counts: all are at chance or aside"):
        paired(table, DIFFERENCE, tasks=[])
    later = long_table(binary(np.random.default_rng(11), seeds=2))
    with pytest.raises(StatisticsError, match="'a' was not evaluated for every model and seed; run the missing ones"):
        paired(later[(later["seed"] == 0) | (later["task"] == "b")], DIFFERENCE, tasks=["a"])
    with pytest.raises(StatisticsError, match="'a': models or seeds were scored on different items"):
        paired(table.drop(index=0), DIFFERENCE)


def interval(low, high):
    return Estimate((low + high) / 2, low, high, 1.0, 600, 3, "made up")


@pytest.mark.parametrize(
    ("low", "high", "claim", "value", "expected"),
    [
        (0.2, 3.0, "greater", 0, "reproduced"),
        (0.1, 0.4, "greater", 0, "reproduced"),
        (-0.2, 3.0, "greater", 0, "inconclusive"),
        (-1.0, 0.4, "greater", 0, "not reproduced"),
        (-3.0, -1.0, "greater", 0, "not reproduced"),
        (-3.0, -0.2, "less", 0, "reproduced"),
        (-3.0, 0.2, "less", 0, "inconclusive"),
        (-0.4, 1.0, "less", 0, "not reproduced"),
        (-0.4, 0.3, "not_less", 0, "reproduced"),
        (-0.6, 0.3, "not_less", 0, "inconclusive"),
        (-2.0, -0.6, "not_less", 0, "not reproduced"),
        (10.5, 12.0, "at_least", 10, "reproduced"),
        (9.0, 12.0, "at_least", 10, "inconclusive"),
        (2.0, 9.0, "at_least", 10, "not reproduced"),
        (-0.2, 0.9, "at_most", 1, "reproduced"),
        (-0.2, 1.1, "at_most", 1, "inconclusive"),
        (1.1, 2.0, "at_most", 1, "not reproduced"),
        (2.3, 2.9, "same_size", 2.66, "reproduced"),
        (2.0, 2.9, "same_size", 2.66, "inconclusive"),
        (3.2, 3.9, "same_size", 2.66, "not reproduced"),
    ],
)
def test_verdicts_follow_the_stated_rule(low, high, claim, value, expected):
    assert verdict(interval(low, high), 0.5, claim=claim, value=value) == expected
