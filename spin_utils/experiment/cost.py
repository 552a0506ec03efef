"""What sampling and training cost: FLOPs and hours, from the sizes of model, rows and machine.

No padding is counted, each prompt once per pair, the LM head on response tokens only, and the opponent once per run. A
multiply-add is two FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from spin_utils.model.general import Path
    from spin_utils.settings.run import LoraSettings


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder; the defaults are those of Mistral-7B (Jiang et al. 2023, Table 1)."""

    layers: int = 32
    hidden: int = 4096
    query: int = 4096
    """Query heads times head dimension."""
    key_value: int = 1024
    """Key-value heads times head dimension (grouped-query attention)."""
    feed_forward: int = 14_336
    vocabulary: int = 32_000
    heads: int = 32
    parameters: int = 7_241_732_096
    """All of them: embeddings, LM head, norms and biases too."""
    path: Path = "fast"
    """How the kit computes it, see `general`."""
    adapted: Mapping[LoraSettings, int] = field(default_factory=dict)
    """Parameters of each kind of adapters."""

    @property
    def body(self) -> int:
        """Parameters of all layers that a token uses, without embeddings and norms."""
        attention = self.hidden * (self.query + 2 * self.key_value) + self.query * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)


@dataclass(frozen=True)
class Machine:
    """The machine a profile would run on."""

    kind: Literal["cpu", "cuda"]
    name: str
    """In words."""
    devices: int
    memory: float
    """Free bytes of one device (of the host for a CPU)."""
    disk: float
    """Free bytes where artifacts are written; infinite if unknown."""
    flops: float
    """FLOP/s of one device for matrix products in the compute precision."""
    bandwidth: float
    """Bytes per second that one device reads."""
    width: int
    """Bytes per number under `precision: auto`."""
    host: float = math.inf
    """Free bytes of main memory beside GPUs; infinite if unknown."""


A100S = Machine("cuda", "8 x A100-80GB", 8, 80e9, math.inf, 312e12, 2.04e12, 2)
"""The paper's machine (App. B.2), with dense bf16 FLOP/s and bandwidth from the data sheet."""


@dataclass(frozen=True)
class Workload:
    """A run and its hardware. The defaults are the paper's; lengths and utilisation are assumptions."""

    prompts: int = 49_792
    """Rows in one iteration of the released data."""
    epochs: int = 2
    """App. B.1."""
    prompt_tokens: int = 128
    """Assumed mean: the paper does not give one."""
    real_tokens: int = 300
    """Assumed mean."""
    generated_tokens: int = 230
    """Assumed mean; the released code stops at 256."""
    machine: Machine = A100S
    utilisation: float = 0.45
    """Assumed fraction of either peak. Public 7B training runs report 0.43 to 0.64 (llm-foundry)."""
    decoded_together: int = 128
    """Sequences that a GPU decodes at once; each step reads the weights once for all of them."""


def forward_flops(architecture: Architecture, prompt: int, *responses: int) -> float:
    """FLOPs of one forward pass over responses, of so many tokens each, to a prompt that is computed once."""
    linear = 2 * architecture.body * (prompt + sum(responses))
    seen = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)  # causal
    attention = 4 * architecture.query * architecture.layers * seen
    head = 2 * architecture.hidden * architecture.vocabulary * sum(responses)
    return linear + attention + head


def generation_hours(run: Workload, architecture: Architecture) -> float:
    """Hours to generate one response per prompt, limited by compute or by memory bandwidth, whichever is slower."""
    computing = run.prompts * forward_flops(architecture, run.prompt_tokens, run.generated_tokens) / run.machine.flops
    context = run.prompt_tokens + run.generated_tokens / 2
    cache = 2 * 2 * architecture.layers * architecture.key_value * context  # keys and values in two bytes each
    step = 2 * architecture.parameters + run.decoded_together * cache
    reading = run.prompts / run.decoded_together * run.generated_tokens * step / run.machine.bandwidth
    return max(computing, reading) / (run.machine.devices * run.utilisation) / 3600


def training_hours(run: Workload, architecture: Architecture, iteration: int) -> float:
    """Hours to train one iteration: forward and backward in every epoch, and one forward pass by the opponent."""
    pairs = run.prompts * (2 if iteration else 1)  # with those of the previous iteration (sec. 6.1)
    pair = forward_flops(architecture, run.prompt_tokens, run.real_tokens, run.generated_tokens)
    return computing(pairs * pair * (3 * run.epochs + 1), run)


def computing(flops: float, run: Workload) -> float:
    """Hours of so many FLOPs, limited by compute."""
    return flops / (run.machine.devices * run.machine.flops * run.utilisation) / 3600
