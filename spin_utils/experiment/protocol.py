"""The protocol of a profile, `results/PROFILE/protocol.md`: what is measured and judged, committed before the run."""

from __future__ import annotations

import subprocess

from spin_utils.files import paths
from spin_utils.paper import results


def describe(profile: str) -> str:
    """Whether the protocol was committed before the results were made, by the repository's history.

    Args:
        profile: its name.

    Returns:
        A sentence for the report; empty if the profile has no protocol.
    """
    path = paths.results(profile) / "protocol.md"
    if not path.is_file():
        return ""
    name = paths.relative(path)
    last = _git("log", "-1", "--format=%H", "--", str(path))
    if not last or _git("status", "--porcelain", "--", str(path)):
        return f"{name} has uncommitted changes, so nothing shows that it is older than the results."
    younger = {
        seed
        for file in results.files(paths.results(profile))
        for document in [results.read_json(file)]
        for seed, link in [(document["seed"], document["provenance"]["chain"][document["provenance"]["step"]])]
        if _git("merge-base", "--is-ancestor", last, link["commit"]) is None
    }
    if younger:
        seeds = ", ".join(map(str, sorted(younger)))
        return f"{name} (commit {last[:12]}) is not older than all results of seeds {seeds}: it did not plan those."
    return f"{name} (commit {last[:12]}) is older than every result."


def _git(*arguments: str) -> str | None:
    """What a git command prints; None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(paths.REPOSITORY), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
