"""The paper's profiles run whole, with a tiny Mistral, rows of the hub's schema and four prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import datasets
import pytest
from hub_rows import Hub

from spin_utils.data.rows import RowError, read_rows
from spin_utils.drawing import draw
from spin_utils.evaluation import suites
from spin_utils.experiment import plan, preflight, publish, run
from spin_utils.files import artifacts, paths
from spin_utils.model import base
from spin_utils.model.base import ModelError
from spin_utils.paper import published, results
from spin_utils.settings import profiles

pytestmark = pytest.mark.usefixtures("module_home")

SMALL: dict[str, Any] = {
    "model": {"source": "tiny", "name": "mistral"},
    "demonstrations.revision": "0" * 40,
    "demonstrations.expected_rows": 4,
    "demonstrations.test_rows": 0,
    "generation.max_new_tokens": 16,
    "evaluation.limit": 1,
}
"""Everything that differs from the paper's run: the model, four prompts, short answers, one item a task."""
QUICK = {"spin.iterations": 1, "spin.epochs_shown": 0, "spin.subsets": [], "dpo": None, "sft_more": 1}


@pytest.fixture(scope="module", autouse=True)
def hub() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", Hub(items=4))
        datasets.disable_progress_bars()
        yield


def run_whole(profile: Any) -> plan.Plan:
    preflight.check_inputs(profile)
    made = plan.make(profile, 0)
    for step in made:
        run.make(made, step.name)
    publish.publish([made])
    drawn = draw.compose(profile)
    # Of the figures one is looked at, and to write all takes long.
    draw.write(replace(drawn, figures={"figure2": drawn.figures["figure2"]}), profile)
    return made


def table(profile: Any, number: int) -> str:
    return (paths.results(profile.name) / "tables" / f"table{number}.md").read_text()


def test_the_paper_profile_runs_from_the_hubs_rows_to_its_tables_and_the_control_of_table_5() -> None:
    profile = profiles.load("paper", SMALL | QUICK | {"name": "paper-quick"})
    made = run_whole(profile)
    rows = {row["prompt"]: row["response"] for row in read_rows(made.directory("data") / "spin.jsonl")}
    assert rows == {f"Say {i}.": f"This is {i}, as you asked." for i in range(100, 104)}, "prompt and real answer"
    config = json.loads((base.resolve(made.directory("base")) / "config.json").read_text())
    assert config["model_type"] == "mistral"
    folder = paths.results(profile.name)
    scores = results.load_evaluations(folder)
    assert set(scores["task"]) == set(suites.LEADERBOARD)
    assert set(results.load_evaluations(folder, kind_folder="transfer")["task"]) == set(suites.OTHERS)
    lines = [[cell.strip() for cell in line.split("|")] for line in table(profile, 1).splitlines()]
    shots = {line[1]: line[3] for line in lines if line[2:3] == ["ours"]}
    paper = dict(zip(suites.LEADERBOARD, ["25", "0", "5", "5", "10", "5"], strict=True))
    assert shots == {published.BENCHMARK_LABELS[name]: number for name, number in paper.items()}
    assert "harder variants" not in table(profile, 6), "they are the paper's own benchmarks"
    assert f"{published.score('spin-0', 'openbookqa'):.2f}" in table(profile, 6)

    # Table 5 is one epoch from the base model on UltraChat's first turns.
    assert made.steps["sft-more-1"].inputs == ("base", "control-data")
    rows = {row["prompt"]: row["response"] for row in read_rows(made.directory("control-data") / "sft.jsonl")}
    assert rows == {f"Tell me 0 of {i}.": f"Here is 0 of {i}." for i in range(200, 204)}, "no later turn, none held out"
    settings = artifacts.read_manifest(made.directory("sft-more-1"))["settings"]["training"]
    assert (settings["learning_rate"], settings["schedule"], settings["epochs"]) == (2e-5, "cosine", 1)
    row = next(line for line in table(profile, 5).splitlines() if line.startswith("| SFT, 1 more epoch"))
    assert "—" not in row.split("|")[4], "a measured cell"
    path = results.path_of(paths.results(profile.name), 0, "evaluations", "sft-more-1")
    assert "control-data" in results.read_json(path)["provenance"]["chain"]


@pytest.mark.slow
def test_every_stage_and_every_table_of_the_paper_profile_with_four_prompts() -> None:
    profile = profiles.load("paper", SMALL | {"name": "paper-whole"})
    made = run_whole(profile)
    assert {step.stage for step in made} >= {"data", "base", "pairs", "spin", "subset", "preferences", "dpo"}
    models_of_the_paper = {"sft", "dpo", "spin-3-dpo", "spin-0-rows-14", "spin-0-rows-26"}
    models_of_the_paper |= {"sft-more-1", "sft-more-2"}
    models_of_the_paper |= {f"spin-{t}" for t in range(4)} | {f"spin-0-epoch-{e}" for e in (1, 3, 4, 5)}
    assert set(made.models()) == models_of_the_paper
    for model in made.models():
        record = results.read_json(results.path_of(paths.results(profile.name), 0, "evaluations", model))
        assert set(record["tasks"]) == set(suites.LEADERBOARD)
    for number in range(1, 9):
        assert "was not evaluated" not in table(profile, number), number


def test_another_number_of_rows_than_the_papers_is_refused_before_anything_starts() -> None:
    changes = {name: value for name, value in SMALL.items() if name != "demonstrations.expected_rows"}
    profile = profiles.load("paper", changes)
    with pytest.raises(RowError, match=r"SPIN_iter0 \[train\]: 4 distinct usable rows, but .* is 49792; check"):
        preflight.check_inputs(profile)


@pytest.mark.slow
def test_released_checkpoints_are_evaluated_without_training_and_fill_table_4_and_figure_2() -> None:
    quick = plan.make(profiles.load("paper", SMALL | QUICK | {"name": "paper-quick"}), 0)
    spin, start = run.make(quick, "spin-0"), base.resolve(run.make(quick, "base"))
    released = {"spin-3": {"source": "directory", "path": str(spin)}}
    changes = {
        "model": {"source": "directory", "path": str(start)},
        "released": released,
        "evaluation.limit": 1,
    }
    profile = profiles.load("paper-released", changes)
    made = run_whole(profile)
    assert {step.stage for step in made} == {"base", "evaluation", "transfer"}
    assert made.models() == ["sft", "spin-3"]
    assert plan.first_tables([made]).inputs == tuple(f"eval-{model}" for model in made.models())
    for line in ("| SFT ", "| SPIN iteration 3 "):
        row = next(text for text in table(profile, 4).splitlines() if text.startswith(line))
        assert "—" not in row.split("|")[4], "a measured cell"
    assert (paths.figures(profile.name) / "figure2.png").is_file()
    record = results.read_json(results.path_of(paths.results(profile.name), 0, "evaluations", "spin-3"))
    assert list(record["provenance"]["chain"]) == ["spin-3", "eval-spin-3"]


def test_released_checkpoints_are_refused_until_their_revisions_are_given() -> None:
    with pytest.raises(ModelError, match="SPIN-iter0: no revision; pin its commit"):
        plan.make(profiles.load("paper-released"), 0)
    pinned = profiles.load("paper-released", {f"released.spin-{t}.revision": str(t) * 40 for t in range(4)})
    preflight.check_inputs(pinned)
    steps = plan.make(pinned, 0).steps
    assert [steps[f"spin-{t}"].settings["revision"] for t in range(4)] == [str(t) * 40 for t in range(4)]
