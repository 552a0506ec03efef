"""Settings of the work: training, self-play, generation, DPO, evaluation, and the profile that contains them all.

Those of models and data are in `inputs`, those of MT-Bench and the machine in `machine`. A field taken from the paper
names its section and notes where the released code disagrees. Profiles are YAML files read into these classes by
`profiles`; nothing else configures a run.
"""

from __future__ import annotations

import os
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from spin_utils.files import paths
from spin_utils.files.processes import Sharding
from spin_utils.settings.inputs import (
    EFFECTLESS,
    LATER,
    STRICT,
    BigBenchSettings,
    DemonstrationSettings,
    ModelSettings,
    PreferenceSettings,
    Seed,
    TemplateSettings,
    require,
    require_line_breaks,
)
from spin_utils.settings.machine import MtBenchSettings, ResourceSettings, VllmSettings
from spin_utils.settings.names import ModelName

Loss = Literal["logistic", "hinge", "correlation", "exponential"]
Precision = Literal["bfloat16", "float32", "auto"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, config=STRICT)
class LoraSettings:
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv 2106.09685), through peft."""

    rank: PositiveInt = 64
    """Rank of each adapter."""
    alpha: PositiveInt = 64
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get one, such as q_proj; empty: all of them but the head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' inputs in training."""


@dataclass(frozen=True, config=STRICT)
class TrainingSettings:
    """One training run: SFT, one SPIN iteration, or DPO."""

    learning_rate: PositiveFloat
    """Peak learning rate (sec. B.1: 5e-7 for iterations 0 and 1, 1e-7 for 2 and 3)."""
    epochs: PositiveInt = 2
    """Passes over the pairs (sec. B.1: 2)."""
    schedule_epochs: NonNegativeInt = 0
    """Epochs over which the learning rate decays; 0: `epochs`. The released scripts say 6, the model cards 2."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after the warm-up (released configs: linear; the base model's SFT recipe: cosine)."""
    batch_size: PositiveInt = 64
    """Exact number of pairs per optimizer step (sec. B.1: 64). The last batch of an epoch may be smaller."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSprop as in sec. B.1 (alpha 0.99, eps 1e-8), or AdamW (0.9, 0.999, eps 1e-8)."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (sec. B.1: none)."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the scheduled steps used for warm-up (sec. B.1: 10 %)."""
    max_grad_norm: NonNegativeFloat = 0.0
    """Gradient clipping by global norm; 0: none (the released ZeRO-3 file does not clip)."""
    precision: Precision = "auto"
    """Of the computation; master weights are float32. `auto` uses bfloat16 if it is fast on this machine."""
    micro_batch_tokens: PositiveInt = 2560
    """Token budget of one forward and backward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    lora: LoraSettings | None = field(default=None, metadata=LATER)
    """Train low-rank adapters on top of the start checkpoint, and merge them into the next one; null: all weights."""
    beta: PositiveFloat = 0.1
    """The paper's lambda (sec. B.1: 0.1, at iteration 3: 5.0)."""
    loss: Loss = "logistic"
    """The loss l of eq. 4.7 (sec. 4.1: logistic)."""
    nll: NonNegativeFloat = field(default=0.0, metadata=LATER)
    """Weight of the real responses' negative log-likelihood per token in the loss (TRL: `sft` among the loss types;
    iterative RPO, arXiv 2404.19733). 0: none, as in the paper."""
    positive: NonNegativeFloat = field(default=0.0, metadata=LATER)
    """DPO-positive's penalty on real responses that became less likely (arXiv 2402.13228, eq. 3; 50 there). 0: none."""
    reference_free: bool = field(default=False, metadata=LATER)
    """Reward beta times the log-probability, without the opponent's, as T-SPIN does (arXiv 2601.08198, eq. 7, where
    beta is called alpha and is 1)."""
    historical: NonNegativeFloat = field(default=0.0, metadata=LATER)
    """Weight of T-SPIN's historical advantage (eq. 7; 0.1 there): the opponent's response should beat the SFT model's.
    0: none."""
    rejection: bool = field(default=False, metadata=LATER)
    """Fine-tune on those of the opponent's responses that the grader of generated families accepts, as SFT does, and
    compare no pairs (rejection sampling; arXiv 2308.01825). It is a control: SPIN gets no grades."""
    skip_identical: bool = True
    """Skip pairs whose generated tokens equal the real ones: they give exactly l(0) and no gradient."""
    end_truncated: bool = True
    """In training, append the end token to generated responses cut at the length limit, as the released code does."""
    log_every: PositiveInt = 1
    """Optimizer steps between metric rows."""
    save_minutes: NonNegativeFloat = field(default=3.0, metadata=EFFECTLESS)
    """Minutes between checkpoints for resuming."""
    trackers: tuple[TrackerName, ...] = field(default=(), metadata=EFFECTLESS)
    """Further destinations of the metrics, which are always written to JSON."""

    def __post_init__(self) -> None:
        require(
            self.schedule_epochs == 0 or self.schedule_epochs >= self.epochs,
            f"schedule_epochs: {self.schedule_epochs} is less than epochs ({self.epochs}); use 0 or more epochs",
        )


def _without_opponent(place: str, settings: TrainingSettings | None) -> None:
    """Refuse what would change nothing outside self-play."""
    for name in ("rejection", "historical"):
        require(
            settings is None or not getattr(settings, name),
            f"{place}.{name}: changes nothing, because only self-play has responses of an opponent; leave it out",
        )


@dataclass(frozen=True, config=STRICT)
class GenerationSettings:
    """How the opponent generates: y' ~ p_theta_t(.|x)."""

    temperature: NonNegativeFloat = 1.0
    """1 samples from the model as in Algorithm 1; 0 is greedy, as the released code in effect decodes."""
    top_k: NonNegativeInt = 0
    """0: no truncation (transformers still defaults to 50)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """1: no truncation."""
    max_new_tokens: PositiveInt = 256
    """Longest generated response (released code: 256; the paper does not say)."""
    batch_size: PositiveInt = 128
    """Rows decoded together."""
    prompt: str = field(default="", metadata=LATER)
    """Text around the prompt while the opponent answers, such as "### Instruction: {prompt}\\n\\n### Response: " in
    the released code, which then trains under the chat template. Empty: what was sampled is what is trained on.
    Held-out pairs keep the training template."""
    shard_rows: PositiveInt = 512
    """Prompts per shard; a shard is either finished or absent."""
    backend: Literal["kit", "vllm"] = field(default="kit", metadata=LATER)
    """What generates the responses used in training: the kit's sampler, or vLLM in its own processes; held-out ones
    always come from the kit's. The distribution is the same, but the samples differ."""
    vllm: VllmSettings = field(default_factory=VllmSettings, metadata=EFFECTLESS)
    """Where and how vLLM runs."""

    def __post_init__(self) -> None:
        require(
            not self.prompt or self.prompt.count("{prompt}") == 1,
            f"prompt: {self.prompt!r}; write {{prompt}} once where the prompt goes, or leave it empty",
        )
        require_line_breaks(self.prompt)
        require(
            self.backend == "kit" or os.path.isabs(os.path.expanduser(self.vllm.python)),
            f"vllm.python: {self.vllm.python!r}; write the whole path of the Python that has vLLM installed",
        )


@dataclass(frozen=True, config=STRICT)
class SpinSettings:
    """Self-play: the settings of each iteration."""

    training: TrainingSettings
    """Settings shared by all iterations."""
    iterations: PositiveInt = 4
    """Number of iterations T (sec. 6.1: 0 to 3)."""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """Peak learning rate by iteration; the last one is repeated; empty: that of `training`."""
    betas: tuple[PositiveFloat, ...] = ()
    """Beta by iteration; the last one is repeated; empty: that of `training`."""
    answers_per_prompt: Annotated[int, Field(ge=1, le=64)] = 1
    """Responses that the opponent gives to a prompt, each a pair with the real one. Their mean counts as one pair in a
    batch, so an iteration keeps its number of steps."""
    mix_previous: bool = True
    """From iteration 1 on, train on the pairs of t-1 and t together (sec. 6.1)."""
    epochs_shown: NonNegativeInt = 0
    """Epochs of iteration 0 shown in Figure 4; its model is still that after `training.epochs`. 0: no further ones."""
    subsets: tuple[Annotated[int, Field(gt=0, lt=50)], ...] = ()
    """Sizes of the nested subsets of Figure 5, in fiftieths of the prompts (the paper's 14k and 26k of 50k)."""

    def __post_init__(self) -> None:
        require(
            not self.training.historical or (self.answers_per_prompt == 1 and not self.mix_previous),
            "training.historical: T-SPIN trains on one triplet per prompt; set spin.mix_previous to false and "
            "spin.answers_per_prompt to 1",
        )
        scheduled = self.training.schedule_epochs or self.training.epochs
        require(
            self.epochs_shown <= scheduled,
            f"epochs_shown: {self.epochs_shown} is more than the learning rate's {scheduled} epochs; "
            "raise spin.training.schedule_epochs",
        )


@dataclass(frozen=True, config=STRICT)
class SftControlSettings:
    """The control of Table 5 and Figure 5 with settings of its own: a learning rate searched for it, or any if the SFT
    model is given (`sft: null`)."""

    training: TrainingSettings
    """One further epoch. The paper gives neither the learning rate nor its decay."""
    demonstrations: DemonstrationSettings | None = None
    """Rows to train on (App. B.4: Ultrachat200k), without held-out ones; null: the profile's own SFT rows."""

    def __post_init__(self) -> None:
        _without_opponent("training", self.training)
        epochs = self.training.epochs
        require(epochs == 1, f"training.epochs: {epochs}; write 1, and the number of further epochs in sft_more")


@dataclass(frozen=True, config=STRICT)
class DpoSettings:
    """DPO, the baseline of Figure 3 and the last stage of Table 3: the same trainer on preference pairs."""

    training: TrainingSettings
    """One run (App. B.3: two epochs; for learning rate and beta see the alignment handbook, whose model is in Figure 3:
    5e-7 and 0.1)."""
    preferences: PreferenceSettings
    """The pairs."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Responses sampled per prompt (`samples`); the best and the worst make a pair."""

    def __post_init__(self) -> None:
        _without_opponent("training", self.training)


@dataclass(frozen=True, config=STRICT)
class ProcessSettings:
    """How many processes share the work of a stage; it only changes the rounding of sums in training."""

    count: NonNegativeInt = 0
    """Processes on this machine, each with its own GPU. 0: one per GPU that a step requests in `resources` and the
    machine has, or one if it requests none. Ignored under another launcher (torchrun, accelerate)."""
    sharding: Sharding = "ddp"
    """`ddp`: every process has a full copy, and gradients are summed. `fsdp2`: weights, gradients and optimizer state
    are sharded, also in scoring the opponent. `zero3`: the same with DeepSpeed, which has to be installed."""


@dataclass(frozen=True, config=STRICT)
class DpoRunSettings:
    """`spin-repro dpo`: one DPO run on a file of pairs, outside any profile."""

    training: TrainingSettings
    template: TemplateSettings
    seed: Seed = 0
    """Seed of the order of the pairs."""

    def __post_init__(self) -> None:
        _without_opponent("training", self.training)


@dataclass(frozen=True, config=STRICT)
class EvaluationSettings:
    """How checkpoints are scored, always through lm-eval."""

    suite: Literal["local", "paper", "paper_others"] = "local"
    """`local`: the held-out demonstrations, one task per family, by the row's grader or exact match. `paper`: the
    benchmarks of Table 1, and for the main chain those of Table 6 as transfer. `paper_others`: only the latter."""
    tasks: tuple[str, ...] = ()
    """Further lm-eval tasks, by name or path of a YAML file; each becomes a column."""
    big_bench: dict[str, BigBenchSettings] = field(default_factory=dict, metadata=LATER)
    """Tasks of Big-Bench by name, from the package `bigbench`; each becomes a column."""
    limit: NonNegativeInt = 0
    """Items per benchmark, the first ones (of a group like MMLU equally many from each task); 0: all."""
    batch_size: PositiveInt = 128
    """Rows decoded or scored together."""
    max_new_tokens: PositiveInt = 128
    """Longest response in generation tasks."""
    samples: NonNegativeInt = field(default=0, metadata=LATER)
    """Responses sampled at temperature 1 for each held-out row of the suite `local`, besides the greedy one."""


@dataclass(frozen=True, config=STRICT)
class Profile:
    """Everything one reproduction needs to know."""

    name: str
    """Name of the folders under results/, figures/ and artifacts/."""
    model: ModelSettings
    demonstrations: DemonstrationSettings
    sft: TrainingSettings | None
    """SFT before self-play; null: the base model is the SFT model, as in the paper."""
    spin: SpinSettings
    sft_more: NonNegativeInt = 0
    """Further SFT epochs, the control of Table 5 and Figure 5: would more of the same data do as well?"""
    sft_control: SftControlSettings | None = None
    """Their settings, and rows if they differ; null: those of `sft`."""
    dpo: DpoSettings | None = None
    """DPO, the baseline of Figure 3 and, after SPIN, the last row of Table 3 (App. B.3); null: not run."""
    released: dict[str, ModelSettings] = field(default_factory=dict)
    """Published checkpoints by model name (spin-0, ...), evaluated with `model`, which is then `sft`; no training."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Variants of SPIN under the same control, by name: the settings of `spin` and `generation` that differ, by dotted
    name. An arm plays one iteration from the SFT model, or as many as its own `spin.iterations` says."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    template: TemplateSettings = field(default_factory=TemplateSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    processes: ProcessSettings = field(default_factory=ProcessSettings)
    """Processes that share a step's work; does not affect results."""
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    """What each kind of step requests from the scheduler; does not affect results."""
    mt_bench: MtBenchSettings | None = None
    """MT-Bench, or instructions in its place, for the models of the main chain (Table 6, Figure 6); null: not run."""

    def __post_init__(self) -> None:
        paths.checked(self.name)
        _without_opponent("sft", self.sft)
        require(
            not self.spin.training.rejection or self.demonstrations.source == "reasoning_gym",
            "rejection: only generated families (source: reasoning_gym) can grade a response; leave it out",
        )
        require(
            self.sft is not None or self.sft_control is not None or not self.sft_more,
            "sft_more: sft is null, so the further epochs need settings of their own; write sft_control, or set "
            "sft_more to 0",
        )
        trained = [self.sft, *(part.training for part in (self.spin, self.sft_control, self.dpo) if part)]
        require(
            self.processes.sharding == "ddp" or not any(each and each.lora for each in trained),
            f"lora: adapters are not sharded; set processes.sharding to ddp instead of {self.processes.sharding}",
        )
        for name in self.arms:
            ModelName.parse(f"spin-0-arm-{name}")  # it names folders
        for name, model in self.released.items():
            row = ModelName.parse(name)
            require(
                row.is_iterate or row.dpo or row.sft_epochs > 0,
                f"released.{name}: not a row of a table; use spin-0, spin-1, ..., spin-3-dpo, dpo or sft-more-1",
            )
            require(model.source in ("hub", "directory"), f"released.{name}: name a hub model or a folder")
        require(self.sft is None or not self.released, "released: then nothing is trained; set sft to null")

    @property
    def aside(self) -> frozenset[str]:
        """Tasks next to what a model was trained for, which alone makes the average (protocols in results/)."""
        own = self.demonstrations.families or self.demonstrations.source == "big_bench"
        return frozenset(self.evaluation.big_bench if own else ())
