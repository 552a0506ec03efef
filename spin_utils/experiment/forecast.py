"""Hours that the unfinished steps of a profile will take, from the cost model and the speed of a machine.

The count is of needed operations; `cost_model.Run.utilisation` says which share of the machine's speed is assumed to be
reached. Loading, saving and what is between two steps are left out, so a very small model takes longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spin_utils.data.preferences import load as load_preferences
from spin_utils.data.rows import RowError, count_by_family, read_records
from spin_utils.evaluation import suites
from spin_utils.experiment.machine import Machine
from spin_utils.experiment.plan import Plan, Step, control_demonstrations, control_training, training_of
from spin_utils.files import artifacts
from spin_utils.paper import cost_model, published
from spin_utils.paper.cost_model import Architecture, Run, forward_flops
from spin_utils.settings.inputs import DemonstrationSettings
from spin_utils.settings.machine import CATEGORIES, MtBenchSettings
from spin_utils.settings.run import EvaluationSettings, GenerationSettings, Profile, TrainingSettings

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
HUB_ROWS = {"HuggingFaceH4/ultrachat_200k": 207_865}
"""Rows of a hub data set's training split, where it is not counted."""
MT_BENCH_QUESTIONS = (75, 26)
"""Mean tokens of the questions of turns 1 and 2, at `CHARACTERS` each."""
JUDGE_SECONDS = 10.0
"""Assumed seconds until a judge has answered a request; `mt_bench.workers` are under way at a time."""
CHOICES, CHOICE_TOKENS = 4, 15
"""Assumed choices of an item and their tokens."""


class Lengths(NamedTuple):
    """Rows and tokens that the steps work on."""

    sft_rows: int
    spin_rows: int
    validation_rows: int
    test_rows: int
    """Of these and the next as many as `evaluation.limit` leaves."""
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
    control: Lengths | None = None
    """Those of the SFT control, where it has rows of its own."""
    preferences: Lengths | None = None
    """Those of DPO's pairs, where they are a file: `real` is the chosen answer, `generated` the rejected one."""


Rows = Mapping[str, Sequence[dict[str, Any]]]
"""Demonstrations by split."""


def lengths(profile: Profile, rows: Rows | None, control: Rows | None = None) -> Lengths:
    """Rows and tokens of a profile.

    Args:
        profile: whose template bounds them.
        rows: its demonstrations; None where they could not be read, so that the cost model's assumptions hold.
        control: those of the SFT control, likewise.
    """
    found, own = _lengths(profile, profile.demonstrations, rows), control_demonstrations(profile)
    found = found._replace(preferences=_of_pairs(profile, found))
    return found if own is None else found._replace(control=_lengths(profile, own, control))


def _of_pairs(profile: Profile, found: Lengths) -> Lengths | None:
    if profile.dpo is None or profile.dpo.preferences.source != "file":
        return None
    try:
        pairs = load_preferences(profile.dpo.preferences)
    except RowError:  # which the steps' finding says
        return None
    prompts, chosen, rejected = ([pair[name] for pair in pairs] for name in ("prompt", "chosen", "rejected"))
    template = profile.template
    return found._replace(
        prompt=_mean_tokens(prompts),
        real=_mean_tokens(chosen),
        generated=_mean_tokens(rejected),
        longest_prompt=min(_most_tokens(prompts), template.max_prompt_tokens),
        longest_real=min(_most_tokens(chosen + rejected), template.max_response_tokens),
    )


def _lengths(profile: Profile, data: DemonstrationSettings, rows: Rows | None) -> Lengths:
    template, most, limit = profile.template, profile.generation.max_new_tokens, profile.evaluation.limit
    if rows is None:
        run, test = Run(), data.test_rows or 0
        spin = data.spin_rows or data.expected_rows or HUB_ROWS.get(data.name, run.prompts)
        return Lengths(
            sft_rows=data.sft_rows or spin,
            spin_rows=spin,
            validation_rows=data.validation_rows or 0,
            test_rows=min(test, limit or test),
            transfer_rows=0,
            prompt=min(run.prompt_tokens, template.max_prompt_tokens),
            real=min(run.real_tokens, template.max_response_tokens),
            generated=min(run.generated_tokens, most),
            longest_prompt=template.max_prompt_tokens,
            longest_real=template.max_response_tokens,
            known=False,
        )
    prompts, responses = ([row[name] for row in rows["sft"]] for name in ("prompt", "response"))
    real = _mean_tokens(responses)
    return Lengths(
        sft_rows=len(rows["sft"]),
        spin_rows=len(rows["spin"]),
        validation_rows=len(rows["validation"]),
        test_rows=count_by_family(rows["test"], limit),
        transfer_rows=count_by_family(rows["transfer"], limit),
        prompt=_mean_tokens(prompts),
        real=real,
        generated=min(real, most),
        longest_prompt=min(_most_tokens(prompts), template.max_prompt_tokens),
        longest_real=min(_most_tokens(responses), template.max_response_tokens),
        known=True,
    )


def _mean_tokens(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) // (CHARACTERS * len(texts)) + 1


def _most_tokens(texts: Sequence[str]) -> int:
    """A bound on the tokens of the longest text: its bytes and some markers."""
    return max(len(text.encode()) for text in texts) + 32


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
    paired = found.preferences or found if step.stage == "dpo" else found
    pair = forward_flops(a, paired.prompt, paired.real, paired.generated)
    sampled = dataclasses.replace(run, gpus=_sampling_devices(profile.generation, run.gpus))
    if step.stage == "pairs":
        return cost_model.generation_hours(dataclasses.replace(sampled, prompts=found.spin_rows), a)
    if step.stage == "evaluation":
        return _suite_hours(profile.evaluation.suite, profile.evaluation, run, a, found)
    if step.stage == "transfer":
        suite = "paper_others" if profile.evaluation.suite == "paper" else "local"
        return _suite_hours(suite, profile.evaluation, run, a, found, "transfer")
    if step.stage == "heldout":
        answered = dataclasses.replace(run, gpus=1, prompts=found.validation_rows)  # by the first process alone
        return cost_model.generation_hours(answered, a) + _computing(2 * found.validation_rows * pair, run)
    if step.stage == "sft":
        training = control_training(profile) if step.parameters["more"] else profile.sft
        assert training is not None
        rows = found.control if found.control and step.parameters["more"] else found
        work = training.epochs * _each(training) * forward_flops(a, rows.prompt, rows.real)
        return _computing(rows.sft_rows * work, run)
    if step.stage == "preferences":
        assert profile.dpo is not None
        preferences, tries = profile.dpo.preferences, profile.dpo.answers_per_prompt
        answers = (preferences.rows or found.sft_rows) * tries if preferences.source == "samples" else 0
        return cost_model.generation_hours(dataclasses.replace(sampled, prompts=answers), a)
    if step.stage == "mt_answers":
        return _mt_answers_hours(profile, run, a, found)
    if step.stage == "mt_bench":
        assert profile.mt_bench is not None
        return judge_requests(profile.mt_bench) * JUDGE_SECONDS / profile.mt_bench.workers / 3600
    if step.stage in ("spin", "epochs", "subset", "dpo"):
        passes = _passes(profile, step, training_of(profile, step.name))
        return _computing(_pairs(plan, step, found) * pair * passes, run)
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
    """Forward passes that a pair costs: those of its epochs, and one by the opponent."""
    if step.stage == "epochs":
        return _each(settings) * (settings.epochs - profile.spin.training.epochs)
    return _each(settings) * settings.epochs + 1


def _each(settings: TrainingSettings) -> int:
    """Forward passes of one epoch: a backward pass counts as two, checkpointing adds one."""
    return 4 if settings.gradient_checkpointing else 3


def _sampling_devices(settings: GenerationSettings, devices: int) -> int:
    """Devices that answer prompts: vLLM may be told to use fewer than there are."""
    if settings.backend == "kit" or not settings.vllm.processes:
        return devices
    return min(devices, settings.vllm.processes * settings.vllm.tensor_parallel_size)


def judge_requests(settings: MtBenchSettings) -> int:
    """Requests to the judge for one model: two turns of each question."""
    return 2 * len(CATEGORIES) * (settings.limit or 10)


def _mt_answers_hours(profile: Profile, run: Run, a: Architecture, found: Lengths) -> float:
    """Both turns, answered by one process; an answer is taken to be as long as a demonstration's."""
    assert profile.mt_bench is not None
    settings, alone = profile.mt_bench, dataclasses.replace(run, gpus=1)
    items, answer = judge_requests(settings) // 2, min(found.real, settings.max_new_tokens)
    first, second = MT_BENCH_QUESTIONS
    prompts = (first, first + answer + second)
    return sum(_answering(items, prompt, answer, settings, alone, a) for prompt in prompts)


def _suite_hours(
    suite: str, settings: EvaluationSettings, run: Run, a: Architecture, found: Lengths, split: str = "test"
) -> float:
    if suite == "local":
        items = found.test_rows if split == "test" else found.transfer_rows
        return _answering(items, found.prompt, min(found.real, settings.max_new_tokens), settings, run, a)
    total = 0.0
    for name, benchmark in suites.SUITES[suite].items():
        items = min(published.items(name), settings.limit or published.items(name))
        if benchmark.filter:  # a model that is no chat model runs on to the limit
            total += _answering(items, CONTEXT[name], settings.max_new_tokens, settings, run, a)
        else:
            total += _computing(items * forward_flops(a, CONTEXT[name], *[CHOICE_TOKENS] * CHOICES), run)
    return total


def _answering(
    items: int, prompt: int, answer: int, settings: EvaluationSettings | MtBenchSettings, run: Run, a: Architecture
) -> float:
    asked = dataclasses.replace(run, prompts=items, prompt_tokens=prompt, generated_tokens=answer)
    return cost_model.generation_hours(dataclasses.replace(asked, decoded_together=settings.batch_size), a)


def _computing(flops: float, run: Run) -> float:
    return flops / (run.gpus * run.peak_flops * run.utilisation) / 3600
