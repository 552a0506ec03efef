"""Settings of what lies outside the kit: vLLM, the scheduler, and MT-Bench with its judge.

FastChat's values are from `fastchat/llm_judge` (common.py, gen_model_answer.py, gen_judgment.py).
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from spin_utils.settings.inputs import STRICT, ModelSettings, require


@dataclass(frozen=True, config=STRICT)
class VllmSettings:
    """vLLM as the sampler, in processes of a separate environment."""

    python: str = ""
    """Absolute path of the Python whose environment has vLLM, for example /opt/vllm/bin/python."""
    processes: NonNegativeInt = 0
    """Copies of the model, each with its own GPUs and every n-th shard; 0: as many as the GPUs allow."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs per copy of the model."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of a GPU's memory for weights, activations and KV cache."""
    max_model_len: NonNegativeInt = 0
    """Longest prompt and response together, in tokens; 0: the longest prompt plus `generation.max_new_tokens`."""
    enforce_eager: bool = False
    """Disable CUDA graphs: starts faster, decodes more slowly."""
    largest_difference: PositiveFloat = 0.1
    """Warn about differences above this, in nats per response token. The rounding of bfloat16 gives hundredths; a wrong
    start token or wrong weights give tenths or more."""


@dataclass(frozen=True, config=STRICT)
class StepResources:
    """What one step requests from the scheduler."""

    gpus: NonNegativeInt = 0
    """GPUs; 0: use what is available, without reserving it."""
    cpus: NonNegativeInt = 0
    """Processor cores; 0: an equal share of the machine's, or one on a cluster."""
    memory_gb: PositiveInt = 12
    """Main memory."""
    hours: PositiveFloat = 12.0
    """Time limit on a cluster; when submitted again, the step resumes from its last saved state."""


@dataclass(frozen=True, config=STRICT)
class ResourceSettings:
    """What a profile's steps request from the scheduler, by kind of step."""

    training: StepResources = field(default_factory=StepResources)
    """SFT, SPIN's iterations and subsets, DPO."""
    generation: StepResources = field(default_factory=StepResources)
    """Generated responses and preference pairs."""
    evaluation: StepResources = field(default_factory=StepResources)
    """Scores of a checkpoint, MT-Bench included."""
    other: StepResources = field(default_factory=StepResources)
    """Data, base model, tables and figures."""


CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""The categories of MT-Bench, ten questions each, in the order of its questions."""
TEMPERATURES = dict(zip(CATEGORIES, (0.7, 0.7, 0.0, 0.0, 0.0, 0.0, 0.1, 0.1), strict=True))
"""FastChat's `temperature_config`."""


INSTRUCTIONS = "instructions"
"""The judge that is a program: verifiable instructions instead of MT-Bench."""


@dataclass(frozen=True, config=STRICT)
class MtBenchSettings:
    """MT-Bench (Table 6, Figure 6): two-turn questions, answered by the model and graded by a judge."""

    judge: str = ""
    """Name of the judge at its endpoint. FastChat's default is gpt-4, a name whose model has changed over time; the
    paper does not say which version it used. `instructions`: no judge and not MT-Bench, but verifiable instructions,
    answered in the same way and checked by a program, under a name of their own."""
    judge_model: ModelSettings | None = None
    """A model that grades on this machine instead, written like the profile's `model`; it needs no key."""
    base_url: str = "https://api.openai.com/v1"
    """Any endpoint with OpenAI's chat completions. The key comes from OPENAI_API_KEY; a local server takes any."""
    judge_temperature: NonNegativeFloat | None = 0.0
    """FastChat: 0. Null: not sent, for judges that do not accept one."""
    judge_max_tokens: PositiveInt = 2048
    """Longest judgment in tokens (FastChat: 2048)."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name for that limit; OpenAI's newer models only accept the second."""
    temperatures: dict[str, NonNegativeFloat] = field(default_factory=TEMPERATURES.copy)
    """Sampling temperature for each category; 0 is greedy (FastChat's values)."""
    top_k: NonNegativeInt = 50
    """Top-k truncation when sampling answers; FastChat leaves it to `generate`, whose default is 50. 0: none."""
    max_new_tokens: PositiveInt = 1024
    """Longest answer per turn in tokens (FastChat: 1024)."""
    add_start_token: bool = True
    """Begin with the tokenizer's start token, as in FastChat. SPIN's own template has none (released code:
    add_special_tokens=False)."""
    batch_size: PositiveInt = 32
    """Conversations answered together."""
    limit: NonNegativeInt = 0
    """Number of questions per category, the first ones; 0: all ten."""

    def __post_init__(self) -> None:
        require(bool(self.judge_name.strip()), "judge: empty; name the endpoint's model, such as gpt-4, or judge_model")
        require(
            not (self.is_programmatic and self.judge_model),
            f"judge: {INSTRUCTIONS} is a program; leave out judge_model, or judge",
        )
        url = urlsplit(self.base_url)
        require(
            url.scheme in ("http", "https") and bool(url.hostname),
            f"base_url: {self.base_url!r} is not an address; write it as https://host/v1",
        )
        require(
            not (url.username or url.password or url.query or url.fragment),
            "base_url: holds a user, a password or a query, and settings are kept with the results; put the key in "
            "the environment, OPENAI_API_KEY",
        )
        require(
            set(self.temperatures) == set(CATEGORIES),
            f"temperatures: given for {', '.join(self.temperatures)}; give one for each of {', '.join(CATEGORIES)}",
        )

    @property
    def is_programmatic(self) -> bool:
        """Whether verifiable instructions take MT-Bench's place."""
        return self.judge == INSTRUCTIONS

    @property
    def judge_name(self) -> str:
        """The name at the endpoint, or that of the model's file, folder or repository."""
        model = self.judge_model
        return (Path(model.path).name or f"{model.name} {model.revision[:8]}".strip()) if model else self.judge


def answers_identity(settings: MtBenchSettings) -> dict[str, Any]:
    """What a model's answers depend on, as JSON data."""
    names = ("temperatures", "top_k", "max_new_tokens", "add_start_token", "batch_size", "limit")
    return {name: getattr(settings, name) for name in names}


def judge_identity(settings: MtBenchSettings) -> dict[str, Any]:
    """What a grade depends on apart from the answer, as JSON data."""
    names = ("judge", "base_url", "judge_temperature", "judge_max_tokens")
    return {name: getattr(settings, name) for name in names}
