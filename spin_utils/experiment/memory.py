"""How much memory and disk a stage needs, computed from the model's sizes and the profile's settings.

Everything that grows with the model, the micro-batch or the rows decoded together is counted. `MARGIN` and `LIBRARIES`
allow for the libraries, fragmentation and allocator caches. Tests compare the estimate with the peaks of real runs on a
CPU and, if there is one, on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from spin_utils.evaluation import judge, lm
from spin_utils.experiment.plan import Plan, trainings
from spin_utils.experiment.sizes import Architecture, Lengths, Machine
from spin_utils.files import artifacts
from spin_utils.model import attention, logprobs, packing
from spin_utils.model import sampling as sampler
from spin_utils.settings.machine import MtBenchSettings
from spin_utils.settings.run import EvaluationSettings, GenerationSettings, Profile, TrainingSettings

MARGIN = 1.1
"""Factor on the sum, for fragmentation and allocator caches."""
LIBRARIES = 600 * 2**20
"""Memory of a process before it loads a model: 0.4 GB with PyTorch and transformers, more with lm-eval or CUDA."""
SCORED_TOKENS = 4096
"""Tokens per scoring pass of an evaluation, as in `lm`."""
VLLM_PREFILL_TOKENS = 16_384
"""Prompt tokens that vLLM reads in one pass by default on an H100; half as many on smaller GPUs."""
MT_BENCH_TOKENS = 500
"""Longest pair of MT-Bench questions, with the template's markers."""
BENCHMARK_TOKENS, BENCHMARK_ANSWER = 1400, 1024
"""Assumed longest prompt of a generation task in the paper's suite (three worked examples of Big-Bench-Hard), and the
longest answer that lm-eval allows there."""
CHOICES_TOKENS = 2048
"""Assumed longest multiple-choice item in the paper's suite."""
VLLM = "generation by vLLM"


@dataclass(frozen=True)
class Need:
    """Peak memory of one stage, in bytes."""

    stage: str
    sharded: Mapping[str, float]
    """Parts that can be sharded over processes (FSDP2, ZeRO-3): weights, masters, gradients, moments."""
    own: Mapping[str, float]
    """Parts that every process has in full."""
    lower: str = ""
    """Settings that would lower it."""
    share: float = 1.0
    """Fraction of a device's memory that the stage may use."""

    def total(self, devices: int = 1) -> float:
        """Bytes that have to be free on each device, margin included."""
        return (MARGIN * (sum(self.sharded.values()) / devices + sum(self.own.values())) + LIBRARIES) / self.share


def needs(profile: Profile, architecture: Architecture, lengths: Lengths, kind: str, width: int) -> Iterator[Need]:
    """Memory needs of each kind of stage.

    Args:
        profile: its settings.
        architecture: sizes of the model.
        lengths: of the rows.
        kind: `cpu` or `cuda`.
        width: bytes per number if the precision is `auto`, as it always is outside training.
    """
    gpu, prompt = kind == "cuda", lengths.longest_prompt
    sample = partial(sampling, architecture, width=width, gpu=gpu)
    for section, settings in trainings(profile).items():
        yield training(
            architecture,
            settings,
            width={"bfloat16": 2, "float32": 4, "auto": width}[settings.precision],
            longest=_longest_row(profile, section, lengths),
            fused=profile.processes.sharding == "ddp",
            gpu=gpu,
            stage=section.partition(".")[0],
            lower=f"lower {section}.micro_batch_tokens, set {section}.gradient_checkpointing=true, or shard it over "
            "more devices (processes.sharding=fsdp2, resources.training.gpus)",
        )
    answer, by_vllm = profile.generation.max_new_tokens, profile.generation.backend == "vllm"
    if not profile.released and by_vllm:
        yield vllm(architecture, profile.generation, prompt=prompt, answer=answer)
    held_out = profile.demonstrations.validation_rows != 0  # sampled by the kit itself
    if not profile.released and (held_out or not by_vllm):
        yield sample(profile.generation, prompt=prompt, answer=answer, stage="generation")
    if profile.evaluation.suite == "local":
        yield sample(profile.evaluation, prompt=prompt, answer=profile.evaluation.max_new_tokens, stage="evaluation")
    else:
        yield scoring(architecture, longest=CHOICES_TOKENS, width=width, gpu=gpu)
        yield sample(profile.evaluation, prompt=BENCHMARK_TOKENS, answer=BENCHMARK_ANSWER, stage="evaluation")
    if profile.mt_bench is not None and judge.has_key():
        answer = profile.mt_bench.max_new_tokens
        # The second turn's prompt includes the first answer.
        yield sample(profile.mt_bench, prompt=MT_BENCH_TOKENS + answer, answer=answer, stage="mt_bench")


def shared_by(profile: Profile, machine: Machine) -> int:
    """Number of devices over which training shards weights, gradients and optimizer state."""
    if profile.processes.sharding == "ddp":
        return 1
    return profile.processes.count or max(1, min(profile.resources.training.gpus, machine.devices))


def training(
    architecture: Architecture,
    settings: TrainingSettings,
    *,
    width: int,
    longest: int,
    fused: bool,
    gpu: bool,
    stage: str,
    lower: str = "",
) -> Need:
    """Memory for forward, backward and optimizer step of one micro-batch.

    Args:
        architecture: sizes of the model.
        settings: of the run.
        width: bytes per number in the compute precision, 2 or 4.
        longest: tokens of the longest row with all its responses; it forms a micro-batch even above the budget.
        fused: whether layers use the path in `layers`, as they do unless their weights are sharded.
        gpu: whether it runs on a GPU.
        stage: its name.
        lower: settings that would lower it.
    """
    a, tokens = architecture, max(settings.micro_batch_tokens, longest)
    sharded = {
        "weights": width * a.parameters if width == 2 else 0,  # in float32 the master weights are the weights
        "masters": 4 * a.parameters,
        "gradients": 4 * a.parameters,
        "moments": 4 * (1 if settings.optimizer == "rmsprop" else 2) * a.parameters,
    }
    layer = tokens * width * kept_per_token(a, width, fused)
    kept = tokens * width * a.hidden * a.layers + layer if settings.gradient_checkpointing else layer * a.layers
    logits = tokens * a.vocabulary  # an upper bound: prompts have none
    own = {
        "activations": kept,
        "backward of a layer": tokens * (width * (6 * a.feed_forward + 6 * a.hidden) + 4 * 4 * a.hidden),
        "attention": tokens * _attention_per_token(a, width, longest, gpu),
        "logits": width * (logits if logits <= logprobs.KEPT_LOGITS else 2 * logprobs.CHUNK_LOGITS)
        + (4 * min(logits, packing.GPU_ELEMENTS) if gpu else 0)
        + 4 * a.vocabulary * a.hidden,
        "one gradient": width * max(a.vocabulary, a.feed_forward) * a.hidden,
    }
    return Need(stage, sharded, own, lower)


def sampling(
    architecture: Architecture,
    settings: GenerationSettings | EvaluationSettings | MtBenchSettings,
    *,
    prompt: int,
    answer: int,
    width: int,
    gpu: bool,
    stage: str,
) -> Need:
    """Memory for decoding `batch_size` rows at once.

    Args:
        architecture: sizes of the model.
        settings: rows decoded together.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest response.
        width: bytes per number in the compute precision, 2 or 4.
        gpu: whether it runs on a GPU; on a CPU there is a second copy of the weights.
        stage: its name, which is also the section of the settings.
    """
    a, rows = architecture, settings.batch_size
    position = 2 * width * a.key_value  # a key and a value
    prefill = sampler.GPU_PREFILL_TOKENS if gpu else sampler.PREFILL_TOKENS
    own = {
        "weights": width * (1 if gpu else 2) * a.parameters,
        "key-value cache": rows
        * (prompt + answer)
        * position
        * (a.layers + 1),  # one layer is held twice while it grows
        "prompts": prefill * width * (2 * a.feed_forward + 8 * a.hidden),
        "logits": width * rows * a.vocabulary
        + 3 * 4 * (min(rows * a.vocabulary, packing.GPU_ELEMENTS) if gpu else 2**20),
    }
    return Need(stage, {}, own, f"lower {stage}.batch_size")


def vllm(architecture: Architecture, settings: GenerationSettings, *, prompt: int, answer: int) -> Need:
    """The least memory vLLM starts with: a cache for one response of the maximum length. Not measured.

    The rest of its share of a device also goes to the cache and determines how many responses it decodes at once.

    Args:
        architecture: sizes of the model.
        settings: for the share, and the number of GPUs per copy of the model.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest response.
    """
    a, gpus = architecture, settings.vllm.tensor_parallel_size
    own = {
        "weights": 2 * a.parameters / gpus,
        "key-value cache": (prompt + answer) * 2 * 2 * a.key_value * a.layers / gpus,
        "prompts": VLLM_PREFILL_TOKENS * 2 * (2 * a.feed_forward / gpus + 8 * a.hidden),
        "logits": 2 * 4 * settings.batch_size * a.vocabulary,  # and their log-probabilities
    }
    lower = "raise generation.vllm.tensor_parallel_size"
    return Need(VLLM, {}, own, lower, share=settings.vllm.gpu_memory_utilization)


def scoring(architecture: Architecture, *, longest: int, width: int, gpu: bool) -> Need:
    """Memory for log-likelihoods of choices: one pass of `lm` without gradients."""
    a, tokens = architecture, max(SCORED_TOKENS, longest)
    own = {
        "weights": width * a.parameters,
        "activations": tokens * width * (4 * a.feed_forward + 10 * a.hidden),
        "attention": tokens * _attention_per_token(a, width, longest, gpu),
        "logits": 3 * 4 * (packing.GPU_ELEMENTS if gpu else lm.HEAD_ELEMENTS),
    }
    return Need("evaluation, choices", {}, own, "take a smaller model or more memory")


def kept_per_token(a: Architecture, width: int, fused: bool) -> int:
    """Numbers per token that one layer stores for the backward pass.

    `layers` stores ten tensors. The layers in transformers also store the inputs of the products after norms and gates,
    and in half precision the norms' inputs in float32.
    """
    if fused:
        return 2 * a.hidden + 2 * a.query + 2 * a.key_value + 2 * a.feed_forward
    norms = 8 if width == 2 else 6
    return norms * a.hidden + 2 * a.query + 2 * a.key_value + 4 * a.feed_forward


def disk(plan: Plan, architecture: Architecture, lengths: Lengths) -> float:
    """Bytes on disk for one seed's unfinished artifacts, including the state that a running step saves for resuming."""
    profile, spin, one, total = plan.profile, plan.profile.spin, checkpoint(architecture), 0.0
    unfinished = [step for step in plan if not artifacts.is_complete(step.directory)]
    for step in unfinished:
        if step.stage == "base":
            source = profile.released.get(step.name, profile.model).source
            # A folder is used in place, and the hub's weights are bfloat16.
            total += {"directory": 0.0, "hub": one / 2}.get(source, one)
        if step.stage in ("sft", "spin", "subset", "dpo"):
            total += one
        if step.name == "spin-0" and spin.epochs_shown:
            total += one * (spin.training.epochs - 1)
        if step.stage == "epochs":
            more = spin.epochs_shown - spin.training.epochs
            total += one * more + optimizer_state(architecture, spin.training)
        if step.stage == "pairs":
            total += lengths.spin_rows * 4 * (lengths.prompt + lengths.real + lengths.generated)
    if any("training" in step.settings for step in unfinished):
        states = (optimizer_state(architecture, settings) for settings in trainings(profile).values())
        total += 2 * max(states)  # a new state is complete before the old one is deleted
    return total


def checkpoint(architecture: Architecture) -> int:
    """Bytes of a trained model's weights, in float32. The file's header adds a few kilobytes."""
    return 4 * architecture.parameters


def optimizer_state(architecture: Architecture, settings: TrainingSettings) -> int:
    """Bytes of a run's saved state: master weights and moments."""
    return 4 * (2 if settings.optimizer == "rmsprop" else 3) * architecture.parameters


def _longest_row(profile: Profile, section: str, lengths: Lengths) -> int:
    """Upper bound on the tokens of a training run's longest row, with all its responses."""
    if section == "sft":
        return lengths.longest_prompt + lengths.longest_real
    if section == "sft_control.training":
        control = lengths.control or lengths
        return control.longest_prompt + control.longest_real
    if section == "dpo.training" and lengths.preferences is not None:
        return lengths.preferences.longest_prompt + 2 * lengths.preferences.longest_real
    generated = max(profile.generation.max_new_tokens, lengths.longest_real)
    return lengths.longest_prompt + lengths.longest_real + generated


def _attention_per_token(a: Architecture, width: int, longest: int, gpu: bool) -> int:
    """Bytes per token for attention weights, their gradient and one copy, and for the mask.

    GPU kernels do not store the weights. There it is queries, keys, values, output and their gradients, twice, because
    each response has its own copy of the prompt.
    """
    if gpu:
        keys = a.key_value if width == 2 else a.query
        return 2 * width * (4 * a.query + 4 * keys)
    return 3 * width * a.heads * min(2 * attention.BLOCK, longest) + (width + 2) * longest
