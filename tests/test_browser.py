"""The notebooks in a real browser: opened in JupyterLab, run from the menu, moved, and looked at.

Screenshots stay in pytest's temporary folder, or in the one that `SPIN_SCREENSHOTS` names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_utils import paths

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")

import lab_browser

pytestmark = pytest.mark.skipif(
    lab_browser.find_browser() is None, reason=f"no browser: none of {', '.join(lab_browser.BROWSERS)} is installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where JupyterLab runs: copies of the notebooks, so that its saving changes nothing in the checkout."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(paths.REPOSITORY / "notebooks", folder / "notebooks")
    shutil.copy(paths.REPOSITORY / "README.md", folder)
    return folder


@pytest.fixture(scope="module")
def pages(folder: Path) -> Iterator[lab_browser.Pages]:
    """One JupyterLab and one browser for all tests."""
    with lab_browser.running_lab(folder, folder / "home") as address, lab_browser.opened_browser() as browser:
        yield lab_browser.Pages(browser, address)


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures of the screen are kept."""
    kept = Path(os.environ.get("SPIN_SCREENSHOTS") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def test_a_notebook_runs_from_the_menu_and_its_picture_follows_the_slider(
    pages: lab_browser.Pages, screenshots: Path
) -> None:
    page = pages.notebook("notebooks/00_theory.ipynb")
    lab_browser.run_all(page)
    assert lab_browser.errors(page) == []
    cell = page.locator(".jp-CodeCell").filter(has=page.locator(".noUi-handle, .ui-slider-handle, .jupyter-widget-slider"))
    before = lab_browser.picture(cell.first)
    page.screenshot(path=screenshots / "theory-before.png")
    cell.first.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    lab_browser.wait_for_another_picture(page, cell.first, before)
    page.screenshot(path=screenshots / "theory-after.png")
    assert lab_browser.errors(page) == []
    page.close()


def test_the_opponent_answers_at_smoke_and_what_it_wrote_is_not_rendered(
    pages: lab_browser.Pages, folder: Path, screenshots: Path
) -> None:
    committed = hashlib.sha256((paths.REPOSITORY / "notebooks" / "02_synthetic_generation.ipynb").read_bytes())
    page = pages.notebook("notebooks/02_synthetic_generation.ipynb")
    lab_browser.set_cell(page, 'profile = "cpu"', 'profile = "cpu"', 'profile = "smoke"')
    lab_browser.run_all(page)
    assert lab_browser.errors(page) == []
    picker = page.locator(".jp-CodeCell").filter(has=page.locator("select")).first
    before = lab_browser.picture(picker)
    picker.locator("select").select_option(index=1)
    lab_browser.wait_for_another_picture(page, picker, before)
    lab_browser.photograph(page, screenshots / "generation.png")
    assert lab_browser.errors(page) == []
    assert list((folder / "home" / "artifacts" / "smoke" / "seed-0").glob("pairs-0-*"))
    after = (paths.REPOSITORY / "notebooks" / "02_synthetic_generation.ipynb").read_bytes()
    assert hashlib.sha256(after).digest() == committed.digest()
    page.close()
