"""The map: gains over SFT and over as much SFT, from cells whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from spin_utils.drawing.training_figures import map_figure
from spin_utils.paper.map import averages, load_map, summary

ITEMS = 40


def cell(kind: str, rate: float, beta: float, steps: int, right: int, seed: int, margin: float = 0.0) -> dict[str, Any]:
    """`right` of the items are answered; three of four held-out pairs differ and have this margin."""
    items = [["sums", f"i{n}", float(n < right), float(n < right) / 2] for n in range(ITEMS)]
    drifts = [[margin / 2, -margin / 2] if n % 4 else [0.0, 0.0] for n in range(ITEMS)]
    names = {"kind": kind, "rate": rate, "beta": beta, "steps": steps}
    return {"seed": seed, **names, "items": items, "drifts": drifts}


CELLS = [
    *(cell("sft", 0.0, 0.0, 0, 20, seed) for seed in (0, 1)),
    *(cell("spin", 5e-6, 0.1, 8, 10, seed, -1.0) for seed in (0, 1)),
    *(cell("spin", 5e-6, 1.0, 8, 30, seed, 2.0) for seed in (0, 1)),
    *(cell("sft", 3e-5, 0.0, 6, 22, seed) for seed in (0, 1)),
    *(cell("sft", 1e-4, 0.0, 6, 24, seed) for seed in (0, 1)),
]


def test_gains_are_over_sft_and_over_the_better_of_as_much_sft(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CELLS))
    found = summary(load_map(path)).set_index(["kind", "beta", "steps", "rate"])
    good, bad = found.loc[("spin", 1.0, 8, 5e-6)], found.loc[("spin", 0.1, 8, 5e-6)]
    assert (good["greedy"], good["sampled"]) == pytest.approx((25, 12.5))
    assert (good["greedy_over_sft"], good["sampled_over_sft"]) == pytest.approx((15, 7.5))
    assert (good["accuracy"], good["drift_real"], good["drift_generated"]) == pytest.approx((1, 0.75, -0.75))
    assert bad["greedy_over_sft"] == pytest.approx(-35)
    assert bad["accuracy"] == 0
    assert good["greedy_low"] > 0 > bad["greedy_high"]
    panels = map_figure(found.reset_index()).axes
    shown = {text.get_text(): text.get_fontweight() for text in panels[4].texts}
    assert shown == {"+25.0": "bold", "−25.0": "bold"}


def test_as_much_more_sft_is_one_cell_with_any_number_of_steps() -> None:
    longer = [cell("spin", 5e-6, 1.0, 16, 30, seed) for seed in (0, 1)]
    controls = [cell("sft", 3e-5, 0.0, 12, 22, 0), cell("sft", 3e-5, 0.0, 11, 24, 1)]
    found = summary([*CELLS, *longer, *controls]).set_index(["kind", "rate", "beta", "steps"])
    assert found.loc[("sft", 3e-5, 0.0, 12), "seeds"] == 2
    assert found.loc[("spin", 5e-6, 1.0, 16), "greedy_over_sft"] == pytest.approx(17.5)
    assert found.loc[("spin", 5e-6, 1.0, 8), "greedy_over_sft"] == pytest.approx(15)


def test_the_mean_of_all_cells_is_over_sft_and_over_each_rate_that_ran_as_long() -> None:
    found = averages([*CELLS, cell("sft", 1e-3, 0.0, 3, 1, 0)])
    assert found["rate"].tolist() == [0.0, 3e-5, 1e-4], "the last ran for half as long"
    assert found["greedy"].tolist() == pytest.approx([0, -5, -10])
    assert found["sampled"].tolist() == pytest.approx([0, -2.5, -5])
    assert (found["greedy_low"] < found["greedy_high"]).all()


def test_a_cell_of_the_map_that_was_not_run_says_so() -> None:
    figure = map_figure(summary([*CELLS, cell("spin", 5e-6, 1.0, 16, 30, 0)]))
    assert [text.get_text() for text in figure.axes[1].texts].count("—") == 1
    assert "—: not run" in " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
    whole = map_figure(summary(CELLS))
    assert not any("not run" in text.get_text() for text in whole.findobj(Text))
