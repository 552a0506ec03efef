"""From results to tables and figures.

It reads only the files under `results/PROFILE` and the published numbers, so it needs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from spin_utils.drawing import figures, footnotes, style, tables, training_figures
from spin_utils.drawing.tables import Table
from spin_utils.evaluation import suites
from spin_utils.experiment import plan
from spin_utils.files import paths
from spin_utils.files.disk import write_forms
from spin_utils.paper import agreement, claims, generations, published, results
from spin_utils.paper.agreement import Agreement
from spin_utils.paper.claims import Finding
from spin_utils.settings.names import ModelName
from spin_utils.settings.run import Profile, TrainingSettings


@dataclass(frozen=True)
class Drawing:
    """All tables, figures and verdicts of a profile's results, not yet written."""

    tables: list[Table]
    findings: list[Finding]
    figures: dict[str, Figure]
    """By file name."""
    scores: pd.DataFrame
    """From `scores`."""


def write(drawing: Drawing, profile: Profile) -> list[Path]:
    """Write what `compose` made to results/PROFILE and figures/PROFILE, and close the figures."""
    folder = paths.results(profile.name)
    written = [path for table in drawing.tables for path in tables.write(table, folder / "tables")]
    written += write_verdicts(drawing.findings, folder)
    for name, figure in drawing.figures.items():
        written += style.save(figure, paths.figures(profile.name), name)
        figure.clear()
    return written


def write_verdicts(findings: Sequence[Finding], folder: Path) -> list[Path]:
    """Write verdicts.csv and the readable page verdicts.md."""
    columns = ["id", "statement", "paper", "ours", "low", "high", "n", "seeds", "verdict"]
    table = pd.DataFrame([vars(finding) for finding in findings])[columns].to_csv(index=False, float_format="%.6g")
    page = footnotes.render("verdicts.md.j2", findings=findings, **verdict_words(findings))
    return write_forms(folder / "verdicts", {"csv": table, "md": page})


def verdict_words(findings: Sequence[Finding]) -> dict[str, Any]:
    """What the page of verdicts and the report both say: how often each verdict was given, by which rule, and numbers
    as they print them."""
    # Times have no items, and rows in -size repeat another row's interval.
    intervals = sum(finding.n is not None and not finding.id.endswith("-size") for finding in findings)
    averages = published.leaderboard()[["average_printed", "average_recomputed"]]
    gain = averages.loc["spin-3-dpo"] - averages.loc["spin-3"]
    rule, paper = footnotes.notes("verdicts", intervals=intervals, gain=gain)
    tally = claims.tally(finding.verdict for finding in findings)
    return {"tally": tally, "rule": rule, "in_paper": paper, "shown": _shown, "with_interval": _with_interval}


def _shown(value: float | None) -> str:
    """A value as printed with a verdict."""
    if value is None:
        return ""
    return footnotes.minus(f"{value:.1e}" if 0 < abs(value) < 0.005 else f"{value:.2f}")


def _with_interval(finding: Finding) -> str:
    """Our value with its interval; empty if there is no value."""
    interval = "" if finding.low is None else f" [{_shown(finding.low)}, {_shown(finding.high)}]"
    return _shown(finding.ours) + interval


def compose(profile: Profile) -> Drawing:
    """Make every table, figure and verdict that the results allow and name the missing runs; errors as in `scores`."""
    claims.exact(claims.registry())
    folder = paths.results(profile.name)
    measured, transfer = scores(profile), scores(profile, "transfer")
    results.check_one_run(folder)
    training = results.load_training(folder)
    times, machine, alone = tables.wall_clock(folder, training)
    texts = results.load_generations(folder)
    answers = generations.measures(texts)
    heldout = results.load_heldout(folder)
    bounds = generations.jsd_bounds(heldout)
    grades, followed = results.load_mt_bench(folder), scores(profile, "instructions")
    own = results.load_summaries(folder, part="metrics")
    name = profile.name
    scored = [
        tables.table3(measured, preferences=profile.dpo.preferences.source if profile.dpo else ""),
        *(make(measured) for make in (tables.table4, tables.table5)),
        tables.table6(transfer, grades, followed),
    ]
    other = tuple(filter(None, [not_the_papers(profile, tables.benchmarks(measured))]))
    scored = [replace(table, notes=table.notes + other) for table in scored]
    return Drawing(
        tables=[
            tables.table1(results.load_summaries(folder), shots=shots(profile)),
            tables.table2(times, machine=machine, alone=alone),
            *scored,
            *(make(texts, answers, bounds) for make in (tables.table7, tables.table8)),
            tables.instruments(measured, bounds, generations.bits_per_byte(heldout), discriminated(profile, texts)),
            *filter(None, [tables.arms(measured, profile.arms), tables.own_units(own)]),
        ],
        figures={
            "figure1": figures.figure1(texts),
            "figure2": figures.figure2(measured, profile=name),
            "figure3": figures.figure3(measured, profile=name),
            "figure4": figures.figure4(measured, profile=name),
            "figure5": figures.figure5(measured, profile=name),
            "figure6": figures.figure6(measured, transfer, grades, followed, profile=name),
            "training": training_figures.training_curves(training, loss=profile.spin.training.loss),
            "convergence": figures.convergence(answers, bounds),
        },
        findings=claims.judge(
            measured,
            times=times,
            training=training,
            transfer=transfer,
            generations=answers,
            heldout=bounds,
            grades=grades,
            loss=loss_of(profile.spin.training),
        ),
        scores=measured,
    )


def loss_of(training: TrainingSettings) -> str:
    """The loss function l, and the settings with which a first step does not have the loss l(0)."""
    terms = [name for name in ("nll", "reference_free", "historical") if getattr(training, name)]
    return " with ".join([training.loss, *terms])


def facts(profile: Profile, drawn: Drawing) -> dict[str, Any]:
    """What report and summary both begin with; items and tasks are those that the averages are over."""
    counted = results.counted(drawn.scores)
    return {
        "profile": profile.name,
        "items": counted.groupby("task")["id"].nunique().sum(),
        "tasks": counted["task"].nunique(),
        "seeds": sorted(map(int, drawn.scores["seed"].unique())),
        "differs": not_the_papers(profile, tables.benchmarks(drawn.scores)),
        **verdict_words(drawn.findings),
        "wholes": [finding for finding in drawn.findings if finding.id.startswith(("table-", "figure-"))],
        "entry": generations.entry_test(results.load_heldout(paths.results(profile.name))),
        "agreement": compared(profile, drawn.scores),
    }


def scores(profile: Profile, kind: results.Scored = "evaluations") -> pd.DataFrame:
    """A profile's scores for tables and figures: `results.load_evaluations` with the paper's `benchmark` that each task
    is, or "".

    Raises:
        ResultsError: No model was evaluated at all, or a results file is not valid.
    """
    folder = paths.results(profile.name)
    found = results.load_evaluations(folder, kind_folder=kind)
    if kind == "evaluations" and found.empty:
        raise results.ResultsError(
            f"{paths.relative(folder)}: no evaluations; run `spin-repro reproduce --profile {profile.name}` first"
        )
    benchmarks = {name: str(task.benchmark) for name, task in profile.evaluation.big_bench.items()}
    if profile.evaluation.suite != "local":
        benchmarks |= {name: name for name in published.BENCHMARK_LABELS}
    found = found.assign(benchmark=found["task"].map(lambda task: benchmarks.get(task, "")))
    return with_last_epoch(found, profile.spin.training.epochs) if kind == "evaluations" else found


def compared(profile: Profile, own: pd.DataFrame) -> Agreement | None:
    """A run's scores against its profile's committed results, for models with the same settings; None if there are
    none.

    Raises:
        ModelError, RowError: the plan cannot be made, because a file that the profile names is missing.
    """
    if not agreement.committed(profile.name).is_file():
        return None
    expected = pd.read_csv(agreement.committed(profile.name), dtype={"key": str})
    keys: dict[tuple[str, int], str] = {}
    for seed in map(int, expected["seed"].unique()):
        made = plan.make(profile, seed)
        keys |= {(name, seed): made.directory(f"eval-{name}").name.rpartition("-")[2] for name in made.models()}
    return agreement.agree(agreement.by_seed(own), expected, keys)


def discriminated(profile: Profile, texts: pd.DataFrame) -> pd.DataFrame:
    """From `generations.discriminator` where people wrote the answers; empty where a program did."""
    return generations.discriminator(texts[:0] if profile.demonstrations.source == "reasoning_gym" else texts)


def with_last_epoch(scores: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """The scores, with those of iteration 0 repeated under the name of its last epoch.

    Which epoch that is, results with other epochs say themselves: it is the one they leave out. Otherwise `epochs`.
    """
    shown = {epoch for model in scores["model"].unique() if (epoch := ModelName.parse(model).epoch)}
    epochs = min(set(range(1, max(shown, default=0))) - shown, default=epochs)
    last = f"spin-0-epoch-{epochs}"
    if epochs in shown:
        return scores
    return pd.concat([scores, scores[scores["model"] == "spin-0"].assign(model=last)], ignore_index=True)


def not_the_papers(profile: Profile, benchmarks: Mapping[str, str]) -> str:
    """How tasks and model differ from the paper's, and so how to compare; empty if they do not."""
    model = profile.model.source == "hub" and profile.model.name == published.MODEL
    other = ["tasks"] * published.other_tasks(benchmarks) + ["model"] * (not model)
    if not other:
        return ""
    verb = "differs" if other == ["model"] else "differ"
    return f"{' and '.join(other).capitalize()} {verb} from the paper's: compare directions, not scores."


def shots(profile: Profile) -> dict[str, str]:
    """Examples in the prompts of the tasks that have any, for Table 1."""
    suite = suites.SUITES.get(profile.evaluation.suite, {})
    own = {Path(task).stem if paths.is_yaml(task) else task for task in profile.evaluation.tasks}
    of_big_bench = {name: str(task.shots) for name, task in profile.evaluation.big_bench.items()}
    return {name: str(suites.shots(name)) for name in suite} | dict.fromkeys(own, "as in its file") | of_big_bench


def page(profile: Profile, name: str) -> str:
    """A drawn table (`tables/table4`) or the page of verdicts (`verdicts`) as Markdown."""
    return (paths.results(profile.name) / f"{name}.md").read_text(encoding="utf-8")
