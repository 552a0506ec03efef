"""Artifacts keep their names: a change of the code that changes no setting makes nobody compute anything again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_utils.experiment import plan
from spin_utils.settings import profiles

KEYS = Path(__file__).with_name("keys.json")
"""Keys of every step, seed 0, as version 0.1.0 computed them. Delete a line only with a reason in the changelog."""


@pytest.mark.parametrize("profile", ["smoke", "cpu", "paper"])
def test_a_refactoring_does_not_invalidate_anybodys_artifacts(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")  # so that MT-Bench is planned too
    steps = plan.make(profiles.load(profile), 0)
    keys = {step.name: step.directory.name.rpartition("-")[2] for step in steps}
    assert keys == json.loads(KEYS.read_text())[profile]
