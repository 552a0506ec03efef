"""Promises of big_bench.py: the pinned archive or nothing, and questions worded and answers graded as in Big-Bench."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import big_bench_archive as archive
import loopback
import pytest

from spin_utils.data import big_bench, demonstrations
from spin_utils.data.big_bench import cut, grade, metric_of, questions
from spin_utils.data.families import grade as grade_row
from spin_utils.data.rows import RowError
from spin_utils.settings.inputs import DemonstrationSettings


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index on this machine, laid out as in PEP 503."""
    (tmp_path / "simple" / "bigbench").mkdir(parents=True)
    page = f'<a href="../../files/{big_bench.ARCHIVE}#sha256=0&amp;x">{big_bench.ARCHIVE}</a>'
    (tmp_path / "simple" / "bigbench" / "index.html").write_text(page)
    (tmp_path / "files").mkdir()
    with loopback.serving(partial(SimpleHTTPRequestHandler, directory=tmp_path)) as address:
        yield f"{address}/simple"


def test_the_archive_comes_from_pips_index_once_and_only_tasks_are_kept(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(big_bench, "TASKS", tmp_path / "share" / "tasks.zip")
    monkeypatch.setattr(big_bench, "SHA256", archive.write(tmp_path / "files" / big_bench.ARCHIVE))
    with zipfile.ZipFile(big_bench.fetch()) as kept:
        assert sorted(kept.namelist()) == sorted(f"{name}/task.json" for name in archive.TASKS)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert big_bench.load("colours") == {"colours": archive.COLOURS}, "the network is not needed again"
    assert list(big_bench.load("parts")) == ["parts/one", "parts/two"]
    assert list(big_bench.load("parts/two")) == ["parts/two"]
    with pytest.raises(RowError, match="did you mean colours"):
        big_bench.load("colors")


@pytest.mark.parametrize("fault", ["another archive", "cut short", "no network"])
def test_nothing_is_kept_of_a_wrong_archive_and_the_message_names_the_remedy(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(big_bench, "TASKS", tmp_path / "tasks.zip")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    path = tmp_path / big_bench.ARCHIVE
    archive.write(path)
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[:400])
    message = "Connection" if fault == "no network" else "differs from the pinned release"
    with pytest.raises(RowError, match=rf"{message}.*make setup"):
        big_bench.fetch("" if fault == "no network" else str(path))
    assert not big_bench.TASKS.exists()


def test_questions_are_worded_as_big_benchs_own_code_words_them() -> None:
    """The expected texts are what `default_format_fn` of bigbench 1.0.0 makes of these examples."""
    found = questions(archive.COLOURS)
    assert [question.number for question in found] == [0, 1, 3, 4], "Big-Bench drops repeated examples"
    choices = "".join(f"\n  choice: {colour}" for colour in ("blue", "green", "red"))
    assert found[0].prompt == f"\nQ: Grass?{choices}\nA: "
    assert found[0].choices == {"blue": 0, "green": 1, "red": 0}
    assert found[3].prompt == "\nQ: Sky?\n  choice: red\n  choice: blue\nA: "
    assert questions(archive.PART)[0].prompt == "\nQ: Grass?"
    assert [(question.prompt, question.targets) for question in questions(archive.SORTING)] == [
        ("Sort: b a =>", ["a b"]),
        ("Sort: d c =>", ["c d", "c, d"]),
    ]


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ({}, "\n Paris. It is", "Paris"),
        ({"stop_string": "\n"}, "a. b\nc", "a. b"),
        ({"stop_string": "#", "output_regex": "[0-9]+"}, "x 12 # 13", "12"),
        ({"output_regex": "[0-9]+"}, "none", ""),
    ],
)
def test_free_answers_are_cut_as_big_bench_cuts_them(task: dict[str, Any], text: str, expected: str) -> None:
    assert cut(text, task) == expected


@pytest.mark.parametrize(
    ("metric", "targets", "text", "expected"),
    [
        ("exact_str_match", ["a", " b "], "b", 1),
        ("exact_str_match", ["a"], "A", 0),
        ("case_insensitive_str_match", ["a"], "A", 1),
        ("numeric_match_with_0_1_relative_error", ["100"], "109", 1),
        ("numeric_match_with_0_1_relative_error", ["100"], "about 100", 0),
        ("numeric_match_with_0_1_relative_error", ["-100"], "7", 1),  # as bigbench 1.0.0 divides by the right answer
        ("sequence_f1", ["B I O O"], "B O", 0.75),
        ("rougeLsum", ["the cat sat"], "the cat", 0.8),
        ("bleu", ["the cat sat on the mat"], "the cat sat on the mat", 1),
        ("bleu", ["the cat sat on the mat"], "a dog", 0),
    ],
)
def test_each_metric_scores_an_answer_from_0_to_1(metric: str, targets: list[str], text: str, expected: float) -> None:
    assert grade(metric, targets, text) == pytest.approx(expected, abs=1e-6)


def test_the_metric_is_the_preferred_one_that_scores_single_items() -> None:
    assert metric_of({"preferred_score": "macro_f1", "metrics": ["macro_f1"]}) == "multiple_choice_grade"
    assert metric_of({"preferred_score": "log_likelihood", "metrics": ["log_likelihood", "bleu"]}) == "bleu"


@pytest.mark.skipif(not big_bench.TASKS.is_file(), reason="Big-Bench was not fetched")
def test_the_papers_three_tasks_are_in_the_real_archive() -> None:
    sizes = {"causal_judgment": 190, "formal_fallacies_syllogisms_negation": 14200, "sports_understanding": 986}
    for name, size in sizes.items():
        (task,) = big_bench.load(name).values()
        found = questions(task)
        assert len(found) == size
        assert all(sorted(question.choices.values()) == [0, 1] for question in found)


def test_people_talking_become_demonstrations_split_by_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.install(tmp_path, monkeypatch)
    rows = big_bench.demonstrations("talk")
    assert rows[0] == {
        "id": "t_0/1",
        "family": "talk",
        "prompt": "hello from 0",
        "response": 'I say "1" in 0',
        "grader": {"dataset": "big_bench", "entry": {"metric": "rougeLsum", "targets": ['I say "1" in 0']}},
    }
    assert [len(row.get("earlier", ())) for row in rows[:3]] == [0, 0, 2], "an answer comes before no question"
    assert rows[3]["earlier"] == ['I say "1" in 0', 'I say "2" in 0']
    assert rows[3]["prompt"] == 'I say "3" in 0'
    assert all(grade_row(row, row["response"]) == 1 for row in rows)
    assert 0 < grade_row(rows[0], "I say nothing") < 1
    sizes = {"sft_rows": 12, "spin_rows": 8, "validation_rows": 2, "test_rows": 2}
    made = demonstrations.load(DemonstrationSettings("big_bench", name="talk", **sizes))
    talks = [{row["id"].partition("/")[0] for row in part} for part in (made.sft, made.validation, made.test)]
    assert len(talks[1]) == len(talks[2]) == 2
    assert sum(map(len, talks)) == len(set.union(*talks))
    assert made.spin == made.sft[:8]
    assert made == demonstrations.load(DemonstrationSettings("big_bench", name="talk", **sizes))
    with pytest.raises(RowError, match="validation_rows: asks for 900"):
        demonstrations.load(DemonstrationSettings("big_bench", name="talk", sft_rows=1, validation_rows=900))
    with pytest.raises(RowError, match=r"colours has choices.*evaluation\.big_bench"):
        big_bench.demonstrations("colours")
    assert [row["id"] for row in big_bench.demonstrations("sorting")] == ["sorting-0/1", "sorting-1/1"]
