"""Where everything lies. One truth for directories; `SPIN_HOME` moves every product elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
"""The checkout: notebooks, profiles and the Snakefile are read from here."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What names a folder of products: no separator, so that nothing is read or written elsewhere."""


class KitError(ValueError):
    """What a person can mend: the message names the thing, the place and the remedy."""


class PathError(KitError):
    """A path or the name of a folder cannot be used. The message names it and the remedy."""


def checked(name: str) -> str:
    """The name of a profile's folders.

    Raises:
        PathError: it could lead out of them.
    """
    if NAME.fullmatch(name) is None:
        raise PathError(f"profile {name[:80]!r}: names folders; use letters, digits, - and _ only")
    return name


def given(text: str, folder: Path | None = None) -> Path:
    """A path as people write it, made absolute: `~` is their home, and what is relative lies in `folder`.

    Raises:
        PathError: no such user, a NUL in it, too long a name, one that is not UTF-8, or a circle of links.
    """
    try:
        path = ((folder or Path.cwd()) / Path(text).expanduser()).resolve()
        path.exists()  # asks the system, which refuses a name that is too long
        str(path).encode()  # it becomes part of manifests and messages
        return path
    except (RuntimeError, ValueError, OSError) as error:
        raise PathError(f"{text[:200]!r}: not a path ({error}); correct it") from None


def is_yaml(text: str) -> bool:
    """Whether a profile or a task is named by its file."""
    return text.endswith((".yaml", ".yml"))


def home() -> Path:
    """Directory that holds artifacts/, results/ and figures/: `SPIN_HOME`, or the checkout."""
    chosen = os.environ.get("SPIN_HOME")
    path = _given_home(chosen) if chosen else REPOSITORY.resolve()
    if chosen and not Path(chosen).expanduser().is_absolute():  # kernels and steps work in folders of their own
        raise PathError(f"SPIN_HOME: {chosen!r} is relative; write the whole path, such as {path}")
    if path.is_relative_to("/proc"):  # where the system only says that no new folder is there
        raise PathError(f"SPIN_HOME: {path}: holds processes, not files; name a folder on a disk")
    return path


def settle_home() -> None:
    """Make `SPIN_HOME` absolute for this process and all that it starts, which work in other folders.

    Raises:
        PathError: it is no path.
    """
    if chosen := os.environ.get("SPIN_HOME"):
        os.environ["SPIN_HOME"] = str(_given_home(chosen))


def _given_home(chosen: str) -> Path:
    try:
        return given(chosen)
    except PathError as error:
        raise PathError(f"SPIN_HOME: {error}") from None


def artifacts(profile: str) -> Path:
    """Checkpoints and pairs of a profile (not kept in git)."""
    return home() / "artifacts" / checked(profile)


def results(profile: str) -> Path:
    """Small JSON and CSV results of a profile (kept in git)."""
    return home() / "results" / checked(profile)


def figures(profile: str) -> Path:
    """Figures of a profile, drawn from its results only."""
    return home() / "figures" / checked(profile)


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
