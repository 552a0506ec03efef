"""How long a reproduction takes: the expected minutes before it starts, and where the time went afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from spin_utils.experiment.plan import Plan, Step
from spin_utils.files import artifacts, paths
from spin_utils.files.disk import write_text
from spin_utils.paper import results


def expected_seconds(profile: str) -> dict[str, float]:
    """Seconds per step in the lowest seed in results/PROFILE, on the machine that wrote it; `{}` without any."""
    expected: dict[str, float] = {}
    try:
        for path in results.files(paths.results(profile)):
            for name, link in results.read_json(path)["provenance"]["chain"].items():
                expected.setdefault(name, link["seconds"])
    except results.ResultsError:
        return {}  # a damaged file only costs the estimate: publish will rewrite it
    return expected


def measured_on(profile: str) -> str:
    """The device on which the results' times were measured; empty if there are no results."""
    try:
        _, links = next(results.chains(paths.results(profile)))
    except (StopIteration, results.ResultsError):
        return ""
    return str(list(links.values())[-1]["device"])


def remember(profile: str) -> None:
    """Save the expected seconds with the artifacts: the first tables of a run replace the results they come from."""
    if expected := known_seconds(profile):
        write_text(_memory(profile), json.dumps(expected))


def known_seconds(profile: str) -> dict[str, float]:
    """Seconds per step in an earlier run, remembered or from its results."""
    file = _memory(profile)
    return (json.loads(file.read_text()) if file.is_file() else {}) | expected_seconds(profile)


def missing(plans: Sequence[Plan]) -> list[tuple[Plan, Step]]:
    """The unfinished steps, in order."""
    return [(plan, step) for plan, step in _steps(plans) if not artifacts.is_complete(step.directory)]


def outlook(plans: Sequence[Plan]) -> str:
    """How many steps there are to do, and how long they took before."""
    to_do = missing(plans)
    if not to_do:
        return "Every step is done."
    expected, where = known_seconds(plans[0].profile.name), measured_on(plans[0].profile.name)
    known = sum(expected.get(step.name, 0) for _, step in to_do) / 60
    total = f"about {known:.0f} min, as measured{' on ' * bool(where)}{where}" if known else "no earlier times"
    return f"{len(to_do)} steps to do ({total})"


def account(plans: Sequence[Plan]) -> str:
    """Where the time went: minutes of the finished steps, by stage, longest first."""
    spent: dict[str, list[float]] = {}
    for _, step in _steps(plans):
        if artifacts.is_complete(step.directory):
            spent.setdefault(step.stage, []).append(artifacts.read_manifest(step.directory)["seconds"])
    order = sorted(spent, key=lambda stage: -sum(spent[stage]))
    total = sum(map(sum, spent.values())) / 60
    parts = ", ".join(f"{stage} {sum(spent[stage]) / 60:.1f}" for stage in order)
    return f"Time of all steps, finished now or before: {total:.1f} min ({parts})"


def _memory(profile: str) -> Path:
    return paths.artifacts(profile) / "expected-seconds.json"


def _steps(plans: Sequence[Plan]) -> Iterator[tuple[Plan, Step]]:
    """Every step once; seeds share data and base model."""
    seen = set()
    for plan in plans:
        for step in plan:
            if step.directory not in seen:
                seen.add(step.directory)
                yield plan, step
