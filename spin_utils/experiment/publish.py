"""Publishing: copy what finished steps measured from artifacts to `results/PROFILE`, with its provenance."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from spin_utils.experiment.plan import Plan, Step
from spin_utils.files import artifacts, disk, paths
from spin_utils.paper import results
from spin_utils.settings.names import label

log = logging.getLogger(__name__)

_DRAWN = ("tables/*", "verdicts.*", "report.html", "summary.pdf", "*.crate.zip", "seed-*/cards/*")
"""What commands make from results files, beside them."""


def publish(plans: list[Plan]) -> list[Path]:
    """Write the results of every finished step to files, which are returned, and remove those of other runs.

    Tables are drawn from everything under results/PROFILE, so two runs must not mix. Running the other seeds again
    restores their results, as long as the artifacts exist. Before this run's first evaluation nothing is removed.

    Raises:
        ArtifactError: a finished step's output is damaged.
    """
    # Not `is_complete`: a missing file in a finished step is an error; its numbers must not silently disappear.
    finished = [(plan, step) for plan in plans for step in plan if (step.directory / artifacts.MANIFEST).exists()]
    if not any(step.stage == "evaluation" for _, step in finished):
        return []
    written = []
    for plan, step in finished:
        for folder, model, document in _documents(plan, step):
            path = results.path_of(paths.results(plan.profile.name), plan.seed, folder, model)
            identity = {"profile": plan.profile.name, "seed": plan.seed, "model": model}
            document = {"schema": results.SCHEMA, **document, **identity}
            results.write_json(path, {**document, "provenance": chain(plan, step.name)})
            written.append(path)
    root = paths.results(plans[0].profile.name)
    others = set(results.files(root)).difference(written)
    for path in others:
        path.unlink(missing_ok=True)
    if others:
        for path in [path for pattern in _DRAWN for path in root.glob(pattern)]:
            path.unlink()  # they show other numbers; a run draws its own at its end
        log.info("%d results of other runs removed from %s", len(others), paths.relative(root))
    return written


def _documents(plan: Plan, step: Step) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The results files of a finished step: kind (the folder), model and content."""
    files, read = artifacts.read_manifest(step.directory)["files"], partial(artifacts.read_json, step.directory)
    if step.stage in ("evaluation", "transfer", "instructions"):
        kind = "evaluations" if step.stage == "evaluation" else step.stage
        yield kind, step.parameters["model"], read("evaluation.json")
    if step.stage == "mt_bench":
        yield step.stage, step.parameters["model"], {"kind": step.stage, **read("mt_bench.json")}
    if "training.json" in files:
        more = f"spin-0-epoch-{plan.profile.spin.epochs_shown}"
        model = more if step.stage == "epochs" else step.name
        yield "training", model, {"kind": "training", "rows": read("training.json")["rows"]}
    if step.stage == "heldout" and (played := read("heldout.json"))["items"]:
        yield "heldout", step.parameters["model"], {"kind": "heldout", **played}
    if step.stage == "pairs" and "arm" not in step.parameters:
        artifacts.verify(step.directory)
        # In a profile without its own SFT the base model takes the SFT model's place.
        generator = "sft" if step.parameters["iteration"] == 0 else step.inputs[0]
        # Of several answers to a prompt the first one is shown.
        table = pair_table(step.directory).drop(columns=["identical", "shared_tokens"]).drop_duplicates("id")
        yield "generations", generator, {"kind": "generations", "items": table.to_dict("records")}


def pair_table(folder: Path) -> pd.DataFrame:
    """The pairs stored in the artifact of a `pairs` step, as text and numbers.

    Returns:
        Columns `id`, `family`, `prompt`, `real`, `generated`, `identical`, `shared_tokens` (length of the two
        responses' common prefix), `real_tokens`, `generated_tokens`, `finish_reason`.
    """
    from spin_utils.model.packing import Pairs, common  # imports torch, which provenance does not need

    table = Pairs([artifacts.checked(folder, "pairs.arrow")]).table.to_pandas()
    both = list(zip(table["real_ids"], table["generated_ids"], strict=True))
    return table[["id", "family", "prompt", "real", "generated"]].assign(
        identical=[list(a) == list(b) for a, b in both],
        shared_tokens=[common(a, b) for a, b in both],
        real_tokens=table["real_ids"].str.len(),
        generated_tokens=table["generated_ids"].str.len(),
        finish_reason=table["finish_reason"],
    )


_KEPT = ("stage", "key", "seed", "seconds", "started", "commit", "dirty", "device", "versions", "inputs")
"""Fields of a manifest that are copied into the results."""


def chain(plan: Plan, name: str) -> dict[str, Any]:
    """Every artifact behind a step, for the results file: manifest hash, seed, commit, versions, time and weights.

    Base model and data also include their settings, with revisions and hashes of whatever comes from outside the kit.
    """
    links: dict[str, dict[str, Any]] = {}

    def walk(step: str) -> None:
        if step in links:
            return
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


def provenance(profile: str, seed: int, model: str, kind: str = "evaluations") -> dict[str, Any]:
    """The chain behind a results file, whose kind is its folder, as data.

    Returns:
        `label`, the model's row in the tables; `seed`; `seeds`, all those averaged in that row; `points` by task, if
        the file has any; `file` and its `sha256`; `chain`, every artifact behind it by step, oldest first.

    Raises:
        ResultsError: the results file is missing or invalid.
    """
    folder, named = paths.results(profile), label(model)  # refuses what leads elsewhere than to a model
    files = {each: results.path_of(folder, each, kind, model) for each in results.training_seeds(folder)}
    path = results.path_of(folder, seed, kind, model)
    document = results.read_json(path)
    tasks = {task: summary["value"] for task, summary in document.get("tasks", {}).items()}
    return {
        "label": named,
        "seed": seed,
        "seeds": [each for each, file in files.items() if file.is_file()],
        "points": {task: round(100 * value, 6) for task, value in tasks.items()},
        "file": paths.relative(path),
        "sha256": disk.file_hash(path),
        "chain": document["provenance"]["chain"],
    }


def describe_provenance(profile: str, seed: int, model: str, kind: str = "evaluations") -> str:
    """The result of `provenance` as text: one paragraph per step, the result first."""
    found = provenance(profile, seed, model, kind)
    head = [f"{found['label']}, seed {seed}; the tables average seeds {', '.join(map(str, found['seeds']))}"]
    if found["points"]:
        head.append("  " + ", ".join(f"{task} {points:.1f}" for task, points in found["points"].items()))
    head += [found["file"], f"  sha256 {found['sha256']}"]
    return "\n".join([*head, *(_paragraph(name, link) for name, link in reversed(found["chain"].items()))])


def _paragraph(name: str, link: Mapping[str, Any]) -> str:
    changes = " with uncommitted changes" if link["dirty"] else ""
    lines = [
        f"{name}-{link['key']}: {link['stage']}, seed {link['seed']}, {link['started']}, {link['seconds']:.0f} s",
        f"  commit {link['commit']}{changes}; {link['device']}; torch {link['versions']['torch']}",
        f"  manifest sha256 {link['manifest_sha256']}",
        *(f"  {file} sha256 {digest}" for file, digest in link.get("weights_sha256", {}).items()),
    ]
    if link["inputs"]:
        lines.append(f"  from {', '.join(reference['artifact'] for reference in link['inputs'].values())}")
    if "settings" in link:
        lines.append(f"  from {disk.canonical(link['settings'])}")
    return "\n".join(lines)


def protocol(profile: str) -> str:
    """Whether `results/PROFILE/protocol.md`, which says what will be measured and judged, is older than the results.

    By the history of the repository; a sentence for the report, empty if the profile has no protocol.
    """
    path = paths.results(profile) / "protocol.md"
    if not path.is_file():
        return ""
    name = paths.relative(path)
    if artifacts.git("rev-parse", "--is-shallow-repository") != "false":
        return f"{name}: the repository's history is missing, so nothing shows that it is older than the results."
    last = artifacts.git("log", "-1", "--format=%H", "--", str(path))
    if not last or artifacts.git("status", "--porcelain", "--", str(path)):
        return f"{name} has uncommitted changes, so nothing shows that it is older than the results."
    made = {list(links.values())[-1]["commit"] for _, links in results.chains(paths.results(profile))}
    if any(artifacts.git("merge-base", "--is-ancestor", last, commit) is None for commit in made):
        return f"{name} (commit {last[:12]}) is not older than all results: it did not plan those before it."
    return f"{name} (commit {last[:12]}) is older than every result."
