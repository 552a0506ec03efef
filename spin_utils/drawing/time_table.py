"""Table 2: time of generation and training by iteration, ours beside the paper's and the cost model's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.drawing.table_text import Table, finish, rounded, with_range
from spin_utils.paper import cost_model, published, results

_SHARED = ("data", "base")
"""Stages whose artifacts all training seeds share."""
_MEASURED = ("pairs", "spin")
"""Stages whose times Table 2 has."""
_COUNTED = "Generation is the whole step with its loading, training the sum of the optimizer's steps."


def table2(times: pd.DataFrame, *, machine: str = "this machine", alone: bool = True) -> Table:
    """Table 2: time of generation and training by iteration.

    Args:
        times: Columns `seed`, `stage` (generation, training), `iteration`, `seconds`.
        machine: Where the times were measured, for the note.
        alone: Whether no other step ran beside them.
    """
    paper = published.wall_clock_hours().set_index(["stage", "iteration"])["hours"]
    run, architecture = cost_model.Run(), cost_model.Architecture()
    predicted = {"generation": [cost_model.generation_hours(run, architecture)] * 4}
    predicted["training"] = [cost_model.training_hours(run, architecture, iteration) for iteration in range(4)]
    cells: list[dict[str, Any]] = []
    lines = []
    for stage in ("generation", "training"):
        for iteration in range(4):
            minutes = times[(times["stage"] == stage) & (times["iteration"] == iteration)]["seconds"] / 60
            cell: dict[str, Any] = {"row": stage, "column": f"iteration {iteration}"}
            cell["paper"] = paper[stage, iteration]
            cell["quantity"] = "minutes (ours), hours (paper)"
            if minutes.empty:
                cell["reason"] = f"{stage} of iteration {iteration} was not run"
            else:
                cell |= {"value": minutes.mean(), "low": minutes.min(), "high": minutes.max(), "seeds": len(minutes)}
            cells.append(cell)
        digits = 1 if max(cell.get("value", 0.0) for cell in cells[-4:]) >= 1 else 2  # of minutes
        ours = [(with_range if cell.get("seeds", 1) > 1 else rounded)(cell, digits=digits) for cell in cells[-4:]]
        for iteration, hours in enumerate(predicted[stage]):
            cell = {"row": stage, "column": f"iteration {iteration}", "quantity": "hours (cost model), hours (paper)"}
            cell |= {"value": hours, "paper": paper[stage, iteration], "difference": hours - paper[stage, iteration]}
            cells.append(cell)
        lines.append((stage.capitalize(), "ours, minutes", *ours))
        lines.append(("", "cost model, hours", *(f"{hours:.2f}" for hours in predicted[stage])))
        lines.append(("", "paper, hours", *(f"{paper[stage, iteration]:.2f}" for iteration in range(4))))
    reached = cost_model.utilisation(run, architecture, 0, paper["training", 0])
    notes = (
        _times_note(cells, machine, alone),
        f"Cost model: the paper's 7B model and {run.prompts:,} prompts on {run.gpus} A100-80GB, a prediction and not a "
        f"measurement. It counts the operations that the method needs and assumes that {run.utilisation:.0%} of the "
        f"peak is reached, and {run.prompt_tokens}, {run.real_tokens} and {run.generated_tokens} tokens for prompt, "
        "real and generated response, of which the paper prints none. On the same count, the paper's hours of "
        f"iteration 0 mean that its training reached {reached:.0%} of the peak.",
        "The paper's hours are for 8 A100-80GB. They equal 6.69 s (generation) and 10 s (training) per 64 examples at "
        "49,792 prompts and two epochs to the last digit, so they follow from times of single batches.",
    )
    header = ["", "", *(f"Iteration {iteration}" for iteration in range(4))]
    return finish(2, "Time of generation and training", header, lines, cells, notes)


def wall_clock(folder: Path, training: pd.DataFrame) -> tuple[pd.DataFrame, str, bool]:
    """Measured seconds of generation and training.

    Generation is the whole stage, from the provenance of the evaluations. Training is the sum of its steps, so that
    iteration 0 counts the epochs that its model has, not those that Figure 4 adds; without its record it has no time.
    Only runs on the device of the lowest seed count, and of these only those of seeds that had it alone, if there are
    any: what shared the cores with another is not the same measurement.

    Args:
        folder: results/PROFILE.
        training: from `results.load_training`.

    Returns:
        Columns `seed`, `stage`, `iteration`, `seconds`; the device, in words; and whether no other step ran beside
        these.
    """
    steps_of: dict[int, dict[str, dict[str, Any]]] = {}
    for seed, chain in results.chains(folder):
        steps_of.setdefault(seed, {}).update({n: step for n, step in chain.items() if step["stage"] not in _SHARED})
    links = {
        (seed, name): link
        for seed, steps in steps_of.items()
        for name, link in steps.items()
        if link["stage"] in _MEASURED
    }
    device = links[min(links)]["device"] if links else "this machine"
    links = {place: link for place, link in links.items() if link["device"] == device}
    undisturbed = {seed for seed, _ in links} - _side_by_side(steps_of)
    rows = []
    for (seed, name), link in links.items():
        if undisturbed and seed not in undisturbed:
            continue
        stage, seconds = "generation", link["seconds"]
        if link["stage"] == "spin":
            steps = training[(training["seed"] == seed) & (training["model"] == name)]
            if steps.empty:
                continue
            stage, seconds = "training", steps["seconds"].sum()
        rows.append({"seed": seed, "stage": stage, "iteration": int(name.split("-")[1]), "seconds": seconds})
    return pd.DataFrame(rows, columns=["seed", "stage", "iteration", "seconds"]), device, bool(undisturbed)


def _side_by_side(steps_of: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> set[int]:
    """Training seeds of whose measured steps one was made while another step was."""
    second = timedelta(seconds=1)  # starts are noted in whole ones
    spans = []
    for seed, steps in steps_of.items():
        for name, step in steps.items():
            started = datetime.fromisoformat(step["started"])
            end = started + timedelta(seconds=step["seconds"])
            spans.append((started, end, seed, name, step["stage"] in _MEASURED))
    return {
        span[2]
        for one, other in itertools.combinations(sorted(spans), 2)
        if other[0] + second < one[1]
        for span in (one, other)
        if span[4]
    }


def _times_note(cells: Sequence[Mapping[str, Any]], machine: str, alone: bool) -> str:
    """Where our times were measured, and on how many training seeds, in words."""
    seeds = sorted({cell["seeds"] for cell in cells if "seeds" in cell})
    if not seeds:
        return f"Ours on {machine}: not run."
    if seeds == [1]:
        company = "had the machine alone" if alone else "ran several steps at once"
        return f"Ours on {machine}: one training seed, which {company}, so no spread is known. {_COUNTED}"
    count = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    return (
        f"Ours on {machine}: mean over the {count} training seeds"
        f"{' that had the machine alone' if alone else ', with several steps at once'}, in brackets the fastest and "
        f"the slowest. {_COUNTED}"
    )
