"""The notes below tables and figures say over what intervals are, and whose numbers rest on fewer training seeds."""

import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import synthetic_results as synthetic
from synthetic_results import words

from spin_utils.drawing import draw, figures, footnotes, report, tables
from spin_utils.files import paths
from spin_utils.paper import results
from spin_utils.paper.claims import Finding
from spin_utils.paper.statistics import paired
from spin_utils.settings import profiles

LACKING = "Not on all of the seeds 0, 1: DPO (1)."


def without(table, model, seed):
    return table[~((table["model"] == model) & (table["seed"] == seed))]


@pytest.fixture(scope="module")
def ragged(scores):
    return without(scores, "dpo", 0)


def readme_section(profile=None):
    """The README's section on results whose verdicts nobody looks at."""
    draw.write_verdicts([Finding("a", "A holds", "Table 1", "not run")], paths.results("cpu"))
    return report.section(profile or profiles.load("cpu"))


def test_intervals_are_over_the_items_and_seeds_of_the_models_shown(scores):
    assert footnotes.intervals(scores, ["sft"]) == ("95 % intervals over 240 items (40 per task) and 2 training seeds")
    one = scores[(scores["seed"] == 1) & (scores["task"] == "syllogism")]
    assert footnotes.intervals(one, ["sft"], unit="prompts") == (
        "95 % intervals over 40 prompts; one training seed (its variation is not covered)"
    )
    shared = pd.DataFrame([{"seed": 0, "model": "sft", "task": "a", "id": f"book-{i // 2}/{i}"} for i in range(80)])
    assert footnotes.intervals(shared, ["sft"]).startswith("95 % intervals over 80 items from 40 sources;")


def test_only_models_that_lack_a_seed_of_another_one_shown_are_named(scores, ragged):
    assert footnotes.fewer_seeds(scores, ["sft", "dpo"]) == ""
    assert footnotes.fewer_seeds(ragged, ["dpo"]) == "", "nothing of another seed stands beside it"
    assert footnotes.fewer_seeds(ragged, ["sft", "dpo"]).startswith(LACKING)
    none_whole = footnotes.fewer_seeds(without(ragged, "sft", 1), ["sft", "dpo"])
    assert none_whole.startswith("Not on all of the seeds 0, 1: SFT (0), DPO (1).")


def test_a_level_of_fewer_seeds_is_named_below_table_3_and_figure_3_and_a_gain_is_of_common_seeds(scores, ragged):
    table = tables.table3(ragged, preferences="samples")
    cells = table.frame[(table.frame["row"] == "DPO") & (table.frame["column"] == "average")].set_index("quantity")
    gain = paired(scores[scores["seed"] == 1], {"dpo": 1, "sft": -1}).times(100)
    assert cells.loc["gain over SFT", "value"] == gain.difference
    assert list(cells["seeds"]) == [1, 1]
    assert LACKING in table.notes[0]
    assert LACKING in words(figures.figure3(ragged, profile="cpu"))
    assert "Not on all" not in tables.table4(ragged).notes[0]


@pytest.mark.usefixtures("coarse")
def test_a_run_whose_second_seed_is_half_done_has_its_report_and_its_table_in_the_readme(home):
    synthetic.write(home, seeds=(0,), items=8)
    some = {model: synthetic.ABILITIES[model] for model in ("sft", "spin-0")}
    synthetic.write(home, seeds=(1,), items=8, models=some)
    profile = profiles.load("cpu")
    shown = report.write(profile, figures=False)[-1].read_text()
    assert "Not on all of the seeds 0, 1" in shown
    assert shown.count("<pre>") == 1, "the last iteration of the seed that has it"
    assert shown.count("the tables average seeds 0\n") == 1
    section = report.section(profile)
    assert "2 training seeds" in section
    assert "Not on all of the seeds 0, 1: SPIN iteration 1 (0), SPIN iteration 2 (0), SPIN iteration 3 (0)." in section


def test_a_run_with_a_protocol_stands_beside_this_one(home):
    root = synthetic.write(home, seeds=(0, 1), items=8)
    profile = profiles.load("cpu")
    draw.write(replace(draw.compose(profile), figures={}), profile)
    assert report.beside(profile).empty
    shutil.copytree(root / "tables", root.parent / "talk" / "tables")
    assert report.beside(profile).empty, "no protocol"
    (root.parent / "talk" / "protocol.md").touch()
    found = report.beside(profile)
    assert list(found) == ["cpu", "talk"]
    assert found["cpu"].equals(found["talk"].rename("cpu"))
    assert found.loc["Training seeds", "talk"] == "2"
    gain = found.loc["Score, points: SPIN iteration 3 over SFT", "talk"]
    assert f"| Score, points: SPIN iteration 3 over SFT | {gain} | {gain} |" in report.section(profile)
    cells = pd.read_csv(file := root.parent / "talk" / "tables" / "instruments.csv")
    fewer = (cells["row"] == "SPIN iteration 3") & (cells["column"] == "greedy")
    cells.assign(seeds=cells["seeds"].mask(fewer, 1)).to_csv(file, index=False)
    found = report.beside(profile)
    assert found.loc["Score, points: SPIN iteration 3 over SFT", "talk"] == f"{gain} (1 of 2 seeds)"


@pytest.mark.parametrize(
    ("name", "benchmarks", "said"),
    [
        ("cpu", {"syllogism": "arc"}, "Tasks and model differ from the paper's"),
        ("gpu", {"arc": "arc"}, "Model differs from the paper's"),
        ("paper-released", {"arc": "arc"}, ""),
    ],
)
def test_what_is_not_the_papers_is_said(name, benchmarks, said):
    assert draw.not_the_papers(profiles.load(name), benchmarks).partition(":")[0] == said


def test_a_gain_over_a_model_of_other_seeds_is_a_dash_in_the_readme(home):
    synthetic.write(home, seeds=(0,), items=4, models={"sft": 0.0, "spin-0": 0.1})
    synthetic.write(home, seeds=(1,), items=4, models={"spin-1": 0.1, "sft-more-1": 0.0})
    section = readme_section()
    assert re.search(r"\| SPIN iteration 1 \| [^|]+ \| — \| 62\.12 \|", section)
    assert "SFT, 1 more epoch (1)" in section


def test_the_readmes_minutes_are_of_one_seed_and_its_machine(home):
    synthetic.write(home, seeds=(0,), items=4, models={"sft": 0.0, "spin-0": 0.1})
    alone = re.search(r"what has run of seed 0 took .*", readme_section())
    synthetic.write(home, seeds=(1,), items=4)
    for path in home.glob("results/cpu/seed-1/*/*.json"):
        document = json.loads(path.read_text())
        document.pop("sha256")
        for step in document["provenance"]["chain"].values():
            step["seconds"] = 6000.0
        results.write_json(path, document)
    assert alone
    assert alone.group() in readme_section()


@pytest.mark.parametrize(
    ("interval", "gain", "compared"),
    [
        ((1.0, 0.2, 1.8), "SPIN iteration 0 gains +1.0", "More SFT on the same data does worse: "),
        ((-1.0, -1.8, -0.2), "SPIN iteration 0 does worse than SFT: −1.0", "More SFT on the same data does better: "),
        ((0.1, -1.0, 1.2), "Whether SPIN iteration 0 gains over SFT is not decided: ", "cannot be told from it: "),
        ((-1.1, -2.3, 0.2), "is not decided: ", "does at least as well, to within half a point: "),
    ],
)
def test_the_first_sentence_says_no_more_than_the_interval(home, monkeypatch, interval, gain, compared):
    synthetic.write(home, seeds=(0,), items=4, models={"sft": 0.0, "spin-0": 0.1, "sft-more-1": 0.1})
    found = dict(zip(("value", "low", "high"), interval, strict=True))
    monkeypatch.setattr(report.tables, "measure", lambda *_: found)
    first = readme_section().partition("\n")[0]
    assert gain in first
    assert compared in first
    assert "not reproduced at this size" not in first, "no protocol says so"
    (home / "results" / "cpu" / "protocol.md").touch()
    first = report.section(profiles.load("cpu")).partition("\n")[0]
    assert ("SPIN is *not reproduced at this size*" in first) == (found["high"] < 0.5)


def test_a_control_with_its_own_demonstrations_is_not_said_to_have_the_same(home):
    synthetic.write(home, seeds=(0,), items=4, models={"sft": 0.0, "spin-0": 0.1, "sft-more-1": 0.1})
    paper = profiles.load("paper", {"demonstrations.revision": "0" * 40})
    own = replace(profiles.load("cpu"), sft_control=paper.sft_control)
    assert "More SFT on other data " in readme_section(own)


def test_without_an_iteration_the_readme_reports_no_gain_of_sft_over_itself(home):
    synthetic.write(home, items=4, seeds=(0,), models={"sft": 0.0, "sft-more-1": 0.1})
    with pytest.raises(results.ResultsError, match="no evaluation of an iteration of SPIN; evaluate spin-0"):
        report.section(profiles.load("cpu"))


def test_a_readme_without_its_markers_is_left_as_it_is(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text := f"{report.END} {report.BEGIN}")
    with pytest.raises(results.ResultsError, match="README.md: no place for the table; restore the lines"):
        report.update(profiles.load("cpu"), path)
    assert path.read_text() == text
