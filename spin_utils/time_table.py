"""Table 2: time of generation and training by iteration, ours beside the paper's and the cost model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from spin_utils import cost_model, published
from spin_utils.table_text import Table, finish, rounded, with_range

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
