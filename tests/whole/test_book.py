"""The site of notebooks and pages: it builds without the network, is searched, and fits a phone; kept notebooks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import loopback
import nbformat
import pytest

from spin_utils.files import paths

ROOT = paths.REPOSITORY
KEPT = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PAGES = ("README", "docs/statistics", "docs/run-an-ablation", "notebooks/03_spin_training", "results/cpu/verdicts")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make book` does, with no way to the network; it fails at a link that leads nowhere."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | nowhere, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder


def written(name: str) -> str:
    """A page's place: a notebook is shown as it ran if it was kept."""
    return f"docs/{name}" if (ROOT / "docs" / f"{name}.ipynb").is_file() else name


def test_every_page_and_notebook_is_in_the_site_and_nothing_comes_from_the_network(site: Path) -> None:
    assert "README.html" in (site / "index.html").read_text()
    sidebar = (site / "README.html").read_text()
    notebooks = [written(f"notebooks/{path.stem}") for path in (ROOT / "notebooks").glob("*.ipynb")]
    pages = [f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")]
    for page in [*notebooks, *pages, "REPRODUCING", "CONTRIBUTING", "CHANGELOG"]:
        assert f'href="{page}.html"' in sidebar, page
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert not re.findall(r"<(?:script|link|img)\b[^>]*(?:src|href)=[\"'](?:https?:)?//[^>]*", text), path
        assert 'class="problematic"' not in text, path
        assert "flowchart" not in text, "a diagram as its source"
    assert "<math" in (site / f"{written('notebooks/00_theory')}.html").read_text()
    assert "<mi>log</mi>" not in (site / f"{written('notebooks/00_theory')}.html").read_text(), "log 2 reads as log2"


def test_the_site_is_searched_and_read_on_a_phone(site: Path, tmp_path: Path) -> None:
    lab_browser = pytest.importorskip("lab_browser")
    if lab_browser.find_browser() is None:
        pytest.skip("no browser")

    files = partial(SimpleHTTPRequestHandler, directory=site)
    with loopback.serving(files) as address, lab_browser.opened_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        for name in PAGES:
            page.goto(f"{address}/{written(name)}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)"), name
        page.set_viewport_size({"width": 1200, "height": 900})
        page.goto(f"{address}/README.html")
        page.locator("input.sidebar-search").fill("arms")
        page.keyboard.press("Enter")
        page.locator("ul.search a", has_text="Run an ablation").first.click()
        page.get_by_role("heading", name="Several at once: arms").wait_for()
        page.screenshot(path=Path(os.environ.get("SPIN_SCREENSHOTS") or tmp_path) / "site.png")


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_notebook_is_small_whole_and_names_no_machine(path: Path) -> None:
    text = path.read_text()
    assert len(text.encode()) < 400_000
    assert not re.findall(r"/(?:home|root|tmp|Users|work|mnt)/[\w./-]+", text)
    assert "widget-view" not in text, "works with a kernel only"
    cells = [cell for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds
    assert "error" not in kinds
    assert (ROOT / "notebooks" / path.name).is_file()
