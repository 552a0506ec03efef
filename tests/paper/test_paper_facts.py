"""`profiles/paper.yaml` line by line against what the paper and the released code say."""

from __future__ import annotations

import dataclasses
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from spin_utils.experiment import cost
from spin_utils.files import paths
from spin_utils.settings import profiles

FACTS = yaml.safe_load((Path(__file__).parents[1] / "paper_facts.yaml").read_text(encoding="utf-8"))
PAPER = dataclasses.asdict(profiles.load("paper"))


def written(data: Any, where: str = "") -> dict[str, Any]:
    """Every line of a profile file, by dotted name."""
    if not isinstance(data, dict):
        return {where: data}
    return {name: v for key, value in data.items() for name, v in written(value, f"{where}.{key}".strip(".")).items()}


@pytest.mark.parametrize("fact", FACTS["facts"], ids=lambda fact: fact["setting"])
def test_the_profile_holds_the_fact(fact: dict[str, Any]) -> None:
    value = reduce(lambda data, name: data[name], fact["setting"].split("."), PAPER)
    assert (list(value) if isinstance(value, tuple) else value) == fact["value"], fact["where"]


def test_every_line_of_the_profile_is_a_fact_or_said_to_be_the_kits_own() -> None:
    lines = written(yaml.safe_load((profiles.PROFILES / "paper.yaml").read_text(encoding="utf-8")))
    facts = [fact["setting"] for fact in FACTS["facts"]]
    assert len(facts) == len(set(facts))
    said = {line if line in FACTS["ours"] else line.split(".")[0] for line in set(lines) - set(facts)}
    assert said == set(FACTS["ours"])
    assert set(facts) <= set(lines)
    assert not set(facts) & set(FACTS["ours"])


@pytest.mark.parametrize("setting", [fact["setting"] for fact in FACTS["facts"] if fact.get("conflict")])
def test_every_disagreement_is_in_the_table_of_the_documents(setting: str) -> None:
    table = (paths.REPOSITORY / "REPRODUCING.md").read_text(encoding="utf-8")
    section, _, name = setting.rpartition(".")
    known = (setting, f"{section}.max_*_tokens" if name in ("max_prompt_tokens", "max_response_tokens") else setting)
    assert any(f"`{shown}" in table for shown in known), setting


def test_the_rows_are_whole_batches_and_those_behind_the_hours_of_table_2() -> None:
    rows = PAPER["demonstrations"]["expected_rows"]
    assert rows == 778 * PAPER["spin"]["training"]["batch_size"], "step 778 ends epoch 1"
    assert rows == cost.Workload().prompts, "test_published.py has the hours that follow from them"
