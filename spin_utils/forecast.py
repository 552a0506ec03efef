"""Hours that the unfinished steps of a profile will take, from the cost model and the speed of a machine.

The count is of needed operations; `cost_model.Run.utilisation` says which share of the machine's speed is assumed to be
reached. Loading, saving and what is between two steps are left out, so a very small model takes longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spin_utils import artifacts, cost_model, paper_suite
from spin_utils.cost_model import Architecture, Run, forward_flops
from spin_utils.machine import Machine
from spin_utils.plan import Plan, Step, training_of
from spin_utils.rows import read_records
from spin_utils.settings import EvaluationSettings, Profile, TrainingSettings

CHARACTERS = 4
"""Assumed characters of a token."""
CONTEXT = {
    "arc": 1100,
    "truthfulqa": 250,
    "winogrande": 170,
    "gsm8k": 900,
    "hellaswag": 1100,
    "mmlu": 650,
    "bb_causal": 1000,
    "bb_formal": 1100,
    "bb_sports": 350,
    "openbookqa": 45,
}
"""Assumed mean tokens of a prompt of the paper's suites, its examples included."""
ULTRAFEEDBACK = 62_000
"""Pairs of App. B.3, where a hub data set is not counted."""
CHOICES, CHOICE_TOKENS = 4, 15
"""Assumed choices of an item and their tokens."""


class Lengths(NamedTuple):
    """Rows and tokens that the steps work on."""

    sft_rows: int
    spin_rows: int
    test_rows: int
    transfer_rows: int
    prompt: int
    """Mean tokens."""
    real: int
    generated: int
    longest_prompt: int
    """An upper bound."""
    longest_real: int
    known: bool
    """Whether they were counted from the rows; otherwise they are the assumptions of the cost model."""


def lengths(profile: Profile, rows: dict[str, Sequence[dict[str, Any]]] | None) -> Lengths:
    """Rows and tokens of a profile.

    Args:
        profile: whose template bounds them.
        rows: demonstrations by split; None where they could not be read, so that the cost model's assumptions hold.
    """
    template, most = profile.template, profile.generation.max_new_tokens
    if rows is None:
        run, data = Run(), profile.demonstrations
        spin = data.spin_rows or data.expected_rows or run.prompts
        sizes = (data.sft_rows or spin, spin, data.test_rows or 0, 0)
        means = (min(run.prompt_tokens, template.max_prompt_tokens), min(run.real_tokens, template.max_response_tokens))
        bounds = (template.max_prompt_tokens, template.max_response_tokens)
        return Lengths(*sizes, *means, min(run.generated_tokens, most), *bounds, known=False)
    prompts, responses = ([len(row[name]) for row in rows["sft"]] for name in ("prompt", "response"))
    widest = [max(len(row[name].encode()) for row in rows["sft"]) + 32 for name in ("prompt", "response")]  # and markers
    real = sum(responses) // (CHARACTERS * len(responses)) + 1
    return Lengths(
        *(len(rows[split]) for split in ("sft", "spin", "test", "transfer")),
        sum(prompts) // (CHARACTERS * len(prompts)) + 1,
        real,
        min(real, most),
        min(widest[0], template.max_prompt_tokens),
        min(widest[1], template.max_response_tokens),
        known=True,
    )


def hours(plan: Plan, machine: Machine, architecture: Architecture, found: Lengths) -> dict[str, float]:
    """Hours of every unfinished step, by its name; on several devices as if the work were shared out evenly."""
    run = dataclasses.replace(
        Run(),
        gpus=machine.devices,
        peak_flops=machine.flops,
        bandwidth=machine.bandwidth,
        prompt_tokens=found.prompt,
        real_tokens=found.real,
        generated_tokens=found.generated,
        decoded_together=plan.profile.generation.batch_size,
    )
    return {
        step.name: _step_hours(plan, step, run, architecture, found)
        for step in plan
        if not artifacts.is_complete(step.directory)
    }


def _step_hours(plan: Plan, step: Step, run: Run, a: Architecture, found: Lengths) -> float:
    profile = plan.profile
    pair = forward_flops(a, found.prompt, found.real, found.generated)
    if step.stage == "pairs":
        return cost_model.generation_hours(dataclasses.replace(run, prompts=found.spin_rows), a)
    if step.stage == "evaluation":
        suite, settings = profile.evaluation.suite, profile.evaluation
        transfer = _suite_hours("paper_others" if suite == "paper" else suite, settings, run, a, found, "transfer")
        return _suite_hours(suite, settings, run, a, found) + (transfer if step.settings["transfer"] else 0)
    if step.stage == "sft":
        assert profile.sft is not None
        epochs = 1 if step.parameters["more"] else profile.sft.epochs
        return _computing(found.sft_rows * forward_flops(a, found.prompt, found.real) * 3 * epochs, run)
    if step.stage == "preferences":
        assert profile.dpo is not None
        preferences, tries = profile.dpo.preferences, profile.dpo.answers_per_prompt
        answers = (preferences.rows or found.sft_rows) * tries if preferences.source == "samples" else 0
        return cost_model.generation_hours(dataclasses.replace(run, prompts=answers), a)
    if step.stage in ("spin", "epochs", "subset", "dpo"):
        settings = training_of(profile, step.name)
        return _computing(_pairs(plan, step, found) * pair * _passes(profile, step, settings), run)
    return 0.0  # data and base model: downloads, which no cost model knows


def _pairs(plan: Plan, step: Step, found: Lengths) -> float:
    if step.stage == "dpo":
        assert plan.profile.dpo is not None
        preferences = plan.profile.dpo.preferences
        if preferences.source == "file":
            return preferences.rows or len(read_records(Path(preferences.train)))
        return preferences.rows or (found.sft_rows if preferences.source == "samples" else ULTRAFEEDBACK)
    part = step.settings.get("fiftieths", 50) / 50
    return found.spin_rows * part * sum(name.startswith("pairs-") for name in step.inputs)


def _passes(profile: Profile, step: Step, settings: TrainingSettings) -> float:
    """Forward passes that a pair costs: a backward pass counts as two, checkpointing adds one, the opponent one."""
    each = 4 if settings.gradient_checkpointing else 3
    if step.stage == "epochs":
        return each * (settings.epochs - profile.spin.training.epochs)
    return each * settings.epochs + 1


def _suite_hours(
    suite: str, settings: EvaluationSettings, run: Run, a: Architecture, found: Lengths, split: str = "test"
) -> float:
    if suite == "local":
        rows = found.test_rows if split == "test" else found.transfer_rows
        items = min(rows, settings.limit or rows)
        return _answering(items, found.prompt, min(found.real, settings.max_new_tokens), settings, run, a)
    total = 0.0
    for name, benchmark in paper_suite.SUITES[suite].items():
        items = min(paper_suite.items(name), settings.limit or paper_suite.items(name))
        if benchmark.filter:  # a model that is no chat model runs on to the limit
            total += _answering(items, CONTEXT[name], settings.max_new_tokens, settings, run, a)
        else:
            total += _computing(items * forward_flops(a, CONTEXT[name], *[CHOICE_TOKENS] * CHOICES), run)
    return total


def _answering(items: int, prompt: int, answer: int, settings: EvaluationSettings, run: Run, a: Architecture) -> float:
    asked = dataclasses.replace(run, prompts=items, prompt_tokens=prompt, generated_tokens=answer)
    return cost_model.generation_hours(dataclasses.replace(asked, decoded_together=settings.batch_size), a)


def _computing(flops: float, run: Run) -> float:
    return flops / (run.gpus * run.peak_flops * run.utilisation) / 3600
