"""The results table on the README's first screen, written from `results/` and never by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from spin_utils.drawing import draw, footnotes
from spin_utils.drawing.tables import minus
from spin_utils.experiment import clock
from spin_utils.files import paths
from spin_utils.files.disk import write_text
from spin_utils.paper import claims, published, results
from spin_utils.paper.statistics import StatisticsError, paired
from spin_utils.settings.names import label, main_chain
from spin_utils.settings.run import Profile

BEGIN = "<!-- results: written by `spin-repro figures --readme`, do not edit -->"
END = "<!-- end of results -->"
_MANY_SEEDS = 6
"""From so many training seeds on, the interval of what lies between seeds alone covers 95 % (1 - 2^(1 - S))."""


def section(profile: Profile) -> str:
    """Averages and gains over SFT of every iteration and of the SFT control, beside the paper's, as Markdown."""
    folder = paths.results(profile.name)
    scores = results.load_evaluations(folder)
    stand_ins = draw.stand_ins(profile, scores)
    tasks = list(stand_ins)
    measured = set(scores["model"])
    if "sft" not in measured:
        raise results.ResultsError(f"{paths.relative(folder)}: no evaluation of sft, which gains are over; evaluate it")
    chain = [name for name in main_chain(profile.spin.iterations) if name in measured]
    control = [name for epoch in range(1, profile.sft_more + 1) if (name := f"sft-more-{epoch}") in measured]
    rows, last = chain + control, chain[-1]
    seeds = [str(seed) for seed in sorted(scores[scores["model"].isin(rows)]["seed"].unique())]
    items = scores.groupby("task")["id"].nunique().sum()
    against = [
        f"{label(last)} over {label(name)}: {gain} points."
        for name in control
        if (gain := _gain(scores, last, name, tasks))
    ]
    few = "; so few seeds show little of how much seeds differ" if len(seeds) < _MANY_SEEDS else ""
    drawn = "items only" if len(seeds) == 1 else f"items and seeds{few}"
    note = [
        f"Profile `{profile.name}`: {items} held-out items of {len(tasks)} tasks, training seeds: {len(seeds)}. "
        f"Brackets: 95 % paired intervals over {drawn}.",
        footnotes.fewer_seeds(scores, rows),
        draw.not_the_papers(profile, stand_ins),
    ]
    more_sft = ["Would more SFT do as well?", *(against or ["That was not measured in this run."])]
    finding, everything = _verdicts(profile)
    paragraphs = [finding, " ".join(filter(None, note)), " ".join(more_sft), _time(profile, seeds), everything]
    return "\n\n".join(["\n".join(_table(scores, rows, tasks)), *paragraphs])


def update(profile: Profile, readme: Path) -> None:
    """Write the section between its markers; the same results give the same bytes."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or END not in text.partition(BEGIN)[2]:
        raise results.ResultsError(f"{readme}: no place for the table; put back the lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(readme, f"{before}{BEGIN}\n{section(profile)}\n{END}{after}")


def _table(scores: pd.DataFrame, models: Sequence[str], tasks: Sequence[str]) -> Iterator[str]:
    yield "| average, points | ours | gain over SFT | paper | gain over SFT |"
    yield "|---|---:|---:|---:|---:|"
    base = published.score("sft", "average") or 0.0
    for model in models:
        gain = "" if model == "sft" else _gain(scores, model, "sft", tasks) or "—"
        printed = published.score(model, "average")
        theirs = "— | —" if printed is None else f"{printed:.2f} | {'' if model == 'sft' else f'{printed - base:+.2f}'}"
        yield f"| {label(model)} | {_points(scores, {model: 1}, tasks)} | {gain} | {minus(theirs)} |"


def _gain(scores: pd.DataFrame, model: str, other: str, tasks: Sequence[str]) -> str:
    """Points of a model over another; empty where no training seed has both."""
    try:
        return _points(scores, {model: 1, other: -1}, tasks, "+")
    except StatisticsError:
        return ""


def _time(profile: Profile, seeds: Sequence[str]) -> str:
    """What made the numbers, how long the steps took, and where."""
    minutes = sum(clock.expected_seconds(profile.name).values()) / 60
    return (
        f"Made by `make reproduce PROFILE={profile.name} SEEDS={','.join(seeds)}`; the steps of one seed take about "
        f"{minutes:.0f} minutes on the machine of these results ({clock.measured_on(profile.name)})."
    )


def _verdicts(profile: Profile) -> tuple[str, str]:
    """The verdict on the paper's main claim, and how all others came out, those on its mathematics apart."""
    judged = claims.read(paths.results(profile.name)).set_index("id")["verdict"]
    exact = judged.index.isin([row.id for row in claims.registry() if row.compute == "theory"])
    theory, measured = judged[exact], judged[~exact]
    gain = (published.score("spin-3", "average") or 0.0) - (published.score("sft", "average") or 0.0)
    return (
        f"**In short:** in the paper SPIN gains {gain:.2f} points over SFT in four iterations. A gain of that size is "
        f"{judged['average-final-size']} here; a gain of any size is {judged['average-final']}.",
        f"Of the {len(measured)} measured claims, tables and figures: {claims.tally(measured)}. Of {len(theory)} "
        f"checks of the paper's mathematics: {claims.tally(theory)}. One by one, with the reasons: "
        f"[verdicts](results/{profile.name}/verdicts.md), [tables](results/{profile.name}/tables), "
        f"[figures](figures/{profile.name}).",
    )


def _points(scores: pd.DataFrame, contrast: dict[str, float], tasks: Sequence[str], sign: str = "") -> str:
    """A contrast in points with its interval."""
    points = paired(scores, contrast, tasks=tasks).times(100)
    return minus(f"{points.difference:{sign}.1f} [{points.low:{sign}.1f}, {points.high:{sign}.1f}]")
