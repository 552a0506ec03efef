"""The map: what an iteration of SPIN does at each beta and length of training, from `benchmarks/map.py`'s cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.data.rows import read_records
from spin_utils.paper.statistics import paired

KEY = ["kind", "rate", "beta", "steps"]
"""What makes a cell: `spin` or `sft` (the start at 0 steps, more SFT after some), peak learning rate, beta, steps."""

COLUMNS = {"greedy": "score", "sampled": "sampled"}
"""Measures of an answer, and what they are called in a cell's items."""


def load_map(path: Path) -> list[dict[str, Any]]:
    """Cells of the map, one per seed, from cells.jsonl; raises a `RowError` if it is missing or a line is damaged."""
    return [cell for _, cell in read_records(path)]


def summary(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per cell of `load_map`, over its seeds.

    Returns:
        `kind`, `rate`, `beta`, `steps` (of more SFT: with the first seed), `seeds`; `accuracy` with `accuracy_low` and
        `accuracy_high` (share of held-out pairs that differ whose real response gained more than the generated one);
        `drift_real` and `drift_generated` (mean change in log-probability, nats); and in points, each with `_low` and
        `_high`, `greedy` and `sampled` (scores of greedy and sampled answers minus those of SFT), and for SPIN
        `greedy_over_sft` and `sampled_over_sft` (minus those of more SFT on as many tokens, at the better of its
        learning rates).
    """
    cells, by_length = _aligned(cells)
    items = _items(cells)
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(_name(cell), []).append(cell)
    start = next(name for name, found in groups.items() if found[0]["steps"] == 0)
    controls = [found[0] for found in groups.values() if found[0]["kind"] == "sft" and found[0]["steps"]]
    rows = []
    for name, found in groups.items():
        first = found[0]
        drifts = pd.DataFrame(
            [(i, *pair) for cell in found for i, pair in enumerate(cell["drifts"])],
            columns=["id", "real_drift", "generated_drift"],
        )
        accuracy, spread = _told_apart(drifts)
        row = {key: first[key] for key in KEY} | {
            "seeds": len(found),
            "accuracy": accuracy,
            "accuracy_low": accuracy - spread,
            "accuracy_high": accuracy + spread,
            "drift_real": drifts["real_drift"].mean(),
            "drift_generated": drifts["generated_drift"].mean(),
        }
        against = {"greedy": start, "sampled": start}
        if first["kind"] == "spin" and first["steps"] in by_length:
            rivals = [cell for cell in controls if cell["steps"] == by_length[first["steps"]]]
            for measure, column in COLUMNS.items():
                means = {_name(cell): items.loc[items["model"] == _name(cell), column].mean() for cell in rivals}
                against[f"{measure}_over_sft"] = max(means, key=means.__getitem__)
        for measure, other in against.items():
            if other != name:
                row |= _gain(items, {name: 1, other: -1}, measure)
        rows.append(row)
    return pd.DataFrame(rows)


def averages(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The mean of all cells of SPIN minus SFT, and minus more SFT with each learning rate, averaged over its lengths.

    Such a mean is surer than any cell. No learning rate is chosen by its scores, as `summary` does for each cell.

    Returns:
        One row per rate that ran as long as SPIN, after one with rate 0 for SFT itself: `rate`, and `greedy` and
        `sampled` in points, each with `_low` and `_high`.
    """
    cells, by_length = _aligned(cells)
    items, rows = _items(cells), []
    spin = {_name(cell): cell["steps"] for cell in cells if cell["kind"] == "spin"}
    lengths = [0, *by_length.values()]
    for rate in sorted({cell["rate"] for cell in cells if cell["kind"] == "sft"}):
        others = {
            _name(cell) for cell in cells if (cell["kind"], cell["rate"]) == ("sft", rate) and cell["steps"] in lengths
        }
        if rate and len(others) < len(set(spin.values())):
            continue
        weights = dict.fromkeys(spin, 1 / len(spin)) | dict.fromkeys(others, -1 / len(others))
        row: dict[str, float] = {"rate": rate}
        for measure in COLUMNS:
            row |= _gain(items, weights, measure)
        rows.append(row)
    return pd.DataFrame(rows)


def _gain(items: pd.DataFrame, weights: dict[str, float], measure: str) -> dict[str, float]:
    """A contrast of cells in points, with its interval; `measure` begins with a name of `COLUMNS`."""
    gain = paired(items, weights, column=COLUMNS[measure.partition("_")[0]]).times(100)
    return {measure: gain.difference, f"{measure}_low": gain.low, f"{measure}_high": gain.high}


def _aligned(cells: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """The cells, with more SFT on as many tokens under one number of steps; and that number by SPIN's.

    The longest runs of both saw as many tokens. As many tokens can be 11 steps with one seed and 12 with another.
    """
    lengths = {cell["steps"] for cell in cells if cell["kind"] == "spin"}
    trained = [cell["steps"] for cell in cells if cell["kind"] == "sft" and cell["steps"]]
    per_step = max(trained, default=0) / max(lengths)
    by_length: dict[int, int] = {}
    alike = {}
    for steps in trained:
        nearest = min(lengths, key=lambda length: abs(length * per_step - steps))
        if abs(nearest * per_step - steps) <= max(1, steps / 10):
            alike[steps] = by_length.setdefault(nearest, steps)
    return [
        cell | {"steps": alike.get(cell["steps"], cell["steps"])} if cell["kind"] == "sft" else cell for cell in cells
    ], by_length


def _items(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": _name(cell), "seed": cell["seed"], "task": task, "id": name, "score": score, "sampled": sampled}
            for cell in cells
            for task, name, score, sampled in cell["items"]
        ]
    )


def _told_apart(drifts: pd.DataFrame) -> tuple[float, float]:
    """The accuracy of a cell, and half the width of its interval; the training seeds of a prompt are one cluster."""
    margin = drifts["real_drift"] - drifts["generated_drift"]  # exactly 0 if the two responses are the same
    prompts = pd.DataFrame({"id": drifts["id"], "right": margin > 0, "differ": margin != 0}).groupby("id").sum()
    differ = int(prompts["differ"].sum())
    if not differ:
        return math.nan, math.nan
    accuracy = float(prompts["right"].sum() / differ)
    return accuracy, 1.96 * float(((prompts["right"] - accuracy * prompts["differ"]) ** 2).sum()) ** 0.5 / differ


def _name(cell: dict[str, Any]) -> str:
    return "/".join(f"{cell[key]}" for key in KEY)
