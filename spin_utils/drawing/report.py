"""One HTML page of a reproduction: verdicts, tables, figures, and where they come from.

Everything is inside the file, so it opens without the network. All text is escaped: model output is shown
verbatim and never rendered.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pandas as pd

from spin_utils.drawing import draw
from spin_utils.drawing.page import render
from spin_utils.experiment import publish
from spin_utils.files import paths
from spin_utils.files.disk import write_text
from spin_utils.paper import claims, generations, results
from spin_utils.settings.names import label, main_chain
from spin_utils.settings.run import Profile

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


def write(profile: Profile) -> list[Path]:
    """Draw everything and write results/PROFILE/report.html; returns the files written, the report last.

    Raises:
        ResultsError: nothing was evaluated, or a results file is not valid.
    """
    drawn = draw.compose(profile)
    written = draw.write(drawn, profile)
    scores = drawn.scores
    measured = list(dict.fromkeys(scores["model"]))
    last = next((step for step in reversed(main_chain(profile.spin.iterations)) if step in measured), measured[-1])
    traced = sorted(int(seed) for seed in scores["seed"][scores["model"] == last].unique())
    heldout = results.load_heldout(paths.results(profile.name))
    wholes = [finding for finding in drawn.findings if finding.id.startswith(("table-", "figure-"))]
    page = render(
        "report.html.j2",
        profile=profile.name,
        items=scores.groupby("task")["id"].nunique().sum(),
        tasks=scores["task"].nunique(),
        seeds=sorted(int(seed) for seed in scores["seed"].unique()),
        tally=claims.tally(finding.verdict for finding in drawn.findings),
        rule=claims.rule(drawn.findings).replace("*", "").replace("`", ""),
        entry=generations.entry_test(heldout)[1] if "spin-0" in set(heldout["model"]) else "",
        speed=_speed(results.load_training(paths.results(profile.name))),
        protocol=publish.protocol(profile.name),
        wholes=wholes,
        claims=[finding for finding in drawn.findings if finding not in wholes],
        shown=claims.shown,
        with_interval=claims.with_interval,
        figures=[(title, _encoded(paths.figures(profile.name) / f"{name}.png")) for name, title in FIGURES.items()],
        tables=drawn.tables,
        agreement=draw.compared(profile, scores),
        label=label,
        last=label(last),
        chains=[publish.describe_provenance(profile.name, seed, last) for seed in traced],
    )
    path = paths.results(profile.name) / "report.html"
    write_text(path, page + "\n")
    return [*written, path]


def _speed(training: pd.DataFrame) -> str:
    """The share of the machine's matrix rate that training reached; empty if no run was long enough to measure."""
    if "matrix_share" not in training:
        return ""
    shares = training["matrix_share"].dropna().sort_values()
    return f"{shares.iloc[0]:.0%} to {shares.iloc[-1]:.0%}" if len(shares) else ""


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
