"""The paper's tables, ours next to theirs: one function per table, from data frames to a `Table`.

Scores are in points, intervals are 95 %. A cell without a run is an em dash, with the reason below the table. Gains by
task and the verdicts on them are in the long form, which becomes the CSV file.

The paper's claim about Tables 7 and 8, that later iterations are more concise than iteration 0 and closer to the real
response, is measured on all generations, not on the example.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.drawing import footnotes
from spin_utils.drawing.footnotes import minus
from spin_utils.evaluation.instructions import NAME
from spin_utils.experiment import cost
from spin_utils.files.disk import write_forms
from spin_utils.paper import published, results
from spin_utils.paper.claims import GENERATED, HELD_OUT, NOTHING
from spin_utils.paper.generations import MODELS, RULE, example, mean_grade
from spin_utils.paper.statistics import (
    DIRECTION_MARGIN,
    SIZE_MARGIN,
    Estimate,
    StatisticsError,
    paired,
    size_margin,
    verdict,
)
from spin_utils.settings.names import ModelName, iterates, label, main_chain

DASH = "—"

COLUMNS = ["row", "column", "quantity", "value", "low", "high", "paper", "difference"]
COLUMNS += ["verdict", "size_verdict", "n", "seeds", "reason"]
"""Columns of the long form. `difference` is ours minus the paper's; `verdict` judges whether a gain has the paper's
sign, `size_verdict` whether it has the paper's size; `reason` explains why a value is missing."""


@dataclass(frozen=True)
class Table:
    """A table ready to be written."""

    name: str
    """Of its files: `table4`, or `arms` if the paper has no such table."""
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

    @property
    def number(self) -> str:
        """The paper's, or "" if it has no such table."""
        return self.name.partition("table")[2]

    @property
    def heading(self) -> str:
        return f"Table {self.number}." if self.number else "Not in the paper."

    def _repr_markdown_(self) -> str:
        return markdown(self)


Row = tuple[tuple[str, ...], list[dict[str, Any]]]
"""A line of a table, and its cells of the long form."""

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


def table1(summaries: pd.DataFrame, *, shots: Mapping[str, str]) -> Table:
    """Table 1: shots, metric and size of each task, then those of the paper's benchmarks; `shots` from `draw.shots`."""
    ours = summaries.drop_duplicates("task").set_index("task")[["metric", "n", "chance"]]
    theirs = published.benchmark_settings().loc[list(published.LEADERBOARD), ["shots", "metric", "items"]]
    name = published.BENCHMARK_LABELS
    # A task of the user's may share a benchmark's name; those of a suite have the paper's number of examples.
    called = {task: name.get(task, task) for task, few in shots.items() if few.isdigit()}
    lines = [
        (called.get(task, task), "ours", shots.get(task, "0"), metric, str(n), "" if pd.isna(c) else f"{100 * c:.1f}")
        for task, metric, n, c in ours.itertuples()
    ]
    lines += [(name[task], "paper", few, metric, str(items), "") for task, few, metric, items in theirs.itertuples()]
    header = ["Task", "", "Few-shot", "Metric", "Items", "Chance"]
    rows: list[Row] = []
    for line in lines:
        row, whose, *settings = line
        cell, value = {"row": row, "quantity": "setting"}, "value" if whose == "ours" else "paper"
        named = zip(header[2:], settings, strict=True)
        rows.append((line, [cell | {"column": column.lower(), value: setting} for column, setting in named]))
    notes = footnotes.notes("table1", scored="score" in set(ours["metric"]))
    return _finish("table1", "Benchmarks: few-shot examples, metric and number of items", header, rows, notes)


def table2(times: pd.DataFrame, *, machine: str = "this machine", alone: bool = True) -> Table:
    """Table 2: time of generation and training by iteration. Arguments from `wall_clock`."""
    paper = published.numbers("wall_clock_hours").set_index(["stage", "iteration"])["hours"]
    run, architecture = cost.Workload(), cost.Architecture()
    rows: list[Row] = []
    for stage in ("generation", "training"):
        ours: list[dict[str, Any]] = []
        model: list[dict[str, Any]] = []
        for iteration in range(4):
            place: dict[str, Any] = {"row": stage, "column": f"iteration {iteration}", "paper": paper[stage, iteration]}
            minutes = times[(times["stage"] == stage) & (times["iteration"] == iteration)]["seconds"] / 60
            measured = _over_seeds(minutes) or {"reason": f"{stage} of iteration {iteration} was not run"}
            ours.append(place | {"quantity": "minutes (ours), hours (paper)"} | measured)
            hours = cost.generation_hours(run, architecture)
            if stage == "training":
                hours = cost.training_hours(run, architecture, iteration)
            values = {"value": hours, "difference": hours - place["paper"]}
            model.append(place | {"quantity": "hours (cost model), hours (paper)"} | values)
        digits = 1 if max(cell.get("value", 0.0) for cell in ours) >= 1 else 2  # of minutes
        minutes_shown = (cell_text(cell, digits=digits, interval=cell.get("seeds", 1) > 1) for cell in ours)
        rows.append(((stage.capitalize(), "ours, minutes", *minutes_shown), ours))
        rows.append((("", "cost model, hours", *(f"{cell['value']:.2f}" for cell in model)), model))
        rows.append((("", "paper, hours", *(f"{cell['paper']:.2f}" for cell in model)), []))
    reached = run.utilisation * cost.training_hours(run, architecture, 0) / paper["training", 0]
    seeds = sorted({cell["seeds"] for _, cells in rows for cell in cells if "seeds" in cell})
    notes = footnotes.notes("table2", seeds=seeds, machine=machine, alone=alone, run=run, reached=reached)
    header = ["", "", *(f"Iteration {iteration}" for iteration in range(4))]
    return _finish("table2", "Time of generation and training", header, rows, notes)


def table3(scores: pd.DataFrame, *, preferences: str) -> Table:
    """Table 3: SPIN against DPO, and DPO after SPIN; `preferences` is the source of DPO's, or "" without DPO."""
    trained = [name for name in sorted(scores["model"].unique()) if ModelName.parse(name).dpo]
    after = {name: name.removesuffix("-dpo") for name in [*trained, "spin-3-dpo"] if name != "dpo"}
    rows = {"dpo": "sft", "sft": "", **_iterations(), **after}
    averages = published.leaderboard()[["average_printed", "average_recomputed"]]
    last, gain = averages.loc["spin-3-dpo"], averages.loc["spin-3-dpo"] - averages.loc["spin-3"]
    note = footnotes.note("table3", preferences=preferences if trained else "", last=last, gain=gain)
    return _leaderboard("table3", "SPIN, DPO, and DPO after SPIN", rows, scores, note)


def table4(scores: pd.DataFrame) -> Table:
    """Table 4: the SFT model and SPIN by iteration on the six benchmarks."""
    return _leaderboard("table4", "SPIN by iteration", {"sft": "", **_iterations(scores["model"])}, scores)


def table5(scores: pd.DataFrame) -> Table:
    """Table 5: one more epoch of SFT instead of SPIN."""
    return _leaderboard("table5", "One more epoch of SFT", {"sft": "", "sft-more-1": "sft"}, scores)


def table6(scores: pd.DataFrame, grades: pd.DataFrame = NOTHING, instructions: pd.DataFrame = NOTHING) -> Table:
    """Table 6: benchmarks outside the leaderboard; here tasks that no model was trained on, and MT-Bench if it was run.

    All kinds of `instructions`, from `draw.scores(profile, "instructions")`, are one column.
    """
    if not instructions.empty:
        one = instructions.assign(task=NAME)
        scores = one if scores.empty else pd.concat([scores, one], ignore_index=True)
    columns = _columns(scores, published.OTHERS, always=True)
    baselines = {"sft": "", **dict.fromkeys(_iterations(scores["model"]), "sft")}
    rows: list[Row] = []
    for model, baseline in baselines.items():
        levels, gains = _levels_and_gains(scores, model, baseline, columns, grades)
        rows.append(((label(model), "ours", *map(_score, levels)), levels))
        rows.append((("", "paper", *map(_printed, levels)), []))
        if gains:
            rows.append((("", "gain, ours", *(_score(cell, sign=True) for cell in gains)), gains))
            rows.append((("", "gain, paper", *(_printed(cell, sign=True) for cell in gains)), []))
    own = benchmarks(scores)
    noises = {published.BENCHMARK_LABELS[b]: published.noise({"spin-2": 1, "sft": -1}, b) for b in published.OTHERS}
    notes = footnotes.notes(
        "table6",
        scores=scores,
        baselines=baselines,
        grades=grades,
        followed="" if instructions.empty else NAME,
        zero_shot="bb_causal" in own.values() and "bb_causal" not in own,
        noises={name: noise for name, noise in noises.items() if noise is not None},
    )
    header = ["Model", "", *_headings(scores, columns)]
    lead = _lead(scores, columns, "tasks that no model was trained on")
    return _finish("table6", "SPIN by iteration on other benchmarks", header, rows, notes, lead=lead)


def table7(generations: pd.DataFrame, measured: pd.DataFrame, heldout: pd.DataFrame = NOTHING) -> Table:
    """Table 7: generations by iteration for one prompt."""
    return _generations_table("table7", "one prompt", example(generations), measured, heldout)


def table8(generations: pd.DataFrame, measured: pd.DataFrame, heldout: pd.DataFrame = NOTHING) -> Table:
    """Table 8: the same for a prompt of another family, or of the only one."""
    first = example(generations)
    rest = (generations[~generations[name].isin(first[name])] for name in ("family", "id"))
    shown = example(next((rows for rows in rest if len(rows)), generations))
    return _generations_table("table8", "another prompt", shown, measured, heldout)


def arms(scores: pd.DataFrame, changes: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """What would have helped: the profile's arms compared with SFT and with SPIN itself. Not in the paper.

    `changes` are the settings that each arm changes, by dotted name. None if no arm was evaluated.
    """
    measured = list(scores["model"].unique())
    played = [model for arm in changes for model in measured if ModelName.parse(model).arm == arm]
    if not played:
        return None
    plain = {model: model.partition("-arm-")[0] for model in played}
    control = [model for model in measured if ModelName.parse(model).sft_epochs]
    models = [model for model in ("sft", *control, *iterates(plain.values()), *played) if model in measured]
    scores = results.counted(scores)
    kinds = {"": "score", " of samples": "sampled"} if "sampled" in scores else {"": "score"}
    rows: list[Row] = []
    for model in models:
        cells: list[dict[str, Any]] = []
        others = ["", *["sft"] * (model != "sft"), *([plain[model]] if model in plain else [])]
        changed, helped = changes.get(ModelName.parse(model).arm, {}), ""
        short = {name.removeprefix("spin.").removeprefix("training."): value for name, value in changed.items()}
        line = ["; ".join(f"{name}: {json.dumps(value)}" for name, value in short.items())]
        for kind, column in kinds.items():
            own = [
                {"row": label(model), "column": f"average{kind}", "quantity": _quantity(other)}
                | measure(scores, model, other, column)
                for other in others
            ]
            line += [*(cell_text(cell, sign=place > 0) for place, cell in enumerate(own)), *[""] * (3 - len(own))]
            helped = helped or (_helped(own[2]) if len(own) == 3 else "")
            cells += own
        rows.append(((label(model), *line, helped), cells))
    over = ("Average", "Over SFT", "Over SPIN")
    header = ["Model", "Changes", *(f"{name}{kind}" for kind in kinds for name in over), "Helped"]
    notes = footnotes.notes("arms", scores=scores, models=models, sampled=len(kinds) > 1, direction=DIRECTION_MARGIN)
    title = "What would have helped: variants of SPIN under the same control"
    return _finish("arms", title, header, rows, notes)


def own_units(metrics: pd.DataFrame) -> Table | None:
    """Tasks that are measured in a unit of their own, such as BLEU or perplexity. Not in the paper.

    `metrics` are those of `results.load_summaries(..., part="metrics")`; None if there are none.
    """
    rows: list[Row] = []
    kinds = metrics.drop_duplicates("task").sort_values("task")
    for model, of_model in metrics.groupby("model", sort=False):
        values = {task: of_model[of_model["task"] == task]["value"] for task in kinds["task"]}
        own = [{"row": label(str(model)), "column": task} | _over_seeds(found) for task, found in values.items()]
        rows.append(((label(str(model)), "", *(cell_text(cell, digits=2) for cell in own)), own))
    lower = kinds["higher_is_better"].map({True: "", False: " (lower is better)"})
    header = ["Model", "", *(kinds["task"] + ": " + kinds["metric"] + lower)]
    note = "Mean over training seeds, in brackets the lowest and the highest. Not points: in no average and no verdict."
    return _finish("own_units", "Tasks in units of their own", header, rows, [note]) if rows else None


def instruments(scores: pd.DataFrame, bounds: pd.DataFrame, bits: pd.DataFrame, discriminated: pd.DataFrame) -> Table:
    """Finer measures of the same models than the greedy score. Not in the paper.

    `bits` are from `generations.bits_per_byte`, `discriminated` from `draw.discriminated`.
    """
    measured, scores = list(scores["model"].unique()), results.counted(scores)
    drawn, surprising = (scores.dropna(subset=[n]) if n in scores else scores for n in ("sampled", "surprise"))
    models = ["sft", *iterates(measured), *(model for model in measured if ModelName.parse(model).sft_epochs)]
    measures = [
        ("greedy", "Greedy", scores, "score", 100, 1),
        ("samples", "Samples", drawn, "sampled", 100, 1),
        ("surprise", "Surprise, nats per token", surprising, "surprise", 1, 2),
        ("told apart", "Told apart, %", bounds, "told_apart", 100, 1),
        ("discriminator", "Discriminator, %", discriminated, "discriminator", 100, 1),
        ("JSD", "JSD (lower bound), nats", bounds, "jsd_bound", 1, 4),
        ("bits per byte", "Bits per byte", bits, "bits_per_byte", 1, 4),
    ]
    measures = [row for row in measures if row[3] in row[2] and not row[2].empty]
    columns = [(*row, other) for row in measures for other in ("", "sft") if not (other and row[2] is bounds)]
    rows: list[Row] = []
    for model in models:
        cells: list[dict[str, Any]] = []
        line = []
        for name, _, table, column, factor, digits, other in columns:
            cell: dict[str, Any] = {"row": label(model), "column": name}
            cell["quantity"] = "gain over SFT" if other else "level"
            if (table["model"] == model).any() and model != other:
                cell |= measure(table, model, other, column, factor)
            cells.append(cell)
            line.append(cell_text(cell, sign=bool(other), digits=digits).replace(DASH, ""))
        rows.append(((label(model), "", *line), cells))
    header = ["Model", "", *("over SFT" if other else heading for _, heading, *_, other in columns)]
    some = sorted(drawn["task"].unique())
    few = some if len(some) < scores["task"].nunique() else []
    tables = {heading.partition(" (")[0].partition(",")[0]: table for _, heading, table, *_ in measures}
    shown = {"models": models, "drawn": not drawn.empty and "sampled" in drawn, "sampled": few}
    real = bounds["real_surprise"].astype(float).mean()
    notes = footnotes.notes("instruments", measures=tables, **shown, discriminated=len(discriminated), real=real)
    return _finish("instruments", "The same models by finer measures", header, rows, notes)


def contrast_of(model: str, other: str = "") -> dict[str, float]:
    """The contrast of a model with another, or without one its own mean."""
    return {model: 1.0} | ({other: -1.0} if other else {})


def _over_seeds(values: pd.Series) -> dict[str, Any]:
    """Mean, lowest and highest of a cell, from a value for each training seed; empty if there is none."""
    if values.empty:
        return {}
    return {"value": values.mean(), "low": values.min(), "high": values.max(), "seeds": len(values)}


def _quantity(other: str) -> str:
    return f"gain over {label(other)}" if other else "score"


def measure(
    table: pd.DataFrame, model: str, other: str = "", column: str = "score", factor: float = 100
) -> dict[str, Any]:
    """The numbers of a cell, over the tasks that have this measure, or why there are none; arguments as in
    `contrast_of`."""
    kept = table if table[column].notna().all() else table.dropna(subset=[column])  # `paired` keeps the grid of a table
    try:
        return _numbers(paired(kept, contrast_of(model, other), column=column).times(factor))
    except StatisticsError as error:
        return {"reason": str(error)}


def _helped(gain: Mapping[str, Any]) -> str:
    if gain.get("value") is None:
        return ""
    if gain["low"] > 0:
        return "yes"
    return "harmed" if gain["high"] < 0 else "no" if gain["high"] < DIRECTION_MARGIN else "open"


def wall_clock(folder: Path, training: pd.DataFrame) -> tuple[pd.DataFrame, str, bool]:
    """Measured seconds of generation (the whole stage) and training (the sum of its steps, so that iteration 0 counts
    the epochs that its model has, not those that Figure 4 adds).

    Only runs on the device of the lowest seed count, and of these, if there are any, only the seeds that had it to
    themselves: a run that shared its cores was not timed under the same conditions.

    Returns:
        Columns `seed`, `stage` (generation, training), `iteration`, `seconds`; the device; and whether they ran alone.
    """
    chains = results.chains(folder, *results.KINDS)
    steps = {(s, n): step for s, chain in chains for n, step in chain.items() if step["stage"] not in ("data", "base")}
    timed = {place: step for place, step in steps.items() if step["stage"] in _MEASURED and "-arm-" not in place[1]}
    device = timed[min(timed)]["device"] if timed else "this machine"
    timed = {place: step for place, step in timed.items() if step["device"] == device}
    alone = {seed for seed, _ in timed} - _side_by_side(steps)
    rows = []
    for (seed, name), step in timed.items():
        stage, seconds = "generation", step["seconds"]
        if step["stage"] == "spin":
            record = training[(training["seed"] == seed) & (training["model"] == name)]
            stage, seconds = "training", record["seconds"].sum()
        if (seed in alone or not alone) and (stage == "generation" or not record.empty):
            rows.append({"seed": seed, "stage": stage, "iteration": int(name.split("-")[1]), "seconds": seconds})
    return pd.DataFrame(rows, columns=["seed", "stage", "iteration", "seconds"]), device, bool(alone)


def benchmarks(scores: pd.DataFrame) -> dict[str, str]:
    """The paper's benchmark that each task is, or ""."""
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
    rows = shown.to_markdown(index=False, tablefmt="pipe", colalign=_sides(table), disable_numparse=True)
    lead = [table.lead, ""] if table.lead else []
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**{table.heading}** {table.title}", "", *lead, rows, "", *notes, ""])


def latex(table: Table) -> str:
    """The table as a booktabs `tabular` with a caption; the notes follow below."""
    columns = [side[0] for side in _sides(table)]
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


def compact(table: Table, *, with_tasks: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and rows of Table 4, with one line a model: intervals for averages only."""
    columns = dict(zip(table.frame["column"].unique(), table.header[2:], strict=False))
    tasks = [name for name in columns if name != "average" and with_tasks]
    rows = []
    for row, cells in table.frame.groupby("row", sort=False):
        level = {cell["column"]: cell for cell in cells[cells["quantity"] == "score"].to_dict("records")}
        gains = cells[(cells["quantity"] != "score") & (cells["column"] == "average")].to_dict("records")
        average, gain = level["average"], (gains or [{}])[0]
        found = [cell_text(level[name], interval=False) for name in tasks]
        found += [cell_text(average), cell_text(gain, sign=True), str(gain.get("verdict", "")).replace("nan", "")]
        found.append(cell_text({"value": average["paper"]}, interval=False))
        found.append(cell_text({"value": gain.get("paper")}, sign=True, interval=False))
        rows.append([str(row), *found])
    ours = ["average", "gain over\nrow above", "direction"]
    return ["", *(re.sub("_| (?=[(])", "\n", columns[name]) for name in tasks), *ours, "paper", "gain"], rows


def _leaderboard(name: str, title: str, baselines: Mapping[str, str], scores: pd.DataFrame, *notes: str) -> Table:
    """Models by benchmarks, two lines a model: ours with intervals, the paper's as printed."""
    columns = _columns(scores, published.LEADERBOARD) | {"average": results.judged(scores)}
    rows: list[Row] = []
    for model, baseline in baselines.items():
        levels, gains = _levels_and_gains(scores, model, baseline, columns, NOTHING)
        ours, theirs = ["", "", ""], ["", "", ""]
        if gains:
            average = gains[-1]
            ours = [cell_text(average, sign=True), average.get("verdict", DASH), average.get("size_verdict", DASH)]
            theirs = [_printed(average, sign=True), "", ""]
        rows.append(((label(model), "ours", *map(cell_text, levels), *ours), [*levels, *gains]))
        rows.append((("", "paper", *map(_printed, levels), *theirs), []))
    said = footnotes.notes(
        "leaderboard", scores=scores, baselines=baselines, direction=DIRECTION_MARGIN, size=SIZE_MARGIN
    )
    header = ["Model", "", *_headings(scores, columns), "Gain", "Direction", "Size"]
    return _finish(name, title, header, rows, [*said, *notes], lead=_lead(scores, columns))


def _iterations(measured: Iterable[str] = ()) -> dict[str, str]:
    """The paper's iterations, and later ones that were measured, each with the model that its gain is over."""
    names = list(dict.fromkeys([*main_chain(4)[1:], *iterates(measured)]))
    return dict(zip(names, ["sft", *names], strict=False))


def _levels_and_gains(
    scores: pd.DataFrame, model: str, baseline: str, columns: Mapping[str, Sequence[str]], grades: pd.DataFrame
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A model's cell in every column, and its gain over its baseline in every column, if it has one."""
    levels = [_cell(scores, model, "", *column, grades) for column in columns.items()]
    return levels, [_cell(scores, model, baseline, *column, grades) for column in columns.items() if baseline]


def _cell(
    scores: pd.DataFrame, model: str, baseline: str, column: str, tasks: Sequence[str], grades: pd.DataFrame
) -> dict[str, Any]:
    """One score, or with a baseline one gain: the paper's, and ours with its interval or why it is missing.

    Points; for MT-Bench, with a judge's grades, 1 to 10.
    """
    printed = [published.score(name, column) for name in (model, baseline) if name]
    paper = None if None in printed else printed[0]
    if baseline and paper is not None:
        paper = round(paper - (printed[1] or 0.0), 2)
    cell: dict[str, Any] = {"row": label(model), "column": column, "quantity": _quantity(baseline), "paper": paper}
    graded = column == "mt_bench" and not grades.empty
    if not tasks and not graded:
        absent = f"this profile does not measure {published.BENCHMARK_LABELS.get(column, column)}"
        return cell | {"reason": "MT-Bench needs a judge model and none was run" if column == "mt_bench" else absent}
    contrast = contrast_of(model, baseline)
    try:
        estimate = mean_grade(grades, contrast) if graded else paired(scores, contrast, tasks=tasks).times(100)
    except StatisticsError as error:
        return cell | {"reason": f"MT-Bench: {error}" if graded else str(error)}
    cell |= _numbers(estimate)
    if paper is None:
        return cell
    cell["difference"] = estimate.difference - paper
    if baseline and paper and set(tasks) & set(results.judged(scores)):
        cell["verdict"] = verdict(estimate, DIRECTION_MARGIN, claim="greater" if paper > 0 else "less")
        cell["size_verdict"] = verdict(estimate, size_margin(paper), claim="same_size", value=paper)
    return cell


def _columns(scores: pd.DataFrame, wanted: Sequence[str], *, always: bool = False) -> dict[str, list[str]]:
    """Each column and its tasks: the paper's benchmarks in its order, then all other tasks.

    Where only other tasks were measured, the paper's benchmarks are left out, unless `always`.
    """
    tasks = benchmarks(scores)
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
    """Column headings: the paper's benchmark or a task's own name, and whether the column is at chance or aside."""
    left_out, headings = outside(scores), []
    for column, tasks in columns.items():
        why = [left_out.get(task, "") for task in tasks]
        name = published.BENCHMARK_LABELS.get(column, column)
        headings.append(f"{name} ({max(why)})" if why and all(why) else name)
    return headings


def outside(scores: pd.DataFrame) -> dict[str, str]:
    """The tasks that are in no average, and why: `aside` or `at chance`."""
    aside = set(scores["task"][scores["aside"]])
    left_out = sorted(set(scores["task"].unique()) - set(results.judged(scores)))
    return {task: "aside" if task in aside else "at chance" for task in left_out}


def _lead(scores: pd.DataFrame, columns: Mapping[str, Sequence[str]], tasks: str = "tasks of this profile") -> str:
    """What the columns are, unless all are benchmarks of the paper."""
    own = [column for column in columns if column not in published.BENCHMARK_LABELS]
    alone = "average" in columns and len(own) == len(columns) - 1
    six = [published.BENCHMARK_LABELS[name] for name in published.LEADERBOARD] if alone else []
    left_out = outside(scores)
    aside, weak = [task for task, why in left_out.items() if why == "aside"], "at chance" in left_out.values()
    return footnotes.note("lead", own=own, tasks=tasks, six=six, at_chance=weak, aside=aside)


def _side_by_side(steps: Mapping[tuple[int, str], Mapping[str, Any]]) -> set[int]:
    """Training seeds with a measured step that overlapped with another step."""
    spans = []
    for (seed, name), step in steps.items():
        start = datetime.fromisoformat(step["started"])
        spans.append((start, start + timedelta(seconds=step["seconds"] - 1), seed, name, step["stage"] in _MEASURED))
    pairs = itertools.combinations(sorted(spans), 2)  # starts are noted in whole seconds, hence the one less
    return {span[2] for one, other in pairs if other[0] < one[1] for span in (one, other) if span[4]}


def _generations_table(
    name: str, whose: str, shown: pd.DataFrame, measured: pd.DataFrame, heldout: pd.DataFrame
) -> Table:
    tables = dict.fromkeys(list(_MEASURES)[:-1], measured)
    if "generated_surprise" in heldout and heldout["generated_surprise"].notna().any():
        tables["generated_surprise"] = heldout
    rows: list[Row] = []
    for row, text, counts in _example_lines(shown, measured):
        cell = {"row": row, "column": "text", "quantity": "example", "value": text}
        if text is None:
            cell["reason"] = f"no generations {'at all' if shown.empty else f'of {row}'}"
        line = (row, "example", DASH if text is None else text, *(*counts, *[""] * len(tables))[: len(tables)])
        rows.append((line, [cell]))
    for model, other in ((model, other) for model in MODELS for other in ("", "spin-0") if model != other):
        means = [_mean(table, model, other, column) for column, table in tables.items()]
        quantity = "difference to iteration 0" if other else "mean of all prompts"
        digits = (_MEASURES[column][2] for column in tables)
        values = (cell_text(cell, sign=bool(other), digits=n) for cell, n in zip(means, digits, strict=True))
        line = ("" if other else label(model), quantity, "", *values)
        rows.append((line, [{"row": label(model), "quantity": quantity, **cell} for cell in means]))
    first = str(measured["model"].iloc[0]) if len(measured) else "sft"
    real = {of: _mean(tables[of], first, "", column) for column, of in _REAL.items() if of in tables}
    cells = [{"row": "Ground truth", "quantity": "mean of all prompts", **cell} for cell in real.values()]
    tokens, *others = (cell_text(cell, digits=_MEASURES[of][2]) for of, cell in real.items())
    rows.append((("Ground truth", "mean of all prompts", "", tokens, "", "", *others), cells))
    prompt = next(iter(shown.to_dict("records")), None)
    notes = footnotes.notes("generations", measured=measured, models=MODELS, shown=prompt, rule=RULE, table=name)
    header = ["", "", "Text", "Tokens", "Similarity", "Identical, %", "Distinct, %", "Surprise"]
    return _finish(name, f"Generations by iteration for {whose}", header[: 3 + len(tables)], rows, notes, text=2)


def _example_lines(shown: pd.DataFrame, measured: pd.DataFrame) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    """Name, text and numbers of each line of the example; the text is None if there is no generation."""
    if shown.empty:
        yield from ((name, None, ()) for name in ("Prompt", "Ground truth", *map(label, MODELS)))
        return
    prompt = shown.iloc[0]
    own = measured[(measured["seed"] == prompt["seed"]) & (measured["id"] == prompt["id"])].set_index("model")
    yield "Prompt", prompt["prompt"], ()
    distinct = f"{100 * own['real_distinct'].iloc[0]:.1f}"
    yield "Ground truth", prompt["real"], (str(prompt["real_tokens"]), "", "", distinct)
    answers: dict[Any, Any] = shown.to_dict("index")
    for model in MODELS:
        if model not in answers:
            yield label(model), None, (DASH,) * 4
            continue
        row, numbers = answers[model], own.loc[model]
        tokens = f"{row['generated_tokens']}{' (cut)' * (row['finish_reason'] == 'length')}"
        same = "yes" if numbers["identical"] else "no"
        near, apart = f"{numbers['similarity']:.2f}", f"{100 * numbers['distinct']:.1f}"
        yield label(model), row["generated"], (tokens, near, same, apart)


def _mean(measured: pd.DataFrame, model: str, other: str, column: str) -> dict[str, Any]:
    """A mean or a difference with its interval, or why it is missing."""
    name, factor, _ = _MEASURES[_REAL.get(column, column)]
    absent = ", ".join(label(one) for one in (model, other) if one and not (measured["model"] == one).any())
    if absent:
        source = HELD_OUT if column.endswith("surprise") else GENERATED
        return {"column": name, "reason": "no generations at all" if measured.empty else f"no {source} {absent}"}
    return {"column": name, **measure(measured, model, other, column, factor)}


def _finish(
    name: str, title: str, header: Sequence[str], rows: Sequence[Row], notes: Sequence[str], **more: Any
) -> Table:
    """A table whose notes end with the reasons for its missing cells; `more` are further fields of it."""
    frame = pd.DataFrame([cell for _, cells in rows for cell in cells]).reindex(columns=COLUMNS)
    reasons = (f"{DASH} {reason}." for reason in frame["reason"].dropna().unique())
    return Table(name, title, tuple(header), tuple(line for line, _ in rows), frame, (*notes, *reasons), **more)


def _numbers(estimate: Estimate) -> dict[str, Any]:
    """An estimate as the fields of a cell in the long form."""
    ours = {"value": estimate.difference, "low": estimate.low, "high": estimate.high}
    return ours | {"n": estimate.n_items, "seeds": estimate.n_seeds}


def cell_text(cell: Mapping[Any, Any], *, sign: bool = False, digits: int = 1, interval: bool = True) -> str:
    """The value of a cell, with its interval if wanted, or a dash."""
    if pd.isna(cell.get("value")):
        return DASH
    ends = f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]" if interval else ""
    return minus(f"{cell['value']:{'+' if sign else ''}.{digits}f}{ends}")


def _score(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """Our number in a cell: points to one digit, grades to two, as the paper prints them."""
    return cell_text(cell, sign=sign, digits=2 if cell["column"] == "mt_bench" else 1)


def _printed(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """The paper's number in a cell, as it prints it; nothing for a task that is not the paper's."""
    if cell["column"] not in published.BENCHMARK_LABELS:
        return ""
    return cell_text({"value": cell["paper"]}, sign=sign, digits=2, interval=False)


_NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
_MARKS = {"—": "---", "–": "--", "−": "$-$", "≥": r"$\geq$", "≤": r"$\leq$", "’": "'", "“": "``", "”": "''"}
_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%_#${}"}
    | {character: f"\\text{name}{{}}" for character, name in _NAMED.items()}
    | {**_MARKS, "\n": r"\newline "}
)


def _tex(text: str) -> str:
    """Text for LaTeX. Characters that its usual fonts lack would stop it, and become their numbers."""
    return "".join(c if ord(c) < 0x250 or ord(c) in _TEX else f"[U+{ord(c):04X}]" for c in text).translate(_TEX)


def _sides(table: Table) -> list[str]:
    """The alignment of each column: right for numbers, which are all but the first two and running text."""
    return ["left" if column in (0, 1, table.text) else "right" for column in range(len(table.header))]


def _md(text: str) -> str:
    """Text as Markdown shows it in a cell, character for character; `$` would begin a formula in JupyterLab."""
    return re.sub(r"([\\`*_~<>|\[\]#$&])", r"\\\1", text).replace("\n", "<br>")
