"""How long the paper's run would take on given GPUs: floating-point operations over what the hardware gives.

Operations are those that the method needs and no more: no padding, the prompt of a pair computed once, the LM head on
response tokens only, the opponent's log-probabilities once per iteration. A multiplication with its addition is two.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder; the defaults are those of Mistral-7B (Jiang et al. 2023, Table 1)."""

    layers: int = 32
    hidden: int = 4096
    query: int = 4096
    """Heads times their dimension."""
    key_value: int = 1024
    """Key heads times their dimension (grouped-query attention)."""
    feed_forward: int = 14_336
    vocabulary: int = 32_000
    heads: int = 32
    tied: bool = False
    """Whether embeddings and LM head are one matrix."""
    biased: bool = False
    """Whether queries, keys and values have a bias (Qwen2)."""

    @property
    def body(self) -> int:
        """Parameters of all layers without embeddings and norms."""
        attention = self.hidden * (self.query + 2 * self.key_value) + self.query * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All of them: also embeddings, LM head, norms and biases."""
        embeddings = (1 if self.tied else 2) * self.hidden * self.vocabulary
        norms = (2 * self.layers + 1) * self.hidden
        biases = self.layers * (self.query + 2 * self.key_value) if self.biased else 0
        return self.body + embeddings + norms + biases


@dataclass(frozen=True)
class Run:
    """What is computed, on what. The defaults are the paper's run; lengths and utilisation are assumptions."""

    prompts: int = 49_792
    """Rows of the released data of an iteration."""
    epochs: int = 2
    """App. B.1."""
    prompt_tokens: int = 128
    """Assumed mean: the paper prints none."""
    real_tokens: int = 300
    """Assumed mean."""
    generated_tokens: int = 230
    """Assumed mean; the released code stops at 256."""
    gpus: int = 8
    peak_flops: float = 312e12
    """Dense bf16 operations a second of an A100 (its data sheet)."""
    bandwidth: float = 2.04e12
    """Bytes a second of an A100-80GB (its data sheet)."""
    utilisation: float = 0.45
    """Assumed share of either peak that is reached. Public 7B training runs report 0.43 to 0.64 (llm-foundry)."""
    decoded_together: int = 128
    """Sequences that a GPU decodes at once: each step reads the weights once for all of them."""


def forward_flops(architecture: Architecture, prompt: int, *responses: int) -> float:
    """Operations of one forward pass over responses to one prompt that is computed once.

    Args:
        architecture: Sizes of the model.
        prompt: Tokens of the prompt.
        responses: Tokens of each response: two for a pair, one for a generation.
    """
    linear = 2 * architecture.body * (prompt + sum(responses))
    seen = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)  # causal
    attention = 4 * architecture.query * architecture.layers * seen
    head = 2 * architecture.hidden * architecture.vocabulary * sum(responses)
    return linear + attention + head


def generation_hours(run: Run, architecture: Architecture) -> float:
    """Hours to generate one response to every prompt: the slower of computing and of reading memory."""
    computing = run.prompts * forward_flops(architecture, run.prompt_tokens, run.generated_tokens) / run.peak_flops
    context = run.prompt_tokens + run.generated_tokens / 2
    cache = 2 * 2 * architecture.layers * architecture.key_value * context  # keys and values in two bytes each
    step = 2 * architecture.parameters + run.decoded_together * cache
    reading = run.prompts / run.decoded_together * run.generated_tokens * step / run.bandwidth
    return max(computing, reading) / (run.gpus * run.utilisation) / 3600


def training_hours(run: Run, architecture: Architecture, iteration: int) -> float:
    """Hours to train one iteration: forward and backward in every epoch, and the opponent's forward once.

    Iterations after the first have twice the pairs, because those of the iteration before are mixed in (sec. 6.1).
    """
    return training_flops(run, architecture, iteration) / (run.gpus * run.peak_flops * run.utilisation) / 3600


def training_flops(run: Run, architecture: Architecture, iteration: int) -> float:
    """Operations of training one iteration; the backward pass costs two forward passes."""
    pairs = run.prompts * (2 if iteration else 1)
    pair = forward_flops(architecture, run.prompt_tokens, run.real_tokens, run.generated_tokens)
    return pairs * pair * (3 * run.epochs + 1)


def utilisation(run: Run, architecture: Architecture, iteration: int, hours: float) -> float:
    """Share of the peak that a measured time of training means: needed operations over possible ones."""
    return training_flops(run, architecture, iteration) / (hours * 3600 * run.gpus * run.peak_flops)
