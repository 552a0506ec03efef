"""Arms: variants of SPIN under the same control, which share with it whatever they do not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_experiments import equal, make

from spin_utils.data import families
from spin_utils.data.templates import EncodedRow, decode_response
from spin_utils.experiment import plan, play, publish, run
from spin_utils.model import base
from spin_utils.model.packing import Group, Pairs, PairsError
from spin_utils.training.loop import train

pytestmark = pytest.mark.usefixtures("module_home")


def arm(**changes: object) -> plan.Plan:
    """The smoke profile with one arm, `it`."""
    return make(arms={"it": {name.replace("__", "."): value for name, value in changes.items()}})


def steps_of(made: plan.Plan) -> dict[str, tuple[str, ...]]:
    """The steps that only the arm has, with their inputs."""
    return {step.name: step.inputs for step in made if "arm" in step.name}


def test_an_arm_shares_what_it_does_not_change() -> None:
    assert steps_of(arm(spin__training__nll=0.5)) == {
        "spin-0-arm-it": ("sft", "pairs-0"),
        "eval-spin-0-arm-it": ("spin-0-arm-it", "data"),
    }
    assert steps_of(arm(generation__temperature=0))["spin-0-arm-it"] == ("sft", "pairs-0-arm-it")
    unmixed = steps_of(arm(spin__mix_previous=False, spin__iterations=2))
    assert unmixed == {
        "spin-1-arm-it": ("spin-0", "pairs-1"),
        "eval-spin-1-arm-it": ("spin-1-arm-it", "data"),
    }, "iteration 0 mixes nothing anyway"
    assert steps_of(arm(spin__iterations=2)) == {}, "an arm that changes nothing is SPIN"


def test_arms_leave_every_other_artifact_alone() -> None:
    plain, more = make(arms={}), arm(spin__training__nll=0.5)
    assert {step.name: step.directory for step in plain}.items() < {step.name: step.directory for step in more}.items()


def test_an_arm_is_the_same_model_as_a_profile_with_its_settings() -> None:
    changes = {"spin__answers_per_prompt": 2, "spin__training__positive": 5.0}
    made, profile = arm(**changes), make(arms={}, **changes)
    assert equal(run.make(made, "spin-0-arm-it"), run.make(profile, "spin-0"))
    assert not equal(run.make(made, "spin-0-arm-it"), run.make(made, "spin-0"))


def test_each_group_of_an_arm_with_several_answers_has_them_all_and_only_one_is_published() -> None:
    made = make(arms={}, spin__answers_per_prompt=3)
    rows = Pairs([run.make(made, "pairs-0") / "pairs.arrow"]).table.to_pylist()
    groups = play.training_pairs(made, "spin-0")
    assert (len(rows), len(groups)) == (3 * 24, 24)
    for place, group in enumerate(groups):
        own = rows[3 * place : 3 * place + 3]
        assert len({row["id"] for row in own}) == 1
        for ids, row in zip(group.response_ids[1:], own, strict=True):
            assert list(ids[: len(row["generated_ids"])]) == row["generated_ids"]
    assert len({tuple(row["generated_ids"]) for row in rows[:3]}) > 1, "each answer has its own random numbers"
    ((_, _, shown),) = publish._documents(made, made.steps["pairs-0"])
    assert len(shown["items"]) == 24


def test_t_spin_trains_on_triplets_from_iteration_1_on() -> None:
    objective = {"spin__training__reference_free": True, "spin__training__historical": 0.1}
    made = arm(**objective, spin__mix_previous=False, spin__iterations=2)
    first, second = (plan.training_of(made.profile, f"spin-{t}-arm-it") for t in (0, 1))
    assert (first.historical, second.historical) == (0.0, 0.1)
    assert steps_of(made)["spin-1-arm-it"] == ("spin-0-arm-it", "pairs-1-arm-it", "pairs-0")
    run.make(made, "spin-1-arm-it")
    drawn = Pairs([made.directory("pairs-0") / "pairs.arrow"]).table.to_pylist()
    opening = {row["id"]: row["generated_ids"] for row in drawn}
    pairs = play.training_pairs(made, "spin-1-arm-it")
    for row, group in zip(pairs.table.to_pylist(), pairs, strict=True):
        assert len(group.response_ids) == 3
        assert list(group.response_ids[2])[: len(opening[row["id"]])] == opening[row["id"]]


def test_rejection_sampling_is_sft_on_the_accepted_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "grade", lambda _row, answer: float(len(answer) % 2))
    made = arm(spin__training__rejection=True)
    answers = Pairs([run.make(made, "pairs-0") / "pairs.arrow"]).table.to_pylist()
    right = [
        Group(a["prompt_ids"], (a["generated_ids"],))
        for a in answers
        if a["finish_reason"] == "stop" and len(a["generated"]) % 2
    ]
    assert 0 < len(right) < len(answers)
    oracle = base.load(made.checkpoint("sft"))
    train(oracle, right, plan.training_of(made.profile, "spin-0-arm-it"), seed=plan.stream(0, 0), work=tmp_path)
    trained = base.load(run.make(made, "spin-0-arm-it")).state_dict()
    for name, weight in oracle.state_dict().items():
        assert torch.equal(weight, trained[name])


def test_rejection_sampling_with_nothing_right_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "grade", lambda _row, _answer: 0.0)
    with pytest.raises(PairsError, match="none of 24 generated responses is right"):
        run.make(arm(spin__training__rejection=True, spin__betas=[0.3]), "spin-0-arm-it")


def test_the_released_way_asks_under_one_template_and_trains_under_another(tmp_path: Path) -> None:
    asked = "### Instruction: {prompt}\n\n### Response: "
    made = arm(generation__temperature=0, generation__prompt=asked, generation__max_new_tokens=8)
    sft = run.make(made, "sft")
    tokenizer, template = base.load_tokenizer(sft), made.profile.template
    usual, rows = (
        Pairs([run.make(made, name) / "pairs.arrow"]).table.to_pylist() for name in ("pairs-0", "pairs-0-arm-it")
    )
    assert [row["prompt_ids"] for row in rows] == [row["prompt_ids"] for row in usual], "trained under the template"
    texts = [asked.format(prompt=row["prompt"]) for row in rows]
    by_hand = [EncodedRow({}, tokenizer.encode(text, add_special_tokens=False), []) for text in texts]
    profile = made.variant(made.steps["pairs-0-arm-it"])
    answers = play.generate(sft, tokenizer, by_hand, profile, seed=0, work=tmp_path, what="answers")
    for row, (ids, reason, _) in zip(rows, answers, strict=True):
        assert (row["generated"], row["finish_reason"]) == (decode_response(tokenizer, template, ids).lstrip(), reason)
        if row["finish_reason"] == "length":
            assert row["generated_ids"][-1] != tokenizer.convert_tokens_to_ids(template.end)
    ends = [group.response_ids[1][-1] for group in play.training_pairs(made, "spin-0-arm-it")]
    assert set(ends) == {tokenizer.convert_tokens_to_ids(template.end)}, "an answer that was cut gets an end token"
