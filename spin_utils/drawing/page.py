"""Pages from templates, among them the results table on the README's first screen, which is never written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from spin_utils.drawing import draw, footnotes, tables
from spin_utils.drawing.tables import DASH, minus
from spin_utils.experiment import clock
from spin_utils.files import paths
from spin_utils.files.disk import write_text
from spin_utils.paper import claims, generations, published, results
from spin_utils.paper.statistics import StatisticsError, paired
from spin_utils.settings.names import label, main_chain
from spin_utils.settings.run import Profile

BEGIN = "<!-- results: written by `spin-repro figures --readme`, do not edit -->"
END = "<!-- end of results -->"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("spin_utils.drawing"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """A page from a file in `templates/`. In those of HTML every value is escaped."""
    return _TEMPLATES.get_template(template).render(**values)


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
        notes=[footnotes.fewer_seeds(scores, rows), draw.not_the_papers(profile, tasks)],
        last=label(last),
        control=label(compared[0]) if compared else "",
        margin=_gain(scores, last, compared[0]) if compared else "",
        more_sft=_more_sft(scores, last, compared[0]) if compared else "",
        entry=generations.entry_test(heldout)[1] if "spin-0" in set(heldout["model"]) else "",
        minutes=sum(clock.expected_seconds(profile.name).values()) / 60,
        machine=clock.measured_on(profile.name),
        measured=judged[~exact],
        theory=judged[exact],
        tally=claims.tally,
    )


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
