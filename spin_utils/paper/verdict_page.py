"""The verdicts as files: verdicts.csv for programs and verdicts.md for readers, and the words that go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from spin_utils.files.disk import write_forms
from spin_utils.paper import published
from spin_utils.paper.documents import ResultsError
from spin_utils.paper.records import OUTCOMES, VERDICT_COLUMNS, parse_verdicts, read_verdicts
from spin_utils.paper.verdicts import Finding
from spin_utils.settings.profiles import nearest

_RULE = (
    "A claim is *reproduced* if the whole 95 % interval of our measurement agrees with it, *not reproduced* if the "
    "whole interval contradicts it, and *inconclusive* otherwise; the exact rule for each kind of claim is in "
    "`statistics.verdict`, the margins are in `registry.yaml`. A line that ends in -size asks whether a difference is "
    "as large as the paper's, which is another question than whether it has the same sign. A table or figure is *not "
    "run* if a claim that belongs to it is, else *not reproduced* if one is, *reproduced* if all are, and "
    "*inconclusive* otherwise; lines in -size do not count there. Scores are in points; which of our tasks stand in "
    "for the paper's benchmarks is in the headings of Table 4. Of {intervals} intervals at 95 %, about {chance} miss "
    "their true value by chance; with one training seed they cover the choice of items only, and with two or three "
    "they are too narrow where seeds differ more than items do. For times the range over training seeds stands in the "
    "interval's place; one seed alone has none and leaves them inconclusive. Intervals of JSD bounds hold the fitted "
    "scale fixed."
)
_PAPER = (
    "*In the paper* tells whether a claim holds for the paper's own printed numbers. *Noise* compares the paper's "
    "difference with the size of its test sets. Answers item by item are not published, so there are two bounds at two "
    "standard errors. *Beyond noise* holds even if the answers of the two models were independent, which understates "
    "the significance of a paired comparison. *Within noise* holds for any pairing. In between it *depends on the "
    "pairing*. Averages are recomputed from the cells for this; it matters for DPO after SPIN, where the cells give a "
    "gain of {recomputed:.2f} and the paper prints {printed:.2f}."
)


def write(findings: Sequence[Finding], results: Path) -> list[Path]:
    """Write verdicts.csv and the readable page verdicts.md under results/PROFILE."""
    table = pd.DataFrame([vars(finding) for finding in findings])[list(VERDICT_COLUMNS)]
    texts = {"csv": table.to_csv(index=False, float_format="%.6g"), "md": markdown(findings)}
    parse_verdicts(texts["csv"], str(results / "verdicts.csv"))
    return write_forms(results / "verdicts", texts)


def read(results: Path, outcome: str = "") -> pd.DataFrame:
    """The written verdicts of results/PROFILE, or those of one outcome.

    Raises:
        ResultsError: nothing was judged yet, the file is damaged, or no verdict is called so.
    """
    path = results / "verdicts.csv"
    if not path.is_file():
        raise ResultsError(f"{path}: no verdicts; run `spin-repro figures --profile {results.name}` to write them")
    if outcome not in ("", *OUTCOMES):
        raise ResultsError(f"verdict {outcome!r}: unknown{nearest(outcome, OUTCOMES)}")
    table = read_verdicts(path)
    return table[table["verdict"] == outcome] if outcome else table


def markdown(findings: Sequence[Finding]) -> str:
    """The verdict page: a count, the rule, and a table of all findings."""
    averages = published.leaderboard()[["average_printed", "average_recomputed"]]
    gain = averages.loc["spin-3-dpo"] - averages.loc["spin-3"]
    lines = [
        "# Verdicts",
        "",
        tally(finding.verdict for finding in findings) + ".",
        "",
        rule(findings),
        "",
        _PAPER.format(recomputed=gain["average_recomputed"], printed=gain["average_printed"]),
        "",
        "| id | statement | where | in the paper | noise | paper | ours | items × seeds | verdict |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for finding in findings:
        holds = {True: "holds", False: "does not hold", None: ""}[finding.paper_holds]
        size = f"{finding.n or ''} × {finding.seeds}" if finding.n and finding.seeds else ""
        status = finding.verdict + (f": {finding.reason}" if finding.reason else "")
        cells = [finding.id, finding.statement, finding.where, holds, finding.paper_noise]
        cells += [shown(finding.paper), with_interval(finding), size, status]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def tally(outcomes: Iterable[str]) -> str:
    """How often each verdict was given, in words."""
    counts = Counter(outcomes)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])


def rule(findings: Sequence[Finding]) -> str:
    """How verdicts are given, in words, with how many intervals miss by chance."""
    measured = [finding for finding in findings if finding.n is not None]  # times are of no items
    intervals = sum(not finding.id.endswith("-size") for finding in measured)  # those are the same intervals again
    return _RULE.format(intervals=intervals, chance=round(intervals / 20))


def shown(value: float | None) -> str:
    """A value as the page of verdicts prints it."""
    if value is None:
        return ""
    return (f"{value:.1e}" if 0 < abs(value) < 0.005 else f"{value:.2f}").replace("-", "−")


def with_interval(finding: Finding) -> str:
    """Our value with its interval, empty if there is none."""
    if finding.low is None or finding.high is None:
        return shown(finding.ours)
    return f"{shown(finding.ours)} [{shown(finding.low)}, {shown(finding.high)}]"
