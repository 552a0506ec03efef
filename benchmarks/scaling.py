"""Predicted hours, memory and disk at larger scales, from the cost model, and where each design decision breaks down.

    python -m benchmarks.scaling      writes benchmarks/scaling.md

Nothing here was run at these sizes. The ratios on the page were measured: benchmarks/results and its sibling folders.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spin_utils.experiment import estimate
from spin_utils.experiment.estimate import CHARACTERS, Architecture, Workload
from spin_utils.model import logprobs
from spin_utils.model.sampling import GPU_PREFILL_TOKENS
from spin_utils.settings import profiles
from spin_utils.settings.run import Profile

PAGE = Path(__file__).parent / "scaling.md"
MODELS = {
    "SmolLM2-135M": Architecture(30, 576, 576, 192, 1536, 49_152, heads=9, tied=True),
    "Qwen2.5-0.5B": Architecture(24, 896, 896, 128, 4864, 151_936, heads=14, tied=True, counted=494_032_768),
    "SmolLM2-1.7B": Architecture(24, 2048, 2048, 2048, 8192, 49_152, heads=32, tied=True),
    "Mistral-7B": Architecture(),
    "Llama-2-13B": Architecture(40, 5120, 5120, 5120, 13_824, 32_000, heads=40),
    "Llama-3-70B": Architecture(80, 8192, 8192, 1024, 28_672, 128_256, heads=64),
}
"""Sizes from each model's public config.json."""
SAMPLED = "sample_fraction_of_matmul_peak"
"""The ratio of sampling's share of the matrix rate, once it has been measured."""
GPUS = (1, 8, 64, 512)
PROMPTS = (50_000, 500_000, 10_000_000)
GPU_MEMORY = 80e9
DISK_RATE = 2e9
"""Assumed bytes a second to a local disk."""


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)


def render() -> str:
    """The page; the same measurements give the same bytes."""
    profile = profiles.load("paper")
    sections = [_head(), _assumptions(profile), _measured(), _hours(profile), _bounds(profile), _memory(profile)]
    sections.append(_disk(profile))
    return "\n\n".join([*sections, _limits(profile)]) + "\n"


def chain_hours(architecture: Architecture, prompts: int, gpus: int, profile: Profile) -> tuple[float, float]:
    """Hours of generation and of training of all iterations.

    A batch is shared out by pairs, so no more GPUs than pairs of a batch take part in training.
    """
    run = dataclasses.replace(Workload(), prompts=prompts, gpus=gpus, epochs=profile.spin.training.epochs)
    iterations, (sampled, trained) = profile.spin.iterations, shares()
    sampling = dataclasses.replace(run, utilisation=sampled)
    training = dataclasses.replace(run, utilisation=trained, gpus=min(gpus, profile.spin.training.batch_size))
    return (
        iterations * estimate.generation_hours(sampling, architecture),
        sum(estimate.training_hours(training, architecture, t) for t in range(iterations)),
    )


def shares() -> tuple[float, float]:
    """Measured shares of the matrix rate that sampling and training on the paper's lengths reach; training's for both
    where sampling's has not been measured."""
    ratios = summaries()["results"]["ratios"]
    trained = ratios["fraction_of_matmul_peak"]["median"]
    return ratios.get(SAMPLED, {"median": trained})["median"], trained


def training_bytes(architecture: Architecture, profile: Profile, gpus: int = 1) -> float:
    """Bytes on each of so many GPUs that share out weights, masters, gradients and moments."""
    template, longest = profile.template, profile.generation.max_new_tokens
    row = template.max_prompt_tokens + template.max_response_tokens + longest
    settings = profile.spin.training
    need = estimate.training_memory(architecture, settings, width=2, longest=row, fused=gpus == 1, gpu=True)
    return need.total(gpus)


def sampling_bytes(architecture: Architecture, profile: Profile) -> float:
    """Bytes of the kit's own sampler on one GPU."""
    prompt, answer = profile.template.max_prompt_tokens, profile.generation.max_new_tokens
    rows = profile.generation.batch_size
    return estimate.sampling_memory(architecture, rows, prompt=prompt, answer=answer, width=2, gpu=True).total()


def _head() -> str:
    return (
        "# Predicted cost at scale\n\n"
        "Written by `python -m benchmarks.scaling` from the cost model, the memory model and the measured ratios in\n"
        "[results](results). These are predictions: nothing was run at these sizes."
    )


def _assumptions(profile: Profile) -> str:
    run, (sampled, trained) = Workload(), shares()
    training = profile.spin.training
    measured = SAMPLED in summaries()["results"]["ratios"]
    source = "as measured there" if measured else "which is training's share: its own has not been measured"
    return "\n".join(
        [
            "## Assumptions",
            "",
            f"- A GPU has {run.peak_flops / 1e12:.0f} TFLOP/s in bf16 and {run.bandwidth / 1e12:.2f} TB/s of memory "
            "bandwidth (data sheet of the A100 with 80 GB). Of the limit that bounds it, training reaches "
            f"{trained:.0%}, as measured on the two cores of [`results`](results), since no GPU has been measured yet. "
            f"Sampling reaches {sampled:.0%}, {source}.",
            f"- {run.prompt_tokens}, {run.real_tokens} and {run.generated_tokens} tokens for prompt, real and "
            "generated response; the paper does not give lengths.",
            f"- {profile.spin.iterations} iterations of {training.epochs} epochs, batch {training.batch_size}, pairs "
            "of t-1 mixed in, as in the profile `paper`. SFT, evaluation and the experiments around the chain are not "
            "included.",
            "- Work is split evenly and communication is free, so with several GPUs the true hours are longer.",
            f"- {run.decoded_together} rows are decoded together. Gradient checkpointing is counted in memory; the "
            "operations it repeats are not counted in hours.",
        ]
    )


def _measured() -> str:
    lines = ["## What was measured", "", "With SmolLM2-135M, on each machine at the commit recorded in its files."]
    for folder, summary in summaries().items():
        machine = summary["machine"]
        lines += ["", f"[`{folder}`]({folder}): {machine['cpu']}, {machine['device']}.", ""]
        lines += ["| ratio | median | low | high | runs |", "|---|---:|---:|---:|---:|"]
        for name, ratio in sorted(summary["ratios"].items()):
            numbers = f"{ratio['median']:.2f} | {ratio['low']:.2f} | {ratio['high']:.2f} | {ratio['runs']}"
            lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def summaries() -> dict[str, Mapping[str, Any]]:
    """The summary of every machine that was measured, by folder; `make bench` writes into `results`."""
    found = sorted(PAGE.parent.glob("results*/summary.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


def _hours(profile: Profile) -> str:
    lines = ["## Hours of the main chain", "", "Generation + training, by number of GPUs.", ""]
    lines += [f"| model | prompts | {' | '.join(map(str, GPUS))} |", f"|---|---:|{'---:|' * len(GPUS)}"]
    for name, architecture in MODELS.items():
        for prompts in PROMPTS:
            cells = []
            for gpus in GPUS:
                generation, training = chain_hours(architecture, prompts, gpus, profile)
                cells.append(f"{_number(generation)} + {_number(training)}")
            lines.append(f"| {name} | {prompts:,} | {' | '.join(cells)} |")
    batch = profile.spin.training.batch_size
    return "\n".join([*lines, "", f"Training gets no faster above {batch} GPUs, because a batch has {batch} pairs."])


def _bounds(profile: Profile) -> str:
    """What bounds each step of the paper's iteration 0: its operations, or the bytes that it reads and writes."""
    a, run, training = Architecture(), Workload(), profile.spin.training
    responses = run.real_tokens + run.generated_tokens
    pairs = run.prompts * estimate.forward_flops(a, run.prompt_tokens, run.real_tokens, run.generated_tokens)
    asked = run.prompts * estimate.forward_flops(a, run.prompt_tokens)
    answered = run.prompts * estimate.forward_flops(a, run.prompt_tokens, run.generated_tokens) - asked
    weights, tokens = 2 * a.parameters, run.prompts * (run.prompt_tokens + responses)
    passes = tokens / training.micro_batch_tokens  # each reads all weights once
    decoded = run.prompts / run.decoded_together * run.generated_tokens
    cache = 4 * a.layers * a.key_value * (run.prompt_tokens + run.generated_tokens / 2)
    updates = training.epochs * run.prompts / training.batch_size * run.gpus  # every GPU has a copy of the weights
    steps = {
        "sampling: prompts are read": (asked, run.prompts * run.prompt_tokens / GPU_PREFILL_TOKENS * weights),
        "sampling: token by token": (answered, decoded * (weights + run.decoded_together * cache)),
        "log-probabilities of the opponent": (pairs, passes * weights),
        "training: forward and backward": (3 * training.epochs * pairs, 3 * training.epochs * passes * weights),
        # Reads and writes master weights and RMSprop's average in float32, reads the gradient, writes the weights.
        "training: weights are updated": (0.0, updates * a.parameters * (2 * (4 + 4) + 2 + 2)),
    }
    lines = [
        "## What bounds each step",
        "",
        f"Iteration 0 of the paper's run, {run.prompts:,} prompts with Mistral-7B on {run.gpus} GPUs: hours at full "
        "matrix rate and at full memory bandwidth. Bytes are those of weights, cache and optimizer; activations "
        "are not counted.",
        "",
        "| step | operations | bytes | bound by |",
        "|---|---:|---:|---|",
    ]
    for name, (flops, read) in steps.items():
        hours = [flops / run.peak_flops / run.gpus / 3600, read / run.bandwidth / run.gpus / 3600]
        bound = "matrix rate" if hours[0] > hours[1] else "bandwidth"
        lines.append(f"| {name} | {_number(hours[0])} | {_number(hours[1])} | {bound} |")
    return "\n".join(lines)


def _memory(profile: Profile) -> str:
    tokens = profile.spin.training.micro_batch_tokens
    columns = " | ".join(f"training, {n} GPU{'s' if n > 1 else ''}" for n in GPUS)
    lines = [
        "## Memory per GPU, GB",
        "",
        f"Training with RMSprop, float32 master weights, micro-batches of {tokens:,} tokens and gradient "
        "checkpointing; sampling with the full weights on each GPU.",
        "",
        f"| model | parameters | {columns} | fewest 80 GB GPUs | sampling |",
        f"|---|---:|{'---:|' * (len(GPUS) + 2)}",
    ]
    for name, architecture in MODELS.items():
        cells = [_number(training_bytes(architecture, profile, gpus) / 1e9) for gpus in GPUS]
        least = _first(lambda n, a=architecture: training_bytes(a, profile, n) <= GPU_MEMORY, range(1, 4097))
        sampling = _number(sampling_bytes(architecture, profile) / 1e9)
        size = f"{architecture.parameters / 1e9:.3g} B"
        lines.append(f"| {name} | {size} | {' | '.join(cells)} | {least or 'more than 4096'} | {sampling} |")
    return "\n".join(lines)


def _disk(profile: Profile) -> str:
    lines = [
        "## Disk, GB",
        "",
        "| model | one checkpoint | resume state | seconds to write it |",
        "|---|---:|---:|---:|",
    ]
    for name, architecture in MODELS.items():
        state = estimate.optimizer_state(architecture, profile.spin.training)
        checkpoint = estimate.checkpoint(architecture)
        lines.append(
            f"| {name} | {_number(checkpoint / 1e9)} | {_number(state / 1e9)} | {_number(state / DISK_RATE)} |"
        )
    run = Workload()
    tokens = run.prompt_tokens + run.real_tokens + run.generated_tokens
    pairs = ", ".join(f"{prompts:,}: {_number(4 * tokens * prompts / 1e9)} GB" for prompts in PROMPTS)
    return "\n".join(
        [*lines, "", f"Writing at {DISK_RATE / 1e9:.0f} GB/s. Pairs per iteration, by number of prompts: {pairs}."]
    )


def _limits(profile: Profile) -> str:
    return "\n".join(
        ["## Where each design decision breaks down", "", *(f"- {line}" for line in _limit_lines(profile))]
    )


def _limit_lines(profile: Profile) -> Iterator[str]:
    run, training = Workload(), profile.spin.training
    fits = [name for name, a in MODELS.items() if training_bytes(a, profile) <= GPU_MEMORY]
    yield (
        f"**Float32 master weights in one process.** 14 bytes per parameter with RMSprop. Of the models above, "
        f"{_list(fits)} train on one 80 GB GPU; larger ones have to be sharded (FSDP2, ZeRO-3)."
    )
    samples = [name for name, a in MODELS.items() if sampling_bytes(a, profile) <= GPU_MEMORY]
    whole = [name for name, a in MODELS.items() if 2 * a.parameters > GPU_MEMORY]
    others = [name for name in MODELS if name not in (*samples, *whole)]
    yield (
        f"**The kit's sampler keeps the full weights on one device.** With {profile.generation.batch_size} rows of "
        f"{profile.template.max_prompt_tokens + profile.generation.max_new_tokens} tokens, {_list(samples)} fit in "
        f"80 GB. {_list(others)}: use fewer rows. {_list(whole)}: the weights alone do not fit, so use vLLM with "
        "tensor parallelism."
    )
    yield (
        f"**Batch {training.batch_size}, as in the paper.** Pairs are divided among GPUs, so training can use at most "
        f"{training.batch_size}. More need a larger batch, which is another experiment."
    )
    slow = [
        name
        for name, a in MODELS.items()
        if estimate.optimizer_state(a, training) / DISK_RATE > 60 * training.save_minutes / 10
    ]
    yield (
        f"**A resume state every {training.save_minutes:g} minutes.** Written by one process at "
        f"{DISK_RATE / 1e9:.0f} GB/s it takes more than a tenth of that time for {_list(slow)}: raise `save_minutes`."
    )
    row = CHARACTERS * (run.prompt_tokens + run.real_tokens)
    yield (
        f"**Demonstrations are read into memory** to check and shuffle them: their text alone is "
        f"{', '.join(f'{_number(row * n / 1e9)} GB at {n:,} prompts' for n in PROMPTS)}. Pairs stay on disk."
    )
    answers = CHARACTERS * (run.prompt_tokens + run.real_tokens + run.generated_tokens)
    yield (
        "**Results contain every generated response as text**, so that tables can be drawn without a model: "
        f"{', '.join(f'{_number(answers * n / 1e9)} GB per iteration at {n:,}' for n in PROMPTS)}. Beyond the "
        "paper's size they no longer belong in git."
    )
    steps = [2 * n * training.epochs // training.batch_size for n in PROMPTS]
    yield (
        "**One row of metrics per step.** A later iteration has "
        f"{', '.join(f'{step:,} steps at {n:,} prompts' for step, n in zip(steps, PROMPTS, strict=True))}: raise "
        "`log_every`."
    )
    seventy = MODELS["Llama-3-70B"]
    share = estimate.forward_flops(seventy, run.prompt_tokens, run.real_tokens, run.generated_tokens)
    apart = sum(estimate.forward_flops(seventy, run.prompt_tokens, n) for n in (run.real_tokens, run.generated_tokens))
    small = MODELS["SmolLM2-135M"]
    shared = estimate.forward_flops(small, run.prompt_tokens, run.real_tokens, run.generated_tokens)
    twice = sum(estimate.forward_flops(small, run.prompt_tokens, n) for n in (run.real_tokens, run.generated_tokens))
    yield (
        f"**The shared prompt** saves {1 - shared / twice:.0%} of the operations of a pair with SmolLM2-135M and "
        f"{1 - share / apart:.0%} with Llama-3-70B at the lengths above; it saves little if prompts are short "
        "compared with responses."
    )
    head = Architecture()
    yield (
        f"**The LM head in chunks** keeps at most {_number(2 * logprobs.KEPT_LOGITS / 1e9)} GB of logits, whatever "
        f"the vocabulary; all logits of a micro-batch of {training.micro_batch_tokens:,} tokens would take "
        f"{_number(2 * training.micro_batch_tokens * seventy.vocabulary / 1e9)} GB with Llama-3's vocabulary and "
        f"{_number(2 * training.micro_batch_tokens * head.vocabulary / 1e9)} GB with Mistral's."
    )


def _first(holds: Callable[[int], bool], numbers: Sequence[int]) -> int | None:
    return next((n for n in numbers if holds(n)), None)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
