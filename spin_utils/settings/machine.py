"""Settings of the machine: where vLLM is, and what each kind of step asks of a scheduler.

None of them changes what is measured but `generation.backend`, so none of the others is part of an artifact's key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spin_utils.settings.inputs import require


@dataclass(frozen=True)
class VllmSettings:
    """vLLM as the sampler of generated answers: processes in an environment of their own."""

    python: str = ""
    """Absolute path of the Python in whose environment vLLM is installed, such as /opt/vllm/bin/python."""
    processes: int = 0
    """Copies of the model, each with its own GPUs and every so-manieth shard; 0: as many as the GPUs allow."""
    tensor_parallel_size: int = 1
    """GPUs that share one copy of the model."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory for weights, activations and KV cache."""
    max_model_len: int = 0
    """Longest prompt and answer together, in tokens; 0: the longest prompt plus `generation.max_new_tokens`."""
    enforce_eager: bool = False
    """Without CUDA graphs: starts faster, decodes slower."""
    checked_rows: int = 64
    """Answers whose log-probability the kit computes too, as a health figure."""
    largest_difference: float = 0.1
    """A difference above it, in nats per token of an answer, is a warning. Both sides compute in bfloat16, whose
    rounding gives hundredths; a wrong start token or other weights give tenths and more."""

    def __post_init__(self) -> None:
        python = Path(self.python).expanduser()
        require(not self.python or python.is_absolute(), f"vllm.python: {self.python!r}; write an absolute path")
        for name in ("tensor_parallel_size", "checked_rows", "largest_difference"):
            require(getattr(self, name) > 0, f"vllm.{name}: {getattr(self, name)} must be above 0")
        for name in ("processes", "max_model_len"):
            require(getattr(self, name) >= 0, f"vllm.{name}: {getattr(self, name)} is negative")
        share = self.gpu_memory_utilization
        require(0 < share <= 1, f"vllm.gpu_memory_utilization: {share} must be above 0 and at most 1")


@dataclass(frozen=True)
class StepResources:
    """What one step asks of the scheduler."""

    gpus: int = 0
    """GPUs; 0: whatever is there, unreserved."""
    cpus: int = 0
    """Processor cores; 0: an equal share of the machine's, and one on a cluster."""
    memory_gb: int = 12
    """Main memory."""
    hours: float = 12.0
    """After so long a cluster ends the step; submitted again, it goes on from its last saved state."""

    def __post_init__(self) -> None:
        for name in ("gpus", "cpus"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")
        for name in ("memory_gb", "hours"):
            require(getattr(self, name) > 0, f"{name}: {getattr(self, name)} must be above 0")


@dataclass(frozen=True)
class ResourceSettings:
    """What the steps of a profile ask of the scheduler, by kind."""

    training: StepResources = field(default_factory=StepResources)
    """SFT, SPIN's iterations and subsets, DPO."""
    generation: StepResources = field(default_factory=StepResources)
    """Generated answers and preference pairs."""
    evaluation: StepResources = field(default_factory=StepResources)
    """Scores of a checkpoint."""
    other: StepResources = field(default_factory=StepResources)
    """Data, base model, tables and figures."""
