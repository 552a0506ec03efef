"""The repository agrees with itself: locks, environments, committed results and the README."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from benchmarks.map import page as map_page
from spin_utils.drawing import draw, report
from spin_utils.files import paths
from spin_utils.paper import agreement
from spin_utils.settings import profiles

ROOT = paths.REPOSITORY
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_holds_every_dependency_in_its_range() -> None:
    locked = [line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    versions = {canonicalize_name(name): version for name, version in locked}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["judge"], *extras["dev"]]:
        requirement = Requirement(text)
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_the_conda_environment_installs_the_same_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.lock"]
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert f"{python.partition('=')[2]}.0" in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize(
    "name",
    [p.stem for p in sorted((ROOT / "profiles").glob("*.yaml")) if (ROOT / "results" / p.stem / "seed-0").is_dir()],
)
def test_committed_tables_and_figures_are_what_the_committed_results_give(name: str, home: Path) -> None:
    profile = profiles.load(name)
    for path in (ROOT / "results" / name).glob("seed-*/**/*.json"):
        copy = home / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    drawn = draw.compose(profile)
    for figure in drawn.figures:  # pixels may differ with the processor; that a figure is there may not
        for suffix in ("pdf", "png"):
            assert (ROOT / "figures" / name / f"{figure}.{suffix}").is_file(), figure
    drawn.figures.clear()
    for path in draw.write(drawn, profile):
        committed = ROOT / path.relative_to(home)
        if path.name == "verdicts.csv":  # the exact checks of the theory leave rounding errors of the processor
            columns = ["id", "verdict"]
            assert pd.read_csv(committed)[columns].equals(pd.read_csv(path)[columns])
        elif path.name != "verdicts.md":
            assert committed.read_text() == path.read_text(), committed


def test_the_page_of_the_map_is_what_its_cells_give() -> None:
    text, figures = map_page()
    assert (ROOT / "docs" / "map.md").read_text() == text
    for name in figures:
        assert (ROOT / "figures" / "map" / f"{name}.png").is_file()


def test_the_table_of_the_readme_is_what_the_committed_results_give() -> None:
    text = (ROOT / "README.md").read_text()
    assert f"{report.BEGIN}\n{report.section(profiles.load('cpu'))}\n{report.END}" in text


def test_what_runs_agree_with_is_the_distribution_of_the_committed_results() -> None:
    kept = pd.read_csv(agreement.committed("cpu"), dtype={"key": str})
    found = agreement.distribution(draw.scores(profiles.load("cpu")), ROOT / "results" / "cpu")
    assert list(found["key"]) == list(kept["key"])
    assert (found["items"] == 6 * 134).sum() == found["model"].nunique(), "Social IQa stands aside of the average"
    pd.testing.assert_frame_equal(found, kept, check_dtype=False, rtol=1e-4)


def test_committed_results_come_from_a_clean_tree() -> None:
    for path in (ROOT / "results").glob("*/seed-*/*/*.json"):
        chain = json.loads(path.read_text())["provenance"]["chain"]
        assert not any(link["dirty"] for link in chain.values()), path
