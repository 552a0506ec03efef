"""The crate of a run: what Process Run Crate 0.5 demands and `rocrate` does not itself guarantee, on the results here.

`rocrate-validator` says the same, but it fetches its contexts from the network, so it is run by hand (CONTRIBUTING).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spin_utils.drawing import crate
from spin_utils.files import paths
from spin_utils.paper import results
from spin_utils.settings import profiles

Entities = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of the committed results of the cpu profile, which have every kind of results between them."""
    home = tmp_path_factory.mktemp("home")
    for kind in ("results", "figures"):
        some = shutil.ignore_patterns("seed-[!23]")
        shutil.copytree(paths.REPOSITORY / kind / "cpu", home / kind / "cpu", ignore=some)
    return home


@pytest.fixture(scope="module")
def archive(home: Path) -> zipfile.ZipFile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIN_HOME", str(home))
        return zipfile.ZipFile(crate.write(profiles.load("cpu")))


@pytest.fixture(scope="module")
def entities(archive: zipfile.ZipFile) -> Entities:
    graph = json.loads(archive.read("ro-crate-metadata.json"))["@graph"]
    return {entity["@id"]: entity for entity in graph}


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [value["@id"]]
    return [identifier for part in value for identifier in references(part)] if isinstance(value, list) else []


def test_every_file_is_inside_with_its_hash(archive: zipfile.ZipFile, entities: Entities, home: Path) -> None:
    for file in (entity for entity in entities.values() if entity["@type"] == "File"):
        content = archive.read(file["@id"])
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["contentSize"] == str(len(content))
    for kind in ("results", "figures"):
        products = [path for path in (home / kind / "cpu").rglob("*") if path.is_file() and path.name != crate.NAME]
        for path in products:
            assert f"{kind}/{path.relative_to(home / kind / 'cpu')}" in archive.namelist()


def test_every_reference_leads_to_an_entity(entities: Entities) -> None:
    for entity in entities.values():
        for name, value in entity.items():
            if name not in ("@id", "@type", "conformsTo") or entity["@id"] == "./":
                assert set(references(value)) <= entities.keys(), (entity["@id"], name)


def test_every_link_of_every_result_is_an_action_with_its_commit_versions_and_hashes(
    home: Path, entities: Entities
) -> None:
    mentioned = references(entities["./"]["mentions"])
    for path in sorted((home / "results" / "cpu").glob("seed-*/*/*.json")):
        provenance = results.read_json(path)["provenance"]
        for name, link in provenance["chain"].items():
            step = f"{name}-{link['key']}"
            action = entities[f"#make-{step}-{link['manifest_sha256'][:12]}"]
            assert action["@id"] in mentioned
            assert datetime.fromisoformat(action["startTime"]) <= datetime.fromisoformat(action["endTime"])
            software = entities[references(action["instrument"])[0]]
            assert link["commit"] in software["version"]
            assert ("uncommitted" in software["version"]) == link["dirty"]
            assert [f"{package} {v}" for package, v in link["versions"].items() if package != "spin_utils"] == software[
                "softwareRequirements"
            ]
            assert f"manifest sha256 {link['manifest_sha256']}" in str(entities[f"#{step}"]["identifier"])
            assert {f"#{other['artifact']}" for other in link["inputs"].values()} <= set(references(action["object"]))
            shared = link["stage"] in ("data", "base")  # no part of it depends on the seed of the run that made it
            assert shared or entities[f"#{step}-seed"]["value"] == link["seed"]
        file = f"results/{path.relative_to(home / 'results' / 'cpu')}"
        name, link = provenance["step"], provenance["chain"][provenance["step"]]
        last = entities[f"#make-{name}-{link['key']}-{link['manifest_sha256'][:12]}"]
        assert file in references(last["result"])


def test_what_people_wrote_is_not_said_to_be_drawn_from_results(entities: Entities) -> None:
    drawn = references(entities["#draw"]["result"])
    assert {"results/tables/table4.md", "results/verdicts.csv", "figures/figure2.svg"} <= set(drawn)
    assert not {"results/protocol.md", "results/search.md", "results/search.jsonl"} & set(drawn)
    assert "results/protocol.md" in entities


def test_the_same_results_give_the_same_bytes(
    archive: zipfile.ZipFile, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(str(archive.filename)).read_bytes()
    monkeypatch.setenv("SPIN_HOME", str(home))
    assert crate.write(profiles.load("cpu")).read_bytes() == before


def test_a_profile_without_results_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIN_HOME", str(tmp_path))
    with pytest.raises(results.ResultsError, match="no results; run `spin-repro reproduce --profile cpu` first"):
        crate.write(profiles.load("cpu"))


def test_results_of_a_dirty_tree_are_marked(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = home / "results" / "cpu" / "seed-2" / "training" / "sft.json"
    document = results.read_json(source)
    document["provenance"]["chain"]["sft"]["dirty"] = True
    results.write_json(tmp_path / "results" / "cpu" / "seed-2" / "training" / "sft.json", document)
    monkeypatch.setenv("SPIN_HOME", str(tmp_path))
    graph = json.loads(zipfile.ZipFile(crate.write(profiles.load("cpu"))).read("ro-crate-metadata.json"))["@graph"]
    marked = [entity for entity in graph if "with uncommitted changes" in str(entity.get("version", ""))]
    assert len(marked) == 1
    assert "uncommitted changes" in next(entity for entity in graph if entity["@id"] == "./")["description"]
