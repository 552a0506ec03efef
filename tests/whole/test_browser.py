"""The notebooks in a real browser: opened in JupyterLab, run from the menu, moved, and looked at.

Screenshots are kept in the folder that `SPIN_SCREENSHOTS` names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from spin_utils.files import paths

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")

import lab_browser
from playwright.sync_api import Page

SCREENSHOTS = os.environ.get("SPIN_SCREENSHOTS", "")
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
def opened(folder: Path) -> Iterator[Callable[[str], Page]]:
    """Opens pages of one JupyterLab in one browser."""
    with lab_browser.running_lab(folder, folder / "home") as address, lab_browser.opened_browser() as browser:
        yield partial(lab_browser.open_page, browser, address)


def test_the_readme_lies_beside_a_notebook_that_runs_and_follows_its_slider(opened: Callable[[str], Page]) -> None:
    page = opened("lab/workspaces/spin")
    readme, notebook = page.locator(".jp-MarkdownViewer"), page.locator(".jp-NotebookPanel")
    readme.get_by_role("heading", name="SPIN reproducibility kit").wait_for()
    left, right = readme.bounding_box(), notebook.bounding_box()
    assert left is not None
    assert right is not None
    assert left["x"] + left["width"] <= right["x"], "side by side"
    notebook.locator(".jp-MarkdownCell").first.click()
    lab_browser.run_all(page)
    assert lab_browser.errors(page) == []
    cell = page.locator(".jp-CodeCell").filter(has=page.locator(".noUi-handle")).first
    before = lab_browser.picture(cell)
    cell.locator(".noUi-handle").scroll_into_view_if_needed()
    handle = cell.locator(".noUi-handle").bounding_box()
    assert handle is not None
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(handle["x"] - 40, handle["y"] + handle["height"] / 2, steps=4)
    page.mouse.up()
    lab_browser.wait_for_another_picture(page, cell, before)
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / "00_theory.png")
    assert lab_browser.errors(page) == []
    page.close()


HOSTILE = "$x^2$ <b>bold</b> **strong** <img src=x>"


def test_the_opponent_answers_at_smoke_and_what_it_wrote_is_shown_as_it_is(
    opened: Callable[[str], Page], folder: Path
) -> None:
    page = opened("doc/tree/notebooks/02_synthetic_generation.ipynb")
    lab_browser.edit(page, 'profile = "cpu"', 'profile = "smoke"')
    lab_browser.edit(page, "show.texts(different[", f"show.texts(different.assign(generated={HOSTILE!r})[")
    lab_browser.run_all(page)
    assert lab_browser.errors(page) == []
    cell = page.locator(".jp-CodeCell").filter(has=page.locator(".jp-OutputArea select")).first
    before = lab_browser.picture(cell)
    cell.locator("select").select_option(index=1)
    lab_browser.wait_for_another_picture(page, cell, before)
    assert lab_browser.errors(page) == []
    # By then mathematics is typeset where it is looked for.
    page.locator(".jp-MarkdownCell mjx-container").first.wait_for()
    table = page.locator(".jp-CodeCell").filter(has_text="show.texts(different").locator(".jp-OutputArea table")
    assert table.locator("tr:last-child td:last-child").inner_text() == HOSTILE
    assert table.locator("mjx-container, b, strong, img").count() == 0
    assert list((folder / "home" / "artifacts" / "smoke" / "seed-0").glob("pairs-0-*"))
    photograph(page, "02_synthetic_generation")
    page.close()


# 01 runs as a step of the chain; 05 draws what 04 measured.
@pytest.mark.parametrize(
    "notebook", sorted((paths.REPOSITORY / "notebooks").glob("0[345]_*.ipynb")), ids=lambda path: path.stem
)
def test_a_notebook_runs_from_the_menu(opened: Callable[[str], Page], notebook: Path) -> None:
    page = opened(f"doc/tree/notebooks/{notebook.name}")
    lab_browser.edit(page, 'profile = "cpu"', 'profile = "smoke"')
    lab_browser.run_all(page)
    assert lab_browser.errors(page) == []
    photograph(page, notebook.stem)
    page.close()


def photograph(page: Page, name: str) -> None:
    if SCREENSHOTS:
        lab_browser.photograph(page, Path(SCREENSHOTS) / f"{name}.png")
