"""The picture of a notebook at work that README shows: JupyterLab with notebook 00, run from the menu.

    PYTHONPATH=tests python docs/photograph_notebook.py

Needs Chromium and what `pip install -e '.[dev]'` brings.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import lab_browser
from PIL import Image

from spin_utils.files import paths

TARGET = paths.REPOSITORY / "docs" / "notebook.png"


def photograph() -> bytes:
    """A PNG of the window, scrolled to a formula, its figure and the sliders below."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(paths.REPOSITORY / "notebooks", folder / "notebooks")
        with lab_browser.running_lab(folder, folder / "home") as address, lab_browser.opened_browser() as browser:
            page = lab_browser.open_page(browser, address, "lab/tree/notebooks/00_theory.ipynb")
            page.set_viewport_size({"width": 1280, "height": 1180})
            lab_browser.run_all(page)
            found = lab_browser.errors(page)
            assert not found, found
            heading = page.get_by_role("heading", name="Many iterations").first
            for _ in range(5):  # pictures and formulas move what is below them until they are there
                heading.evaluate("element => element.scrollIntoView()")
                page.wait_for_timeout(1000)
            return page.screenshot()


if __name__ == "__main__":
    picture = Image.open(io.BytesIO(photograph())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(TARGET, optimize=True)
