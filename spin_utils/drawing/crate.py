"""The whole of a run as one RO-Crate: results, tables, figures and notebooks, and every step that they came from.

By RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) and its profile Process Run Crate 0.5: each step is a `CreateAction`
with what it took, what it gave, its settings, seed, times and software. Checkpoints and pairs are too large to be
inside; they are named by the hashes of their manifests and weights.
"""

from __future__ import annotations

import datetime
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_utils import __version__
from spin_utils.experiment import plan
from spin_utils.files import artifacts, disk, paths
from spin_utils.files.disk import replacing
from spin_utils.paper import results
from spin_utils.settings.run import Profile

PROCESS_RUN = "https://w3id.org/ro/wfrun/process/0.5"
LICENCE = "https://www.apache.org/licenses/LICENSE-2.0"
NAME = "run.crate.zip"
KIT = "SPIN reproducibility kit"
_DRAWN = ("figures/", "results/tables/", "results/verdicts.", "results/report.html", "results/summary.pdf")
"""How the names of files begin that are drawn from results."""
_SHA256 = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}


def write(profile: Profile) -> Path:
    """Write results/PROFILE/run.crate.zip; the same results give the same bytes.

    Raises:
        ResultsError: there are no results, or a file is not valid.
    """
    from rocrate.rocrate import ROCrate

    folder = paths.results(profile.name)
    documents = {path: results.read_json(path) for path in sorted(results.files(folder))}
    if not documents:
        raise results.ResultsError(
            f"{paths.relative(folder)}: no results; run `spin-repro reproduce --profile {profile.name}` first"
        )
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(_SHA256)
    files = _add_files(crate, folder, paths.figures(profile.name))
    # Seeds that ran in homes of their own each made data and base model, so a step may have several manifests.
    links: dict[tuple[str, str], tuple[str, Mapping[str, Any]]] = {}
    written: dict[str, list[Any]] = {}
    for path, document in documents.items():
        chain = document["provenance"]["chain"]
        links |= {(f"{name}-{link['key']}", link["manifest_sha256"]): (name, link) for name, link in chain.items()}
        written.setdefault(chain[document["provenance"]["step"]]["manifest_sha256"], []).append(files[path])
    made = [step for seed in results.training_seeds(folder) for step in plan.make(profile, seed)]
    settings = {step.directory.name: step.settings for step in made}  # a key is a hash of them, and so proves them
    for (step, manifest), (_, link) in links.items():
        named = {"manifest": manifest, **link.get("weights_sha256", {})}
        artifact = _add(crate, f"#{step}", "CreativeWork", f"artifact {step}")
        artifact.append_to("identifier", [f"{file} sha256 {digest}" for file, digest in named.items()])
    for (step, manifest), (name, link) in links.items():
        _add_step(crate, step, name, link, settings.get(step, link.get("settings")), written.get(manifest, []))
    drawn = [file for file in files.values() if file.id.startswith(_DRAWN)]
    kit = _add(crate, "#spin-repro", "SoftwareApplication", KIT, version=__version__)
    said = "Drawn from the results alone; `spin-repro figures` draws them again."
    properties = {"name": "tables, figures and verdicts", "description": said}
    crate.add_action(kit, "#draw", [files[path] for path in documents], drawn, properties)
    actions = crate.get_by_type("CreateAction")
    for action in actions:
        action["actionStatus"] = "http://schema.org/CompletedActionStatus"
    crate.root_dataset["mentions"] = actions
    crate.name = f"SPIN reproduced at the profile {profile.name}"
    crate.description = "Results, tables, figures and executed notebooks of a re-measurement of arXiv 2401.01335."
    if any(link["dirty"] for _, link in links.values()):
        crate.description += " Some steps ran from a tree with uncommitted changes."
    crate.datePublished = datetime.datetime.fromisoformat(max(link["started"] for _, link in links.values()))
    crate.license = _add(crate, LICENCE, "CreativeWork", "Apache License 2.0")
    crate.root_dataset["conformsTo"] = _add(crate, PROCESS_RUN, "CreativeWork", "Process Run Crate", version="0.5")
    with replacing(folder / NAME) as partial:
        crate.write_zip(partial)
    return folder / NAME


def _add_files(crate: Any, folder: Path, figures: Path) -> dict[Path, Any]:
    """Every product of the run as a file of the crate."""
    products = [(path, f"results/{path.relative_to(folder)}") for path in sorted(folder.rglob("*"))]
    products += [(path, f"figures/{path.relative_to(figures)}") for path in sorted(figures.rglob("*"))]
    files = {}
    for path, place in products:
        if not path.is_file() or path.name == NAME or path.name.startswith("."):
            continue
        kind = "application/x-ipynb+json" if path.suffix == ".ipynb" else mimetypes.guess_type(path.name)[0]
        properties = {
            "name": place,
            "encodingFormat": kind or "text/plain",
            "contentSize": str(path.stat().st_size),
            "sha256": disk.file_hash(path),
        }
        files[path] = crate.add_file(path, place, properties=properties)
    return files


def _add_step(crate: Any, step: str, name: str, link: Mapping[str, Any], settings: Any, files: list[Any]) -> None:
    """One action with its inputs, settings and results."""
    values = {"seed": link["seed"]} | ({} if settings is None else {"settings": disk.canonical(settings)})
    taken = [crate.get(f"#{other['artifact']}") or f"#{other['artifact']}" for other in link["inputs"].values()]
    taken += [_add(crate, f"#{step}-{key}", "PropertyValue", key, value=value) for key, value in values.items()]
    start = datetime.datetime.fromisoformat(link["started"])
    end = start + datetime.timedelta(seconds=link["seconds"])
    properties = {
        "name": f"{name}, seed {link['seed']}",
        "description": f"Stage {link['stage']} on {link['device']}. A step that was stopped and resumed counts as one "
        "uninterrupted run from its last start.",
        "startTime": start.isoformat(),
        "endTime": end.isoformat(timespec="seconds"),
    }
    place = f"#make-{step}-{link['manifest_sha256'][:12]}"
    crate.add_action(_software(crate, link), place, taken, [crate.get(f"#{step}"), *files], properties)


def _software(crate: Any, link: Mapping[str, Any]) -> Any:
    """The kit at a commit, with the versions it ran on."""
    versions = dict(link["versions"])
    own = versions.pop("spin_utils", __version__)
    tree = f"{link['commit']}{', with uncommitted changes' if link['dirty'] else ''}"
    place = f"#spin-repro-{artifacts.key('software', versions, commit=tree)}"
    needed = [f"{package} {version}" for package, version in versions.items()]
    version = f"{own}, commit {tree}"
    return _add(crate, place, "SoftwareApplication", KIT, version=version, softwareRequirements=needed)


def _add(crate: Any, place: str, kind: str, name: str, /, **properties: Any) -> Any:
    """A contextual entity, once."""
    return crate.get(place) or crate.add_jsonld({"@id": place, "@type": kind, "name": name, **properties})
