"""The picture of a notebook at work that README shows: JupyterLab with notebook 05, run on the committed results.

    PYTHONPATH=tests python docs/photograph_notebook.py

Needs Chromium and what `pip install -e '.[dev]'` brings; takes a minute or two.
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
SIZE = {"width": 1280, "height": 860}


def photograph() -> bytes:
    """A PNG of the window, scrolled to Table 4 and Figure 2."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(paths.REPOSITORY / "notebooks", folder / "notebooks")
        shutil.copytree(paths.REPOSITORY / "results", folder / "home" / "results")
        with lab_browser.running_lab(folder, folder / "home") as address, lab_browser.opened_browser() as browser:
            page = lab_browser.open_page(browser, address, "lab/tree/notebooks/05_tables_and_figures.ipynb")
            page.set_viewport_size(SIZE)  # type: ignore[arg-type]
            lab_browser.run_all(page)
            found = lab_browser.errors(page)
            assert not found, found
            heading = page.get_by_role("heading", name="Table 4 and Figure 2").first
            heading.evaluate("element => element.scrollIntoView()")
            page.wait_for_timeout(1000)  # pictures move what is below them until they have loaded
            heading.evaluate("element => element.scrollIntoView()")
            return page.screenshot()


if __name__ == "__main__":
    picture = Image.open(io.BytesIO(photograph())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(TARGET, optimize=True)
