"""A run to read: one HTML page of verdicts, tables, figures and provenance, two pages to print, the README's results.

Everything is inside the page, so it opens without the network. All text in it is escaped: model output is shown
verbatim and never rendered.
"""

from __future__ import annotations

import io
import textwrap
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from spin_utils.drawing import draw, footnotes, tables
from spin_utils.drawing.footnotes import minus, render
from spin_utils.drawing.style import FIXED_WIDTH, FORMATS, INK, drawable, png, style
from spin_utils.drawing.tables import DASH
from spin_utils.experiment import clock, plan, publish
from spin_utils.files import paths
from spin_utils.files.disk import replacing, write_text
from spin_utils.paper import claims, generations, published, results
from spin_utils.paper.statistics import DIRECTION_MARGIN
from spin_utils.settings.names import label, main_chain
from spin_utils.settings.run import Profile

BEGIN = "<!-- results: written by `spin-repro figures --readme`, do not edit -->"
END = "<!-- end of results -->"
FIGURES = {
    "figure2": "Figure 2. Average score by iteration",
    "figure3": "Figure 3. SFT, DPO and SPIN by benchmark",
    "figure4": "Figure 4. Epochs of iteration 0",
    "figure5": "Figure 5. Prompts of SPIN against more epochs of SFT",
    "figure6": "Figure 6. Category by category, or task by task",
    "figure1": "Figure 1. An example",
    "training": "Training, iteration after iteration (not in the paper)",
    "convergence": "Does self-play converge? (not in the paper)",
}
"""Files of figures/PROFILE and their titles, in the order of the page."""
_BESIDE = {
    "told apart": ("Real and generated told apart, %", 1),
    "greedy": ("Score, points", 1),
    "samples": ("Score of samples, points", 1),
    "surprise": ("Surprise of samples, nats per token", 2),
    "discriminator": ("Recognised by a discriminator, %", 1),
    "bits per byte": ("Bits per byte of real responses", 4),
}
"""Columns of the table `instruments`, with their headings and digits in a comparison of runs."""
_DPI = 220
"""Of the figures on the pages to print."""


def write(profile: Profile, *, figures: bool = True) -> list[Path]:
    """Write every table, the verdicts and results/PROFILE/report.html; returns the files written, the report last.

    Also the files of figures/PROFILE, unless `figures` are to be in the page only. Errors as in `draw.scores`.
    """
    drawn = draw.compose(profile)
    written = draw.write(drawn if figures else replace(drawn, figures={}), profile)
    measured = list(drawn.scores["model"].unique())
    last = next((step for step in reversed(main_chain(profile.spin.iterations)) if step in measured), measured[-1])
    traced = sorted(drawn.scores["seed"][drawn.scores["model"] == last].unique())
    folder, files, facts = paths.results(profile.name), paths.figures(profile.name), draw.facts(profile, drawn)
    # Of the machine's matrix rate, as far as runs were long enough to measure it.
    shares = results.load_training(folder).get("matrix_share", pd.Series(dtype=float)).dropna()
    page = render(
        "report.html.j2",
        **facts,
        speed=f"{shares.min():.0%} to {shares.max():.0%}" if len(shares) else "",
        protocol=publish.protocol(profile.name),
        claims=[finding for finding in drawn.findings if finding not in facts["wholes"]],
        figures=[
            (title, b64encode((files / f"{n}.png").read_bytes()).decode() if figures else png(drawn.figures[n]))
            for n, title in FIGURES.items()
        ],
        tables=drawn.tables,
        beside=beside(profile),
        label=label,
        last=label(last),
        chains=[publish.describe_provenance(profile.name, int(seed), last) for seed in traced],
    )
    write_text(folder / "report.html", page + "\n")
    return [*written, folder / "report.html"]


def write_summary(profile: Profile) -> Path:
    """Write results/PROFILE/summary.pdf from the results alone; errors as in `draw.scores`."""
    from matplotlib.backends.backend_pdf import PdfPages  # a third of a second, which the report does not need

    drawn = draw.compose(profile)
    path = paths.results(profile.name) / "summary.pdf"
    with style(), replacing(path) as partial, PdfPages(partial, metadata=dict(FORMATS["pdf"])) as pages:
        for page in (_first(profile, drawn), _second(profile, drawn)):
            pages.savefig(page)
    return path


def section(profile: Profile) -> str:
    """Averages and gains over SFT of every iteration and of the SFT control, next to the paper's, as Markdown.

    Raises:
        ResultsError: SFT or every iteration was not evaluated, or nothing was judged yet.
    """
    folder = paths.results(profile.name)
    scores = draw.scores(profile)
    tasks = tables.benchmarks(scores)
    scores = results.counted(scores)
    measured = set(scores["model"].unique())
    if "sft" not in measured:
        raise results.ResultsError(f"{paths.relative(folder)}: no evaluation of sft, the baseline; evaluate it")
    chain = [name for name in main_chain(profile.spin.iterations) if name in measured]
    if len(chain) < 2:
        raise results.ResultsError(f"{paths.relative(folder)}: no evaluation of an iteration of SPIN; evaluate spin-0")
    control = [name for epoch in range(1, profile.sft_more + 1) if (name := f"sft-more-{epoch}") in measured]
    rows, last = chain + control, chain[-1]
    gains = {other: tables.measure(scores, last, other) for other in ("sft", *control)}
    compared = next((name for name in reversed(control) if "value" in gains[name]), "")
    seeds = sorted(int(seed) for seed in scores[scores["model"].isin(rows)]["seed"].unique())
    found = claims.read(folder).set_index("id")
    judged, decided = found["verdict"], found["verdict"].isin(["reproduced", "not reproduced"])
    seconds, machine = clock.measured(profile.name, seeds[0])
    registry = claims.registry()
    exact = judged.index.isin([row.id for row in registry if row.compute == "theory"])
    other = exact | judged.index.isin([row.id for row in registry if row.where.endswith("not in the paper")])
    return render(
        "readme.md.j2",
        profile=profile.name,
        rows=[_row(scores, model) for model in rows],
        paper_gain=(published.score("spin-3", "average") or 0.0) - (published.score("sft", "average") or 0.0),
        gain=gains["sft"],
        items=scores.groupby("task")["id"].nunique().sum(),
        tasks=scores["task"].nunique(),
        seeds=seeds,
        earlier=_made_earlier(profile, seeds[0]),
        protocol=(folder / "protocol.md").is_file(),
        notes=[footnotes.fewer_seeds(scores, rows), draw.not_the_papers(profile, tasks)],
        last=label(last),
        control=label(compared) if compared else "",
        same_data=plan.control_demonstrations(profile) is None,
        margin=gains.get(compared),
        direction=DIRECTION_MARGIN,
        shown=_gain,
        entry=generations.entry_test(results.load_heldout(folder), jsd=False),
        minutes=sum(seconds.values()) / 60,
        machine=machine,
        measured=judged[~other],
        once=(decided & (found["seeds"] == 1))[~other].sum(),
        beside=beside(profile),
        theory=judged[exact],
        tally=claims.tally,
    )


def beside(profile: Profile) -> pd.DataFrame:
    """What self-play does on other demonstrations: a row per measure, a column for this run and each with a protocol.

    From the drawn tables `instruments`, as text with 95 % intervals in brackets; no columns unless there are two.
    """
    known = {path.parent.name: path.parent for path in sorted(paths.results(profile.name).parent.glob("*/protocol.md"))}
    folders = {profile.name: paths.results(profile.name)} | known
    files = {name: folder / "tables" / "instruments.csv" for name, folder in folders.items()}
    columns = {name: _beside(pd.read_csv(file)) for name, file in files.items() if file.is_file()}
    found = pd.DataFrame(columns if len(columns) > 1 else {}).fillna(DASH)
    order = ["Training seeds", *(heading for heading, _ in _BESIDE.values())]
    return found.loc[sorted(found.index, key=lambda row: order.index(row.partition(":")[0]))]


def _beside(cells: pd.DataFrame) -> dict[str, str]:
    """Where SFT stands by each measure, and what the last iteration and the longest further SFT gain from there."""
    found = {"Training seeds": f"{(most := cells['seeds'].max()):.0f}"}
    for column, (heading, digits) in _BESIDE.items():
        own = cells[(cells["column"] == column) & cells["value"].notna()]
        gains, start = own[own["quantity"] == "gain over SFT"], own[own["row"] == label("sft")]
        last = [gains[gains["row"].str.startswith(kind)].tail(1) for kind in ("SPIN ", "SFT, ")]
        for cell in pd.concat([start, *last]).to_dict("records"):
            gain = cell["quantity"] != "level"
            row = f"{heading}: {cell['row']}{' over SFT' if gain else ''}"
            fewer = f" ({cell['seeds']:.0f} of {most:.0f} seeds)" if cell["seeds"] < most else ""
            found[row] = tables.cell_text(cell, sign=gain, digits=digits) + fewer
    return found


def _made_earlier(profile: Profile, seed: int) -> bool:
    """Whether the results were made before the profile's settings changed: a run today would have other keys."""
    file = results.path_of(paths.results(profile.name), seed, "evaluations", "sft")
    key = results.read_json(file)["provenance"]["chain"]["eval-sft"]["key"]
    return plan.make(profile, seed).directory("eval-sft").name != f"eval-sft-{key}"


def update(profile: Profile, readme: Path) -> None:
    """Write the section between its markers; the same results give the same bytes."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise results.ResultsError(f"{readme}: no place for the table; restore the lines {BEGIN} and {END}")
    write_text(readme, f"{before}{BEGIN}\n{section(profile)}\n{END}{after}")


def _row(scores: pd.DataFrame, model: str) -> Sequence[str]:
    """A model's average and its gain over SFT, ours and the paper's."""
    cells = [tables.measure(scores, model, other) for other in ("", "sft")]
    printed, base = published.score(model, "average"), published.score("sft", "average") or 0.0
    theirs = (DASH, DASH) if printed is None else (f"{printed:.2f}", minus(f"{printed - base:+.2f}"))
    level, gain = tables.cell_text(cells[0]), _gain(cells[1])
    return (label(model), level, "", theirs[0], "") if model == "sft" else (label(model), level, gain, *theirs)


def _gain(cell: Mapping[str, Any]) -> str:
    """A gain and the ends of its interval with their signs, or a dash."""
    return minus("{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**cell)) if "value" in cell else DASH


def _first(profile: Profile, drawn: draw.Drawing) -> Figure:
    facts = draw.facts(profile, drawn)
    tasks, seeds = facts["tasks"], len(facts["seeds"])
    told = [
        f"{facts['items']} held-out items of {tasks} task{'s' * (tasks != 1)}, "
        f"{seeds} training seed{'s' * (seeds > 1)}. {facts['differs']}",
        f"Tables, figures and claims of the paper: {facts['tally']}.",
        f"Entry test: {facts['entry']}." if facts["entry"] else "",
        facts["agreement"].statement if facts["agreement"] else "",
    ]
    lines = [f"{finding.verdict:<15} {finding.statement} ({finding.reason})" for finding in facts["wholes"]]
    rows = [["words"] * 2, ["table"] * 2, ["figure2", "figure5"], ["wholes"] * 2]
    page, panels = _page(drawn, rows, (1.6, 1.9, 4.6, 3))
    page.suptitle(f"SPIN, reproduced at the profile {drawable(profile.name)}", fontsize=16, weight="bold")
    _text(panels["words"], told, fontsize=8)
    _text(panels["wholes"], lines, indent=" " * 16, fontsize=6.2, family=FIXED_WIDTH)
    panels["words"].set_title("The paper: Self-Play Fine-Tuning, arXiv 2401.01335", fontsize=8)
    panels["wholes"].set_title("Tables and figures, one by one", fontsize=9, weight="bold")
    _table(panels["table"], drawn.tables[3])
    return page


def _second(profile: Profile, drawn: draw.Drawing) -> Figure:
    page, _ = _page(drawn, [["figure3", "figure4"], ["training", "convergence"]], (1, 1))
    _, links = next(results.chains(paths.results(profile.name)))
    link = list(links.values())[-1]
    made = f"Made from commit {link['commit'][:12]} on {link['device']}, torch {link['versions']['torch']}."
    page.text(0.07, 0.02, drawable(made), fontsize=7, color="#5c5c5c")
    return page


def _page(drawn: draw.Drawing, rows: list[Any], heights: Sequence[float]) -> tuple[Figure, dict[str, Axes]]:
    """A page of A4 and its panels by name; those with the name of a figure show it below its title."""
    page = Figure(figsize=(8.27, 11.69))
    margins = {"left": 0.07, "right": 0.93, "top": 0.93, "bottom": 0.04, "hspace": 0.1, "wspace": 0.04}
    panels = page.subplot_mosaic(rows, height_ratios=heights, gridspec_kw=margins)
    for name, axes in panels.items():
        axes.set_axis_off()
        if name in drawn.figures:
            axes.imshow(imread(io.BytesIO(b64decode(png(drawn.figures[name], _DPI)))), interpolation="none")
            axes.set_anchor("N")
            axes.set_title(FIGURES[name], fontsize=8, weight="bold")
    return page, panels


def _text(axes: Axes, lines: Sequence[str], *, indent: str = "", **font: Any) -> None:
    text = "\n".join(textwrap.fill(drawable(line), 122, subsequent_indent=indent) for line in lines if line)
    axes.text(0, 1, text, va="top", linespacing=1.45, **font)


def _table(axes: Axes, table: tables.Table) -> None:
    header, rows = tables.compact(table)
    axes.set_title(f"{table.heading} {table.title}, in points", fontsize=9, weight="bold")
    drawn = axes.table(rows, colLabels=header, loc="upper center", edges="horizontal", cellLoc="right")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(6.8)
    drawn.auto_set_column_width(list(range(len(header))))
    drawn.scale(1, 1.25)
    lines = 1 + max(name.count("\n") for name in header)
    for (row, column), cell in drawn.get_celld().items():
        cell.set(edgecolor="#cccccc", linewidth=0.5, height=cell.get_height() * (1 if row else max(1, 0.6 * lines)))
        cell.get_text().set(color=INK, weight="bold" if row == 0 else "normal")
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
