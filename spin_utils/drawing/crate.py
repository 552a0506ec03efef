"""The whole of a run as one RO-Crate: results, tables, figures and notebooks, and every step that they came from.

An RO-Crate (version 1.1, https://w3id.org/ro/crate/1.1) is a set of files with `ro-crate-metadata.json`, which says in
the words of schema.org what each file is. This one keeps the profile Process Run Crate 0.5: each step is a
`CreateAction` with what it took, what it gave, its settings, seed, times, and the software that ran it. Checkpoints and
pairs are too large to be inside; they are named by the hashes of their manifests and weights.
"""

from __future__ import annotations

import datetime
import mimetypes
import tempfile
import zipfile
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
_SHA256 = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}

Links = dict[tuple[str, str], tuple[str, dict[str, Any]]]
"""Name and link of the provenance chain by artifact, such as `sft-0123456789ab`, and hash of its manifest: seeds that
ran in homes of their own each made data and base model."""


def write(profile: Profile) -> Path:
    """Write results/PROFILE/run.crate.zip; the same results give the same bytes.

    Raises:
        ResultsError: there are no results, or a file is not valid.
    """
    from rocrate.rocrate import ROCrate

    folder = paths.results(profile.name)
    documents = {path: results.read_json(path) for path in sorted(results.files(folder))}
    links = {
        (f"{name}-{link['key']}", link["manifest_sha256"]): (name, link)
        for document in documents.values()
        for name, link in document["provenance"]["chain"].items()
    }
    if not links:
        raise results.ResultsError(
            f"{paths.relative(folder)}: no results; run `spin-repro reproduce --profile {profile.name}` first"
        )
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(_SHA256)
    files = _add_files(crate, folder, paths.figures(profile.name))
    made: dict[str, list[str]] = {}
    for path, document in documents.items():
        step = document["provenance"]["step"]
        made.setdefault(document["provenance"]["chain"][step]["manifest_sha256"], []).append(files[path])
    known = _known_settings(profile, links)
    hashes: dict[str, dict[str, None]] = {}  # of each artifact, in their order and once each
    for (step, manifest), (_, link) in links.items():
        named = {"manifest": manifest, **link.get("weights_sha256", {})}
        hashes.setdefault(step, {}).update({f"{file} sha256 {digest}": None for file, digest in named.items()})
    actions = [
        _add_step(crate, step, *link, list(hashes[step]), known.get(step), made.get(manifest, []))
        for (step, manifest), link in links.items()
    ]
    actions.append(_add_drawing(crate, files, documents, folder))
    _describe(crate, profile.name, links, actions)
    target = folder / NAME
    with tempfile.TemporaryDirectory() as work, replacing(target) as partial:
        crate.write(work)
        _zip(Path(work), partial)
    return target


def _add_files(crate: Any, folder: Path, figures: Path) -> dict[Path, str]:
    """Every product of the run as a file of the crate; returns their ids."""
    products = [(path, f"results/{path.relative_to(folder)}") for path in sorted(folder.rglob("*"))]
    products += [(path, f"figures/{path.relative_to(figures)}") for path in sorted(figures.rglob("*"))]
    ids = {}
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
        ids[path] = crate.add_file(path, place, properties=properties).id
    return ids


def _add_step(
    crate: Any,
    step: str,
    name: str,
    link: Mapping[str, Any],
    identifiers: list[str],
    settings: Any,
    files: list[str],
) -> str:
    """One action with its inputs, settings and result; returns its id."""
    _add(crate, f"#{step}", "CreativeWork", name=f"artifact {step}", identifier=identifiers)
    taken = [f"#{reference['artifact']}" for reference in link["inputs"].values()]
    values = {"seed": link["seed"]} | ({} if settings is None else {"settings": disk.canonical(settings)})
    for label, value in values.items():
        taken.append(_add(crate, f"#{step}-{label}", "PropertyValue", name=label, value=value))
    start = datetime.datetime.fromisoformat(link["started"])
    end = start + datetime.timedelta(seconds=link["seconds"])
    return _add(
        crate,
        f"#make-{step}-{link['manifest_sha256'][:12]}",
        "CreateAction",
        name=f"{name}, seed {link['seed']}",
        description=f"Stage {link['stage']} on {link['device']}. A step that was stopped and resumed counts as "
        "one uninterrupted run from its last start.",
        startTime=start.isoformat(),
        endTime=end.isoformat(timespec="seconds"),
        actionStatus="http://schema.org/CompletedActionStatus",
        instrument={"@id": _add_software(crate, link)},
        object=[{"@id": other} for other in taken],
        result=[{"@id": other} for other in (f"#{step}", *files)],
    )


def _add_software(crate: Any, link: Mapping[str, Any]) -> str:
    """The kit at a commit, with the versions it ran on."""
    versions = dict(link["versions"])
    own, python = versions.pop("spin_utils", __version__), versions.pop("python", "")
    needed = [
        _add_package(crate, package, version, f"https://pypi.org/project/{package}/{version}/")
        for package, version in versions.items()
    ]
    needed.append(_add_package(crate, "python", python, f"https://www.python.org/#{python}"))
    tree = f"{link['commit']}{', with uncommitted changes' if link['dirty'] else ''}"
    digest = artifacts.key("software", versions, commit=tree)
    return _add(
        crate,
        f"#spin-repro-{digest}",
        "SoftwareApplication",
        name="SPIN reproducibility kit",
        version=f"{own}, commit {tree}",
        softwareRequirements=[{"@id": package} for package in needed],
    )


def _add_package(crate: Any, name: str, version: str, url: str) -> str:
    return _add(crate, url, "SoftwareApplication", name=name, version=version, url=url)


def _add_drawing(crate: Any, files: Mapping[Path, str], documents: Mapping[Path, Any], folder: Path) -> str:
    """Tables, figures, verdicts and report, which are drawn from all results together."""
    kit = _add(crate, "#spin-repro", "SoftwareApplication", name="SPIN reproducibility kit", version=__version__)
    drawn = [
        place
        for path, place in files.items()
        if path not in documents and (path.parent in (folder, folder / "tables") or place.startswith("figures/"))
    ]
    return _add(
        crate,
        "#draw",
        "CreateAction",
        name="tables, figures and verdicts",
        description="Drawn from the results alone; `spin-repro figures` draws them again.",
        actionStatus="http://schema.org/CompletedActionStatus",
        instrument={"@id": kit},
        object=[{"@id": files[path]} for path in documents],
        result=[{"@id": place} for place in drawn],
    )


def _describe(crate: Any, name: str, links: Links, actions: list[str]) -> None:
    dirty = any(link["dirty"] for _, link in links.values())
    crate.name = f"SPIN reproduced at the profile {name}"
    crate.description = "Results, tables, figures and executed notebooks of a re-measurement of arXiv 2401.01335." + (
        " Some steps ran from a tree with uncommitted changes." if dirty else ""
    )
    crate.datePublished = datetime.datetime.fromisoformat(max(link["started"] for _, link in links.values()))
    _add(crate, LICENCE, "CreativeWork", name="Apache License 2.0")
    crate.license = {"@id": LICENCE}
    _add(crate, PROCESS_RUN, "CreativeWork", name="Process Run Crate", version="0.5")
    crate.root_dataset["conformsTo"] = {"@id": PROCESS_RUN}
    crate.root_dataset["mentions"] = [{"@id": action} for action in actions]


def _known_settings(profile: Profile, links: Links) -> dict[str, Any]:
    """Settings of the steps, where they are known for certain.

    A step's key is a hash of its settings, so the profile as it is now proves them where it gives the same key.
    """
    found = {step: link["settings"] for (step, _), (_, link) in links.items() if "settings" in link}
    for seed in sorted({link["seed"] for _, link in links.values()}):
        found |= {step.directory.name: step.settings for step in plan.make(profile, seed)}
    return found


def _add(crate: Any, place: str, kind: str, /, **properties: Any) -> str:
    """A contextual entity, once; returns its id."""
    from rocrate.model.contextentity import ContextEntity

    if crate.get(place) is None:
        for name, value in properties.items():  # a list of one is written as its one value
            properties[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
        crate.add(ContextEntity(crate, place, properties={"@type": kind, **properties}))
    return place


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                # Without the time of the copy, so that the same files give the same archive.
                entry = zipfile.ZipInfo(str(path.relative_to(folder)))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
