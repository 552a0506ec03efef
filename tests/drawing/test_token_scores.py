"""Single tokens: their scores are the terms of the sums that training uses, and they are drawn as they are."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import obvious_logps

from spin_utils.drawing import style
from spin_utils.drawing.views import tokens
from spin_utils.experiment import measure, plan, run
from spin_utils.model import base
from spin_utils.settings import profiles

HOSTILE = ["<b>bold</b>", "$x^2$", " \\frac{1}{0}", "\n", "\t", "", "😀", "漢", "_" * 300, "%s", "&lt;"]


@pytest.fixture(scope="module")
def steps(module_home: Path) -> plan.Plan:
    """A smoke run up to its first iteration; to be read only."""
    made = plan.make(profiles.load("smoke"), 0)
    run.make(made, "spin-0")
    return made


def test_token_scores_add_up_to_the_log_probabilities_one_sequence_at_a_time(steps: plan.Plan) -> None:
    points, examples = measure.moments(steps, "spin-0"), measure.pair_examples(steps, "spin-0")
    frame = measure.token_scores(examples, points)
    sums = measure.answer_sums(frame)
    for name, folder in points.items():
        with torch.no_grad():
            expected = obvious_logps(base.load(folder), [example.group for example in examples])
        assert sums[sums["checkpoint"] == name]["logp"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    start = frame[frame["checkpoint"] == "sft"]
    assert (start["change"] == 0).all()
    end = frame[frame["checkpoint"] == "epoch 2"]
    assert end["change"].to_numpy() == pytest.approx(end["logp"].to_numpy() - start["logp"].to_numpy())


def test_the_model_of_a_run_is_found_among_its_epochs(steps: plan.Plan) -> None:
    folder = steps.directory("spin-0")
    start = steps.directory("sft")
    expected = {"sft": start, "epoch 1": folder / "epoch-1", "epoch 2": folder}
    assert measure.moments(steps, "spin-0") == expected
    assert list(measure.moments(steps, "sft")) == ["base", "sft"]
    assert list(measure.moments(steps, "base")) == ["base"]


def test_shared_tokens_are_pushed_alike_and_cancel(steps: plan.Plan) -> None:
    real = [5, 6, 7, 8]
    example = measure.Example("x", measure.Group([3, 4], (real, [5, 6, 9])))
    points = measure.moments(steps, "spin-0")
    frame = measure.token_scores([example], points)
    assert frame.groupby("answer")["shared"].sum().to_dict() == {"real": 2 * len(points), "generated": 2 * len(points)}
    shared = frame[frame["shared"]]
    one, other = (shared[shared["answer"] == answer]["change"].to_numpy() for answer in ("real", "generated"))
    assert one == pytest.approx(other, abs=1e-6)


def test_examples_differ_and_come_one_from_each_family(steps: plan.Plan) -> None:
    examples = measure.pair_examples(steps, "spin-0")
    assert [example.name.split("-")[0] for example in examples] == ["chain_sum", "spell_backward"]
    for example in examples:
        real, generated = example.group.response_ids
        assert list(real) != list(generated)
    assert len(measure.demonstration_examples(steps, run.rows(steps, "validation"))) == 2


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
