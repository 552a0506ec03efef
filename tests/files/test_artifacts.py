"""Artifacts are whole or absent; files changed, cut or lost on disk are refused or made again, never used silently."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import smoke_chain

from spin_utils.experiment import plan, publish, run
from spin_utils.files import artifacts
from spin_utils.settings import profiles

Damage = Callable[[Path], None]


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


def test_a_piece_of_unfinished_work_is_on_disk_before_it_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = Mock()
    monkeypatch.setattr(os, "fsync", system.fsync)
    monkeypatch.setattr(os, "replace", system.replace)
    artifacts.write_json(tmp_path / "00000000.json", [[1, 2]])
    assert [name for name, *_ in system.mock_calls] == ["fsync", "replace"], "a power cut may leave it empty"


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


def flip(path: Path) -> None:
    """One bit in the middle: the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.fixture
def steps(after_smoke: Path) -> plan.Plan:
    return plan.make(profiles.load("smoke"), 0)


@pytest.mark.parametrize(
    ("step", "input_step", "file"),
    [
        ("pairs-0", "sft", "model.safetensors"),
        ("spin-0", "pairs-0", "pairs.arrow"),
        ("spin-0-more", "spin-0", "state/state-00000006/state.safetensors"),
    ],
)
def test_a_bit_flipped_in_an_input_stops_the_step_that_reads_it(
    step: str, input_step: str, file: str, steps: plan.Plan
) -> None:
    shutil.rmtree(steps.directory(step), ignore_errors=True)
    flip(steps.directory(input_step) / file)
    with pytest.raises(
        artifacts.ArtifactError, match=f"{re.escape(file)}: changed since it was written.*; delete .* run again"
    ):
        run.make(steps, step)
    assert not steps.directory(step).exists()


def test_an_input_with_a_file_missing_or_cut_is_made_again(steps: plan.Plan, after_smoke: Path) -> None:
    before = smoke_chain.contents(after_smoke)
    shutil.rmtree(steps.directory("pairs-0"))
    cut(steps.directory("sft") / "model.safetensors")
    (steps.directory("data") / "spin.jsonl").unlink()
    run.make(steps, "pairs-0")
    assert smoke_chain.contents(after_smoke) == before


@pytest.mark.parametrize(
    ("damage", "step", "file"),
    [(flip, "eval-sft", "evaluation.json"), (cut, "spin-0", "training.json"), (Path.unlink, "pairs-0", "pairs.arrow")],
)
def test_a_damaged_measurement_is_not_published(damage: Damage, step: str, file: str, steps: plan.Plan) -> None:
    damage(steps.directory(step) / file)
    with pytest.raises(artifacts.ArtifactError, match=re.escape(file)):
        publish.publish([steps])


def test_every_flipped_bit_of_a_manifest_is_refused(steps: plan.Plan) -> None:
    path = steps.directory("sft") / "manifest.json"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(artifacts.ArtifactError, match=r"sft-.*; (delete|run)"):
            artifacts.read_manifest(path.parent)
