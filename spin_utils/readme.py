"""The results table on the README's first screen, written from `results/` and never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spin_utils import clock, drawing, footnotes, paths, published, records, results, verdicts
from spin_utils.settings import Profile
from spin_utils.statistics import Estimate, StatisticsError, paired_bootstrap

BEGIN = "<!-- results: written by `spin-repro figures --readme`, do not edit -->"
END = "<!-- end of results -->"


def section(profile: Profile) -> str:
    """Averages and gains over SFT of every iteration and of the SFT control, beside the paper's, as Markdown."""
    folder = paths.results(profile.name)
    scores = results.load_evaluations(folder)
    tasks = list(drawing.stand_ins(profile, scores))
    base = published.score("sft", "average") or 0.0
    lines = [
        "| average, points | ours | gain over SFT | paper | gain over SFT |",
        "|---|---:|---:|---:|---:|",
    ]
    chain = ["sft", *(f"spin-{t}" for t in range(profile.spin.iterations))]
    control = [f"sft-more-{epoch}" for epoch in range(1, profile.sft_more + 1)]
    measured = set(scores["model"])
    if "sft" not in measured:
        raise results.ResultsError(f"{paths.relative(folder)}: no evaluation of sft, which gains are over; evaluate it")
    rows = [name for name in chain + control if name in measured]
    for model in rows:
        ours = paired_bootstrap(scores, {model: 1}, tasks=tasks)
        gain = "" if model == "sft" else _gain(scores, model, "sft", tasks) or "—"
        printed = published.score(model, "average")
        theirs = "— | —" if printed is None else f"{printed:.2f} | {'' if model == 'sft' else _minus(printed - base)}"
        lines.append(f"| {results.label(model)} | {_points(ours)} | {gain} | {theirs} |")
    seeds = scores[scores["model"].isin(rows)]["seed"].nunique()
    items = scores.groupby("task")["id"].nunique().sum()
    fewer = footnotes.fewer_seeds(scores, rows)
    last = next(name for name in reversed(chain) if name in measured)
    against = [
        f"{results.label(last)} over {results.label(name)}: {gain} points."
        for name in control
        if name in measured and (gain := _gain(scores, last, name, tasks))
    ]
    seconds, (_, links) = clock.expected_seconds(profile.name), next(results.chains(folder))
    device = list(links.values())[-1]["device"]
    minutes = sum(seconds.values()) / 60
    time = (
        f"The steps of one seed take about {minutes:.0f} minutes on the machine of these results ({device}), and "
        "starting their notebooks some more."
    )
    more = "Would more SFT do as well? " + (" ".join(against) or "That was not measured in this run.")
    note = (
        f"Profile `{profile.name}`: {items} held-out items of {len(tasks)} tasks, training seeds: {seeds}. Brackets: "
        f"95 % intervals of a paired bootstrap over items{' and seeds' if seeds > 1 else ' only'}. "
        f"{fewer and f'{fewer} '}Other tasks and another model than the paper's: compare gains, not levels. {more} "
        f"{time}"
    )
    judged = records.read_verdicts(folder / "verdicts.csv").set_index("id")["verdict"]
    paper = (published.score("spin-3", "average") or 0.0) - base
    finding = (
        f"**In short:** in the paper SPIN gains {paper:.2f} points over SFT in four iterations. A gain of that size is "
        f"{judged['average-final-size']} here; that there is any gain is {judged['average-final']}."
    )
    everything = (
        f"Of the {len(judged)} tables, figures and claims of the paper, here: {verdicts.tally(judged)}. "
        f"One by one, with the reasons: [verdicts](results/{profile.name}/verdicts.md), "
        f"[tables](results/{profile.name}/tables), [figures](figures/{profile.name})."
    )
    return "\n".join([*lines, "", finding, "", note, "", everything])


def update(profile: Profile, readme: Path) -> None:
    """Write the section between its markers; the same results give the same bytes."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or END not in text.partition(BEGIN)[2]:
        raise results.ResultsError(f"{readme}: no place for the table; put back the lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{section(profile)}\n{END}{after}", encoding="utf-8")


def _gain(scores: pd.DataFrame, model: str, other: str, tasks: Sequence[str]) -> str:
    """Points of a model over another; empty where no training seed has both."""
    try:
        return _points(paired_bootstrap(scores, {model: 1, other: -1}, tasks=tasks), "+")
    except StatisticsError:
        return ""


def _minus(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _points(estimate: Estimate, sign: str = "") -> str:
    points = estimate.times(100)
    return f"{points.difference:{sign}.1f} [{points.low:{sign}.1f}, {points.high:{sign}.1f}]".replace("-", "−")
