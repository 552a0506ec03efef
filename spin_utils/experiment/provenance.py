"""Where a number comes from: from a result back through checkpoints and pairs to model and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_utils.experiment.plan import Plan
from spin_utils.files import artifacts, disk, paths
from spin_utils.paper import results

_KEPT = ("stage", "key", "seed", "seconds", "started", "commit", "dirty", "device", "versions", "inputs")
"""Fields of a manifest that a result repeats."""


class ProvenanceError(ValueError):
    """A result's chain is broken. The message names the link."""


def chain(plan: Plan, name: str) -> dict[str, Any]:
    """Every artifact behind a step, for the results file: manifest hash, seed, commit, versions, time and weights.

    Base model and data also bring their settings, which hold revisions and hashes of what is outside the kit.
    """
    links: dict[str, dict[str, Any]] = {}

    def walk(step: str) -> None:
        for needed in plan.steps[step].inputs:
            walk(needed)
        directory = plan.directory(step)
        manifest = artifacts.read_manifest(directory)
        link: dict[str, Any] = {"manifest_sha256": disk.file_hash(directory / artifacts.MANIFEST)}
        link |= {field: manifest[field] for field in _KEPT}
        weights = {name: file["sha256"] for name, file in manifest["files"].items() if name.endswith(".safetensors")}
        link |= {"weights_sha256": weights} if weights else {}
        link |= {} if manifest["inputs"] else {"settings": manifest["settings"]}
        links[step] = link

    walk(name)
    return {"step": name, "chain": links}


def record(profile: str, seed: int, model: str, kind: str = "evaluations") -> dict[str, Any]:
    """The chain behind a results file, for programs.

    Args:
        profile: name of the profile.
        seed: training seed.
        model: such as `spin-3`, as in the tables.
        kind: folder of the results: evaluations, transfer, training, generations, heldout or mt_bench.

    Returns:
        `label`, the row of the tables; `seed`, and `seeds`, all of which that row averages; `points`, the numbers in
        the file by task, if it has some; `file`, its `sha256`, and `chain`: every artifact behind it by step, in the
        order they were made, with `presence`, which says whether it is on this machine with the same manifest.

    Raises:
        ResultsError: no such results file, or not a valid one.
        KitError: a profile's name that could lead elsewhere.
        ProvenanceError: an input is not the artifact that the chain names.
    """
    label = results.label(model)
    path = results.path_of(paths.results(profile), seed, kind, model)
    document = results.read_json(path)
    links = document["provenance"]["chain"]
    for name in reversed(links):
        _check_inputs(name, links)
    named = {name: {**link, "presence": _presence(profile, name, link)} for name, link in links.items()}
    tasks = {task: summary["value"] for task, summary in document.get("tasks", {}).items()}
    if tasks:
        tasks["average"] = document["average"]
    return {
        "label": label,
        "seed": seed,
        "seeds": [
            number
            for number in results.training_seeds(path.parents[2])
            if results.path_of(path.parents[2], number, kind, model).is_file()
        ],
        "points": {task: round(100 * value, 6) for task, value in tasks.items()},
        "file": paths.relative(path),
        "sha256": disk.file_hash(path),
        "chain": named,
    }


def describe(profile: str, seed: int, model: str, kind: str = "evaluations") -> str:
    """What `record` says, as text: one paragraph a step, the result first."""
    found = record(profile, seed, model, kind)
    head = [f"{found['label']}, seed {seed}; the tables average seeds {', '.join(map(str, found['seeds']))}"]
    if found["points"]:
        head.append("  " + ", ".join(f"{task} {points:.1f}" for task, points in found["points"].items()))
    head += [found["file"], f"  sha256 {found['sha256']}"]
    return "\n".join([*head, *(_paragraph(name, link) for name, link in reversed(found["chain"].items()))])


def _check_inputs(name: str, links: Mapping[str, Any]) -> None:
    for other, reference in links[name]["inputs"].items():
        if links[other]["manifest_sha256"] != reference["manifest"]:
            raise ProvenanceError(
                f"{name}: was made from {reference['artifact']} with manifest {reference['manifest']}, but the chain "
                f"holds another one, {links[other]['manifest_sha256']}; run the step again"
            )


def _paragraph(name: str, link: Mapping[str, Any]) -> str:
    changes = " with uncommitted changes" if link["dirty"] else ""
    lines = [
        f"{name}-{link['key']}: {link['stage']}, seed {link['seed']}, {link['started']}, {link['seconds']:.0f} s",
        f"  commit {link['commit']}{changes}; {link['device']}; torch {link['versions']['torch']}",
        f"  manifest sha256 {link['manifest_sha256']} ({link['presence']})",
        *(f"  {file} sha256 {digest}" for file, digest in link.get("weights_sha256", {}).items()),
    ]
    if link["inputs"]:
        lines.append(f"  from {', '.join(reference['artifact'] for reference in link['inputs'].values())}")
    if "settings" in link:
        lines.append(f"  from {disk.canonical(link['settings'])}")
    return "\n".join(lines)


def _presence(profile: str, name: str, link: Mapping[str, Any]) -> str:
    folder = "shared" if link["stage"] in ("data", "base") else f"seed-{link['seed']}"
    manifest: Path = paths.artifacts(profile) / folder / f"{name}-{link['key']}" / artifacts.MANIFEST
    if not manifest.is_file():
        return "not on this machine"
    same = disk.file_hash(manifest) == link["manifest_sha256"]
    return "the same on this machine" if same else "another one on this machine"
