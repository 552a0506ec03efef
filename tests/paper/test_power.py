"""A plan made from one run says how wide the intervals of a larger one are, and how large a run decides a claim."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spin_utils.paper import power
from spin_utils.paper.statistics import StatisticsError, paired, verdict

GAIN = {"spin-0": 1.0, "sft": -1.0}


def run(items: int, seeds: int, gain: float = 0.03, seed: int = 0) -> pd.DataFrame:
    """SFT and two iterations on two tasks; seeds shift a model by two points."""
    rng = np.random.default_rng(seed)
    models = ("sft", "spin-0", "spin-1")
    hard = rng.random((2, items // 2))
    rows = []
    for place, model in enumerate(models):
        shift = rng.normal(0, 0.02, size=(seeds, 1, 1))
        right = rng.random((seeds, 2, items // 2)) < np.clip(hard + gain * place + shift, 0, 1)
        index = np.indices(right.shape).reshape(3, -1)
        frame = pd.DataFrame({"seed": index[0], "task": index[1].astype(str), "id": index[2].astype(str)})
        rows.append(frame.assign(model=model, score=right.reshape(-1).astype(float)))
    return pd.concat(rows, ignore_index=True)


def test_the_planned_width_is_that_of_such_a_run() -> None:
    small = run(400, 8)
    planned = power.plan(small, items=1600, seeds=16).set_index("contrast")["planned"]
    widths = [paired(run(1600, 16, seed=number), GAIN).times(100) for number in range(1, 9)]
    measured = np.mean([(found.high - found.low) / 2 for found in widths])
    assert planned["spin-0 over sft"] == pytest.approx(measured, rel=0.35)


def test_the_detectable_difference_is_found_in_four_of_five_runs() -> None:
    true = power.plan(run(800, 4, gain=0.0), items=800, seeds=4)["detectable"][0] / 100
    runs = [paired(run(800, 4, gain=true, seed=number), GAIN) for number in range(1, 61)]
    assert 0.6 < np.mean([estimate.low > 0 for estimate in runs]) < 0.98


def test_what_is_said_to_decide_a_claim_does() -> None:
    estimate = paired(run(200, 4), GAIN).times(100)
    assert verdict(estimate, 0.5) == "inconclusive"
    items, seeds = power.to_decide(estimate, 0.5) or (0, 0)
    assert items or seeds
    distance = max(estimate.difference, 0.5 - estimate.difference)
    if items:
        assert 1.96 * estimate.spread.at(items=items / estimate.n_items) ** 0.5 <= distance
    if seeds:
        assert 1.96 * estimate.spread.at(seeds=seeds / estimate.n_seeds) ** 0.5 <= distance


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_claim_that_is_just_undecided_needs_more_than_it_has(seeds: int) -> None:
    estimate = paired(run(200, seeds), GAIN).times(100)
    claim = {"claim": "at_most", "value": estimate.high - 0.01}
    assert verdict(estimate, 0.5, **claim) == "inconclusive"
    found = power.to_decide(estimate, 0.5, **claim) or (0, 0)
    assert any(found)
    assert all(not more or more > now for more, now in zip(found, (estimate.n_items, seeds), strict=True))


def test_a_claim_on_the_line_between_two_verdicts_is_out_of_reach() -> None:
    estimate = paired(run(200, 4), GAIN).times(100)
    assert power.to_decide(estimate, 0.5, claim="at_least", value=estimate.difference) is None
    assert "no run of a feasible size" in power.needed(estimate, 0.5, claim="at_least", value=estimate.difference)
    assert "would decide it" in power.needed(estimate, 0.5)


def test_one_seed_cannot_plan_several_and_no_models_cannot_be_compared() -> None:
    alone = run(200, 1)
    with pytest.raises(StatisticsError, match="one training seed does not show how much seeds differ"):
        power.plan(alone, items=400, seeds=2)
    assert (power.plan(alone, items=400, seeds=1)["planned"] > 0).all()
    more = pd.concat([run(200, 2), alone[alone["model"] == "sft"].assign(model="sft-more-1")])
    assert list(power.plan(more, items=400, seeds=8)["contrast"]) == [
        "spin-0 over sft",
        "spin-1 over spin-0",
        "spin-1 over sft",
    ]
    with pytest.raises(StatisticsError, match="run one seed first"):
        power.plan(alone[alone["model"] == "sft"], items=400, seeds=1)
