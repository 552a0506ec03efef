"""Promises of families.py and the worked solutions: reproducible, disjoint, gradable, and right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spin_utils.data.families import final_answer, generate, grade
from spin_utils.data.rows import RowError
from spin_utils.data.worked_solutions import WRITERS, follows
from spin_utils.settings.inputs import FamilySettings

ALL = {name: FamilySettings(name) for name in WRITERS}
ROOT = Path(__file__).resolve().parents[2]


def _sizes(each: int, families: int) -> dict[str, int]:
    return {"train": 2 * each * families, "validation": each * families, "test": each * families}


def test_real_responses_get_full_marks_and_wrong_ones_none() -> None:
    splits = generate(ALL, _sizes(5, len(ALL)), seed=0)
    rows = [row for split in splits.values() for row in split]
    assert {row["family"] for row in rows} == set(WRITERS)
    for row in rows:
        assert grade(row, row["response"]) == 1.0, row
        for junk in ("", "Answer: none of these", "Answer: 1/0", "Answer: ['1', x", "Answer: " + "9" * 5000):
            assert grade(row, junk) == 0.0, (row, junk)
        assert row["response"].endswith(f"Answer: {row['grader']['entry']['answer']}")
        assert grade(json.loads(json.dumps(row)), row["response"]) == 1.0, "also once it was written and read"
    counted = next(row for row in rows if row["family"] == "letter_counting")
    assert grade(counted, f"{counted['response']} or so") == 0.0, "the library's partial credit is not accuracy"


def test_no_prompt_occurs_twice_even_where_items_are_few() -> None:
    narrow = FamilySettings("spell_backward", {"min_word_len": 3, "max_word_len": 3})
    splits = generate({"one": narrow, "two": narrow}, _sizes(40, 2), seed=0)
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(prompts) == len(set(prompts)) == 320
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids))


def test_fixed_wordings_write_every_row_of_a_family_alike() -> None:
    sums = {"sums": FamilySettings("chain_sum", {"min_terms": 3, "max_terms": 3})}

    def styles(wordings: str) -> set[str]:
        rows = generate(sums, {"train": 40, "test": 20}, seed=0, wordings=wordings)
        return {re.sub(r"-?\d+|[-+]", "#", row["response"]) for split in rows.values() for row in split}

    assert len(styles("fixed")) == 1
    assert len(styles("varied")) == 3


def test_shares_are_equal_and_sizes_exact_and_held_out_rows_do_not_depend_on_the_training_rows() -> None:
    three = {name: ALL[name] for name in ("chain_sum", "gcd", "number_filtering")}
    splits = generate(three, {"train": 20, "validation": 4, "test": 0}, seed=0)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [20, 4, 0]
    counts = [sum(row["family"] == name for row in splits["train"]) for name in three]
    assert counts == [7, 7, 6]
    more = generate(three, {"train": 50, "validation": 4, "test": 0}, seed=0)
    assert more["validation"] == splits["validation"]


def test_rows_depend_on_the_seed_alone_and_neighbouring_seeds_share_none() -> None:
    names = ("family_relationships", "letter_counting", "gcd", "syllogism")
    code = (
        "import json; from spin_utils.data.families import generate;"
        "from spin_utils.settings.inputs import FamilySettings as F;"
        f"print(json.dumps(generate({{n: F(n) for n in {names}}}, {{'train': 40}}, seed=0)['train']))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    here, other = (generate({name: ALL[name] for name in names}, {"train": 40}, seed=seed)["train"] for seed in (0, 1))
    assert json.loads(out.stdout) == here
    assert not {row["prompt"] for row in here} & {row["prompt"] for row in other}


def test_every_calculation_in_a_worked_solution_is_right() -> None:
    rows = generate({name: ALL[name] for name in ("chain_sum", "gcd")}, {"train": 120}, seed=2)["train"]
    checked = 0
    for row in rows:
        for left, right in re.findall(r"((?:-?\d+ (?:[-+*/]|mod) )+-?\d+) (?:=|is) (-?\d+)", row["response"]):
            assert eval(left.replace("mod", "%")) == int(right), row["response"]
            checked += 1
    assert checked > 300


def test_wrongly_labelled_items_are_left_out() -> None:
    """reasoning-gym 0.1 labels nieces, nephews and in-laws from the other person's side."""
    rows = generate({"family": ALL["family_relationships"]}, {"train": 300}, seed=0)["train"]
    answers = {final_answer(row["response"]) for row in rows}
    assert not answers & {"niece", "nephew", "mother-in-law", "father-in-law"}
    assert {"mother", "father", "grandmother", "grandfather", "husband", "wife", "son"} <= answers


def test_syllogisms_follow_exactly_when_the_answer_is_yes() -> None:
    assert follows(["All dogs are cats", "All cats are birds"], "All dogs are birds")
    assert follows(["All dogs are cats", "All cats are birds"], "Some birds are dogs")
    assert not follows(["Some dogs are cats", "Some cats are birds"], "Some dogs are birds")
    assert not follows(["All dogs are cats", "No birds are dogs"], "No birds are cats")
    rows = generate({"logic": ALL["syllogism"]}, {"train": 60}, seed=0)["train"]
    for row in rows:
        entry = row["grader"]["entry"]["metadata"]
        expected = follows([entry["premise1"], entry["premise2"]], entry["conclusion"])
        assert final_answer(row["response"]) == ("Yes" if expected else "No")


def test_a_generator_without_a_writer_works_with_its_bare_answer() -> None:
    row = generate({"flip": FamilySettings("coin_flip")}, {"train": 1}, seed=0)["train"][0]
    assert row["response"] == row["grader"]["entry"]["answer"]
    assert row["prompt"] == row["grader"]["entry"]["question"].strip()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", {}, r"families\.f: no generator 'chain_sums'.*did you mean chain_sum"),
        ("chain_sum", {"max_term": 3}, "chain_sum refuses them: .*'max_term'"),
        ("chain_sum", {"min_terms": 9, "max_terms": 3}, "chain_sum refuses them"),
        ("calendar_arithmetic", {}, "depends on today's date"),
        ("spell_backward", {"min_word_len": 3, "max_word_len": 3}, "gave .* distinct rows, but train"),
    ],
)
def test_impossible_families_are_refused_by_name(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(RowError, match=message):
        generate({"f": FamilySettings(name, options)}, {"train": 5000}, seed=0)


def test_answers_of_several_lines_are_not_numbered() -> None:
    with pytest.raises(RowError, match=r"families\.f: rotate_matrix has answers of several lines"):
        generate({"f": FamilySettings("rotate_matrix", questions=2)}, {"train": 1}, seed=0)
    assert generate({"f": FamilySettings("rotate_matrix")}, {"train": 1}, seed=0)["train"]


def test_several_questions_in_a_row_are_graded_one_by_one() -> None:
    one, three = ({"gcd": FamilySettings(dataset="gcd", questions=n)} for n in (1, 3))
    singles = generate(one, {"train": 12}, seed=5, wordings="fixed")["train"]
    sheets = generate(three, {"train": 4}, seed=5, wordings="fixed")["train"]
    by_number = {row["id"]: row for row in singles}
    for sheet in sheets:
        first = by_number[sheet["id"]]
        lines = sheet["prompt"].splitlines()
        assert (len(lines), lines[0]) == (3, f"1. {first['prompt']}")
        assert grade(sheet, sheet["response"]) == 1.0
        answers = sheet["response"].splitlines()
        assert grade(sheet, "\n".join([answers[0], "2. Answer: -1", answers[2]])) == pytest.approx(2 / 3)
        assert grade(sheet, "\n".join(answers[1:])) == pytest.approx(2 / 3), "found by its number"
        assert grade(sheet, first["response"]) == 0.0, "no number"
