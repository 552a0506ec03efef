"""A run to read: one HTML page of verdicts, tables, figures and provenance, two pages to print, the README's results.

Everything is inside the page, so it opens without the network. All text in it is escaped: model output is shown
verbatim and never rendered.
"""

from __future__ import annotations

import io
import textwrap
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imread

from spin_utils.drawing import draw, footnotes, tables
from spin_utils.drawing.footnotes import render
from spin_utils.drawing.style import FIXED_WIDTH, FORMATS, INK, drawable, png, style
from spin_utils.drawing.tables import DASH, minus
from spin_utils.experiment import clock, plan, publish
from spin_utils.files import paths
from spin_utils.files.disk import replacing, write_text
from spin_utils.paper import claims, generations, published, results
from spin_utils.paper.statistics import StatisticsError, paired
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
_A4 = (8.27, 11.69)
_MARGIN = 0.07
"""Of the page, on each side."""
_DPI = 220


def write(profile: Profile) -> list[Path]:
    """Draw everything and write results/PROFILE/report.html; returns the files written, the report last.

    Raises:
        ResultsError: nothing was evaluated, or a results file is not valid.
    """
    drawn = draw.compose(profile)
    written = draw.write(drawn, profile)
    measured = list(dict.fromkeys(drawn.scores["model"]))
    last = next((step for step in reversed(main_chain(profile.spin.iterations)) if step in measured), measured[-1])
    traced = sorted(drawn.scores["seed"][drawn.scores["model"] == last].unique())
    folder, figures, facts = paths.results(profile.name), paths.figures(profile.name), draw.facts(profile, drawn)
    page = render(
        "report.html.j2",
        **facts,
        rule=claims.rule(drawn.findings).replace("*", "").replace("`", ""),
        speed=_speed(results.load_training(folder)),
        protocol=publish.protocol(profile.name),
        claims=[finding for finding in drawn.findings if finding not in facts["wholes"]],
        shown=claims.shown,
        with_interval=claims.with_interval,
        figures=[(title, b64encode((figures / f"{n}.png").read_bytes()).decode()) for n, title in FIGURES.items()],
        tables=drawn.tables,
        label=label,
        last=label(last),
        chains=[publish.describe_provenance(profile.name, int(seed), last) for seed in traced],
    )
    write_text(folder / "report.html", page + "\n")
    return [*written, folder / "report.html"]


def _speed(training: pd.DataFrame) -> str:
    """The share of the machine's matrix rate that training reached; empty if no run was long enough to measure."""
    if "matrix_share" not in training or training["matrix_share"].isna().all():
        return ""
    return f"{training['matrix_share'].min():.0%} to {training['matrix_share'].max():.0%}"


def write_summary(profile: Profile) -> Path:
    """Write results/PROFILE/summary.pdf from the results alone.

    Raises:
        ResultsError: nothing was evaluated, or a results file is not valid.
    """
    drawn = draw.compose(profile)
    path = paths.results(profile.name) / "summary.pdf"
    with style(), replacing(path) as partial, PdfPages(partial, metadata=dict(FORMATS["pdf"])) as pages:
        for page in (_first(profile, drawn), _second(profile, drawn)):
            pages.savefig(page)
    return path


def section(profile: Profile) -> str:
    """Averages and gains over SFT of every iteration and of the SFT control, next to the paper's, as Markdown.

    Raises:
        ResultsError: SFT was not evaluated, or nothing was judged yet.
    """
    folder = paths.results(profile.name)
    scores = draw.scores(profile)
    tasks = tables.benchmarks(scores)
    scores = scores[scores["task"].isin(results.judged(scores))]
    measured = set(scores["model"])
    if "sft" not in measured:
        raise results.ResultsError(f"{paths.relative(folder)}: no evaluation of sft, the baseline; evaluate it")
    chain = [name for name in main_chain(profile.spin.iterations) if name in measured]
    control = [name for epoch in range(1, profile.sft_more + 1) if (name := f"sft-more-{epoch}") in measured]
    rows, last = chain + control, chain[-1]
    compared = [name for name in control if _gain(scores, last, name)][-1:]
    heldout = results.load_heldout(folder)
    seeds = sorted(int(seed) for seed in scores[scores["model"].isin(rows)]["seed"].unique())
    judged = claims.read(folder).set_index("id")["verdict"]
    seconds, machine = clock.measured(profile.name)
    exact = judged.index.isin([row.id for row in claims.registry() if row.compute == "theory"])
    return render(
        "readme.md.j2",
        profile=profile.name,
        rows=[_row(scores, model) for model in rows],
        paper_gain=(published.score("spin-3", "average") or 0.0) - (published.score("sft", "average") or 0.0),
        gain=_gain(scores, last, "sft"),
        items=scores.groupby("task")["id"].nunique().sum(),
        tasks=scores["task"].nunique(),
        seeds=seeds,
        earlier=_made_earlier(profile, seeds[0]),
        protocol=(folder / "protocol.md").is_file(),
        notes=[footnotes.fewer_seeds(scores, rows), draw.not_the_papers(profile, tasks)],
        last=label(last),
        control=label(compared[0]) if compared else "",
        margin=_gain(scores, last, compared[0]) if compared else "",
        more_sft=_more_sft(scores, last, compared[0]) if compared else "",
        entry=generations.entry_test(heldout)[1] if "spin-0" in set(heldout["model"]) else "",
        minutes=sum(seconds.values()) / 60,
        machine=machine,
        measured=judged[~exact],
        theory=judged[exact],
        tally=claims.tally,
    )


def _made_earlier(profile: Profile, seed: int) -> bool:
    """Whether the results were made before the profile's settings changed: a run today would have other keys."""
    link = results.read_json(paths.results(profile.name) / f"seed-{seed}" / "evaluations" / "sft.json")["provenance"]
    key = link["chain"][link["step"]]["key"]
    return not plan.make(profile, seed).directory("eval-sft").name.endswith(f"-{key}")


def update(profile: Profile, readme: Path) -> None:
    """Write the section between its markers; the same results give the same bytes."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or END not in text.partition(BEGIN)[2]:
        raise results.ResultsError(f"{readme}: no place for the table; restore the lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(readme, f"{before}{BEGIN}\n{section(profile)}\n{END}{after}")


def _row(scores: pd.DataFrame, model: str) -> Sequence[str]:
    """A model's average and its gain over SFT, ours and the paper's."""
    gain = "" if model == "sft" else _gain(scores, model, "sft") or DASH
    printed, base = published.score(model, "average"), published.score("sft", "average") or 0.0
    theirs = (DASH, DASH) if printed is None else (f"{printed:.2f}", "" if model == "sft" else f"{printed - base:+.2f}")
    return label(model), _points(scores, {model: 1}), gain, *map(minus, theirs)


def _more_sft(scores: pd.DataFrame, model: str, control: str) -> str:
    """How the control compares."""
    difference = paired(scores, {model: 1, control: -1})
    if difference.low > 0:
        return "does worse"
    return "does better" if difference.high < 0 else "does about as well"


def _gain(scores: pd.DataFrame, model: str, other: str) -> str:
    """Points of a model over another; empty where no training seed has both."""
    try:
        return _points(scores, {model: 1, other: -1}, "+")
    except StatisticsError:
        return ""


def _points(scores: pd.DataFrame, contrast: dict[str, float], sign: str = "") -> str:
    """A contrast in points with its interval."""
    points = paired(scores, contrast).times(100)
    return minus(f"{points.difference:{sign}.1f} [{points.low:{sign}.1f}, {points.high:{sign}.1f}]")


def _first(profile: Profile, drawn: draw.Drawing) -> Figure:
    facts = draw.facts(profile, drawn)
    seeds = len(facts["seeds"])
    told = [
        f"{facts['items']} held-out items of {facts['tasks']} tasks, {seeds} training seed{'s' * (seeds > 1)}. "
        + draw.not_the_papers(profile, tables.benchmarks(drawn.scores)),
        f"Tables, figures and claims of the paper: {facts['tally']}.",
        f"Entry test: {facts['entry']}." if facts["entry"] else "",
        facts["agreement"].statement if facts["agreement"] else "",
    ]
    page = Figure(figsize=_A4)
    page.text(_MARGIN, 0.95, f"SPIN, reproduced at the profile {drawable(profile.name)}", fontsize=16, weight="bold")
    page.text(_MARGIN, 0.932, "The paper: Self-Play Fine-Tuning, arXiv 2401.01335", fontsize=8, color="#5c5c5c")
    text = "\n".join(textwrap.fill(drawable(line), 116) for line in filter(None, told))
    page.text(_MARGIN, 0.915, text, fontsize=8.5, va="top", linespacing=1.5)
    _table(_axes(page, 0.60, 0.185), drawn.tables[3])
    _picture(page, drawn, "figure2", 0, 0.645)
    _picture(page, drawn, "figure5", 1, 0.645)
    lines = [f"{finding.verdict:<15} {finding.statement} ({finding.reason})" for finding in facts["wholes"]]
    text = "\n".join(textwrap.fill(drawable(line), 122, subsequent_indent=" " * 16) for line in lines)
    page.text(_MARGIN, 0.26, "Tables and figures, one by one", fontsize=9, weight="bold")
    page.text(_MARGIN, 0.25, text, fontsize=6.2, va="top", linespacing=1.4, family=FIXED_WIDTH)
    return page


def _second(profile: Profile, drawn: draw.Drawing) -> Figure:
    page = Figure(figsize=_A4)
    for column, (upper, lower) in enumerate((("figure3", "training"), ("figure4", "convergence"))):
        _picture(page, drawn, upper, column, 0.95)
        _picture(page, drawn, lower, column, 0.43)
    _, links = next(results.chains(paths.results(profile.name)))
    link = list(links.values())[-1]
    made = f"Made from commit {link['commit'][:12]} on {link['device']}, torch {link['versions']['torch']}."
    page.text(_MARGIN, 0.02, drawable(made), fontsize=7, color="#5c5c5c")
    return page


def _axes(page: Figure, bottom: float, height: float, left: float = _MARGIN, width: float = 1 - 2 * _MARGIN) -> Axes:
    axes = page.add_axes((left, bottom, width, height))
    axes.set_axis_off()
    return axes


def _table(axes: Axes, table: tables.Table) -> None:
    header, rows = tables.compact(table.frame)
    axes.set_title(f"Table {table.number}. {table.title}, in points", fontsize=9, weight="bold")
    drawn = axes.table(rows, colLabels=header, loc="upper center", edges="horizontal", cellLoc="right")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(6.8)
    drawn.auto_set_column_width(list(range(len(header))))
    drawn.scale(1, 1.25)
    for (row, column), cell in drawn.get_celld().items():
        cell.set(edgecolor="#cccccc", linewidth=0.5)
        cell.get_text().set(color=INK, weight="bold" if row == 0 else "normal")
        if column == 0:
            cell.get_text().set_horizontalalignment("left")


def _picture(page: Figure, drawn: draw.Drawing, name: str, column: int, top: float) -> None:
    """A figure of the run in one of two columns, as wide as that, below its title."""
    picture = imread(io.BytesIO(b64decode(png(drawn.figures[name], _DPI))))
    width = 0.5 - _MARGIN - 0.01
    height = width * _A4[0] / _A4[1] * picture.shape[0] / picture.shape[1]
    axes = _axes(page, top - height, height, _MARGIN + column * (width + 0.02), width)
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_title(FIGURES[name], fontsize=8, weight="bold")
