"""What the notebooks look at and how it is shown; the scores of single tokens are the terms of the sums of training."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets import IntSlider
from nbclient import NotebookClient
from nbclient.output_widget import OutputWidget
from nbformat.v4 import new_code_cell, new_notebook
from oracle import obvious_logps

from spin_utils.data.templates import encode_prompts, end_ids
from spin_utils.drawing import style
from spin_utils.drawing.views import ask, explore, items, live_curve, show, tokens
from spin_utils.experiment import measure, plan, run
from spin_utils.files import artifacts, paths, runtime
from spin_utils.files.paths import KitError
from spin_utils.model import base
from spin_utils.settings import profiles
from spin_utils.training import trackers


@pytest.fixture(scope="module")
def made(module_home: Path) -> plan.Plan:
    """A smoke run up to its first iteration; to be read only."""
    made = plan.make(profiles.load("smoke"), 0)
    run.make(made, "spin-0")
    return made


def evaluated(steps: plan.Plan, model: str, scores: list[float], task: str = "") -> None:
    """An evaluation of the first test rows, as if the model had been run, or of a further task with the same ids."""
    step = steps.steps[f"eval-{model}"]
    rows = run.rows(steps, "test")
    items = [
        {"task": task or row["family"], "id": row["id"], "score": score, "response": f"{model} says {i}", "tokens": 3}
        for i, (row, score) in enumerate(zip(rows, scores, strict=False))
    ]
    with artifacts.building(step.directory, stage="evaluation", settings={}, inputs={}, seed=0) as work:
        artifacts.write_json(work / "evaluation.json", {"items": items})


def test_a_training_row_is_found_by_its_place_and_by_its_id(made: plan.Plan) -> None:
    rows = run.rows(made, "sft")
    shown = explore.training_text(made, 2)
    assert shown == explore.training_text(made, rows[1]["id"])
    assert f"{rows[1]['response']}<|im_end|>\n--- its" in shown
    with pytest.raises(KitError, match=f"row 0: no row has this id; give an id, or a number from 1 to {len(rows)}"):
        explore.training_text(made, 0)


def test_an_item_turns_against_the_model_before_it(home: Path) -> None:
    steps = plan.make(profiles.load("smoke"), 0)
    evaluated(steps, "spin-0", [1.0, 1.0, 0.0, 0.5])
    evaluated(steps, "spin-1", [1.0, 0.0, 0.0, 0.5])
    assert [explore.before(steps, model) for model in ("sft", "spin-0", "spin-1")] == ["sft", "sft", "spin-0"]
    with pytest.raises(KitError, match="eval-sft: not made yet"):
        explore.turned(steps, "spin-0")
    evaluated(steps, "sft", [0.0, 1.0, 1.0, 0.25])
    both = explore.turned(steps, "spin-0")
    assert both["turn"].tolist() == ["right", "same", "wrong", "right"]
    assert both["response_before"].tolist() == [f"sft says {i}" for i in range(4)]
    assert both["prompt"].str.len().gt(0).all()
    both = explore.turned(steps, "spin-1")
    assert both["turn"].tolist() == ["same", "wrong", "same", "same"]
    assert (explore.turned(steps, "sft")["turn"] == "same").all()


def test_an_item_of_a_further_task_is_not_shown_with_the_prompt_of_a_row_that_has_its_id(home: Path) -> None:
    steps = plan.make(profiles.load("smoke"), 0)
    evaluated(steps, "sft", [1.0, 0.0], task="social_iqa")
    assert explore.evaluation(steps, "sft")[["prompt", "real"]].eq("").all(axis=None)


def test_every_evaluated_iterate_and_no_other_is_in_the_picture_of_turns(home: Path) -> None:
    steps = plan.make(profiles.load("smoke"), 0)
    evaluated(steps, "sft", [0.0, 1.0, 1.0, 0.0, 0.0])
    evaluated(steps, "spin-0", [1.0, 1.0, 0.0, 0.0, 1.0])
    scores = run.Run(steps).scores()
    assert list(scores.columns) == ["sft", "spin-0"]
    figure = items.turns(scores)
    assert [text.get_text() for text in figure.axes[1].texts] == ["2 turned right", "1 turned wrong"]
    (image,) = figure.axes[0].images
    assert image.get_array().shape == (2, 5)
    assert [text.get_text() for text in items.turns(scores[["sft"]]).axes[1].texts] == ["only one model is evaluated"]


def test_without_held_out_prompts_or_self_play_there_is_nothing_to_look_at_and_no_error(home: Path) -> None:
    paper = plan.make(profiles.load("paper", {"demonstrations.revision": "0" * 40}), 0)
    cells = json.loads((paths.REPOSITORY / "notebooks" / "02_synthetic_generation.ipynb").read_text())["cells"]
    names = {"run": run.Run(paper), "iteration": 0}
    exec(next(code for cell in cells if "told = " in (code := "".join(cell["source"]))), names)
    assert names["told"].startswith("not tested: this profile keeps no prompts for it")
    pinned = {f"released.spin-{t}.revision": "a" * 40 for t in range(4)}
    assert explore.prompts(plan.make(profiles.load("paper-released", pinned), 0)) == [], "as notebook 05 does"


def test_every_iterate_that_is_made_answers_the_prompt_and_its_tokens_are_compared_with_its_opponent(
    made: plan.Plan, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = plan.make(profiles.load("smoke"), 0)
    assert explore.prompts(steps) == []
    assert "<th" not in list(ask.ask(steps, "Who?"))[-1].data
    assert not list(home.rglob("manifest.json")), "asking makes nothing"
    prompt = explore.prompts(made)[0]
    folders, template = explore.iterates(made), made.profile.template
    *growing, last = (picture.data for picture in ask.ask(made, prompt))
    assert growing
    shown = re.findall(r'title="([^ ]*) nats"[^>]*>(.*?)</span>', last, re.S)
    said = "".join(html.unescape(text) for _, text in shown)
    assert list(ask.ask(made, f"{prompt} ⏎ Why?"))[-1].data == list(ask.ask(made, f"{prompt}\nWhy?"))[-1].data
    expected = explore.answers(made, folders, [{"prompt": prompt}]).iloc[0]
    assert list(folders) == ["sft", "spin-0"]
    assert said.replace("∎", "") == expected["sft"] + expected["spin-0"], (
        "the most likely answers, as `sample` finds them"
    )
    models = [base.load_for_inference(folder) for folder in folders.values()]
    tokenizer = base.load_tokenizer(folders["sft"])
    [ids], ends = encode_prompts(tokenizer, template, [prompt]), end_ids(tokenizer, template)
    answer = [token for token, _ in ask.stream(models[1], models[0], ids, ends, 8)]
    changes = [change for _, change in ask.stream(models[1], models[0], ids, ends, 8)]
    group = [measure.Group(ids, (answer, answer))]
    opponent, policy = (obvious_logps(model, group)[0].item() for model in models)
    assert sum(changes) == pytest.approx(policy - opponent, abs=1e-3)
    assert len(list(ask.ask(made, "longer than the template allows " * 99))[-1].data) > 100
    monkeypatch.setattr(runtime, "free_memory", lambda: 2.0**10)
    assert "GB together" in list(ask.ask(made, "Who?"))[-1].data, "five 7B models in main memory"
    monkeypatch.setattr(explore.run, "rows", lambda *_: [{"prompt": "1. Who?\n2. Why?"}])
    assert explore.prompts(made) == ["1. Who? ⏎ 2. Why?"]


def test_a_table_shows_what_a_model_wrote_as_it_is() -> None:
    hostile = "<script>alert(1)</script> **b** $x$ <img src=x onerror=y> &amp;\n  two"
    shown = show.texts(pd.DataFrame({"<i>": [hostile], "n": [3]})).data
    assert "<script" not in shown
    assert "<img" not in shown
    assert "<i>" not in shown
    coloured = show.changes({"<i>": [(hostile, 0.5)]}).data
    assert html.unescape(re.findall(r'title="[+]0.50 nats"[^>]*>(.*?)</span>', coloured, re.S)[0]) == hostile
    assert "<i>" not in coloured
    cells = [html.unescape(cell) for cell in re.findall(r"<pre[^>]*>(.*?)</pre>", shown, re.S)]
    assert cells == [hostile, "3"]


def test_settings_without_an_effect_are_not_shown() -> None:
    smoke, cpu = profiles.load("smoke"), profiles.load("cpu")
    assert "layers" in show.settings(model=smoke.model).data
    assert "layers" not in show.settings(model=cpu.model).data
    shown = show.settings(sft=cpu.sft, dpo=None).data
    assert f"epochs&nbsp;<b>{cpu.sft.epochs}</b>" in shown
    assert "<i>dpo</i>: none" in shown


SHOWN = """
from ipywidgets import IntSlider
from spin_utils.drawing import style
from spin_utils.drawing.views import show

def draw(n):
    print(f"drawn for {n}")
    return style.new_figure(n)

slider = IntSlider(value=2)
show.controls(draw, n=slider)
"""


def test_headless_a_control_gives_the_picture_of_its_first_value() -> None:
    assert show.controls(lambda n: n + 1, n=IntSlider(value=4)) == 5


def test_with_someone_watching_a_control_draws_again_when_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[list[Any]] = []  # for output widgets, and would have been sent to the kernel
    monkeypatch.setattr(OutputWidget, "send", lambda self, *_: captured.append(list(self.outputs)))
    monkeypatch.delenv("SPIN_HEADLESS")
    notebook = new_notebook(cells=[new_code_cell(SHOWN), new_code_cell("slider.value = 3")])
    client = NotebookClient(notebook, timeout=120)
    client.execute()
    shown, printed = notebook.cells[0].outputs
    assert printed.text == "drawn for 2\n"
    assert "application/vnd.jupyter.widget-view+json" in shown.data
    sliders = [widget for widget in client.widget_state.values() if widget["_model_name"] == "IntSliderModel"]
    assert [slider["description"] for slider in sliders] == ["n"]
    assert captured[-1][0].text == "drawn for 3\n"
    [after] = [output["data"]["image/png"] for output in captured[-1] if "data" in output]
    assert base64.b64decode(after).startswith(b"\x89PNG")


def test_the_live_curve_is_redrawn_seconds_apart_and_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, now = [], [0.0]
    monkeypatch.setattr(live_curve, "display", lambda display_id: SimpleNamespace(update=pictures.append))
    monkeypatch.setattr(live_curve, "monotonic", lambda: now[0])
    add, close = live_curve.open_curve("SPIN")
    for step in range(1, 101):
        add({"step": step, "loss": 0.7, "margin": 0.1})
        now[0] += 0.1
    assert 2 <= len(pictures) <= 1 + 10 / live_curve.SECONDS
    close()
    assert len(pictures) <= 2 + 10 / live_curve.SECONDS
    assert len(pictures[-1].axes[0].lines[0].get_ydata()) == 100


def test_only_a_notebook_that_someone_watches_gets_a_live_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "WATCHERS", [])
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    live_curve.watch()
    assert trackers.open_trackers([], "run", tmp_path)[0] == []
    monkeypatch.delenv("SPIN_HEADLESS")
    live_curve.watch()
    live_curve.watch()
    assert len(trackers.open_trackers([], "run", tmp_path)[0]) == 1


# Single tokens ------------------------------------------------------------

HOSTILE = ["<b>bold</b>", "$x^2$", " \\frac{1}{0}", "\n", "\t", "", "😀", "漢", "_" * 300, "%s", "&lt;"]


def test_token_scores_add_up_to_the_log_probabilities_one_sequence_at_a_time(made: plan.Plan) -> None:
    points, examples = measure.moments(made, "spin-0"), measure.pair_examples(made, "spin-0")
    frame = measure.token_scores(examples, points)
    sums = measure.answer_sums(frame)
    for name, folder in points.items():
        with torch.no_grad():
            expected = obvious_logps(base.load(folder), list(examples.values()))
        assert sums[sums["checkpoint"] == name]["logp"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    start = frame[frame["checkpoint"] == "sft"]
    assert (start["change"] == 0).all()
    end = frame[frame["checkpoint"] == "epoch 2"]
    assert end["change"].to_numpy() == pytest.approx(end["logp"].to_numpy() - start["logp"].to_numpy())


def test_the_model_of_a_run_is_found_among_its_epochs(made: plan.Plan) -> None:
    folder = made.directory("spin-0")
    start = made.directory("sft")
    expected = {"sft": start, "epoch 1": folder / "epoch-1", "epoch 2": folder}
    assert measure.moments(made, "spin-0") == expected
    assert list(measure.moments(made, "sft")) == ["base", "sft"]
    assert list(measure.moments(made, "base")) == ["base"]


def test_shared_tokens_are_pushed_alike_and_cancel(made: plan.Plan) -> None:
    real = [5, 6, 7, 8]
    examples = {"x": measure.Group([3, 4], (real, [5, 6, 9]))}
    points = measure.moments(made, "spin-0")
    frame = measure.token_scores(examples, points)
    assert frame.groupby("answer")["shared"].sum().to_dict() == {"real": 2 * len(points), "generated": 2 * len(points)}
    shared = frame[frame["shared"]]
    one, other = (shared[shared["answer"] == answer]["change"].to_numpy() for answer in ("real", "generated"))
    assert one == pytest.approx(other, abs=1e-6)


def scores(tokens: list[str], values: list[float]) -> pd.DataFrame:
    rows = [
        {"checkpoint": point, "example": "x", "answer": answer, "place": i, "token": token, "shared": i < 1}
        | {"logp": -abs(value), "change": 0.0 if point == "start" else value}
        for point in ("start", "end")
        for answer in ("real", "generated")
        for i, (token, value) in enumerate(zip(tokens, values, strict=True))
    ]
    return pd.DataFrame(rows)


def test_hostile_tokens_are_drawn_character_for_character_and_without_warnings(tmp_path: Path) -> None:
    frame = scores(HOSTILE, list(np.linspace(-2, 2, len(HOSTILE))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (tokens.surprise, tokens.pushes):
            figure = draw(frame, "x")
            style.save(figure, tmp_path, draw.__name__)
            drawn = {text.get_text(): text for text in figure.axes[0].texts}
            assert {"<b>bold</b>", "$x^2$", " \\frac{1}{0}", "⏎", "⇥", "▯", "%s", "&lt;"} <= set(drawn)
            assert not drawn["$x^2$"].get_parse_math()
