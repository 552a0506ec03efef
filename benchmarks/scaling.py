"""Predicted hours, memory and disk at larger scales, from the cost model, and where each design decision breaks down.

    python -m benchmarks.scaling      writes benchmarks/scaling.md

Nothing here was run at these sizes. The ratios on the page were measured: benchmarks/results and its sibling folders.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from spin_utils.experiment import cost, estimate
from spin_utils.experiment.cost import Architecture, Workload
from spin_utils.experiment.estimate import CHARACTERS
from spin_utils.model import logprobs
from spin_utils.settings import profiles
from spin_utils.settings.run import Profile

PAGE = Path(__file__).parent / "scaling.md"
MODELS = {
    "SmolLM2-135M": Architecture(30, 576, 576, 192, 1536, 49_152, 9, 134_515_008),
    "Qwen2.5-0.5B": Architecture(24, 896, 896, 128, 4864, 151_936, 14, 494_032_768),
    "SmolLM2-1.7B": Architecture(24, 2048, 2048, 2048, 8192, 49_152, 32, 1_711_376_384),
    "Mistral-7B": Architecture(),
    "Llama-2-13B": Architecture(40, 5120, 5120, 5120, 13_824, 32_000, 40, 13_015_864_320),
    "Llama-3-70B": Architecture(80, 8192, 8192, 1024, 28_672, 128_256, 64, 70_553_706_496),
}
"""Sizes from each model's public config.json; the last one is all parameters."""
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
    """The page, from scaling.md.j2; the same measurements give the same bytes."""
    profile, run, measured = profiles.load("paper"), Workload(), summaries()
    training, (sampled, trained) = profile.spin.training, shares()
    fits, samples = (
        [name for name, a in MODELS.items() if needed(a, profile) <= GPU_MEMORY]
        for needed in (training_bytes, sampling_bytes)
    )
    too_large = [name for name, a in MODELS.items() if 2 * a.parameters > GPU_MEMORY]
    states = {name: estimate.optimizer_state(a, training) for name, a in MODELS.items()}
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"short": _short, "listed": lambda names: ", ".join(names) or "none"}
    return templates.get_template("scaling.md.j2").render(
        run=run,
        spin=profile.spin,
        training=training,
        generation=profile.generation,
        template=profile.template,
        trained=trained,
        sampled=sampled,
        sampling_measured=SAMPLED in measured["results"]["ratios"],
        summaries=measured,
        models=MODELS,
        gpus=GPUS,
        prompts=PROMPTS,
        rate=DISK_RATE,
        tokens=run.prompt_tokens + run.real_tokens + run.generated_tokens,
        characters=CHARACTERS,
        kept_logits=logprobs.KEPT_LOGITS,
        hours=[(m, n, [chain_hours(a, n, gpus, profile) for gpus in GPUS]) for m, a in MODELS.items() for n in PROMPTS],
        memory=[_memory(name, profile) for name in MODELS],
        disk=[(name, estimate.checkpoint(a), states[name]) for name, a in MODELS.items()],
        fits=fits,
        samples=samples,
        too_large=too_large,
        fewer_rows=[name for name in MODELS if name not in (*samples, *too_large)],
        slow=[name for name, state in states.items() if state / DISK_RATE > 60 * training.save_minutes / 10],
        saved=_saved,
    )


def chain_hours(architecture: Architecture, prompts: int, gpus: int, profile: Profile) -> tuple[float, float]:
    """Hours of generation and of training of all iterations.

    A batch is shared out by pairs, so no more GPUs than pairs of a batch take part in training.
    """
    machine = dataclasses.replace(cost.A100S, devices=gpus)
    run = dataclasses.replace(Workload(), prompts=prompts, machine=machine, epochs=profile.spin.training.epochs)
    iterations, (sampled, trained) = profile.spin.iterations, shares()
    sampling = dataclasses.replace(run, utilisation=sampled)
    shared = dataclasses.replace(machine, devices=min(gpus, profile.spin.training.batch_size))
    training = dataclasses.replace(run, utilisation=trained, machine=shared)
    return (
        iterations * cost.generation_hours(sampling, architecture),
        sum(cost.training_hours(training, architecture, t) for t in range(iterations)),
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


def summaries() -> dict[str, Mapping[str, Any]]:
    """The summary of every machine that was measured, by folder; `make bench` writes into `results`."""
    found = sorted(PAGE.parent.glob("results*/summary.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


def _memory(name: str, profile: Profile) -> tuple[str, int, list[float], int | None, float]:
    """A model's parameters, bytes to train it on so many GPUs, the fewest that can, and bytes to sample from it."""
    a = MODELS[name]
    fewest = next((n for n in range(1, 4097) if training_bytes(a, profile, n) <= GPU_MEMORY), None)
    needed = [training_bytes(a, profile, gpus) for gpus in GPUS]
    return name, a.parameters, needed, fewest, sampling_bytes(a, profile)


def _saved(name: str) -> float:
    """Share of a pair's operations that its shared prompt saves."""
    a, run = MODELS[name], Workload()
    answers = (run.real_tokens, run.generated_tokens)
    apart = sum(cost.forward_flops(a, run.prompt_tokens, answer) for answer in answers)
    return 1 - cost.forward_flops(a, run.prompt_tokens, *answers) / apart


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
