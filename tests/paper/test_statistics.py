"""Intervals agree with closed forms, cover as often as they say, and verdicts follow their rule."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_utils.paper.statistics import Estimate, StatisticsError, paired_bootstrap, verdict

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


def binary(rng, tasks=("a", "b"), items=80, seeds=1, gain=0.1):
    """Two models that share what makes an item hard."""
    arrays = {"old": {}, "new": {}}
    for task in tasks:
        hard = rng.random(items)
        for model, ability in (("old", 0.5), ("new", 0.5 + gain)):
            arrays[model][task] = (hard + 0.2 * rng.normal(size=(seeds, items)) < ability).astype(float)
    return arrays


def standard_error(values):
    return values.std(ddof=1) / math.sqrt(len(values))


def test_one_seed_gives_the_normal_interval_of_the_mean_item_difference():
    rng = np.random.default_rng(1)
    old, new = rng.normal(size=400), rng.normal(0.3, 1, size=400)
    estimate = paired_bootstrap(long_table({"old": {"a": old}, "new": {"a": new}}), DIFFERENCE)
    error = standard_error(new - old)
    assert estimate.difference == pytest.approx((new - old).mean())
    assert estimate.low == pytest.approx(estimate.difference - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(estimate.difference + 1.96 * error, abs=0.1 * error)
    assert (estimate.n_items, estimate.n_seeds) == (400, 1)


def test_items_that_share_a_source_are_drawn_together():
    rng = np.random.default_rng(3)
    subjects = np.repeat(rng.normal(0.3, 1, size=40), 25)  # 25 items a subject, which differ little
    gains = subjects + rng.normal(0, 0.1, size=1000)
    table = long_table({"old": {"a": np.zeros(1000)}, "new": {"a": gains}})
    apart = paired_bootstrap(table, DIFFERENCE)
    number = table["id"].astype(int)
    shared = table.assign(id=[f"subject-{n // 25}/{n % 25}" for n in number])
    together = paired_bootstrap(shared, DIFFERENCE)
    assert together.difference == pytest.approx(apart.difference)
    assert together.n_items == apart.n_items == 1000
    error = standard_error(gains.reshape(40, 25).mean(axis=1))
    assert together.low == pytest.approx(together.difference - 1.96 * error, abs=0.3 * error)
    assert apart.high - apart.low < 0.3 * (together.high - together.low), "as if all items were independent"


@pytest.mark.parametrize("sources", [1, 2, 9])
def test_few_sources_are_not_drawn_whole(sources):
    table = long_table(binary(np.random.default_rng(13)))
    apart = paired_bootstrap(table, DIFFERENCE)
    number = table["id"].astype(int)
    together = paired_bootstrap(table.assign(id=[f"book-{n % sources}/{n}" for n in number]), DIFFERENCE)
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high), abs=0.01)


def test_two_alike_sources_do_not_make_a_small_gain_sure():
    gains = ([1.0] * 6 + [0.0] * 24) * 2
    losses = ([0.0] * 25 + [1.0] * 5) * 2
    table = long_table({"old": {"a": np.array(losses)}, "new": {"a": np.array(gains)}})
    shared = table.assign(id=[f"book-{int(n) // 30}/{n}" for n in table["id"]])
    estimate = paired_bootstrap(shared, DIFFERENCE)
    assert estimate.low < 0 < estimate.high


def test_the_average_is_over_tasks_not_items_and_so_is_its_error():
    rng = np.random.default_rng(2)
    small, large = rng.normal(1, 1, size=50), rng.normal(0, 1, size=800)
    estimate = paired_bootstrap(long_table({"m": {"small": small, "large": large}}), {"m": 1})
    error = math.sqrt(standard_error(small) ** 2 + standard_error(large) ** 2) / 2
    assert estimate.difference == pytest.approx((small.mean() + large.mean()) / 2)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_pairing_removes_what_all_models_share():
    rng = np.random.default_rng(3)
    hard = rng.normal(size=300)
    table = long_table({"old": {"a": hard}, "new": {"a": hard + 0.1}})
    paired = paired_bootstrap(table, DIFFERENCE)
    alone = paired_bootstrap(table, {"new": 1})
    assert paired.low < 0.1 < paired.high
    assert alone.high - alone.low > 5 * (paired.high - paired.low)


def test_answers_that_never_differ_leave_room_for_those_that_were_not_asked():
    right = long_table({"old": {"a": np.ones(50), "b": np.ones(50)}, "new": {"a": np.ones(50), "b": np.ones(50)}})
    gain = paired_bootstrap(right, DIFFERENCE)
    level = paired_bootstrap(right, {"new": 1})
    unseen = 1 - 0.025 ** (1 / 100)  # this share would be missed in 100 draws once in 40 times
    assert (1 - unseen) ** 100 == pytest.approx(0.025)
    assert (gain.low, gain.high) == pytest.approx((-unseen, unseen))
    assert (level.low, level.high) == pytest.approx((1 - unseen, 1))
    assert verdict(gain.times(100), 0.5, claim="not_less") == "inconclusive"
    many = long_table({"old": {"a": np.ones(2000)}, "new": {"a": np.ones(2000)}})
    assert verdict(paired_bootstrap(many, DIFFERENCE).times(100), 0.5, claim="not_less") == "reproduced"


def test_vectorised_resampling_equals_a_loop_over_resamples():
    rng = np.random.default_rng(4)
    arrays = binary(rng, seeds=3)
    fast = paired_bootstrap(long_table(arrays), DIFFERENCE, resamples=4000, seed=5)
    slow_rng = np.random.default_rng(6)
    totals = []
    for _ in range(4000):
        seeds = slow_rng.integers(0, 3, size=2)
        means = []
        for task in ("a", "b"):
            items = slow_rng.integers(0, 80, size=80)
            means.append((arrays["new"][task] - arrays["old"][task])[np.ix_(seeds, items)].mean())
        totals.append(np.mean(means))
    low, high = np.quantile(totals, [0.025, 0.975])
    assert fast.low == pytest.approx(low, abs=0.006)
    assert fast.high == pytest.approx(high, abs=0.006)


def test_two_calls_agree_and_two_resampling_seeds_differ():
    rng = np.random.default_rng(5)
    table = long_table({name: {"a": rng.normal(size=(2, 80))} for name in DIFFERENCE})
    first, second = paired_bootstrap(table, DIFFERENCE, seed=1), paired_bootstrap(table, DIFFERENCE, seed=1)
    other = paired_bootstrap(table, DIFFERENCE, seed=2)
    assert first == second
    assert first.difference == other.difference
    assert (first.low, first.high) != (other.low, other.high)


def test_row_order_of_the_table_does_not_matter():
    table = long_table(binary(np.random.default_rng(6), seeds=2))
    shuffled = table.sample(frac=1, random_state=0)
    assert paired_bootstrap(table, DIFFERENCE) == paired_bootstrap(shuffled, DIFFERENCE)


def test_swapping_the_models_mirrors_the_interval():
    table = long_table(binary(np.random.default_rng(7)))
    there = paired_bootstrap(table, DIFFERENCE)
    back = paired_bootstrap(table, {"new": -1, "old": 1})
    assert back.difference == pytest.approx(-there.difference)
    assert back.low == pytest.approx(-there.high)
    assert back.p_value == there.p_value


def test_equal_models_differ_by_exactly_nothing():
    array = np.random.default_rng(8).random(50)
    estimate = paired_bootstrap(long_table({"old": {"a": array}, "new": {"a": array}}), DIFFERENCE)
    assert (estimate.difference, estimate.p_value) == (0, 1)
    assert estimate.low == -estimate.high


def test_a_difference_of_differences_is_a_contrast_too():
    arrays = {name: {"a": np.full(20, value)} for name, value in (("x", 0.1), ("y", 0.5), ("z", 0.6))}
    estimate = paired_bootstrap(long_table(arrays), {"y": 2, "x": -1, "z": -1}, resamples=200)
    assert estimate.difference == pytest.approx((0.5 - 0.1) - (0.6 - 0.5))


@pytest.mark.parametrize(("seeds", "least", "most"), [(1, 0.90, 0.985), (3, 0.90, 1.0)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(seeds, least, most):
    rng = np.random.default_rng(9)
    runs, hits = 300, 0
    for number in range(runs):
        shared = rng.normal(0, 0.3, size=(1, 60)) + rng.normal(0, 0.02, size=(seeds, 1))
        table = long_table({"d": {"a": shared + rng.normal(0, 0.4, size=(seeds, 60))}})
        estimate = paired_bootstrap(table, {"d": 1}, resamples=400, seed=number % 7)
        hits += estimate.low <= 0 <= estimate.high
    assert least <= hits / runs <= most


def test_seed_variance_is_unbiased():
    # Items are constant, so all spread is between seeds: the draws must have variance s^2 / S.
    means = np.array([0.0, 1.0, 3.0])
    table = long_table({"m": {"a": np.repeat(means[:, None], 5, axis=1)}})
    widths = paired_bootstrap(table, {"m": 1}, level=0.5)
    assert widths.n_seeds == 3
    pairs = np.array([(a + b) / 2 for a in means for b in means])
    assert pairs.var() == pytest.approx(means.var(ddof=1) / 3)
    assert {widths.low, widths.high} <= set(pairs)


@pytest.mark.parametrize(("seeds", "expected"), [(2, 0.50), (3, 0.75)])
def test_where_seeds_are_all_there_is_the_interval_is_their_range_and_covers_as_the_docstring_says(seeds, expected):
    rng = np.random.default_rng(14)
    runs, hits = 400, 0
    for _ in range(runs):
        means = rng.normal(size=(seeds, 1))
        estimate = paired_bootstrap(long_table({"m": {"a": np.repeat(means, 3, axis=1)}}), {"m": 1}, resamples=400)
        assert (estimate.low, estimate.high) == pytest.approx((means.min(), means.max()))
        hits += estimate.low <= 0 <= estimate.high
    assert hits / runs == pytest.approx(expected, abs=0.06)


def test_what_is_of_one_seed_and_item_alone_widens_the_interval_by_the_root_of_three_as_owen_has_it():
    rng = np.random.default_rng(15)
    widths = []
    for number in range(60):
        table = long_table({"m": {"a": rng.normal(size=(3, 60))}})
        estimate = paired_bootstrap(table, {"m": 1}, resamples=400, seed=number % 7)
        widths.append(estimate.high - estimate.low)
    right = 2 * 1.96 / math.sqrt(3 * 60)
    assert np.mean(widths) / right == pytest.approx(math.sqrt(3), rel=0.1)


def test_only_seeds_with_all_models_are_compared():
    table = long_table(binary(np.random.default_rng(10), seeds=3))
    cut = table[~((table["model"] == "new") & (table["seed"] == 1))]
    assert paired_bootstrap(cut, DIFFERENCE).n_seeds == 2
    key = list(zip(table["model"], table["seed"], strict=True))
    never = table[[pair in (("new", 1), ("old", 0)) for pair in key]]
    with pytest.raises(StatisticsError, match="no training seed has all of new, old"):
        paired_bootstrap(never, DIFFERENCE)


def test_what_cannot_be_compared_is_named():
    table = long_table(binary(np.random.default_rng(11)))
    with pytest.raises(StatisticsError, match="no evaluation of dpo"):
        paired_bootstrap(table, {"dpo": 1, "old": -1})
    with pytest.raises(StatisticsError, match="'mmlu' was not evaluated"):
        paired_bootstrap(table, DIFFERENCE, tasks=["mmlu"])
    with pytest.raises(StatisticsError, match="'a': models or seeds were scored on different items"):
        paired_bootstrap(table.drop(index=0), DIFFERENCE)


def test_units_change_with_the_estimate():
    estimate = paired_bootstrap(long_table(binary(np.random.default_rng(12))), DIFFERENCE)
    points = estimate.times(100)
    assert points.high == pytest.approx(100 * estimate.high)
    assert estimate.times(-1).low == -estimate.high
    assert points.p_value == estimate.p_value
    with pytest.raises(dataclasses.FrozenInstanceError):
        points.low = 0.0  # type: ignore[misc]


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
        (-3.0, -1.0, "less", 0, "reproduced"),
        (-0.4, 1.0, "less", 0, "not reproduced"),
        (-0.9, 0.2, "less", 0, "inconclusive"),
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


@given(low=st.floats(-5, 5), width=st.floats(0, 5), margin=st.floats(0.01, 2))
@settings(max_examples=100)
def test_a_claim_and_its_opposite_are_mirror_images(low, width, margin):
    there, back = interval(low, low + width), interval(-low - width, -low)
    assert verdict(there, margin) == verdict(back, margin, claim="less")


def test_a_margin_must_be_above_zero():
    with pytest.raises(StatisticsError, match="margin"):
        verdict(interval(0, 1), 0.0)
