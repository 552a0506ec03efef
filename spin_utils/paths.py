"""Where everything lies. One truth for directories; `SPIN_HOME` moves every product elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout: notebooks, profiles and the Snakefile are read from here."""


def home() -> Path:
    """Directory that holds artifacts/, results/ and figures/: `SPIN_HOME`, or the checkout."""
    return Path(os.environ.get("SPIN_HOME") or REPOSITORY).resolve()


def artifacts(profile: str) -> Path:
    """Checkpoints and pairs of a profile (not kept in git)."""
    return home() / "artifacts" / profile


def results(profile: str) -> Path:
    """Small JSON and CSV results of a profile (kept in git)."""
    return home() / "results" / profile


def figures(profile: str) -> Path:
    """Figures of a profile, drawn from its results only."""
    return home() / "figures" / profile


def notebook(name: str) -> Path:
    """A notebook of the kit, by its stem such as `01_sft_baseline`."""
    return REPOSITORY / "notebooks" / f"{name}.ipynb"


def executed_notebooks(profile: str) -> Path:
    """Executed copies of the notebooks of a profile (products, not kept in git)."""
    return results(profile) / "notebooks"


def relative(path: Path) -> str:
    """A path as people should read it: relative to `home()` where it lies below it."""
    path = Path(path).resolve()
    return str(path.relative_to(home())) if path.is_relative_to(home()) else str(path)
