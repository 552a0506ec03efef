"""Where everything is. `SPIN_HOME` moves every product elsewhere."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
"""The checkout: notebooks, profiles and the Snakefile are read from here."""


class KitError(ValueError):
    """An error that the user can fix: the message names the thing, the place and the remedy."""

    exit_status = 2
    """Of the command line: 2 if the input is bad and nothing was started, 1 if work failed."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook, whatever runs it: the message, without the stack of calls."""
        return [f"{type(self).__name__}: {self}"]


class WorkError(KitError):
    """Work has failed: a full disk, a lost process, a notebook's cell. The same command resumes it."""

    exit_status = 1


def reason(error: Exception) -> str:
    """Another library's error in one line, for a message that says what it means here."""
    said = str(error) or f"in {traceback.extract_tb(error.__traceback__)[-1].name}"
    return " ".join(f"{type(error).__name__}: {said}".split())[:300]


def checked(name: str) -> str:
    """The name of a profile, which also names its folders. Raises `KitError` if it could lead outside of them."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) is None:
        raise KitError(f"profile {name[:80]!r}: names folders; use letters, digits, - and _ only")
    return name


def given(text: str, folder: Path | None = None) -> Path:
    """Make a path given by the user absolute: `~` is their home directory, and relative paths start at `folder`."""
    return ((folder or Path.cwd()) / os.path.expanduser(text)).resolve()  # Path's raises if there is no such user


def is_yaml(text: str) -> bool:
    """Whether a profile or task is given as a YAML file."""
    return text.endswith((".yaml", ".yml"))


def home() -> Path:
    """Directory of artifacts/, results/ and figures/: `SPIN_HOME`, or the checkout."""
    path = Path(os.path.expanduser(os.environ.get("SPIN_HOME") or REPOSITORY))
    if not path.is_absolute():  # kernels work in the notebooks' folder
        raise KitError(f"SPIN_HOME: {str(path)!r} is relative; write the whole path, such as {path.resolve()}")
    return path.resolve()


def settle_home() -> None:
    """Make `SPIN_HOME` absolute for this process and its children, which work in other folders."""
    if chosen := os.environ.get("SPIN_HOME"):
        os.environ["SPIN_HOME"] = str(given(chosen))


def artifacts(profile: str) -> Path:
    """Checkpoints and pairs of a profile (not kept in git)."""
    return home() / "artifacts" / checked(profile)


def results(profile: str) -> Path:
    """Small JSON and CSV results of a profile (kept in git)."""
    return home() / "results" / checked(profile)


def figures(profile: str) -> Path:
    """Figures of a profile, drawn only from its results."""
    return home() / "figures" / checked(profile)


def notebook(name: str) -> Path:
    """Path of a notebook by its stem, for example `01_sft_baseline`."""
    return REPOSITORY / "notebooks" / f"{name}.ipynb"


def executed_notebooks(profile: str) -> Path:
    """Executed copies of the notebooks of a profile (products, not kept in git)."""
    return results(profile) / "notebooks"


def relative(path: Path) -> str:
    """A path for messages, relative to `home()` if it is inside it."""
    path = Path(path).resolve()
    return str(path.relative_to(home())) if path.is_relative_to(home()) else str(path)
