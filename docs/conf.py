"""The site: README, pages and notebooks with a search, built by `make book` without the network.

Sphinx reads the repository as it stands, so that every link works here as it does there; a link to a file that is no
page becomes a download. A notebook is shown as it ran if `docs/notebooks` has it (see `keep_notebooks.py`), if not,
without outputs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent


def found(pattern: str) -> list[str]:
    """Files of the repository, in order."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def as_it_ran(source: str) -> str:
    """The executed copy of a notebook, or itself if there is none."""
    return f"docs/{source}" if (ROOT / "docs" / source).is_file() else source


PAGES = [line.partition("](")[2].partition(")")[0] for line in (ROOT / "docs" / "README.md").read_text().splitlines()]
CHAPTERS = {
    "Notebooks": [as_it_ran(source) for source in found("notebooks/*.ipynb")],
    "Pages": ["docs/README.md", *(f"docs/{page}" for page in PAGES if page.endswith(".md") and "/" not in page)],
    "Results": ["REPRODUCING.md", *found("results/*/*.md"), "benchmarks/scaling.md"],
    "Project": ["CONTRIBUTING.md", "CHANGELOG.md"],
}

project = "SPIN reproducibility kit"
author = project_copyright = ""
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["README.md", *(page for pages in CHAPTERS.values() for page in pages)]
exclude_patterns = [".*", "artifacts", "cluster", "results/*/seed-*", "spin_utils", "tests", "wandb", "*.egg-info"]
html_theme = "furo"
html_title = project
html_show_sphinx = html_show_copyright = html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"
html_static_path = html_css_files = ["site.css"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath", "html_image"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]


def _arrows(diagram: re.Match[str]) -> str:
    """A diagram as the list of its arrows: Mermaid, which draws it on GitHub and in JupyterLab, needs the network."""
    ends: dict[str, list[str]] = {}
    for start, end in re.findall(r"m_(\w+) --> m_(\w+)", diagram[0]):
        ends.setdefault(start, []).append(end)
    return "\n".join(f"- {start} → {', '.join(found)}" for start, found in ends.items())


def _adapt(app: Sphinx, page: str, source: list[str]) -> None:
    """On the first page the list of all pages, for the sidebar; on each, diagrams and links that only GitHub shows."""
    folder = ROOT / Path(page).parent

    def linked(link: re.Match[str]) -> str:
        target = folder / link[2]
        if target.is_dir():
            return link[1]  # only its text
        if target.suffix == ".ipynb":
            kept = ROOT / as_it_ran(target.resolve().relative_to(ROOT).as_posix())
            return f"[{link[1]}]({os.path.relpath(kept, folder)})"
        return link[0]

    if (ROOT / f"{page}.md").is_file():
        source[0] = re.sub(r"\[([^\[\]]+)\]\(([^():#\s]+)\)", linked, source[0])
        source[0] = re.sub(r"```mermaid.*?```", _arrows, source[0], flags=re.DOTALL)
    if page == root_doc:
        for chapter, pages in CHAPTERS.items():
            listed = "\n".join(Path(name).with_suffix("").as_posix() for name in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {chapter}\n\n{listed}\n```\n"


_BIG = re.compile(r"\\[bB]igg?(?![a-z])")
"""A size for the next bracket, which the converter does not know and MathML finds by itself."""
_NAMED = re.compile(r"<mi>(\w+)</mi>\s*<mo>&ApplyFunction;</mo>")
"""A function such as log, which browsers would join to its neighbours: log 2 would read as a logarithm to base 2."""


def _formula(inline: bool) -> Any:
    """Formulas as MathML, which browsers draw themselves: MathJax would come from the network."""

    def visit(writer: Any, node: nodes.Element) -> None:
        made = tex2mathml(_BIG.sub("", node.astext()), as_block=not inline)
        made = _NAMED.sub(r'<mo lspace="0.17em" rspace="0.17em">\1</mo>', made)
        writer.body.append(made if inline else f"<div class='math'>{made}</div>")
        raise nodes.SkipNode

    return visit


def _begin_with_the_readme(app: Sphinx, error: Exception | None) -> None:
    page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
    (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _adapt)
    app.connect("build-finished", _begin_with_the_readme)
    app.add_html_math_renderer("mathml", (_formula(inline=True), None), (_formula(inline=False), None))
