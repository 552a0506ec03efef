"""One HTML page of a reproduction: verdicts, tables, figures, and where they come from.

Everything is inside the file, so it opens without the network. All text is escaped: what a model generated is shown
character for character and never rendered.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from spin_utils.drawing import draw
from spin_utils.drawing.tables import Table
from spin_utils.experiment import preflight, publish
from spin_utils.files import paths
from spin_utils.files.disk import write_text
from spin_utils.paper import claims, results
from spin_utils.paper.claims import Finding
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

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; } nav a { margin-right: 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; margin: 0.5rem 0; }
th, td { padding: 0.25rem 0.6rem; text-align: right; vertical-align: top; } thead th { vertical-align: bottom; }
tr { border-bottom: 1px solid #e5e5e5; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2), .verdicts :is(th, td), .words { text-align: left; }
td.words { white-space: pre-wrap; min-width: 14rem; overflow-wrap: anywhere; }
.verdicts td { min-width: 7rem; } .verdicts small { display: block; color: #555; }
.paper td:nth-child(-n+2) { white-space: nowrap; }
caption { text-align: left; font-weight: 600; padding: 0.4rem 0; }
.notes { font-size: 0.8rem; color: #555; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-size: 0.9rem; } img { width: 100%; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.75rem; background: #f6f6f6; padding: 0.6rem; }
.outcome { white-space: nowrap; font-weight: 600; } .reproduced { color: #00639c; } .not-reproduced { color: #b03a00; }
@media (max-width: 40rem) {
  .verdicts thead { display: none; } .verdicts :is(table, tbody, tr, td) { display: block; }
  .verdicts tr { padding: 0.5rem 0; } .verdicts td { padding: 0; } .verdicts td:empty { display: none; }
  .verdicts td[data-name]::before { content: attr(data-name) " "; color: #555; }
  table { font-size: 0.8rem; } th, td { padding: 0.2rem 0.35rem; } td.words { min-width: 10rem; }
  .paper td:nth-child(-n+2) { white-space: normal; }
}
@page { size: landscape; margin: 12mm; }
@media print {
  body { max-width: none; padding: 0; } nav { display: none; } table { font-size: 0.72rem; } pre { font-size: 0.6rem; }
  h2 { break-after: avoid; } .page { break-before: page; } .wide { overflow: visible; }
  figure, tr, .paper table { break-inside: avoid; } .figures { grid-template-columns: repeat(3, 1fr); }
}
"""


def write(profile: Profile) -> Path:
    """Draw everything and write results/PROFILE/report.html.

    Raises:
        ResultsError: nothing was evaluated, or a results file is not valid.
    """
    drawn = draw.compose(profile)
    draw.write(drawn, profile)
    folder = paths.results(profile.name)
    scores = results.load_evaluations(folder)
    seeds = sorted(int(seed) for seed in scores["seed"].unique())
    items = scores.groupby("task")["id"].nunique().sum()
    measured = list(dict.fromkeys(scores["model"]))
    last = next((step for step in reversed(main_chain(profile.spin.iterations)) if step in measured), measured[-1])
    traced = sorted(int(seed) for seed in scores["seed"][scores["model"] == last].unique())
    parts = [
        f"<h1>SPIN, reproduced at the profile {escape(profile.name)}</h1>",
        f"<p>{items} held-out items of {scores['task'].nunique()} tasks; training seeds {', '.join(map(str, seeds))}. "
        'The paper: <a href="https://arxiv.org/abs/2401.01335">arXiv 2401.01335</a>. Ours are other tasks and another '
        "model than the paper's unless the profile is the paper's: compare gains, not levels.</p>",
        '<nav><a href="#verdicts">Verdicts</a><a href="#figures">Figures</a><a href="#tables">Tables</a>'
        '<a href="#claims">Every claim</a><a href="#provenance">Where the numbers come from</a></nav>',
        '<h2 id="verdicts">Verdicts</h2>',
        _summary(drawn.findings),
        *(f"<p>Entry test: {escape(said)}.</p>" for said in _entry(folder)),
        _findings([finding for finding in drawn.findings if _is_whole(finding)], numbers=False),
        '<h2 id="figures" class="page">Figures</h2><div class="figures">',
        *(_figure(paths.figures(profile.name) / f"{name}.png", title) for name, title in FIGURES.items()),
        '</div><h2 id="tables" class="page">Tables</h2>',
        *(_table(table) for table in drawn.tables),
        '<h2 id="claims" class="page">Every claim, one by one</h2>',
        _findings([finding for finding in drawn.findings if not _is_whole(finding)]),
        '<h2 id="provenance" class="page">Where the numbers come from</h2>',
        f"<p>Every artifact behind {escape(label(last))}, by training seed. <code>spin-repro provenance MODEL"
        "</code> prints the same for any model.</p>",
        *(f"<pre>{escape(publish.describe_provenance(profile.name, seed, last))}</pre>" for seed in traced),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SPIN, {escape(profile.name)}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(parts)
    )
    path = folder / "report.html"
    write_text(path, page + "\n</body></html>\n")
    return path


def _summary(findings: Sequence[Finding]) -> str:
    counts = claims.tally(finding.verdict for finding in findings)
    return f"<p><b>{counts}</b> of {len(findings)}. {escape(_plain(claims.rule(findings)))}</p>"


def _entry(folder: Path) -> list[str]:
    """What `spin-repro check` says of the first iteration's held-out pairs, if there are any."""
    heldout = results.load_heldout(folder)
    return [preflight.entry_test(heldout)[1]] if "spin-0" in set(heldout["model"]) else []


def _plain(markdown: str) -> str:
    return markdown.replace("*", "").replace("`", "")


def _is_whole(finding: Finding) -> bool:
    """Whether a row judges a whole table or figure, and not one claim."""
    return finding.id.startswith(("table-", "figure-"))


def _findings(findings: Sequence[Finding], *, numbers: bool = True) -> str:
    """Rows of verdicts; whole tables and figures have no numbers of their own."""
    header = ("statement", "verdict", *(("paper", "ours") if numbers else ()), "where")
    rows = []
    for finding in findings:
        named = {
            "paper": claims.shown(finding.paper),
            "ours": _unbroken(claims.with_interval(finding)),
            "where": finding.where,
        }
        rows.append(
            [
                f"<td>{escape(finding.statement)}<small>{escape(finding.id)}</small></td>",
                f'<td><span class="outcome {finding.verdict.replace(" ", "-")}">{escape(finding.verdict)}</span> '
                f"{escape(finding.reason)}</td>",
                *(f'<td data-name="{name}">{escape(named[name])}</td>' for name in header[2:]),
            ]
        )
    return f'<div class="verdicts">{_rows(header, rows)}</div>'


def _unbroken(text: str) -> str:
    """A value and its interval may stand on two lines, an interval on one."""
    return text.replace(", ", ",\u00a0") if "[" in text else text


def _table(table: Table) -> str:
    def cell(column: int, text: str) -> str:
        words = column == table.text
        return f'<td class="words">{escape(text)}</td>' if words else f"<td>{escape(_unbroken(text))}</td>"

    rows = [[cell(column, text) for column, text in enumerate(line)] for line in table.lines]
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    header = [name.replace("_", " ") for name in table.header]
    body = _rows(header, rows, caption=f"Table {table.number}. {table.title}", text=table.text)
    return f'<div class="paper">{body}<ul class="notes">{notes}</ul></div>'


def _rows(header: Iterable[str], rows: Iterable[Sequence[str]], caption: str = "", text: int | None = None) -> str:
    head = "".join(
        f"<th{' class=words' if column == text else ''}>{escape(name)}</th>" for column, name in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _figure(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:image/png;base64,{data}"
    return f'<figure><img src="{source}" alt="{escape(title)}"><figcaption>{escape(title)}</figcaption></figure>'
