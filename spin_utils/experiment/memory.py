"""How much memory and disk a stage needs, counted from the sizes of the model and the settings of the profile.

Everything that grows with the model, the micro-batch or the rows decoded together is counted. The libraries,
fragmentation and the caches of an allocator are not: `MARGIN` and `LIBRARIES` stand for them. Tests hold the count to
the peaks of real runs on a CPU and, where there is one, on a GPU.
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
"""Memory of a process before there is a model: 0.4 GB with PyTorch and transformers, more with lm-eval or CUDA."""
SCORED_TOKENS = 4096
"""Tokens of one scoring pass of an evaluation, as in `lm`."""
VLLM_PREFILL_TOKENS = 16_384
"""Prompt tokens that vLLM reads in one pass by default: this many on an H100, half of it on smaller GPUs."""
MT_BENCH_TOKENS = 500
"""Longest pair of questions of MT-Bench with the template's markers."""
BENCHMARK_TOKENS, BENCHMARK_ANSWER = 1400, 1024
"""Assumed longest prompt of a generation task of the paper's suite, three worked examples of Big-Bench-Hard, and the
longest answer that lm-eval asks for there."""
CHOICES_TOKENS = 2048
"""Assumed longest multiple-choice item of the paper's suite."""
VLLM = "generation by vLLM"


@dataclass(frozen=True)
class Need:
    """Bytes that one stage needs at its peak."""

    stage: str
    sharded: Mapping[str, float]
    """What several processes can share (FSDP2, ZeRO-3): weights, masters, gradients, moments."""
    own: Mapping[str, float]
    """What every process has for itself."""
    lower: str = ""
    """Settings that lower it."""
    share: float = 1.0
    """Part of a device's memory that the stage may take."""

    def total(self, devices: int = 1) -> float:
        """Bytes that one device must have free, margin included."""
        return (MARGIN * (sum(self.sharded.values()) / devices + sum(self.own.values())) + LIBRARIES) / self.share


def needs(profile: Profile, architecture: Architecture, lengths: Lengths, kind: str, width: int) -> Iterator[Need]:
    """What each kind of stage needs.

    Args:
        profile: its settings.
        architecture: sizes of the model.
        lengths: of the rows.
        kind: `cpu` or `cuda`.
        width: bytes of a number where the precision is `auto`, as it always is outside training.
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
    held_out = profile.demonstrations.validation_rows != 0  # the kit itself answers these
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
    """Devices over which training spreads weights, gradients and optimizer state."""
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
    """Forward, backward and optimizer step of one micro-batch.

    Args:
        architecture: sizes of the model.
        settings: of the run.
        width: bytes of a number in the compute precision, 2 or 4.
        longest: tokens of the longest row with all its responses; it gets a micro-batch even above the budget.
        fused: whether layers take the path of `layers`, as all do whose weights are not sharded.
        gpu: where it runs.
        stage: its name.
        lower: settings that lower the need.
    """
    a, tokens = architecture, max(settings.micro_batch_tokens, longest)
    sharded = {
        "weights": width * a.parameters if width == 2 else 0,  # in float32 the masters are the weights
        "masters": 4 * a.parameters,
        "gradients": 4 * a.parameters,
        "moments": 4 * (1 if settings.optimizer == "rmsprop" else 2) * a.parameters,
    }
    layer = tokens * width * kept_per_token(a, width, fused)
    kept = tokens * width * a.hidden * a.layers + layer if settings.gradient_checkpointing else layer * a.layers
    logits = tokens * a.vocabulary  # at most: prompts have none
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
    """Decoding `batch_size` rows at once.

    Args:
        architecture: sizes of the model.
        settings: rows decoded together.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer.
        width: bytes of a number in the compute precision, 2 or 4.
        gpu: where it runs; on a CPU the weights are copied once more.
        stage: its name, which is the section of the settings too.
    """
    a, rows = architecture, settings.batch_size
    position = 2 * width * a.key_value  # a key and a value
    prefill = sampler.GPU_PREFILL_TOKENS if gpu else sampler.PREFILL_TOKENS
    own = {
        "weights": width * (1 if gpu else 2) * a.parameters,
        "key-value cache": rows * (prompt + answer) * position * (a.layers + 1),  # one layer twice while it grows
        "prompts": prefill * width * (2 * a.feed_forward + 8 * a.hidden),
        "logits": width * rows * a.vocabulary
        + 3 * 4 * (min(rows * a.vocabulary, packing.GPU_ELEMENTS) if gpu else 2**20),
    }
    return Need(stage, {}, own, f"lower {stage}.batch_size")


def vllm(architecture: Architecture, settings: GenerationSettings, *, prompt: int, answer: int) -> Need:
    """The least that vLLM starts with: a cache for one longest answer. Not measured.

    What is left of its share of a device goes to the cache too and decides how many answers it decodes at once.

    Args:
        architecture: sizes of the model.
        settings: with the share, and the GPUs that divide a copy of the model.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer.
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
    """Log-likelihoods of choices: one pass of `lm` without gradients."""
    a, tokens = architecture, max(SCORED_TOKENS, longest)
    own = {
        "weights": width * a.parameters,
        "activations": tokens * width * (4 * a.feed_forward + 10 * a.hidden),
        "attention": tokens * _attention_per_token(a, width, longest, gpu),
        "logits": 3 * 4 * (packing.GPU_ELEMENTS if gpu else lm.HEAD_ELEMENTS),
    }
    return Need("evaluation, choices", {}, own, "take a smaller model or more memory")


def kept_per_token(a: Architecture, width: int, fused: bool) -> int:
    """Numbers that one layer keeps of a token for the backward pass.

    `layers` keeps ten tensors. transformers' own layers also keep the inputs of the products behind norms and
    gates, and in half precision the norms' inputs in float32.
    """
    if fused:
        return 2 * a.hidden + 2 * a.query + 2 * a.key_value + 2 * a.feed_forward
    norms = 8 if width == 2 else 6
    return norms * a.hidden + 2 * a.query + 2 * a.key_value + 4 * a.feed_forward


def disk(plan: Plan, architecture: Architecture, lengths: Lengths) -> float:
    """Bytes on disk of one seed's unfinished artifacts, and of the state that a running step keeps for resuming."""
    profile, spin, one, total = plan.profile, plan.profile.spin, checkpoint(architecture), 0.0
    unfinished = [step for step in plan if not artifacts.is_complete(step.directory)]
    for step in unfinished:
        if step.stage == "base":
            source = profile.released.get(step.name, profile.model).source
            # A folder stays where it is, and the hub's weights are bfloat16.
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
        total += 2 * max(states)  # a new state is whole before the old one goes
    return total


def checkpoint(architecture: Architecture) -> int:
    """Bytes of the weights of a trained model, in float32. The file adds a header of a few kilobytes."""
    return 4 * architecture.parameters


def optimizer_state(architecture: Architecture, settings: TrainingSettings) -> int:
    """Bytes of a saved state of a run: masters and moments."""
    return 4 * (2 if settings.optimizer == "rmsprop" else 3) * architecture.parameters


def _longest_row(profile: Profile, section: str, lengths: Lengths) -> int:
    """Tokens of the longest row of a training run with all its responses, at most."""
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
    """Bytes for one token's attention weights, their derivative and one copy, and for the mask.

    A GPU's kernels keep no weights; there it is queries, keys, values, output and their gradients, twice, because a
    prompt stands before every response.
    """
    if gpu:
        keys = a.key_value if width == 2 else a.query
        return 2 * width * (4 * a.query + 4 * keys)
    return 3 * width * a.heads * min(2 * attention.BLOCK, longest) + (width + 2) * longest
