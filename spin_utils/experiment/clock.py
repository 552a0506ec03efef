"""How long a reproduction takes: seconds per step in earlier runs, and what remains to be done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from spin_utils.experiment.plan import Plan, Step
from spin_utils.files import artifacts, paths
from spin_utils.files.disk import write_text
from spin_utils.paper import results


def measured(profile: str, seed: int | None = None) -> tuple[dict[str, float], str]:
    """Seconds per step in results/PROFILE, and the device of the first; empty without any.

    Of one training seed, or without one of each step's lowest seed: the sum is then of no seed, and of no machine."""
    seconds: dict[str, float] = {}
    device = ""
    try:
        for path in results.files(paths.results(profile)):
            document = results.read_json(path)
            if seed not in (None, document["seed"]):
                continue
            chain = document["provenance"]["chain"]
            device = device or str(list(chain.values())[-1]["device"])
            for name, link in chain.items():
                seconds.setdefault(name, link["seconds"])
    except results.ResultsError:
        return {}, ""  # a damaged file only costs the estimate: publish will rewrite it
    return seconds, device


def remember(profile: str) -> None:
    """Save the known seconds with the artifacts: the first tables of a run replace the results they come from."""
    if known := known_seconds(profile):
        write_text(_memory(profile), json.dumps(known))


def known_seconds(profile: str) -> dict[str, float]:
    """Seconds per step in an earlier run, remembered or from its results."""
    file = _memory(profile)
    return (json.loads(file.read_text()) if file.is_file() else {}) | measured(profile)[0]


def _memory(profile: str) -> Path:
    return paths.artifacts(profile) / "expected-seconds.json"


def missing(plans: Sequence[Plan]) -> list[Step]:
    """The unfinished steps, in order, each once: seeds share data and base model."""
    steps = {step.directory: step for made in plans for step in made}
    return [step for step in steps.values() if not artifacts.is_complete(step.directory)]


def outlook(plans: Sequence[Plan]) -> str:
    """How many steps there are to do, and how long they took before."""
    to_do = missing(plans)
    if not to_do:
        return "Every step is done."
    expected, where = known_seconds(plans[0].profile.name), measured(plans[0].profile.name)[1]
    known = sum(expected.get(step.name, 0) for step in to_do)
    total = f"about {duration(known)}, as measured{' on ' * bool(where)}{where}" if known else "no earlier times"
    return f"{len(to_do)} steps to do, then tables and figures ({total})"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them.

    >>> duration(42), duration(100), duration(7200)
    ('42 s', '1.7 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
