"""Two models on one page: the same numbers as on the terminal, and answers character for character."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import synthetic_results as synthetic

from spin_utils.data.rows import write_rows
from spin_utils.drawing import comparison, draw, tables
from spin_utils.drawing.comparison import side_by_side
from spin_utils.files import paths
from spin_utils.paper import compare, results
from spin_utils.settings import profiles

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def two_runs(home: Path) -> Path:
    """Runs `cpu` and `mine`, whose first answers are markup, with the rows of `cpu` on this machine."""
    root = synthetic.write(home, seeds=(0, 1), items=12)
    documents = {path: results.read_json(path) for path in root.glob("seed-*/evaluations/*.json")}
    for ability, model in ((0.0, "sft"), (0.9, "spin-0"), (0.9, "spin-10")):
        for seed in (0, 1):
            document = synthetic.evaluation(model, seed, ability=ability, items=12, profile="mine")
            document["items"] = [{**item, "response": HOSTILE} for item in document["items"]]
            documents[results.path_of(home / "results" / "mine", seed, "evaluations", model)] = document
    for path, document in documents.items():
        document["provenance"]["chain"]["data"] = synthetic.link("data")
        for task in document["tasks"].values():
            task["rows_sha256"] = "0" * 64
        results.write_json(path, document)
    folder = paths.artifacts("mine") / "shared" / f"data-{'0' * 12}"
    folder.mkdir(parents=True)
    write_rows(
        folder / "test.jsonl",
        [{"id": str(i), "family": "syllogism", "prompt": f"Prompt {i}?", "response": "yes"} for i in range(12)],
    )
    return root


def test_a_page_shows_the_items_that_turned_with_both_answers_and_their_prompts(two_runs: Path) -> None:
    both = compare.items("cpu", "mine", "cpu")
    assert set(both["model"]) == {"mine", "cpu"}
    page = side_by_side("mine", "cpu").page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    difference = compare.compare("cpu", "mine", "cpu").iloc[-1]
    assert f": {difference['difference']:+.1f} [" in page
    first = both[both["seed"] == 0].pivot(index=["task", "id"], columns="model", values="score")
    for task, scores in first.groupby("task"):
        better, worse = (scores["mine"] > scores["cpu"]).sum(), (scores["mine"] < scores["cpu"]).sum()
        cells = f"<td>{task}</td><td>{better}</td><td>{worse}</td><td>{12 - better - worse}</td>"
        assert cells in page
    shown = re.findall(r"<p><b>(\w+)</b> (\d+)</p>\n(?:<pre>Prompt (\d+)\?</pre>)?", page)
    assert {task for task, _, prompt in shown if prompt} == {"syllogism"}, "ids of other tasks are their own"
    assert all(prompt in ("", item) and first.loc[(task, item)].nunique() == 2 for task, item, prompt in shown)


def test_a_run_is_found_by_its_name_whatever_its_seeds(two_runs: Path) -> None:
    shutil.rmtree(paths.results("mine") / "seed-0")
    assert compare.place("cpu", "mine") == (paths.results("mine"), "spin-10"), "the last iterate, by number"


def test_a_model_with_itself_and_runs_on_other_test_rows_are_not_compared(two_runs: Path) -> None:
    with pytest.raises(results.ResultsError, match="compared with itself"):
        compare.compare("cpu", "spin-1", "cpu/spin-1")
    path = results.path_of(paths.results("mine"), 1, "evaluations", "spin-0")
    document = results.read_json(path)
    document["tasks"]["chain_sum"]["rows_sha256"] = "1" * 64
    results.write_json(path, document)
    with pytest.raises(results.ResultsError, match="rows of chain_sum are not known to be the same"):
        compare.compare("cpu", "mine/spin-0", "spin-0")


def test_the_average_is_that_of_table_4_and_leaves_out_the_same_tasks(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in two_runs.glob("seed-*/evaluations/*.json"):
        document = results.read_json(path)
        document["tasks"]["syllogism"]["chance"] = 1.0
        results.write_json(path, document)
    table = compare.compare("cpu", "spin-0", "sft").set_index("task")
    table4 = tables.table4(draw.scores(profiles.load("cpu"))).frame.set_index(["row", "column", "quantity"])
    gain = table4.loc[("SPIN iteration 0", "average", "gain over SFT")]
    expected = gain[["value", "low", "high", "n"]].tolist()
    assert table.loc["average", ["difference", "low", "high", "items"]].tolist() == pytest.approx(expected)
    monkeypatch.setattr(results, "aside", lambda folder: set(synthetic.BENCHMARKS) - {"syllogism"})
    assert list(compare.compare("cpu", "spin-0", "sft")["task"]) == sorted(synthetic.BENCHMARKS), "no average"
    assert "spin-0 minus sft:" not in side_by_side("spin-0", "sft").page


def test_models_without_training_records_are_not_said_to_have_another_loss(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "png", lambda figure, **_: synthetic.words(figure))
    page = side_by_side("spin-3", "sft").page
    assert ("SFT has a different loss" in page, "not run" in page) == (True, False)
    for path in two_runs.glob("seed-*/training"):
        shutil.rmtree(path)
    page = side_by_side("spin-3", "sft").page
    assert ("SFT has" in page, "no training records" in page) == (False, True)


def test_averages_of_runs_with_other_iterations_stand_above_their_own_numbers(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(comparison, "png", lambda figure, **_: figures.append(figure))
    side_by_side("cpu", "mine")
    average = figures[0].axes[2]
    assert [list(line.get_xdata()) for line in average.lines if len(line.get_xdata())] == [[0, 1, 2, 3, 4], [0, 1, 11]]
    assert [text.get_text() for text in average.get_xticklabels()] == ["SFT", *map(str, range(11))]


def test_in_a_notebook_the_page_is_in_a_frame_of_its_own(two_runs: Path) -> None:
    shown = side_by_side("spin-3", "sft")._repr_html_()
    assert shown.startswith("<div><iframe sandbox srcdoc=")
    assert shown.count("<") == 4, "nothing of the page gets out of its frame"
