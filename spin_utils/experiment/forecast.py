"""Cost model: the hours of a run, from the FLOPs of its steps and the speed of a machine.

It counts no padding, each prompt once per pair, the LM head on response tokens only, and the opponent's
log-probabilities once per iteration. A multiply-add is two FLOPs. `Workload.utilisation` is the fraction of peak that
is assumed. Loading, saving and the time between steps are not counted, so very small models take longer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spin_utils.data.rows import read_records
from spin_utils.evaluation import suites
from spin_utils.experiment.plan import Plan, Step, control_training, training_of
from spin_utils.experiment.sizes import Architecture, Lengths, Machine, Workload
from spin_utils.files import artifacts
from spin_utils.paper import published
from spin_utils.settings.machine import CATEGORIES, MtBenchSettings
from spin_utils.settings.run import EvaluationSettings, GenerationSettings, Profile, TrainingSettings

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
"""Assumed mean prompt length in tokens on the paper's suites, few-shot examples included."""
ULTRAFEEDBACK = 62_000
"""Number of pairs in App. B.3, used for a hub data set that has not been counted."""
MT_BENCH_QUESTIONS = (75, 26)
"""Mean tokens of the questions in turns 1 and 2, at `sizes.CHARACTERS` per token."""
JUDGE_SECONDS = 10.0
"""Assumed seconds per request to the judge; `mt_bench.workers` requests run at the same time."""
CHOICES, CHOICE_TOKENS = 4, 15
"""Assumed number of choices per item and tokens per choice."""


def hours(plan: Plan, machine: Machine, architecture: Architecture, found: Lengths) -> dict[str, float]:
    """Hours of each unfinished step, by name; on several devices the work is assumed to split evenly."""
    run = replace(
        Workload(),
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


def _step_hours(plan: Plan, step: Step, run: Workload, a: Architecture, found: Lengths) -> float:
    profile = plan.profile
    paired = found.preferences or found if step.stage == "dpo" else found
    pair = forward_flops(a, paired.prompt, paired.real, paired.generated)
    sampled = replace(run, gpus=_sampling_devices(profile.generation, run.gpus))
    if step.stage == "pairs":
        return generation_hours(replace(sampled, prompts=found.spin_rows), a)
    if step.stage == "evaluation":
        return _suite_hours(profile.evaluation.suite, profile.evaluation, run, a, found)
    if step.stage == "transfer":
        suite = "paper_others" if profile.evaluation.suite == "paper" else "local"
        return _suite_hours(suite, profile.evaluation, run, a, found, "transfer")
    if step.stage == "heldout":
        answered = replace(run, gpus=1, prompts=found.validation_rows)  # by the first process alone
        return generation_hours(answered, a) + _computing(2 * found.validation_rows * pair, run)
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
        return generation_hours(replace(sampled, prompts=answers), a)
    if step.stage == "mt_answers":
        return _mt_answers_hours(profile, run, a, found)
    if step.stage == "mt_bench":
        assert profile.mt_bench is not None
        return judge_requests(profile.mt_bench) * JUDGE_SECONDS / profile.mt_bench.workers / 3600
    if step.stage in ("spin", "epochs", "subset", "dpo"):
        passes = _passes(profile, step, training_of(profile, step.name))
        return _computing(_pairs(plan, step, found) * pair * passes, run)
    return 0.0  # data and base model: downloads, which the cost model cannot predict


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
    """Cost of a pair in forward passes: all epochs, and one pass by the opponent."""
    if step.stage == "epochs":
        return _each(settings) * (settings.epochs - profile.spin.training.epochs)
    return _each(settings) * settings.epochs + 1


def _each(settings: TrainingSettings) -> int:
    """Cost of one epoch in forward passes: a backward pass counts as two, and checkpointing adds one."""
    return 4 if settings.gradient_checkpointing else 3


def _sampling_devices(settings: GenerationSettings, devices: int) -> int:
    """Devices used for sampling: vLLM may be set to use fewer than there are."""
    if settings.backend == "kit" or not settings.vllm.processes:
        return devices
    return min(devices, settings.vllm.processes * settings.vllm.tensor_parallel_size)


def judge_requests(settings: MtBenchSettings) -> int:
    """Requests to the judge per model: two turns for each question."""
    return 2 * len(CATEGORIES) * (settings.limit or 10)


def _mt_answers_hours(profile: Profile, run: Workload, a: Architecture, found: Lengths) -> float:
    """Hours for both turns, answered by one process; answers are assumed to be as long as demonstrations."""
    assert profile.mt_bench is not None
    settings, alone = profile.mt_bench, replace(run, gpus=1)
    items, answer = judge_requests(settings) // 2, min(found.real, settings.max_new_tokens)
    first, second = MT_BENCH_QUESTIONS
    prompts = (first, first + answer + second)
    return sum(_answering(items, prompt, answer, settings, alone, a) for prompt in prompts)


def _suite_hours(
    suite: str, settings: EvaluationSettings, run: Workload, a: Architecture, found: Lengths, split: str = "test"
) -> float:
    if suite == "local":
        items = found.test_rows if split == "test" else found.transfer_rows
        return _answering(items, found.prompt, min(found.real, settings.max_new_tokens), settings, run, a)
    total = 0.0
    for name, benchmark in suites.SUITES[suite].items():
        items = min(published.items(name), settings.limit or published.items(name))
        if benchmark.filter:  # without a chat template the model generates up to the limit
            total += _answering(items, CONTEXT[name], settings.max_new_tokens, settings, run, a)
        else:
            total += _computing(items * forward_flops(a, CONTEXT[name], *[CHOICE_TOKENS] * CHOICES), run)
    return total


def _answering(
    items: int, prompt: int, answer: int, settings: EvaluationSettings | MtBenchSettings, run: Workload, a: Architecture
) -> float:
    asked = replace(run, prompts=items, prompt_tokens=prompt, generated_tokens=answer)
    return generation_hours(replace(asked, decoded_together=settings.batch_size), a)


def _computing(flops: float, run: Workload) -> float:
    return flops / (run.gpus * run.peak_flops * run.utilisation) / 3600


def forward_flops(architecture: Architecture, prompt: int, *responses: int) -> float:
    """FLOPs of one forward pass over the responses to a prompt that is computed once.

    Args:
        architecture: sizes of the model.
        prompt: tokens of the prompt.
        responses: tokens of each response: two for a pair, one for a generation.
    """
    linear = 2 * architecture.body * (prompt + sum(responses))
    seen = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)  # causal
    attention = 4 * architecture.query * architecture.layers * seen
    head = 2 * architecture.hidden * architecture.vocabulary * sum(responses)
    return linear + attention + head


def generation_hours(run: Workload, architecture: Architecture) -> float:
    """Hours to generate one response per prompt, limited by compute or by memory bandwidth, whichever is slower."""
    computing = run.prompts * forward_flops(architecture, run.prompt_tokens, run.generated_tokens) / run.peak_flops
    context = run.prompt_tokens + run.generated_tokens / 2
    cache = 2 * 2 * architecture.layers * architecture.key_value * context  # keys and values in two bytes each
    step = 2 * architecture.parameters + run.decoded_together * cache
    reading = run.prompts / run.decoded_together * run.generated_tokens * step / run.bandwidth
    return max(computing, reading) / (run.gpus * run.utilisation) / 3600


def training_hours(run: Workload, architecture: Architecture, iteration: int) -> float:
    """Hours to train one iteration: forward and backward in every epoch, and one forward pass by the opponent.

    Iterations after the first have twice the pairs, because the previous iteration's are mixed in (sec. 6.1).
    """
    return training_flops(run, architecture, iteration) / (run.gpus * run.peak_flops * run.utilisation) / 3600


def training_flops(run: Workload, architecture: Architecture, iteration: int) -> float:
    """FLOPs to train one iteration; a backward pass costs two forward passes."""
    pairs = run.prompts * (2 if iteration else 1)
    pair = forward_flops(architecture, run.prompt_tokens, run.real_tokens, run.generated_tokens)
    return pairs * pair * (3 * run.epochs + 1)


def utilisation(run: Workload, architecture: Architecture, iteration: int, hours: float) -> float:
    """Model FLOPs utilisation that follows from a measured training time: FLOPs needed over FLOPs at peak."""
    return training_flops(run, architecture, iteration) / (hours * 3600 * run.gpus * run.peak_flops)
