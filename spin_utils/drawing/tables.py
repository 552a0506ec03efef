"""The paper's tables of scores, ours beside theirs: one function per table, from data frames to a `Table`.

Scores are in points, intervals are 95 %. A cell without a run is an em dash, and its reason stands below the
table. Gains by task and all verdicts on them are in the long form, which becomes the CSV file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from spin_utils.drawing.table_text import DASH, Table, finish, minus, numbers, with_range
from spin_utils.paper import footnotes, mt_bench_scores, published
from spin_utils.paper.documents import iterates
from spin_utils.paper.results import label
from spin_utils.paper.statistics import (
    DIRECTION_MARGIN,
    SIZE_MARGIN,
    StatisticsError,
    paired_bootstrap,
    size_margin,
    verdict,
)

_TRANSFER = "Our tasks here are harder variants that nothing was trained on: they show whether a gain carries over."
_GAINS = (
    "Gain: difference of the averages on the same items (paired). Direction: reproduced if the whole interval "
    f"has the paper's sign, not reproduced if it lies wholly below a gain of {DIRECTION_MARGIN} points. Size: is it "
    f"within {SIZE_MARGIN} points of the paper's gain, or within half of it where that is less."
)


def table1(summaries: pd.DataFrame, stand_ins: Mapping[str, str], *, shots: Mapping[str, str] | None = None) -> Table:
    """Table 1: shots and metric of each benchmark, and those of the tasks that stand in for them.

    Args:
        summaries: From `results.load_summaries`.
        stand_ins: Task and the benchmark whose column it fills, "" for none.
        shots: Examples in the prompts of a task; none where it is not named.
    """
    settings, columns = published.benchmark_settings(), _columns(stand_ins, published.LEADERBOARD)
    tasks = summaries.drop_duplicates("task").set_index("task")
    cells: list[dict[str, Any]] = []
    lines = []
    for row, paper_column in (("few-shot", "shots"), ("metric", "metric"), ("items", "items")):
        ours, theirs = [], []
        for column, names in columns.items():
            cell: dict[str, Any] = {"row": row, "column": column, "quantity": "setting"}
            cell["paper"] = str(settings.loc[column, paper_column]) if column in settings.index else None
            found = tasks[tasks.index.isin(names)]
            if found.empty:
                cell["reason"] = _no_task(column, names)
            else:
                metrics = ", ".join(sorted(set(found["metric"])))
                examples = ", ".join(sorted({(shots or {}).get(task, "0") for task in found.index}))
                cell["value"] = {"few-shot": examples, "metric": metrics, "items": str(found["n"].sum())}[row]
            cells.append(cell)
            ours.append(cell.get("value", DASH))
            theirs.append(cell["paper"] or DASH)
        lines += [(row, "ours", *ours), ("", "paper", *theirs)]
    notes = ["The paper prints examples and metrics; items are the sizes of the public test sets.", *_notes(columns)]
    if "score" in set(tasks["metric"]):
        notes.append("score: right or wrong by the row's grader, or letter for letter where it has none.")
    header = ["", "", *_headings(columns)]
    return finish(1, "Benchmarks: examples in the prompt, metric, items", header, lines, cells, notes)


def table3(scores: pd.DataFrame, stand_ins: Mapping[str, str], *, seed: int = 0, preferences: str = "samples") -> Table:
    """Table 3: SPIN against DPO, and DPO after SPIN. Arguments as in `table4`; `preferences` is the source of DPO's."""
    rows = {"dpo": "sft", "sft": "", **_ITERATIONS, "spin-3-dpo": "spin-3"}
    averages = published.leaderboard()[["average_printed", "average_recomputed"]]
    last, gain = averages.loc["spin-3-dpo"], averages.loc["spin-3-dpo"] - averages.loc["spin-3"]
    graded = (
        "DPO here learns from the models' own answers, which the tasks' graders call right or wrong: more supervision "
        "than SPIN gets. "
    )
    note = (
        f"{graded if preferences == 'samples' else ''}The paper's last row prints an average of "
        f"{last['average_printed']:.2f} ({gain['average_printed']:+.2f}), "
        f"but its six cells average {last['average_recomputed']:.2f} ({gain['average_recomputed']:+.2f}): one of these "
        "numbers is wrong."
    )
    return _leaderboard(3, "SPIN, DPO, and DPO after SPIN", rows, scores, stand_ins, seed, note)


def table4(scores: pd.DataFrame, stand_ins: Mapping[str, str], *, seed: int = 0) -> Table:
    """Table 4: the SFT model and SPIN by iteration on the six benchmarks.

    Args:
        scores: From `results.load_evaluations`.
        stand_ins: Every task and the benchmark whose column it fills, "" for none; a task that has its
            benchmark's own name is the benchmark itself.
        seed: Seed of the bootstrap.
    """
    return _leaderboard(4, "SPIN by iteration", {"sft": "", **_all_iterations(scores)}, scores, stand_ins, seed)


def table5(scores: pd.DataFrame, stand_ins: Mapping[str, str], *, seed: int = 0) -> Table:
    """Table 5: one more epoch of SFT instead of SPIN. Arguments as in `table4`."""
    return _leaderboard(5, "One more epoch of SFT", {"sft": "", "sft-more-1": "sft"}, scores, stand_ins, seed)


_ITERATIONS = {"spin-0": "sft", "spin-1": "spin-0", "spin-2": "spin-1", "spin-3": "spin-2"}
"""Model and the one its gain is measured against."""


def _all_iterations(scores: pd.DataFrame) -> dict[str, str]:
    """`_ITERATIONS`, and those after the paper's last that were evaluated."""
    names = [*_ITERATIONS, *(model for model in iterates(scores["model"]) if model not in _ITERATIONS)]
    return dict(zip(names, ["sft", *names], strict=False))


def table6(
    scores: pd.DataFrame, stand_ins: Mapping[str, str], grades: pd.DataFrame | None = None, *, seed: int = 0
) -> Table:
    """Table 6: benchmarks beside the leaderboard; here tasks that nothing was trained on, and MT-Bench if it was run.

    Args:
        scores: From `results.load_evaluations(..., kind_folder="transfer")`.
        stand_ins: Every transfer task and the benchmark of Table 6 that it stands in for, "" for none.
        grades: From `results.load_mt_bench`.
        seed: Seed of the bootstrap.
    """
    columns = _columns(stand_ins, published.OTHERS)
    baselines = {"sft": "", **dict.fromkeys(_all_iterations(scores), "sft")}
    cells: list[dict[str, Any]] = []
    lines = []
    judged = grades is not None and not grades.empty
    for model, levels, gains in _levels_and_gains(scores, baselines, columns, seed):
        if grades is not None and judged:  # MT-Bench is the first column
            levels[0] = _graded(levels[0], {model: 1.0}, grades, seed)
            gains = gains and [_graded(gains[0], {model: 1.0, baselines[model]: -1.0}, grades, seed), *gains[1:]]
        cells += [*levels, *gains]
        lines.append((label(model), "ours", *map(_shown, levels)))
        lines.append(("", "paper", *(_printed(cell) for cell in levels)))
        if gains:
            lines.append(("", "gain, ours", *(_shown(cell, sign=True) for cell in gains)))
            lines.append(("", "gain, paper", *(_printed(cell, sign=True) for cell in gains)))
    notes = [
        _scores_note(scores, baselines),
        "Gains are over SFT, on the same items (paired). The paper has no row after iteration 2.",
        *_notes(columns),
        *([_TRANSFER] if published.other_tasks(stand_ins) else []),
        *([mt_bench_scores.note(grades)] if grades is not None and judged else []),
        _noise_of_the_paper(),
    ]
    header = ["Model", "", *_headings(columns)]
    return finish(6, "SPIN by iteration on other benchmarks", header, lines, cells, notes)


def _leaderboard(
    number: int,
    title: str,
    baselines: Mapping[str, str],
    scores: pd.DataFrame,
    stand_ins: Mapping[str, str],
    seed: int,
    note: str = "",
) -> Table:
    """Models by benchmarks, two lines a model: ours with intervals, the paper's as printed."""
    columns = _columns(stand_ins, published.LEADERBOARD) | {"average": list(stand_ins)}
    cells: list[dict[str, Any]] = []
    lines = []
    for model, levels, gains in _levels_and_gains(scores, baselines, columns, seed):
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
        *_notes(columns),
        *filter(None, [note]),
    ]
    header = ["Model", "", *_headings(columns), "Gain", "Direction", "Size"]
    return finish(number, title, header, lines, cells, notes)


def _scores_note(scores: pd.DataFrame, models: Iterable[str]) -> str:
    """The unit of scores, over what their intervals are, and whose training seeds are fewer, in words."""
    models = list(models)
    brackets = footnotes.intervals(scores, models)
    sentences = [f"Scores in points{brackets and f'; in brackets {brackets}'}.", footnotes.fewer_seeds(scores, models)]
    return " ".join(filter(None, sentences))


def _levels_and_gains(
    scores: pd.DataFrame, baselines: Mapping[str, str], columns: Mapping[str, Sequence[str]], seed: int
) -> Iterator[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Each model, its cell in every column, and its gain over its baseline in every column, if it has one."""
    for model, baseline in baselines.items():
        levels = [_cell(scores, model, "", column, tasks, seed) for column, tasks in columns.items()]
        gains = [_cell(scores, model, baseline, column, tasks, seed) for column, tasks in columns.items() if baseline]
        yield model, levels, gains


def _cell(
    scores: pd.DataFrame, model: str, baseline: str, column: str, tasks: Sequence[str], seed: int
) -> dict[str, Any]:
    """One score, or with a baseline one gain: the paper's, and ours with its interval or the reason for none."""
    paper = _paper_score(model, column)
    cell: dict[str, Any] = {"row": label(model), "column": column, "quantity": "score", "paper": paper}
    contrast = {model: 1.0}
    if baseline:
        before = _paper_score(baseline, column)
        paper = None if paper is None or before is None else round(paper - before, 2)
        cell |= {"quantity": f"gain over {label(baseline)}", "paper": paper}
        contrast[baseline] = -1.0
    if not tasks:
        return cell | {"reason": _no_task(column, tasks)}
    try:
        estimate = paired_bootstrap(scores, contrast, tasks=tasks, seed=seed).times(100)
    except StatisticsError as error:
        return cell | {"reason": str(error)}
    cell |= numbers(estimate)
    if paper is None:
        return cell
    cell["difference"] = estimate.difference - paper
    if baseline and paper:
        cell["verdict"] = verdict(estimate, DIRECTION_MARGIN, claim="greater" if paper > 0 else "less")
        cell["size_verdict"] = verdict(estimate, size_margin(paper), claim="same_size", value=paper)
    return cell


def _paper_score(model: str, column: str) -> float | None:
    return published.score(model, column) if column in published.BENCHMARK_LABELS else None


def _columns(stand_ins: Mapping[str, str], benchmarks: Sequence[str]) -> dict[str, list[str]]:
    """Each column and its tasks: the paper's benchmarks in its order, then tasks that stand in for none of them."""
    unknown = sorted(set(stand_ins.values()) - {"", *published.BENCHMARK_LABELS})
    if unknown:
        raise ValueError(f"benchmark {unknown[0]!r} is not one of {', '.join(published.BENCHMARK_LABELS)}")
    columns = {name: [task for task, other in stand_ins.items() if other == name] for name in benchmarks}
    for task, benchmark in stand_ins.items():
        if benchmark not in columns:
            # A task of the user's that is only called like a benchmark is not measured against it.
            called_like_one = task in published.BENCHMARK_LABELS and task != benchmark
            columns[f"{task} (added)" if called_like_one else task] = [task]
    return columns


def _headings(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Column headings: the paper's benchmark, and the task that stands in for it."""
    headings = []
    for column, tasks in columns.items():
        name = published.BENCHMARK_LABELS.get(column, column)
        stands_in = column in (*published.LEADERBOARD, *published.OTHERS) and tasks and list(tasks) != [column]
        headings.append(f"{name}: {', '.join(tasks)}" if stands_in else name)
    return headings


def _notes(columns: Mapping[str, Sequence[str]]) -> list[str]:
    if not any(": " in heading for heading in _headings(columns)):
        return []
    return [
        "A heading such as Arc: task names the paper's benchmark and the task that stands in for it here. Stand-ins "
        "are other tasks for another model, so levels are not comparable with the paper's; gains show whether the "
        "method does here what the paper reports."
    ]


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
        f"The paper's own gains of iteration 2 over SFT: {'; '.join(parts)}. Standard errors are those of a difference "
        "of two independent scores with that many items; the answers behind the pairing are not published."
    )


def _graded(cell: Mapping[str, Any], contrast: Mapping[str, float], grades: pd.DataFrame, seed: int) -> dict[str, Any]:
    """A cell of MT-Bench from the judge's grades, 1 to 10, or the reason for none."""
    cell = {name: value for name, value in cell.items() if name != "reason"}
    try:
        estimate = mt_bench_scores.estimate(grades, contrast, seed=seed)
    except StatisticsError as error:
        return cell | {"reason": f"MT-Bench: {error}"}
    cell |= numbers(estimate)
    return cell if cell["paper"] is None else cell | {"difference": estimate.difference - cell["paper"]}


def _shown(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """Our number in a cell: points to one digit, grades to two, as the paper prints them."""
    return with_range(cell, sign=sign, digits=2 if cell["column"] == "mt_bench" else 1)


def _printed(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    """The paper's number in a cell, as it prints it."""
    paper = cell["paper"]
    return DASH if paper is None else minus(f"{paper:{'+' if sign else ''}.2f}")


def _no_task(column: str, tasks: Sequence[str]) -> str:
    if column == "mt_bench" and not tasks:
        return "MT-Bench needs a judge model and none was run; no task stands in for a judge"
    name = published.BENCHMARK_LABELS.get(column, column)
    return f"{', '.join(tasks)} was not evaluated" if tasks else f"no task of this profile stands in for {name}"
