"""Settings of what is done: training, self-play, generation, DPO, evaluation, and the profile that holds them all.

Those of models and data are in `inputs`, those of MT-Bench and the machine in `machine`. A field that comes from the
paper names its section; one where the paper and the released code disagree says so. Profiles are YAML files read into
these classes by `profiles`; nothing else configures a run.
"""

from __future__ import annotations

from dataclasses import asdict, field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from spin_utils.files.paths import NAME, KitError
from spin_utils.files.processes import Sharding
from spin_utils.settings.inputs import (
    STRICT,
    Count,
    DemonstrationSettings,
    ModelSettings,
    Positive,
    PositiveNumber,
    PreferenceSettings,
    Seed,
    Temperature,
    TemplateSettings,
    require,
)
from spin_utils.settings.machine import MtBenchSettings, ResourceSettings, VllmSettings
from spin_utils.settings.names import ModelName

Loss = Literal["logistic", "hinge", "correlation", "exponential"]
Precision = Literal["bfloat16", "float32", "auto"]
Some = Annotated[int, Field(ge=0, le=1000)]
"""Iterations, epochs shown or further epochs: each is a step of the plan with a checkpoint of its own."""
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, config=STRICT)
class TrainingSettings:
    """One training run: SFT, one SPIN iteration, or DPO."""

    learning_rate: PositiveNumber
    """Peak learning rate (sec. B.1: 5e-7 for iterations 0 and 1, 1e-7 for 2 and 3)."""
    epochs: Positive = 2
    """Passes over the pairs (sec. B.1: 2)."""
    schedule_epochs: Count = 0
    """Epochs over which the learning rate decays; 0: the same as `epochs`. The released scripts say 6 and
    stop when it suits; the model cards say 2."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after the warm-up (released configs: linear; the base model's SFT recipe: cosine)."""
    batch_size: Positive = 64
    """Pairs in one optimizer step, exactly (sec. B.1: 64). The last batch of an epoch may be smaller."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSprop as in sec. B.1 (alpha 0.99, eps 1e-8), or AdamW (0.9, 0.999, eps 1e-8)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (sec. B.1: none)."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the scheduled steps spent warming up (sec. B.1: 10 %)."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradient clipping by global norm; 0: none (the released ZeRO-3 file does not clip)."""
    precision: Precision = "auto"
    """Compute precision; master weights are always exact float32. `auto` takes bfloat16 where
    it is fast."""
    micro_batch_tokens: Positive = 2560
    """Token budget of one forward and backward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    beta: PositiveNumber = 0.1
    """The paper's lambda (sec. B.1: 0.1, at iteration 3: 5.0)."""
    loss: Loss = "logistic"
    """The loss l of eq. 4.7 (sec. 4.1: logistic)."""
    skip_identical: bool = True
    """Leave out pairs whose generated tokens equal the real ones: they give exactly l(0) and no gradient."""
    end_truncated: bool = True
    """Give a length-cut generated response its end token in training, as the released code does."""
    log_every: Positive = 1
    """Optimizer steps between metric rows."""
    save_minutes: Annotated[float, Field(ge=0)] = 3.0
    """Minutes between checkpoints for resuming."""
    trackers: tuple[TrackerName, ...] = ()
    """Further places for the metrics, which always go to JSON: tensorboard, wandb, trackio."""

    def __post_init__(self) -> None:
        require(
            self.schedule_epochs == 0 or self.schedule_epochs >= self.epochs,
            f"schedule_epochs: {self.schedule_epochs} is less than epochs ({self.epochs}); use 0 or more epochs",
        )


OF_PAIRS = ("beta", "loss", "skip_identical", "end_truncated")
"""Training settings that mean nothing in SFT, which has no pairs."""


def training_identity(settings: TrainingSettings) -> dict[str, Any]:
    """What a trained model depends on, as JSON data: not where metrics are shown nor how often a state is saved."""
    return {name: value for name, value in asdict(settings).items() if name not in ("trackers", "save_minutes")}


@dataclass(frozen=True, config=STRICT)
class GenerationSettings:
    """How the opponent answers: y' ~ p_theta_t(.|x)."""

    temperature: Temperature = 1.0
    """1 samples from the model as Algorithm 1 says; 0 is greedy, as the released code decodes in effect."""
    top_k: Count = 0
    """0: no truncation (transformers still defaults to 50)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """1: no truncation."""
    max_new_tokens: Positive = 256
    """Longest generated response (released code: 256; the paper does not say)."""
    batch_size: Positive = 128
    """Rows decoded together."""
    shard_rows: Positive = 512
    """Prompts in one finished-or-absent shard."""
    backend: Literal["kit", "vllm"] = "kit"
    """Who draws the answers that are trained on: the kit's own sampler, or vLLM in processes of its own. The same
    distribution, other draws. Held-out answers always come from the kit's."""
    vllm: VllmSettings = field(default_factory=VllmSettings)
    """Where and how vLLM runs."""

    def __post_init__(self) -> None:
        if self.backend == "vllm":
            require(
                bool(self.vllm.python),
                "vllm.python: missing; name the Python of the environment in which vLLM is installed",
            )
            require(
                self.temperature == 0 or 0.01 <= self.temperature <= 2,
                f"temperature: {self.temperature}; vLLM takes 0 or 0.01 to 2",
            )


def generation_identity(settings: GenerationSettings) -> dict[str, Any]:
    """What generated answers depend on, as JSON data: who draws them, but not where vLLM is and on how many GPUs."""
    identity = {name: value for name, value in asdict(settings).items() if name not in ("backend", "vllm")}
    return identity if settings.backend == "kit" else {**identity, "backend": settings.backend}


@dataclass(frozen=True, config=STRICT)
class SpinSettings:
    """Self-play: which settings hold at which iteration."""

    training: TrainingSettings
    """Settings shared by all iterations."""
    iterations: Annotated[Some, Field(ge=1)] = 4
    """Number of iterations T (sec. 6.1: 0 to 3)."""
    learning_rates: tuple[PositiveNumber, ...] = ()
    """Peak learning rate by iteration; the last one is repeated; empty: that of `training`."""
    betas: tuple[PositiveNumber, ...] = ()
    """Beta by iteration; the last one is repeated; empty: that of `training`."""
    mix_previous: bool = True
    """From iteration 1 on, train on the pairs of t-1 and t together (sec. 6.1)."""
    epochs_shown: Some = 0
    """Epochs of iteration 0 that Figure 4 shows, all of one run; its model is still that of `training.epochs`.
    0: no more than these."""
    subsets: tuple[Annotated[int, Field(gt=0, lt=50)], ...] = ()
    """Sizes of the nested subsets of Figure 5, in fiftieths of the prompts (the paper's 14k and 26k of 50k)."""

    def __post_init__(self) -> None:
        require(len(set(self.subsets)) == len(self.subsets), f"subsets: {self.subsets}; write each size once")
        scheduled = self.training.schedule_epochs or self.training.epochs
        require(
            self.epochs_shown <= scheduled,
            f"epochs_shown: {self.epochs_shown} is more than the learning rate's {scheduled} epochs; "
            "raise spin.training.schedule_epochs",
        )


@dataclass(frozen=True, config=STRICT)
class SftControlSettings:
    """The control of Table 5 and Figure 5 where the SFT model is given (`sft: null`), so that neither its settings nor
    its rows are those of this profile."""

    training: TrainingSettings
    """One further epoch. Of the paper's, neither the learning rate nor its decay is known."""
    demonstrations: DemonstrationSettings | None = None
    """Rows to train on (App. B.4: Ultrachat200k), held-out ones left out; null: the SFT rows of the profile's own."""

    def __post_init__(self) -> None:
        epochs = self.training.epochs
        require(epochs == 1, f"training.epochs: {epochs}; write 1, and the number of further epochs in sft_more")


@dataclass(frozen=True, config=STRICT)
class DpoSettings:
    """DPO, the baseline of Figure 3 and the last stage of Table 3: the same trainer on preference pairs."""

    training: TrainingSettings
    """One run (App. B.3: two epochs; its learning rate and beta are not in the paper. The DPO model of Figure 3 is
    the alignment handbook's: 5e-7, beta 0.1)."""
    preferences: PreferenceSettings
    """The pairs."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers sampled for each prompt (`samples`), of which a right and a wrong one make a pair."""


@dataclass(frozen=True, config=STRICT)
class ProcessSettings:
    """How many processes share the work of a stage. No artifact's name depends on it: it changes a result by rounding
    in the training's sums only."""

    count: Count = 0
    """Processes on this machine; with GPUs, each has its own. 0: one for each GPU that a step asks for in `resources`,
    as far as they are there; one where it asks for none. Processes of another launcher (torchrun, accelerate) count
    for themselves."""
    sharding: Sharding = "ddp"
    """`ddp`: every process trains a whole copy, and gradients are summed. `fsdp2`: weights, gradients and optimizer
    state are spread over the processes in training and in the opponent's scoring. `zero3`: the same by DeepSpeed, which
    has to be installed."""


@dataclass(frozen=True, config=STRICT)
class DpoRunSettings:
    """`spin-repro dpo`: one DPO run on a file of pairs, outside any profile."""

    training: TrainingSettings
    template: TemplateSettings
    seed: Seed = 0
    """Seed of the order of the pairs."""
    processes: ProcessSettings = field(default_factory=ProcessSettings)
    """Processes that share the work; no part of the result."""


@dataclass(frozen=True, config=STRICT)
class EvaluationSettings:
    """How checkpoints are scored, always through lm-eval."""

    suite: Literal["local", "paper", "paper_others"] = "local"
    """`local`: the held-out demonstrations, one task per family, graded by the row's grader if it has one and
    else by exact match. `paper`: the benchmarks of Table 1, from the hub, and for the main chain those of Table 6
    as transfer. `paper_others`: those of Table 6 alone."""
    tasks: tuple[str, ...] = ()
    """lm-eval tasks in addition to the suite, by name or path of a YAML file; each is a column of its own."""
    limit: Count = 0
    """Items per benchmark, the first ones (of a group such as MMLU an equal number from each task); 0: all."""
    batch_size: Positive = 128
    """Rows decoded or scored together."""
    max_new_tokens: Positive = 128
    """Longest answer in generation tasks."""
    samples: Count = 0
    """Answers drawn at temperature 1 to each held-out row of the suite `local`, scored as well as the greedy one."""


def evaluation_identity(settings: EvaluationSettings) -> dict[str, Any]:
    """What the scores depend on, as JSON data."""
    identity = asdict(settings)
    return identity if settings.samples else {name: value for name, value in identity.items() if name != "samples"}


@dataclass(frozen=True, config=STRICT)
class Profile:
    """Everything one reproduction needs to know."""

    name: str
    """Names the folders under results/, figures/ and artifacts/."""
    model: ModelSettings
    demonstrations: DemonstrationSettings
    sft: TrainingSettings | None
    """SFT before self-play; null: the base model is the SFT model, as in the paper."""
    spin: SpinSettings
    sft_more: Some = 0
    """Further SFT epochs as the control of Table 5 and Figure 5: would more of the same data do as well?"""
    sft_control: SftControlSettings | None = None
    """How they are trained, and on what, where `sft` is null; otherwise as `sft` and on the same rows."""
    dpo: DpoSettings | None = None
    """DPO, the baseline of Figure 3 and, after SPIN, the last row of Table 3 (App. B.3); null: not run."""
    released: dict[str, ModelSettings] = field(default_factory=dict)
    """Published checkpoints by the name of the model that they are (spin-0, spin-1, ...): they are evaluated
    together with `model`, which is then `sft`, and nothing is trained."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    template: TemplateSettings = field(default_factory=TemplateSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    processes: ProcessSettings = field(default_factory=ProcessSettings)
    """Processes that share the work of a step; no part of any result."""
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    """What each kind of step asks of the scheduler; no part of any result."""
    mt_bench: MtBenchSettings | None = None
    """MT-Bench for the models of the main chain (Table 6, Figure 6), with a judge that costs money; null: not run."""

    def __post_init__(self) -> None:
        require(
            NAME.fullmatch(self.name) is not None,
            f"name: {self.name!r} names folders; use letters, digits, - and _ only",
        )
        require(
            self.sft is None or self.sft_control is None,
            "sft_control: further epochs are trained as sft was; set sft_control or sft to null",
        )
        require(
            self.sft is not None or self.sft_control is not None or not self.sft_more,
            "sft_more: sft is null, so the further epochs need settings of their own; write sft_control, or set "
            "sft_more to 0",
        )
        for kind in ("training", "generation", "evaluation") if self.processes.count else ():
            asked = getattr(self.resources, kind).gpus
            own = kind == "generation" and self.generation.backend == "vllm"  # which starts processes of its own
            require(
                own or asked in (0, self.processes.count),
                f"processes.count: {self.processes.count}, but resources.{kind}.gpus: {asked}, and each process has a "
                "GPU of its own; leave processes.count out, and a step takes a process for each of its GPUs",
            )
        for name, model in self.released.items():
            place = f"released.{name}"
            require(
                _is_row(name), f"{place}: not a row of a table; use spin-0, spin-1, ..., spin-3-dpo, dpo or sft-more-1"
            )
            require(model.source in ("hub", "directory"), f"{place}: name a hub model or a folder")
        require(self.sft is None or not self.released, "released: then nothing is trained; set sft to null")


def _is_row(name: str) -> bool:
    """Whether a name is that of a model of the tables that training makes."""
    try:
        model = ModelName.parse(name)
    except KitError:
        return False
    return model.is_iterate or model.dpo or model.sft_epochs > 0
