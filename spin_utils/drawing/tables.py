"""The paper's tables, ours next to theirs: one function per table, from data frames to a `Table`.

Scores are in points, intervals are 95 %. A cell without a run is an em dash, with the reason below
the table. Gains by task and all verdicts on them are in the long form, which becomes the CSV file.

The paper shows examples in Tables 7 and 8. Its claim about them, that later iterations are more concise than iteration
0 and closer to the real response, is measured here on all generations, not on the example.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.drawing import footnotes
from spin_utils.experiment import estimate
from spin_utils.files.disk import write_forms
from spin_utils.paper import published, results
from spin_utils.paper.generations import MODELS, RULE, Example, distinct, example, mean_grade, similarity
from spin_utils.paper.statistics import (
    DIRECTION_MARGIN,
    SIZE_MARGIN,
    Estimate,
    StatisticsError,
    paired,
    size_margin,
    verdict,
)
from spin_utils.settings.names import ModelName, iterates, label

DASH = "—"

COLUMNS = (
    "row",
    "column",
    "quantity",
    "value",
    "low",
    "high",
    "paper",
    "difference",
    "verdict",
    "size_verdict",
    "n",
    "seeds",
    "reason",
)
"""Columns of the long form. `difference` is ours minus the paper's; `verdict` judges whether a gain has the paper's
sign, `size_verdict` whether it has the paper's size; `reason` explains why a value is missing."""


@dataclass(frozen=True)
class Table:
    """A table ready to be written."""

    number: int
    """The paper's number; 0: the paper has no such table."""
    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    """What a reader sees; every line has as many cells as the header, and the first two are names."""
    frame: pd.DataFrame
    """Long form, a row per cell, with the columns of `COLUMNS`."""
    notes: tuple[str, ...] = ()
    lead: str = ""
    """A sentence between title and table on what its columns are."""
    text: int | None = None
    """Index of the column of running text (left-aligned, wrapped), if there is one."""
    file: str = ""
    """Name of its file if the paper has no such table."""

    @property
    def name(self) -> str:
        """Its file's name."""
        return f"table{self.number}" if self.number else self.file

    @property
    def heading(self) -> str:
        """Its number."""
        return f"Table {self.number}." if self.number else "Not in the paper."

    def _repr_markdown_(self) -> str:
        return markdown(self)


_ZERO_SHOT = (
    "Here BB-causal, BB-formal and BB-sports are the zero-shot tasks of Big-Bench, answered by the most likely choice; "
    "the paper uses their subsets in Big-Bench-Hard, with three worked examples."
)

_GAINS = (
    "Gain: difference of the averages on the same items (paired). Direction: reproduced if the whole interval "
    f"has the paper's sign, not reproduced if all of it is below a gain of {DIRECTION_MARGIN} points. Size: whether "
    f"the gain is within {SIZE_MARGIN} points of the paper's, or within half of the paper's gain if that is smaller."
)

_ITERATIONS = {"spin-0": "sft", "spin-1": "spin-0", "spin-2": "spin-1", "spin-3": "spin-2"}
"""Model and the one its gain is measured against."""

_TIMES_COUNTED = "Generation times include loading; training times are the sum of the optimizer steps."

_SHARED = ("data", "base")
"""Stages whose artifacts all training seeds share."""

_MEASURED = ("pairs", "spin")
"""Stages timed in Table 2."""

_MEASURES = {
    "generated_tokens": ("tokens", 1, 1),
    "similarity": ("similarity", 1, 2),
    "identical": ("identical", 100, 1),
    "distinct": ("distinct", 100, 1),
    "generated_surprise": ("surprise", 1, 2),
}
"""Columns of `generations.measures` and `generations.jsd_bounds`: name in the table, factor and digits."""

_REAL = {"real_tokens": "generated_tokens", "real_distinct": "distinct", "real_surprise": "generated_surprise"}
"""Measures of real responses, and the corresponding ones of generated responses."""

_MEASURES_NOTES = (
    "Token counts include the end token, if any. Similarity: 2 M / (words in both texts), where M is the number of "
    "words in matching blocks (Python's difflib.SequenceMatcher); identical wording gives 1. Identical: share of "
    "generations that equal the real response.",
    "Distinct: share of a response's word bigrams that are distinct. Surprise: -log p per token under the base model, "
    "in nats (units of the natural logarithm), on held-out prompts.",
    "Generations are sampled at temperature 1, so part of their distance from the real responses is chance.",
)


def table1(summaries: pd.DataFrame, *, shots: Mapping[str, str] | None = None) -> Table:
    """Table 1: shots, metric and size of each task, then those of the paper's benchmarks.

    Args:
        summaries: From `results.load_summaries`.
        shots: Few-shot examples in each task's prompt; 0 for tasks not listed.
    """
    tasks = summaries.drop_duplicates("task")
    rows = [
        ("ours", published.BENCHMARK_LABELS.get(task, task), (shots or {}).get(task, "0"), metric, n, chance)
        for task, metric, n, chance in zip(tasks["task"], tasks["metric"], tasks["n"], tasks["chance"], strict=True)
    ]
    rows += [
        ("paper", published.BENCHMARK_LABELS[str(name)], setting["shots"], setting["metric"], setting["items"], None)
        for name, setting in published.benchmark_settings().loc[list(published.LEADERBOARD)].iterrows()
    ]
    cells, lines = [], []
    for whose, task, examples, metric, n, chance in rows:
        guessed = "" if chance is None or pd.isna(chance) else f"{100 * chance:.1f}"
        lines.append((task, whose, str(examples), str(metric), str(n), guessed))
        for column, value in zip(("few-shot", "metric", "items", "chance"), lines[-1][2:], strict=True):
            cells.append({"row": task, "column": column, "quantity": "setting"})
            cells[-1] |= {"value": value} if whose == "ours" else {"paper": value}
    notes = [
        "The paper gives the examples and metrics; its numbers of items are the sizes of the public test sets. Chance: "
        "the score of guessing at random or of always giving the same answer, whichever is higher, in points."
    ]
    if "score" in set(tasks["metric"]):
        notes.append("score: right or wrong according to the row's grader; exact match for rows without one.")
    header = ["Task", "", "Few-shot", "Metric", "Items", "Chance"]
    return finish(1, "Benchmarks: few-shot examples, metric and number of items", header, lines, cells, notes)


def table2(times: pd.DataFrame, *, machine: str = "this machine", alone: bool = True) -> Table:
    """Table 2: time of generation and training by iteration.

    Args:
        times: Columns `seed`, `stage` (generation, training), `iteration`, `seconds`.
        machine: Where the times were measured, for the note.
        alone: Whether no other step was running at the time.
    """
    paper = published.wall_clock_hours().set_index(["stage", "iteration"])["hours"]
    run, architecture = estimate.Workload(), estimate.Architecture()
    predicted = {"generation": [estimate.generation_hours(run, architecture)] * 4}
    predicted["training"] = [estimate.training_hours(run, architecture, iteration) for iteration in range(4)]
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
    reached = estimate.utilisation(run, architecture, 0, paper["training", 0])
    notes = (
        _times_note(cells, machine, alone),
        f"Cost model: a prediction, not a measurement, for the paper's 7B model and {run.prompts:,} prompts on "
        f"{run.gpus} A100-80GB GPUs. It counts the operations that the method needs and assumes {run.utilisation:.0%} "
        f"of peak FLOP/s and {run.prompt_tokens}, {run.real_tokens} and {run.generated_tokens} tokens for prompt, real "
        "and generated response, none of which the paper gives. By the same count, the paper's hours for iteration 0 "
        f"mean that its training reached {reached:.0%} of peak.",
        "The paper's hours are for 8 A100-80GB GPUs. To the last digit they equal 6.69 s (generation) and 10 s "
        "(training) per 64 examples at 49,792 prompts and two epochs, so they were extrapolated from single batches.",
    )
    header = ["", "", *(f"Iteration {iteration}" for iteration in range(4))]
    return finish(2, "Time of generation and training", header, lines, cells, notes)


def table3(scores: pd.DataFrame, *, preferences: str = "samples") -> Table:
    """Table 3: SPIN against DPO, and DPO after SPIN. Arguments as in `table4`; `preferences` is the source of DPO's."""
    rows = {"dpo": "sft", "sft": "", **_ITERATIONS, "spin-3-dpo": "spin-3"}
    averages = published.leaderboard()[["average_printed", "average_recomputed"]]
    last, gain = averages.loc["spin-3-dpo"], averages.loc["spin-3-dpo"] - averages.loc["spin-3"]
    graded = (
        "DPO here learns from the models' own answers, which the tasks' graders label right or wrong: more "
        "supervision than SPIN gets. "
    )
    note = (
        f"{graded if preferences == 'samples' else ''}The paper's last row prints an average of "
        f"{last['average_printed']:.2f} ({gain['average_printed']:+.2f}), "
        f"but its six cells average {last['average_recomputed']:.2f} ({gain['average_recomputed']:+.2f}): one of these "
        "numbers is wrong."
    )
    return _leaderboard(3, "SPIN, DPO, and DPO after SPIN", rows, scores, note)


def table4(scores: pd.DataFrame) -> Table:
    """Table 4: the SFT model and SPIN by iteration on the six benchmarks.

    Args:
        scores: From `draw.scores`, or from `results.load_evaluations` with the columns `benchmark` (the paper's
            benchmark that a task is, or "") and `at_chance`.
    """
    return _leaderboard(4, "SPIN by iteration", {"sft": "", **_all_iterations(scores)}, scores)


def table5(scores: pd.DataFrame) -> Table:
    """Table 5: one more epoch of SFT instead of SPIN. Arguments as in `table4`."""
    return _leaderboard(5, "One more epoch of SFT", {"sft": "", "sft-more-1": "sft"}, scores)


def table6(scores: pd.DataFrame, grades: pd.DataFrame | None = None) -> Table:
    """Table 6: benchmarks outside the leaderboard; here tasks that no model was trained on, and MT-Bench if it was run.

    Args:
        scores: Of tasks that no model was trained on, from `draw.scores(profile, "transfer")`.
        grades: From `results.load_mt_bench`.
    """
    columns = _columns(scores, published.OTHERS, always=True)
    baselines = {"sft": "", **dict.fromkeys(_all_iterations(scores), "sft")}
    cells: list[dict[str, Any]] = []
    lines = []
    judged = grades is not None and not grades.empty
    for model, levels, gains in _levels_and_gains(scores, baselines, columns):
        if grades is not None and judged:  # MT-Bench is the first column
            levels[0] = _graded(levels[0], _over(model, ""), grades)
            gains = gains and [_graded(gains[0], _over(model, baselines[model]), grades), *gains[1:]]
        cells += [*levels, *gains]
        lines.append((label(model), "ours", *map(_shown, levels)))
        lines.append(("", "paper", *(_printed(cell) for cell in levels)))
        if gains:
            lines.append(("", "gain, ours", *(_shown(cell, sign=True) for cell in gains)))
            lines.append(("", "gain, paper", *(_printed(cell, sign=True) for cell in gains)))
    notes = [
        _scores_note(scores, baselines),
        "Gains are over SFT, on the same items (paired). The paper has no row after iteration 2.",
        *(
            [_ZERO_SHOT]
            if "bb_causal" in benchmarks(scores).values() and "bb_causal" not in set(scores["task"])
            else []
        ),
        *([footnotes.grading(grades)] if grades is not None and judged else []),
        _noise_of_the_paper(),
    ]
    header = ["Model", "", *_headings(scores, columns)]
    lead = _lead(scores, columns, "tasks that no model was trained on")
    return finish(6, "SPIN by iteration on other benchmarks", header, lines, cells, notes, lead=lead)


def table7(generations: pd.DataFrame, measured: pd.DataFrame, heldout: pd.DataFrame | None = None) -> Table:
    """Table 7: generations by iteration for one prompt.

    Args:
        generations: From `results.load_generations`.
        measured: From `generations.measures`, of the same generations.
        heldout: From `generations.jsd_bounds`, for the surprise of held-out responses.
    """
    return _generations_table(7, "Generations by iteration for one prompt", example(generations), measured, heldout)


def table8(generations: pd.DataFrame, measured: pd.DataFrame, heldout: pd.DataFrame | None = None) -> Table:
    """Table 8: the same for a prompt of another family. Arguments as in `table7`."""
    first = example(generations)
    shown = first and example(generations, other_than=[first.family])
    return _generations_table(8, "Generations by iteration for another prompt", shown, measured, heldout)


def arms(scores: pd.DataFrame, changes: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """What would have helped: the profile's arms compared with SFT and with SPIN itself. Not in the paper.

    Args:
        scores: From `draw.scores`.
        changes: The settings that each arm changes, by dotted name.

    Returns:
        None if no arm was evaluated.
    """
    measured = list(dict.fromkeys(scores["model"]))
    played = [model for arm in changes for model in measured if ModelName.parse(model).arm == arm]
    if not played:
        return None
    plain = {model: str(replace(ModelName.parse(model), arm="")) for model in played}
    control = [model for model in measured if ModelName.parse(model).sft_epochs]
    rows = [model for model in ("sft", *control, *iterates(plain.values()), *played) if model in measured]
    scores = scores[scores["task"].isin(results.judged(scores))]
    kinds = {"": "score", " of samples": "sampled"} if "sampled" in scores else {"": "score"}
    cells: list[dict[str, Any]] = []
    lines = []
    for model in dict.fromkeys(rows):
        others = ["", *["sft"] * (model != "sft"), *([plain[model]] if model in plain else [])]
        line, judged = [label(model), _changes(changes.get(ModelName.parse(model).arm, {}))], ""
        for kind, column in kinds.items():
            own = [_compared(scores, model, other, column) | {"column": f"average{kind}"} for other in others]
            line += [*(with_range(cell, sign=place > 0) for place, cell in enumerate(own)), *[""] * (3 - len(own))]
            judged = judged or (_helped(own[2]) if len(own) == 3 else "")
            cells += own
        lines.append((*line, judged))
    over = ("Average", "Over SFT", "Over SPIN")
    header = ["Model", "Changes", *(f"{name}{kind}" for kind in kinds for name in over), "Helped"]
    sampled = " Samples: mean score of answers sampled at temperature 1, as in the theory." if len(kinds) > 1 else ""
    notes = [
        f"{_scores_note(scores, rows)} The average is the unweighted mean over tasks.{sampled}",
        "Every arm starts from the same SFT model and shares with SPIN everything that it does not change, pairs "
        "included. Gains are on the same items (paired); over SPIN means over the same iteration without the change.",
        f"Helped: yes (or harmed) if the whole interval of the gain over SPIN is above (or below) 0; no if all of it "
        f"is below {DIRECTION_MARGIN} points; otherwise open.",
    ]
    title = "What would have helped: variants of SPIN under the same control"
    return finish(0, title, header, lines, cells, notes, file="arms")


def own_units(metrics: pd.DataFrame) -> Table | None:
    """Tasks that are measured in a unit of their own, such as BLEU or perplexity. Not in the paper.

    Args:
        metrics: From `results.load_summaries(..., part="metrics")`; None is returned if it is empty.
    """
    kinds = {task: own.iloc[0] for task, own in metrics.groupby("task")}
    lines, cells = [], []
    for model, of_model in metrics.groupby("model", sort=False):
        found = of_model.groupby("task").agg(
            value=("value", "mean"), low=("value", "min"), high=("value", "max"), seeds=("seed", "nunique")
        )
        own = {task: found.loc[task].to_dict() if task in found.index else {} for task in kinds}
        cells += [{"row": label(str(model)), "column": task, **cell} for task, cell in own.items()]
        lines.append((label(str(model)), "", *(with_range(cell, digits=2) for cell in own.values())))
    header = [
        f"{task}: {kind['metric']}{'' if kind['higher_is_better'] else ' (lower is better)'}"
        for task, kind in kinds.items()
    ]
    notes = [
        "Mean over training seeds, in brackets the lowest and the highest. Not points: in no average and no verdict."
    ]
    title = "Tasks in units of their own"
    return finish(0, title, ["Model", "", *header], lines, cells, notes, file="own_units") if lines else None


def instruments(scores: pd.DataFrame, bounds: pd.DataFrame, bits: pd.DataFrame) -> Table:
    """Finer measures of the same models than the greedy score. Not in the paper.

    Args:
        scores: From `draw.scores`, with `sampled` where answers were sampled.
        bounds: From `generations.jsd_bounds`.
        bits: From `generations.bits_per_byte`.
    """
    scores = scores[scores["task"].isin(results.judged(scores))]
    drawn = scores.dropna(subset=["sampled"]) if "sampled" in scores else scores
    measured = list(dict.fromkeys(scores["model"]))
    control = [model for model in measured if ModelName.parse(model).sft_epochs and not ModelName.parse(model).arm]
    rows = [model for model in dict.fromkeys(("sft", *iterates(measured), *control)) if model in measured]
    cells: list[dict[str, Any]] = []
    lines = []
    for model in rows:
        line = [label(model), ""]
        for name, (table, column, factor, digits, gains) in {
            "greedy": (scores, "score", 100, 1, True),
            "samples": (drawn, "sampled", 100, 1, True),
            "told apart": (bounds, "told_apart", 100, 1, False),
            "JSD": (bounds, "jsd_bound", 1, 4, False),
            "bits per byte": (bits, "bits_per_byte", 1, 4, True),
        }.items():
            if column not in table or table.empty:
                continue
            for other in ["", *(["sft"] if gains else [])]:
                cell = {"row": label(model), "column": name, "quantity": "gain over SFT" if other else "level"}
                if model in set(table["model"]) and model != other:
                    cell |= _measured(table, _over(model, other), column, factor)
                cells.append(cell)
                line.append(with_range(cell, sign=bool(other), digits=digits).replace(DASH, ""))
        lines.append(tuple(line))
    headings = {"score": "Greedy", "sampled": "Samples", "bits_per_byte": "Bits per byte"}
    held = {column for table in (scores, bits) if not table.empty for column in table}
    header = ["Model", ""]
    for column in ("score", "sampled"):
        header += [headings[column], "over SFT"] if column in held else []
    header += ["Told apart, %", "JSD (lower bound), nats"] if not bounds.empty else []
    header += ["Bits per byte", "over SFT"] if "bits_per_byte" in held else []
    notes = [
        "Greedy: mean score of the most likely answers, as in Table 4. Samples: mean score of answers sampled at "
        "temperature 1, the distribution that the theory is about.",
        "Told apart: share of held-out pairs in which the next iteration raised the log-probability of the real "
        "response more than that of this model's own; ties count 1/2. JSD: Jensen-Shannon divergence between the two. "
        "Both show how much is left to learn (Theorem 5.2, Lemma C.2). Bits per byte: of held-out real responses; "
        "lower is better.",
    ]
    if len(tasks := sorted(drawn["task"].unique())) < scores["task"].nunique():
        notes.append(
            f"Samples cover {', '.join(tasks)} only; a multiple-choice task scores the right choice's probability."
        )
    return finish(0, "The same models by finer measures", header, lines, cells, notes, file="instruments")


def _changes(changes: Mapping[str, Any]) -> str:
    """An arm's settings in short, without the section that most of them share."""
    names = {name: name.removeprefix("spin.").removeprefix("training.") for name in changes}
    return "; ".join(f"{names[name]}: {json.dumps(value)}" for name, value in changes.items())


def _compared(scores: pd.DataFrame, model: str, other: str, column: str) -> dict[str, Any]:
    """A model's mean over all tasks, or its gain over another model, or why it is missing."""
    cell = {"row": label(model), "quantity": f"gain over {label(other)}" if other else "score"}
    return cell | _measured(scores, _over(model, other), column, 100)


def _over(model: str, other: str) -> dict[str, float]:
    """The contrast of a model with another, or without another its own mean."""
    return {model: 1.0} | ({other: -1.0} if other else {})


def _measured(table: pd.DataFrame, contrast: Mapping[str, float], column: str, factor: float) -> dict[str, Any]:
    """The numbers of a cell, over the tasks that have this measure, or why there are none."""
    try:
        return numbers(paired(table.dropna(subset=[column]), contrast, column=column).times(factor))
    except StatisticsError as error:
        return {"reason": str(error)}


def _helped(gain: Mapping[str, Any]) -> str:
    if gain.get("value") is None:
        return ""
    if gain["low"] > 0:
        return "yes"
    return "harmed" if gain["high"] < 0 else "no" if gain["high"] < DIRECTION_MARGIN else "open"


def wall_clock(folder: Path, training: pd.DataFrame) -> tuple[pd.DataFrame, str, bool]:
    """Measured seconds of generation and training.

    Generation is the whole stage, from the provenance of the evaluations. Training is the sum of its steps, so that
    iteration 0 counts the epochs that its model has, not those that Figure 4 adds; without its record it has no time.
    Only runs on the device of the lowest seed count, and of these, if there are any, only the seeds that had it to
    themselves: a run that shared its cores was not timed under the same conditions.

    Args:
        folder: results/PROFILE.
        training: from `results.load_training`.

    Returns:
        Columns `seed`, `stage`, `iteration`, `seconds`; the device; and whether they ran alone.
    """
    steps_of: dict[int, dict[str, dict[str, Any]]] = {}
    for seed, chain in results.chains(folder):
        steps_of.setdefault(seed, {}).update({n: step for n, step in chain.items() if step["stage"] not in _SHARED})
    links = {
        (seed, name): link
        for seed, steps in steps_of.items()
        for name, link in steps.items()
        if link["stage"] in _MEASURED and "-arm-" not in name
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


def benchmarks(scores: pd.DataFrame) -> dict[str, str]:
    """The paper's benchmark that each task is, or "": from the column `benchmark`, otherwise by name."""
    if "benchmark" not in scores:
        return {task: task if task in published.BENCHMARK_LABELS else "" for task in sorted(scores["task"].unique())}
    tasks = scores.drop_duplicates("task").sort_values("task")
    return dict(zip(tasks["task"], tasks["benchmark"], strict=True))


def write(table: Table, folder: Path) -> list[Path]:
    """Write table<N>.md, .csv and .tex, or NAME.* if it has no number; the same table gives the same bytes."""
    texts = {"md": markdown(table), "csv": table.frame.to_csv(index=False, float_format="%.6g"), "tex": latex(table)}
    return write_forms(folder / table.name, texts)


def markdown(table: Table) -> str:
    """The table with its notes as GitHub Markdown."""
    lines = [[_md(cell) if column == table.text else cell for column, cell in enumerate(line)] for line in table.lines]
    shown = pd.DataFrame(lines, columns=list(table.header))
    sides = ["right" if _is_number(table, column) else "left" for column in range(len(table.header))]
    rows = shown.to_markdown(index=False, tablefmt="pipe", colalign=sides, disable_numparse=True)
    notes = [f"- {note}" for note in table.notes]
    lead = [table.lead, ""] if table.lead else []
    return "\n".join([f"**{table.heading}** {table.title}", "", *lead, rows, "", *notes, ""])


def latex(table: Table) -> str:
    """The table as a booktabs `tabular` with a caption; the notes follow below."""
    columns = ["r" if _is_number(table, column) else "l" for column in range(len(table.header))]
    if table.text is not None:
        columns[table.text] = "p{9cm}"
    lines = [[_tex(cell) for cell in line] for line in table.lines]
    for line in lines[1:]:
        line[0] = line[0] and f"\\addlinespace\n{line[0]}"
    shown = pd.DataFrame(lines, columns=[_tex(name) for name in table.header])
    rows = shown.to_latex(index=False, escape=False, column_format="".join(columns))
    title, lead, *notes = (_tex(text) for text in (table.title, table.lead and f" {table.lead}", *table.notes))
    source = f"Table {table.number} of the paper" if table.number else "not in the paper"
    return f"""% needs \\usepackage{{booktabs}} and \\usepackage{{graphicx}}
\\begin{{table*}}
\\centering
\\caption{{{title} ({source}).{lead}}}
\\resizebox{{\\textwidth}}{{!}}{{%
{rows.rstrip()}}}
\\par\\smallskip{{\\footnotesize {" ".join(notes)}\\par}}
\\end{{table*}}
"""


def compact(frame: pd.DataFrame, *, with_tasks: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and rows of Table 4 with one line a model, where there is less room: intervals for averages only.

    Args:
        frame: the table's long form, as it is or from its CSV file.
        with_tasks: whether to show the tasks' columns.
    """
    tasks = [name for name in frame["column"].unique() if name != "average" and with_tasks]
    rows = []
    for row, cells in frame.groupby("row", sort=False):
        level = cells[cells["quantity"] == "score"].set_index("column")
        gain = cells[(cells["quantity"] != "score") & (cells["column"] == "average")].reset_index().reindex([0]).loc[0]
        found = [_short(level.loc[name, "value"]) for name in tasks]
        found += [_short(*level.loc["average", ["value", "low", "high"]])]
        found += [_short(*gain[["value", "low", "high"]], sign="+"), str(gain["verdict"]).replace("nan", "")]
        rows.append([str(row), *found, _short(level.loc["average", "paper"]), _short(gain["paper"], sign="+")])
    return ["", *(name.replace("_", "\n") for name in tasks), "average", "gain", "direction", "paper", "gain"], rows


def _short(value: Any, low: Any = math.nan, high: Any = math.nan, *, sign: str = "") -> str:
    if pd.isna(value):
        return DASH
    return minus(f"{value:{sign}.1f}" + ("" if pd.isna(low) else f" [{low:{sign}.1f}, {high:{sign}.1f}]"))


def _leaderboard(
    number: int,
    title: str,
    baselines: Mapping[str, str],
    scores: pd.DataFrame,
    note: str = "",
) -> Table:
    """Models by benchmarks, two lines a model: ours with intervals, the paper's as printed."""
    columns = _columns(scores, published.LEADERBOARD) | {"average": results.judged(scores)}
    cells: list[dict[str, Any]] = []
    lines = []
    for model, levels, gains in _levels_and_gains(scores, baselines, columns):
        cells += [*levels, *gains]
        ours, theirs = ["", "", ""], ["", "", ""]
        if gains:
            average = gains[-1]
            verdicts = (average.get("verdict", DASH), average.get("size_verdict", DASH))
            ours = [with_range(average, sign=True), *verdicts]
            theirs = [_printed(average, sign=True), "", ""]
        lines.append((label(model), "ours", *map(with_range, levels), *ours))
        lines.append(("", "paper", *(_printed(cell) for cell in levels), *theirs))
    over = "; ".join(f"{label(model)} over {label(other)}" for model, other in baselines.items() if other)
    notes = [
        f"{_scores_note(scores, baselines)} The average is the unweighted mean over tasks.",
        _GAINS,
        f"Gains: {over}. Gains by task are in the CSV file.",
        *filter(None, [note]),
    ]
    header = ["Model", "", *_headings(scores, columns), "Gain", "Direction", "Size"]
    return finish(number, title, header, lines, cells, notes, lead=_lead(scores, columns))


def _all_iterations(scores: pd.DataFrame) -> dict[str, str]:
    """`_ITERATIONS`, and those after the paper's last that were evaluated."""
    names = [*_ITERATIONS, *(model for model in iterates(scores["model"]) if model not in _ITERATIONS)]
    return dict(zip(names, ["sft", *names], strict=False))


def _levels_and_gains(
    scores: pd.DataFrame, baselines: Mapping[str, str], columns: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Each model, its cell in every column, and its gain over its baseline in every column, if it has one."""
    for model, baseline in baselines.items():
        levels = [_cell(scores, model, "", column, tasks) for column, tasks in columns.items()]
        gains = [_cell(scores, model, baseline, column, tasks) for column, tasks in columns.items() if baseline]
        yield model, levels, gains


def _cell(scores: pd.DataFrame, model: str, baseline: str, column: str, tasks: Sequence[str]) -> dict[str, Any]:
    """One score, or with a baseline one gain: the paper's, and ours with its interval or why it is missing."""
    paper = _paper_score(model, column)
    cell: dict[str, Any] = {"row": label(model), "column": column, "quantity": "score", "paper": paper}
    if baseline:
        before = _paper_score(baseline, column)
        paper = None if paper is None or before is None else round(paper - before, 2)
        cell |= {"quantity": f"gain over {label(baseline)}", "paper": paper}
    if not tasks:
        return cell | {"reason": _no_task(column, tasks)}
    try:
        estimate = paired(scores, _over(model, baseline), tasks=tasks).times(100)
    except StatisticsError as error:
        return cell | {"reason": str(error)}
    cell |= numbers(estimate)
    if paper is None:
        return cell
    cell["difference"] = estimate.difference - paper
    if baseline and paper and set(tasks) & set(results.judged(scores)):
        cell["verdict"] = verdict(estimate, DIRECTION_MARGIN, claim="greater" if paper > 0 else "less")
        cell["size_verdict"] = verdict(estimate, size_margin(paper), claim="same_size", value=paper)
    return cell


def _graded(cell: Mapping[str, Any], contrast: Mapping[str, float], grades: pd.DataFrame) -> dict[str, Any]:
    """A cell of MT-Bench from the judge's grades, 1 to 10, or why it is missing."""
    cell = {name: value for name, value in cell.items() if name != "reason"}
    try:
        estimate = mean_grade(grades, contrast)
    except StatisticsError as error:
        return cell | {"reason": f"MT-Bench: {error}"}
    cell |= numbers(estimate)
    return cell if cell["paper"] is None else cell | {"difference": estimate.difference - cell["paper"]}


def _paper_score(model: str, column: str) -> float | None:
    return published.score(model, column) if column in published.BENCHMARK_LABELS else None


def _columns(scores: pd.DataFrame, wanted: Sequence[str], *, always: bool = False) -> dict[str, list[str]]:
    """Each column and its tasks: the paper's benchmarks in its order, then all other tasks.

    Where only other tasks were measured, the paper's benchmarks are left out, unless `always`.
    """
    tasks = benchmarks(scores)
    unknown = sorted(set(tasks.values()) - {"", *published.BENCHMARK_LABELS})
    if unknown:
        raise ValueError(f"benchmark {unknown[0]!r} is not one of {', '.join(published.BENCHMARK_LABELS)}")
    columns = {name: [task for task, other in tasks.items() if other == name] for name in wanted}
    if tasks and not always and not any(columns.values()):
        columns = {}
    for task, benchmark in tasks.items():
        if benchmark not in columns:
            # A task of the user's that merely shares a benchmark's name is not compared with it.
            called_like_one = task in published.BENCHMARK_LABELS and task != benchmark
            columns[f"{task} (added)" if called_like_one else task] = [task]
    return columns


def _headings(scores: pd.DataFrame, columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Column headings: the paper's benchmark or a task's own name, and whether the column is at chance."""
    kept = results.judged(scores)
    names = {column: published.BENCHMARK_LABELS.get(column, column) for column in columns}
    return [name + " (at chance)" * bool(columns[c] and not set(columns[c]) & set(kept)) for c, name in names.items()]


def _lead(scores: pd.DataFrame, columns: Mapping[str, Sequence[str]], tasks: str = "tasks of this profile") -> str:
    """What the columns are, unless all are benchmarks of the paper."""
    own = [column for column in columns if column not in published.BENCHMARK_LABELS]
    sentences = []
    if own:
        six = _listed([published.BENCHMARK_LABELS[name] for name in published.LEADERBOARD])
        alone = "average" in columns and len(own) == len(columns) - 1
        average = f", whose average is over {six}" if alone else ""
        verb = "are" if len(own) > 1 else "is one of the"
        sentences.append(f"{_listed(own)} {verb} {tasks}, not benchmarks of the paper{average}.")
    if set(benchmarks(scores)) - set(results.judged(scores)):
        sentences.append(
            "At chance: before any training here, no more than two standard errors above guessing; such a column "
            "counts for no verdict and is not in the average."
        )
    return " ".join(sentences)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _scores_note(scores: pd.DataFrame, models: Iterable[str]) -> str:
    """The unit of scores, what their intervals cover, and which models have fewer training seeds."""
    models = list(models)
    brackets = footnotes.intervals(scores, models)
    sentences = [f"Scores in points{brackets and f'; in brackets {brackets}'}.", footnotes.fewer_seeds(scores, models)]
    return " ".join(filter(None, sentences))


def _noise_of_the_paper() -> str:
    """Whether Table 6's own gains could be chance, from the number of items of each benchmark."""
    parts = []
    for benchmark in published.OTHERS:
        noise = published.noise({"spin-2": 1, "sft": -1}, benchmark)
        if noise is not None:
            errors = abs(noise.difference) / noise.error_unpaired
            name = published.BENCHMARK_LABELS[benchmark]
            gain = minus(f"{noise.difference:+.2f}")
            parts.append(f"{name} {gain} ({errors:.1f} standard errors, {noise.status})")
    return (
        f"The paper's own gains of iteration 2 over SFT: {'; '.join(parts)}. Standard errors treat the two scores "
        "as independent; the answers that are needed to pair them are not published."
    )


def _no_task(column: str, tasks: Sequence[str]) -> str:
    if column == "mt_bench" and not tasks:
        return "MT-Bench needs a judge model and none was run"
    name = published.BENCHMARK_LABELS.get(column, column)
    return f"{', '.join(tasks)} was not evaluated" if tasks else f"this profile does not measure {name}"


def _side_by_side(steps_of: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> set[int]:
    """Training seeds with a measured step that overlapped with another step."""
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
    """Where our times were measured, and on how many training seeds."""
    seeds = sorted({cell["seeds"] for cell in cells if "seeds" in cell})
    if not seeds:
        return f"Ours on {machine}: not run."
    if seeds == [1]:
        company = "had the machine to itself" if alone else "ran several steps at once"
        return f"Ours on {machine}: one training seed, which {company}, so the spread is unknown. {_TIMES_COUNTED}"
    count = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    return (
        f"Ours on {machine}: mean over the {count} training seeds"
        f"{' that had the machine to themselves' if alone else ', with several steps at once'}; in brackets the "
        f"fastest and the slowest. {_TIMES_COUNTED}"
    )


def _generations_table(
    number: int, title: str, shown: Example | None, measured: pd.DataFrame, heldout: pd.DataFrame | None
) -> Table:
    tables = dict.fromkeys(list(_MEASURES)[:-1], measured)
    if heldout is not None and heldout["generated_surprise"].notna().any():
        tables["generated_surprise"] = heldout
    cells: list[dict[str, Any]] = []
    lines: list[tuple[str, ...]] = []
    for name, text, counts in _example_lines(shown):
        cells.append({"row": name, "column": "text", "quantity": "example", "value": text})
        if text is None:
            cells[-1]["reason"] = "no generations at all" if shown is None else _missing(name)
        lines.append((name, "example", DASH if text is None else text, *counts[: len(tables)]))
    for model, other in ((model, other) for model in MODELS for other in ("", "spin-0") if model != other):
        means = [_measured_cell(table, _over(model, other), column) for column, table in tables.items()]
        quantity = "difference to iteration 0" if other else "mean of all prompts"
        cells += [{"row": label(model), "quantity": quantity, **cell} for cell in means]
        values = [
            with_range(cell, sign=bool(other), digits=_MEASURES[column][2])
            for column, cell in zip(tables, means, strict=True)
        ]
        lines.append(("" if other else label(model), quantity, "", *values))
    first = str(measured["model"].iloc[0]) if len(measured) else "sft"
    real = {column: _measured_cell(tables[of], {first: 1.0}, column) for column, of in _REAL.items() if of in tables}
    cells += [{"row": "Ground truth", "quantity": "mean of all prompts", **cell} for cell in real.values()]
    tokens, *others = (with_range(cell, digits=_MEASURES[_REAL[column]][2]) for column, cell in real.items())
    lines.append(("Ground truth", "mean of all prompts", "", tokens, "", "", *others))
    notes = [_means_note(measured), *_MEASURES_NOTES]
    if shown is not None:
        other = " Table 8 shows a prompt from a different family than Table 7." if number == 8 else ""
        notes.insert(0, f"Prompt {shown.id}, family {shown.family}, training seed {shown.seed}. {RULE}{other}")
    header = ["", "", "Text", "Tokens", "Similarity", "Identical, %", "Distinct, %", "Surprise"]
    return finish(number, title, header[: 3 + len(tables)], lines, cells, notes, text=2)


def _means_note(measured: pd.DataFrame) -> str:
    """What the means and their intervals cover."""
    brackets = footnotes.intervals(measured, MODELS, unit="prompts", group="family")
    sentences = [
        f"Means over all prompts, with every family weighted equally{brackets and f'; in brackets {brackets}'}.",
        "Differences are paired.",
        footnotes.fewer_seeds(measured, MODELS),
    ]
    return " ".join(filter(None, sentences))


def _example_lines(shown: Example | None) -> list[tuple[str, str | None, tuple[str, ...]]]:
    """Name, text and numbers of each line of the example; the text is None if there is no generation."""
    nothing = ("",) * len(_MEASURES)
    if shown is None:
        return [(name, None, nothing) for name in ("Prompt", "Ground truth", *map(label, MODELS))]
    lines: list[tuple[str, str | None, tuple[str, ...]]] = [
        ("Prompt", shown.prompt, nothing),
        ("Ground truth", shown.real, (str(shown.real_tokens), "", "", f"{100 * distinct(shown.real):.1f}", "")),
    ]
    for model in MODELS:
        if model not in shown.by_model:
            lines.append((label(model), None, (DASH,) * 4 + ("",)))
            continue
        row = shown.by_model[model]
        cut = " (cut)" if row["finish_reason"] == "length" else ""
        near = f"{similarity(shown.real, row['generated']):.2f}"
        same = "yes" if row["generated"] == shown.real else "no"
        varied = f"{100 * distinct(row['generated']):.1f}"
        lines.append((label(model), row["generated"], (f"{row['generated_tokens']}{cut}", near, same, varied, "")))
    return lines


def _measured_cell(measured: pd.DataFrame, contrast: Mapping[str, float], column: str) -> dict[str, Any]:
    """A mean or a difference with its interval, or why it is missing."""
    name, factor, _ = _MEASURES[_REAL.get(column, column)]
    if measured.empty:
        return {"column": name, "reason": "no generations at all"}
    absent = [model for model in contrast if model not in measured["model"].unique()]
    if absent:
        return {"column": name, "reason": _missing(*map(label, absent))}
    return {"column": name, **_measured(measured, contrast, column, factor)}


def _missing(*names: str) -> str:
    return f"no generations of {', '.join(names)}"


def finish(
    number: int,
    title: str,
    header: Sequence[str],
    lines: Sequence[tuple[str, ...]],
    cells: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    *,
    lead: str = "",
    text: int | None = None,
    file: str = "",
) -> Table:
    """A table whose notes end with the reasons for its missing cells."""
    frame = pd.DataFrame(cells).reindex(columns=list(COLUMNS))
    reasons = [f"{DASH} {reason}." for reason in frame["reason"].dropna().unique()]
    return Table(number, title, tuple(header), tuple(lines), frame, (*notes, *reasons), lead, text, file)


def numbers(estimate: Estimate) -> dict[str, Any]:
    """An estimate as the fields of a cell in the long form."""
    ours = {"value": estimate.difference, "low": estimate.low, "high": estimate.high}
    return ours | {"n": estimate.n_items, "seeds": estimate.n_seeds}


def rounded(cell: Mapping[str, Any], *, sign: bool = False, digits: int = 1) -> str:
    """The value of a cell, or a dash."""
    if cell.get("value") is None:
        return DASH
    return minus(f"{cell['value']:{'+' if sign else ''}.{digits}f}")


def with_range(cell: Mapping[str, Any], *, sign: bool = False, digits: int = 1) -> str:
    """The value of a cell with its interval, or a dash."""
    if cell.get("value") is None:
        return DASH
    return rounded(cell, sign=sign, digits=digits) + minus(f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]")


def minus(text: str) -> str:
    """A number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def _shown(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """Our number in a cell: points to one digit, grades to two, as the paper prints them."""
    return with_range(cell, sign=sign, digits=2 if cell["column"] == "mt_bench" else 1)


def _printed(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """The paper's number in a cell, as it prints it; nothing for a task that is not the paper's."""
    paper = cell["paper"]
    if cell["column"] not in published.BENCHMARK_LABELS:
        return ""
    return DASH if paper is None else minus(f"{paper:{'+' if sign else ''}.2f}")


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "—": "---",
        "–": "--",
        "−": "$-$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "’": "'",
        "“": "``",
        "”": "''",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\n": r"\newline ",
    }
)


def _tex(text: str) -> str:
    """Text for LaTeX. Characters that its usual fonts lack would stop it, and become their numbers."""
    return "".join(c if ord(c) < 0x250 or ord(c) in _TEX else f"[U+{ord(c):04X}]" for c in text).translate(_TEX)


def _is_number(table: Table, column: int) -> bool:
    """Whether a column holds numbers, which are right-aligned: all but the first two and running text."""
    return column not in (0, 1, table.text)


def _md(text: str) -> str:
    """Text as Markdown shows it in a cell, character for character; `$` would begin a formula in JupyterLab."""
    return re.sub(r"([\\`*_~<>|\[\]#$&])", r"\\\1", text).replace("\n", "<br>")
