"""Artifacts: complete with a manifest, or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from spin_utils.files import artifacts


def test_an_artifact_appears_whole_and_without_its_resume_state(home: Path) -> None:
    directory = home / "artifacts" / "thing-abc"
    with artifacts.building(directory, stage="test", settings={"a": 1}, inputs={"x": "y"}, seed=3) as work:
        (artifacts.scratch(work) / "state").write_text("resume")
        (work / "sub").mkdir()
        (work / "sub" / "file.txt").write_text("hello")
    assert artifacts.is_complete(directory)
    manifest = artifacts.verify(directory)
    assert list(manifest["files"]) == ["sub/file.txt"]
    assert (manifest["key"], manifest["seed"], manifest["stage"], manifest["settings"]) == ("abc", 3, "test", {"a": 1})
    assert {"torch", "transformers", "spin_utils"} <= set(manifest["versions"])
    assert not directory.with_name("thing-abc.partial").exists()


def test_json_is_written_whole_and_with_the_same_bytes(tmp_path: Path) -> None:
    for name, data in (("a", {"b": 1, "a": "ä"}), ("b", {"a": "ä", "b": 1})):
        artifacts.write_json(tmp_path / name, data)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ValueError, match="nan"):
        artifacts.write_json(tmp_path / "a", {"x": float("nan")})
    assert json.loads((tmp_path / "a").read_text())["b"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_same_artifact_of_another_profile_is_taken_over_and_no_other_one(home: Path) -> None:
    theirs = home / "artifacts" / "cpu" / "seed-0" / "sft-0123456789ab"
    with artifacts.building(theirs, stage="sft", settings={}, inputs={}, seed=0) as work:
        (work / "epoch-1").mkdir()
        (work / "epoch-1" / "weights").write_text("weights")
    mine = home / "artifacts" / "mine"
    assert not artifacts.adopt(mine / "seed-0" / "sft-ba9876543210")
    assert not artifacts.adopt(mine / "seed-1" / theirs.name)
    assert artifacts.adopt(mine / "seed-0" / theirs.name)
    artifacts.verify(mine / "seed-0" / theirs.name)
    shutil.rmtree(theirs)
    assert artifacts.adopt(mine / "seed-0" / theirs.name), "it stays when the other one is deleted"
