"""JupyterLab on loopback and a headless Chromium, for tests that look at notebooks as a reader does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from spin_utils.files import paths, runtime

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SETTINGS = {
    # Without these JupyterLab keeps only the cells in sight in the page, and asks the network for news.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
_ERRORS = ", ".join(f"[data-mime-type='application/vnd.jupyter.{kind}']" for kind in ("error", "stderr"))
_PATIENCE_MS = 300_000.0  # a bound for a machine with other work; quiet, a cell takes seconds


def find_browser() -> str | None:
    """Path of the system's Chromium or Chrome."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def running_lab(folder: Path, home: Path) -> Iterator[str]:
    """Start JupyterLab in a folder, with settings of its own and the layout of `make lab`; gives its address and token.

    `home` is the `SPIN_HOME` of its kernels.
    """
    lab = folder / "lab"
    for name, values in _SETTINGS.items():
        path = lab / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    environment = {**runtime.ENVIRONMENT, **os.environ} | {
        "HOME": str(lab),
        "JUPYTER_CONFIG_DIR": str(lab),
        "SPIN_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(paths.REPOSITORY), os.environ.get("PYTHONPATH")))),
    }
    environment.pop("SPIN_HEADLESS", None)
    layout = paths.REPOSITORY / "notebooks" / "spin.jupyterlab-workspace"
    imported = [sys.executable, "-m", "jupyterlab", "workspaces", "import", str(layout)]
    subprocess.run(imported, env=environment, check=True, capture_output=True)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    if os.geteuid() == 0:
        command.append("--allow-root")
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = process.stdout
    assert output is not None
    try:
        said = ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+/lab\?token=\w+", said)):
            line = output.readline()
            assert line, said
            said += line
        # Read on, so that the server never waits for a full pipe.
        Thread(target=lambda: (lab / "log.txt").write_text(said + output.read()), daemon=True).start()
        yield address[0]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """The system's browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), timeout=_PATIENCE_MS)
        yield browser
        browser.close()


def open_page(browser: Browser, address: str, path: str) -> Page:
    """A page with a notebook whose kernel runs: `doc/tree/NOTEBOOK` by itself, `lab/workspaces/NAME` in a layout."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(_PATIENCE_MS)
    page.goto(address.replace("/lab?", f"/{path}?"))
    page.wait_for_selector(".jp-CodeCell")
    # Earlier, the kernel has a status but no connection, and cells that are run then never finish.
    page.get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for()
    return page


def edit(page: Page, old: str, new: str) -> None:
    """Change some words of the first code cell that has them, by hand."""
    cell = page.locator(".jp-CodeCell .cm-content").filter(has_text=old).first
    source = "\n".join(cell.locator(".cm-line").all_inner_texts())
    cell.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(source.replace(old, new))


def run_all(page: Page) -> None:
    """Run > Run All Cells, and wait until every code cell has a number."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator("li[data-command='runmenu:run-all']").click()
    page.wait_for_function(
        """(errors) => {
          const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent);
          return prompts.every(text => /\\[\\d+\\]/.test(text)) || document.querySelector(errors) !== null;
        }""",
        arg=_ERRORS,
    )


def errors(page: Page) -> list[str]:
    """Texts of all error outputs and of everything on standard error."""
    return page.locator(_ERRORS).all_inner_texts()


def picture(cell: Locator) -> str:
    """The picture that a cell shows."""
    source = cell.locator(".jp-OutputArea img").first.get_attribute("src")
    assert source
    return source


def wait_for_another_picture(page: Page, cell: Locator, before: str) -> None:
    """Wait until a cell shows a picture that is not the one before."""
    page.wait_for_function(
        "([cell, before]) => { const i = cell.querySelector('.jp-OutputArea img'); return i && i.src !== before; }",
        arg=[cell.element_handle(), before],
    )


def photograph(page: Page, path: Path) -> None:
    """A picture of the whole notebook, however long."""
    height = page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
    page.set_viewport_size({"width": 1400, "height": int(height) + 200})
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    page.screenshot(path=path)
