"""How many bytes a stage needs, counted from the sizes of the model and the settings of the profile.

What is counted: everything that grows with the model, the micro-batch or the rows decoded together. What is not: the
libraries themselves, fragmentation and the caches of an allocator; `MARGIN` stands for them. The tests hold the count
to the peaks of real runs on a CPU and, where there is one, on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spin_utils.paper.cost_model import Architecture
from spin_utils.settings.machine import MtBenchSettings
from spin_utils.settings.run import EvaluationSettings, GenerationSettings, TrainingSettings

MARGIN = 1.1
"""Factor on the sum, for fragmentation and allocator caches."""
LIBRARIES = 600 * 2**20
"""Memory of a process before there is a model: 0.4 GB with PyTorch and transformers, more with lm-eval or CUDA."""
GPU_ELEMENTS = 2**25
"""As in `packing.py`: elements of a matrix handled at once in float32 on a GPU; on a CPU they do not count."""
KEPT_LOGITS, CHUNK_LOGITS = 2**27, 2**25
"""As in `logprobs.py`: logits of a micro-batch whose derivative is kept, and logits held at once otherwise."""
ATTENTION_BLOCK = 128
"""Queries whose attention weights `attention.py` holds at once: two blocks."""
SCORED_TOKENS, SCORED_LOGITS = 4096, 2**23
"""As in `lm.py`: tokens and logits of one scoring pass of an evaluation."""
PREFILL_TOKENS, GPU_PREFILL_TOKENS = 2048, 8192
"""As in `sampling.py`: prompt tokens read in one pass."""
VLLM_PREFILL_TOKENS = 16_384
"""Prompt tokens that vLLM reads in one pass if not told otherwise: so many on an H100, half of it on smaller GPUs."""
MT_BENCH_TOKENS = 500
"""Longest pair of questions of MT-Bench, the template's markers included."""
BENCHMARK_TOKENS = 1400
"""Assumed longest prompt of a generation task of the paper's suite: three worked examples of Big-Bench-Hard."""
BENCHMARK_ANSWER = 1024
"""Longest answer there, as lm-eval's Big-Bench-Hard asks for."""


@dataclass(frozen=True)
class Need:
    """Bytes that one stage needs at its peak."""

    stage: str
    sharded: Mapping[str, float]
    """What several processes can share out (FSDP2, ZeRO-3): weights, masters, gradients, moments."""
    own: Mapping[str, float]
    """What every process has for itself."""
    share: float = 1.0
    """Part of a device's memory that the stage may take."""

    def total(self, devices: int = 1) -> float:
        """Bytes that one device must have free, with the margin."""
        return (MARGIN * (sum(self.sharded.values()) / devices + sum(self.own.values())) + LIBRARIES) / self.share


def training(
    architecture: Architecture,
    settings: TrainingSettings,
    *,
    width: int,
    longest: int,
    fused: bool,
    gpu: bool,
    stage: str,
) -> Need:
    """Forward, backward and optimizer step of one micro-batch.

    Args:
        architecture: sizes of the model.
        settings: of the run.
        width: bytes of a number in the compute precision, 2 or 4.
        longest: tokens of the longest row with all its responses; it gets a micro-batch even above the budget.
        fused: whether layers take the path of `layers.py`, as all do whose weights are not spread.
        gpu: where it runs.
        stage: its name.
    """
    a, tokens = architecture, max(settings.micro_batch_tokens, longest)
    moments = 1 if settings.optimizer == "rmsprop" else 2
    sharded = {
        "weights": 0 if width == 4 else width * a.parameters,  # in float32 the masters are the weights
        "masters": 4 * a.parameters,
        "gradients": 4 * a.parameters,
        "moments": 4 * moments * a.parameters,
    }
    layer = tokens * width * _kept_per_token(a, width, fused)
    kept = tokens * width * a.hidden * a.layers + layer if settings.gradient_checkpointing else layer * a.layers
    logits = tokens * a.vocabulary  # at most: prompts have none
    own = {
        "activations": kept,
        "backward of a layer": tokens * (width * (6 * a.feed_forward + 6 * a.hidden) + 4 * 4 * a.hidden),
        "attention": tokens * _attention_per_token(a, width, longest, gpu),
        "logits": width * (logits if logits <= KEPT_LOGITS else 2 * CHUNK_LOGITS)
        + (4 * min(logits, GPU_ELEMENTS) if gpu else 0)
        + 4 * a.vocabulary * a.hidden,
        "one gradient": width * max(a.vocabulary, a.feed_forward) * a.hidden,
    }
    return Need(stage, sharded, own)


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
        stage: its name.
    """
    a, rows = architecture, settings.batch_size
    position = 2 * width * a.key_value  # a key and a value
    own = {
        "weights": width * (1 if gpu else 2) * a.parameters,
        "key-value cache": rows * (prompt + answer) * position * (a.layers + 1),  # one layer twice while it grows
        "prompts": (GPU_PREFILL_TOKENS if gpu else PREFILL_TOKENS) * width * (2 * a.feed_forward + 8 * a.hidden),
        "logits": width * rows * a.vocabulary + 3 * 4 * (min(rows * a.vocabulary, GPU_ELEMENTS) if gpu else 2**20),
    }
    return Need(stage, {}, own)


def vllm(architecture: Architecture, settings: GenerationSettings, *, prompt: int, answer: int, stage: str) -> Need:
    """The least with which vLLM starts: its cache has room for one longest answer. What is left of its share of a
    device goes to the cache too, and says how many of the `batch_size` answers it decodes at once. Not measured.

    Args:
        architecture: sizes of the model.
        settings: with the share, and the GPUs that divide a copy of the model.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer.
        stage: its name.
    """
    a, gpus = architecture, settings.vllm.tensor_parallel_size
    own = {
        "weights": 2 * a.parameters / gpus,
        "key-value cache": (prompt + answer) * 2 * 2 * a.key_value * a.layers / gpus,
        "prompts": VLLM_PREFILL_TOKENS * 2 * (2 * a.feed_forward / gpus + 8 * a.hidden),
        "logits": 2 * 4 * settings.batch_size * a.vocabulary,  # and their log-probabilities
    }
    return Need(stage, {}, own, share=settings.vllm.gpu_memory_utilization)


def scoring(architecture: Architecture, *, longest: int, width: int, gpu: bool, stage: str) -> Need:
    """Log-likelihoods of choices: one pass of `lm.py` without gradients."""
    a, tokens = architecture, max(SCORED_TOKENS, longest)
    own = {
        "weights": width * a.parameters,
        "activations": tokens * width * (4 * a.feed_forward + 10 * a.hidden),
        "attention": tokens * _attention_per_token(a, width, longest, gpu),
        "logits": 3 * 4 * (GPU_ELEMENTS if gpu else SCORED_LOGITS),
    }
    return Need(stage, {}, own)


def checkpoint(architecture: Architecture) -> int:
    """Bytes of the weights of a trained model: exact float32. The file adds a header of a few kilobytes."""
    return 4 * architecture.parameters


def optimizer_state(architecture: Architecture, settings: TrainingSettings) -> int:
    """Bytes of a saved state of a run: masters and moments."""
    return 4 * (2 if settings.optimizer == "rmsprop" else 3) * architecture.parameters


def _kept_per_token(a: Architecture, width: int, fused: bool) -> int:
    """Numbers that one layer keeps of a token for the backward pass.

    `layers.py` keeps ten tensors. transformers' own layers also keep the inputs of the products behind norms and
    gates, and in half precision the norms' inputs in float32.
    """
    if fused:
        return 2 * a.hidden + 2 * a.query + 2 * a.key_value + 2 * a.feed_forward
    norms = 8 if width == 2 else 6
    return norms * a.hidden + 2 * a.query + 2 * a.key_value + 4 * a.feed_forward


def _attention_per_token(a: Architecture, width: int, longest: int, gpu: bool) -> int:
    """Bytes for one token's attention weights, their derivative and one copy, and for the mask.

    A GPU's kernels keep no weights; there it is queries, keys, values, output and their gradients, twice, because
    prompts stand before every response.
    """
    if gpu:
        keys = a.key_value if width == 2 else a.query
        return 2 * width * (4 * a.query + 4 * keys)
    return 3 * width * a.heads * min(ATTENTION_BLOCK, longest) + (width + 2) * longest
