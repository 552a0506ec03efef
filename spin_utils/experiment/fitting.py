"""What each kind of stage of a profile needs of a device's memory, and the settings with which it would fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from spin_utils.evaluation import judge
from spin_utils.experiment import memory_model
from spin_utils.experiment.forecast import Lengths
from spin_utils.experiment.machine import Machine
from spin_utils.experiment.memory_model import Need
from spin_utils.experiment.plan import trainings
from spin_utils.paper.cost_model import Architecture
from spin_utils.settings.run import Profile

VLLM = "generation by vLLM"


def needs(profile: Profile, architecture: Architecture, lengths: Lengths, kind: str, width: int) -> list[Need]:
    """What each kind of stage needs.

    Args:
        profile: its settings.
        architecture: sizes of the model.
        lengths: of the rows.
        kind: `cpu` or `cuda`.
        width: bytes of a number where the precision is `auto`, as it always is but in training.
    """
    gpu, suite = kind == "cuda", profile.evaluation.suite
    fused = profile.processes.sharding == "ddp"
    answer, control = profile.generation.max_new_tokens, lengths.control or lengths
    sample = partial(memory_model.sampling, architecture, width=width, gpu=gpu)
    found = []
    pair = lengths.longest_prompt + lengths.longest_real + max(answer, lengths.longest_real)
    longest = {"sft": lengths.longest_prompt + lengths.longest_real}
    longest["sft_control"] = control.longest_prompt + control.longest_real
    if lengths.preferences is not None:
        longest["dpo"] = lengths.preferences.longest_prompt + 2 * lengths.preferences.longest_real
    for section, settings in trainings(profile).items():
        stage, chosen = section.partition(".")[0], {"bfloat16": 2, "float32": 4, "auto": width}[settings.precision]
        row = longest.get(stage, pair)
        found.append(
            memory_model.training(architecture, settings, width=chosen, longest=row, fused=fused, gpu=gpu, stage=stage)
        )
    vllm = profile.generation.backend == "vllm"
    if not profile.released and (not vllm or profile.demonstrations.validation_rows != 0):  # held-out answers are ours
        found.append(sample(profile.generation, prompt=lengths.longest_prompt, answer=answer, stage="generation"))
    if not profile.released and vllm:
        found.append(
            memory_model.vllm(
                architecture, profile.generation, prompt=lengths.longest_prompt, answer=answer, stage=VLLM
            )
        )
    prompt, answer = lengths.longest_prompt, profile.evaluation.max_new_tokens
    if suite != "local":
        prompt, answer = memory_model.BENCHMARK_TOKENS, memory_model.BENCHMARK_ANSWER
        choices = memory_model.scoring(architecture, longest=2048, width=width, gpu=gpu, stage="evaluation, choices")
        found.append(choices)
    found.append(sample(profile.evaluation, prompt=prompt, answer=answer, stage="evaluation"))
    if profile.mt_bench is not None and judge.has_key():
        answer = profile.mt_bench.max_new_tokens
        prompt = memory_model.MT_BENCH_TOKENS + answer  # turn 2 comes after the first answer
        found.append(sample(profile.mt_bench, prompt=prompt, answer=answer, stage="mt_bench"))
    return found


def shared_by(profile: Profile, machine: Machine) -> int:
    """Devices over which training spreads weights, gradients and optimizer state."""
    if profile.processes.sharding == "ddp":
        return 1
    return profile.processes.count or max(1, min(profile.resources.training.gpus, machine.devices))


def remedy(
    profile: Profile, stage: str, machine: Machine, architecture: Architecture, lengths: Lengths
) -> dict[str, Any] | None:
    """Settings, by dotted name, with which a stage fits; None where none do. Found by the estimate itself."""
    for changes in _candidates(profile, stage, machine.devices):
        changed = _changed(profile, changes)
        need = next(n for n in needs(changed, architecture, lengths, machine.kind, machine.width) if n.stage == stage)
        if need.total(shared_by(profile, machine)) <= machine.memory:
            return changes
    return None


def _candidates(profile: Profile, stage: str, devices: int) -> Iterator[dict[str, Any]]:
    """Changes that need less memory and change no result but rounding, the cheapest first."""
    if stage == VLLM:
        vllm = profile.generation.vllm
        gpus = 2 * vllm.tensor_parallel_size
        while gpus * max(1, vllm.processes) <= devices:
            yield {"generation.vllm.tensor_parallel_size": gpus}
            gpus *= 2
        return
    held = {section.partition(".")[0]: (section, training) for section, training in trainings(profile).items()}
    if stage not in held:
        section = stage if stage in ("generation", "mt_bench") else "evaluation"
        rows = getattr(profile, section).batch_size // 2
        while rows >= 1:
            yield {f"{section}.batch_size": rows}
            rows //= 2
        return
    section, training = held[stage]
    for more in [{}] if training.gradient_checkpointing else [{}, {f"{section}.gradient_checkpointing": True}]:
        if more:
            yield more
        tokens = training.micro_batch_tokens // 2
        while tokens >= 256:
            yield {f"{section}.micro_batch_tokens": tokens, **more}
            tokens //= 2


def _changed(profile: Profile, changes: dict[str, Any]) -> Profile:
    for dotted, value in changes.items():
        *sections, name = dotted.split(".")
        parts: list[Any] = [profile]
        for section in sections:
            parts.append(getattr(parts[-1], section))
        new = dataclasses.replace(parts[-1], **{name: value})
        for part, section in zip(reversed(parts[:-1]), reversed(sections), strict=True):
            new = dataclasses.replace(part, **{section: new})
        profile = new
    return profile
