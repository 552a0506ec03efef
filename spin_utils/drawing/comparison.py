"""Two models side by side on one page: their scores, the items whose score changed with both answers, and training."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from spin_utils.data.rows import read_rows
from spin_utils.drawing import training_figures
from spin_utils.drawing.footnotes import render
from spin_utils.drawing.style import GENERATED, INK, REAL, new_figure, png, say_why_empty, style
from spin_utils.drawing.tables import cell_text
from spin_utils.files import paths
from spin_utils.paper import compare, results
from spin_utils.settings.names import iterates

PER_TASK = 3
"""Answers shown per task and direction of change."""


@dataclass(frozen=True)
class Comparison:
    """The page; as the value of a notebook cell it displays itself."""

    page: str

    def _repr_html_(self) -> str:
        frame = "width: 100%; height: 40rem; border: 1px solid #ccc; background: white"
        return f'<div><iframe sandbox srcdoc="{escape(self.page)}" style="{frame}"></iframe></div>'


def side_by_side(model: str, other: str, profile: str = "cpu") -> Comparison:
    """Compare two models of one run or of two; arguments and errors as in `paper.compare.compare`."""
    table = compare.compare(profile, model, other)
    both = compare.items(profile, model, other)
    seed = int(both["seed"].min())
    first = both[both["seed"] == seed].set_index(["task", "id"])
    one, two = (first[first["model"] == name] for name in (model, other))
    joined = one.merge(two, left_index=True, right_index=True, suffixes=("_one", "_two")).reset_index()
    change = joined["score_one"] - joined["score_two"]
    turned = {
        title: joined[chosen].groupby("task").head(PER_TASK).to_dict("records")
        for title, chosen in ((f"Better answered by {model}", change > 0), (f"Better answered by {other}", change < 0))
    }
    counts = [
        (task, int((found > 0).sum()), int((found < 0).sum()), int((found == 0).sum()))
        for task, found in change.groupby(joined["task"])
    ]
    rows = table.assign(value=table["difference"]).to_dict("records")
    scores = [
        (row["task"], f"{row[model]:.1f}", f"{row[other]:.1f}", cell_text(row, sign=True), row["items"]) for row in rows
    ]
    page = render(
        "compare.html.j2",
        model=model,
        other=other,
        average=rows[-1],
        scores=scores,
        counts=counts,
        turned=turned,
        seed=seed,
        rows=_rows(compare.place(profile, model)[0]),
        curves=png(_curves(profile, model, other), dpi=150),
    )
    return Comparison(page)


def _rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The test rows of a run by family and id, if its data are on this machine: results hold no prompts."""
    for _, chain in results.chains(folder):
        if "data" in chain:
            file = paths.artifacts(folder.name) / "shared" / f"data-{chain['data']['key']}" / "test.jsonl"
            rows = read_rows(file) if file.is_file() else []
            return {(row["family"], str(row["id"])): row for row in rows}
    return {}


@style()
def _curves(profile: str, model: str, other: str) -> Figure:
    """Loss and margin of both training runs, and the averages by iteration, overlaid."""
    places = {name: compare.place(profile, name) for name in (model, other)}
    one_run = len({folder for folder, _ in places.values()}) == 1
    alike = len({plain.startswith("sft") for _, plain in places.values()}) == 1
    figure = new_figure(2.1, 6.6)
    loss, margin, average = figure.subplots(1, 3)
    recorded, last = False, 0
    for (name, (folder, plain)), tint in zip(places.items(), (REAL, GENERATED), strict=True):
        rows = results.load_training(folder)
        rows = rows[rows["model"] == plain]
        recorded |= len(rows) > 0
        if alike and len(rows):
            training_figures.curve(loss, rows, "loss", 0, tint)
        if "margin" in rows and rows["margin"].notna().any():
            training_figures.curve(margin, rows, "margin", 0, tint)
        kept = results.counted(results.load_evaluations(folder))
        means = kept.groupby(["model", "task"])["score"].mean().groupby("model").mean()
        chain = [m for m in ("sft", *iterates(means.index)) if m in means]
        numbers = [0 if m == "sft" else 1 + int(m.removeprefix("spin-")) for m in chain]
        last = max([last, *numbers])
        average.plot(numbers, 100 * means[chain], "o-", color=INK if one_run else tint, ms=3)
        average.plot([], [], color=tint, label=name)
    for axes, name, reason in ((loss, "loss", "SFT has a different loss"), (margin, "margin", "SFT has no margin")):
        axes.set(xlabel="optimizer step", ylabel=f"{name} (nats)")
        if not axes.lines:
            say_why_empty(axes, reason if recorded else "not run\nno training records")
    average.set(xlabel="iteration", ylabel="average, points")
    average.set_xticks(range(last + 1), ["SFT", *map(str, range(last))])
    figure.legend(loc="outside upper left", ncols=2)
    return figure
