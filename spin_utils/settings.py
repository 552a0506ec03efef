"""Every setting of the kit, as one frozen dataclass per stage.

A field that comes from the paper names its section. A field where the paper and the released code
disagree says so. Profiles (see `profiles.py`) are YAML files read into these classes; nothing else
configures a run. Values are checked here, so an impossible setting never reaches a stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Loss = Literal["logistic", "hinge", "correlation", "exponential"]
Precision = Literal["bfloat16", "float32", "auto"]


class SettingsError(ValueError):
    """A setting is impossible. The message names the setting, its value and the remedy."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)


@dataclass(frozen=True)
class ModelSettings:
    """Where the base model comes from."""

    source: Literal["hub", "directory", "gguf_package", "tiny"]
    """`hub`: a hub id at a pinned revision. `directory`: a local folder of safetensors.
    `gguf_package`: a GGUF file inside an installed Python package. `tiny`: random weights built from a
    config, with a tokenizer trained on the demonstrations."""
    name: str = ""
    """Hub id (`hub`), import name of the package (`gguf_package`) or model type (`tiny`: llama, mistral, qwen2)."""
    revision: str = ""
    """The commit to load (`hub`): 40 hexadecimal digits, because a branch name moves."""
    path: str = ""
    """Folder of the model (`directory`) or of the GGUF file inside the package."""
    sha256: str = ""
    """Expected hash of the GGUF file."""
    hidden_size: int = 64
    """Width of a `tiny` model."""
    layers: int = 2
    """Depth of a `tiny` model."""
    vocabulary_size: int = 384
    """Size of the tokenizer trained for a `tiny` model."""

    def __post_init__(self) -> None:
        if self.source == "hub":
            _require("/" in self.name, f"model.name: {self.name!r} is not a hub id; write it as owner/name")
            _require(
                re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None,
                f"model.revision: {self.revision!r} is not a commit; pin 40 hexadecimal digits (a branch name moves)",
            )
        if self.source == "directory":
            _require(bool(self.path), "model.path: empty; name the folder that holds config.json and *.safetensors")
        if self.source == "gguf_package":
            _require(bool(self.name and self.path), "model.name and model.path: name the package and its GGUF file")
        if self.source == "tiny":
            _require(
                self.name in ("llama", "mistral", "qwen2"),
                f"model.name: {self.name!r} is not a tiny model; use llama, mistral or qwen2",
            )
            _require(self.hidden_size >= 16 and self.hidden_size % 16 == 0, "model.hidden_size: use a multiple of 16")
            _require(self.layers >= 1, "model.layers: at least 1")
            _require(self.vocabulary_size >= 300, "model.vocabulary_size: at least 300 (256 bytes and the markers)")


@dataclass(frozen=True)
class FamilySettings:
    """One task family of the `reasoning_gym` source."""

    dataset: str
    """Name of the generator in reasoning-gym."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its keyword options (difficulty)."""
    benchmark: str = ""
    """The paper's benchmark whose column this family stands in for, empty if none."""


@dataclass(frozen=True)
class DemonstrationSettings:
    """The SFT data: prompts x and human responses y."""

    source: Literal["reasoning_gym", "file", "hub"]
    """`reasoning_gym`: generated task families. `file`: JSON, JSONL or Parquet. `hub`: a pinned hub dataset."""
    families: dict[str, FamilySettings] = field(default_factory=dict)
    """Task families by name (`reasoning_gym`)."""
    train: str = ""
    """File with training rows (`file`) or split name (`hub`)."""
    validation: str = ""
    """File or split for validation; empty: rows are held out of the training rows."""
    test: str = ""
    """File or split for the test; empty: rows are held out of the training rows."""
    name: str = ""
    """Hub id of the dataset (`hub`)."""
    revision: str = ""
    """The dataset's commit (`hub`): 40 hexadecimal digits. Empty: must be given on the command line, and nothing
    is loaded until it is."""
    sft_rows: int = 0
    """Rows seen by SFT; 0: all of them."""
    spin_rows: int = 0
    """Rows used by SPIN, the first ones of the SFT rows (sec. 6.1: 50k of Ultrachat200k); 0: all of them."""
    validation_rows: int | None = None
    """Rows held out to choose settings on. Null: all of its own file or split, else a tenth, at most 300;
    of generated rows: none."""
    test_rows: int | None = None
    """Rows held out for the reported numbers. Null: all of its own file or split, else a tenth, at most 600;
    of generated rows: none."""
    drop_empty: bool = False
    """Leave out rows with an empty prompt or response instead of refusing the file."""
    seed: int = 0
    """Seed of the generators and of the held-out choice; it is not the training seed."""

    def __post_init__(self) -> None:
        if self.source == "reasoning_gym":
            _require(bool(self.families), "demonstrations.families: empty; name at least one reasoning-gym family")
            _require(self.sft_rows > 0, "demonstrations.sft_rows: generated data need a number of rows above 0")
        if self.source == "file":
            _require(bool(self.train), "demonstrations.train: empty; name a .json, .jsonl or .parquet file")
        if self.source == "hub":
            _require("/" in self.name, f"demonstrations.name: {self.name!r} is not a hub id; write it as owner/name")
            _require(
                re.fullmatch(r"([0-9a-f]{40})?", self.revision) is not None,
                f"demonstrations.revision: {self.revision!r} is not a commit; pin 40 hexadecimal digits",
            )
            _require(bool(self.train), "demonstrations.train: empty; name the split, such as train_sft")
        for name in ("sft_rows", "spin_rows", "validation_rows", "test_rows"):
            _require((getattr(self, name) or 0) >= 0, f"demonstrations.{name}: {getattr(self, name)} is negative")
        if self.sft_rows and self.spin_rows:
            _require(
                self.spin_rows <= self.sft_rows,
                f"demonstrations.spin_rows: {self.spin_rows} is more than sft_rows ({self.sft_rows})",
            )


@dataclass(frozen=True)
class TemplateSettings:
    """How a prompt and a response become tokens. One template for generation and training.

    The released code generates under `### Instruction:` and trains under the Zephyr chat format
    (spin/generate.py, spin/run_spin.py); here what was sampled is what is trained on.
    """

    kind: Literal["chat", "text"] = "chat"
    """`chat`: the tokenizer's own chat template. `text`: the two strings below."""
    prompt: str = "{prompt}"
    """Text around the prompt (`text`); must hold {prompt} once."""
    end: str = ""
    """Token that ends a response; empty: the tokenizer's end-of-sequence token."""
    system: str = ""
    """System message of the `chat` kind; empty: none is added by the kit."""
    max_prompt_tokens: int = 512
    """Longest prompt in tokens (released configs: 512; the paper does not say)."""
    max_response_tokens: int = 512
    """Longest response in tokens (released configs: 1024 - 512; sec. B.1 says 2048 for the whole)."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """What to do with a longer row. `truncate` keeps the end of prompts and the start of responses, as the
    released collator does."""

    def __post_init__(self) -> None:
        if self.kind == "text":
            _require(self.prompt.count("{prompt}") == 1, "template.prompt: must hold {prompt} exactly once")
        _require(self.max_prompt_tokens > 0, "template.max_prompt_tokens: at least 1")
        _require(self.max_response_tokens > 0, "template.max_response_tokens: at least 1")


@dataclass(frozen=True)
class TrainingSettings:
    """One training run: SFT, one SPIN iteration, or DPO."""

    learning_rate: float
    """Peak learning rate (sec. B.1: 5e-7 for iterations 0 and 1, 1e-7 for 2 and 3)."""
    epochs: int = 2
    """Passes over the pairs (sec. B.1: 2)."""
    schedule_epochs: int = 0
    """Epochs over which the learning rate decays; 0: the same as `epochs`. The released scripts say 6 and
    stop when it suits; the model cards say 2."""
    schedule: Literal["linear", "constant"] = "linear"
    """Decay after the warm-up (released configs: linear)."""
    batch_size: int = 64
    """Pairs in one optimizer step, exactly (sec. B.1: 64). The last batch of an epoch may be smaller."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """RMSprop as in sec. B.1 (alpha 0.99, eps 1e-8), or AdamW (0.9, 0.999, eps 1e-8)."""
    weight_decay: float = 0.0
    """Decoupled weight decay (sec. B.1: none)."""
    warmup_ratio: float = 0.1
    """Share of the scheduled steps spent warming up (sec. B.1: 10 %)."""
    max_grad_norm: float = 0.0
    """Gradient clipping by global norm; 0: none (the released ZeRO-3 file does not clip)."""
    precision: Precision = "auto"
    """Compute precision; master weights are always exact float32. `auto` measures for a second."""
    micro_batch_tokens: int = 2560
    """Token budget of one forward and backward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    beta: float = 0.1
    """The paper's lambda (sec. B.1: 0.1, at iteration 3: 5.0)."""
    loss: Loss = "logistic"
    """The loss l of eq. 4.7 (sec. 4.1: logistic)."""
    skip_identical: bool = True
    """Leave out pairs whose generated tokens equal the real ones: they give exactly l(0) and no gradient."""
    end_truncated: bool = True
    """Give a length-cut generated response its end token in training, as the released code does."""
    log_every: int = 1
    """Optimizer steps between metric rows."""
    save_minutes: float = 3.0
    """Minutes between checkpoints for resuming."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size", "micro_batch_tokens", "beta", "log_every"):
            _require(getattr(self, name) > 0, f"{name}: {getattr(self, name)} must be above 0")
        for name in ("weight_decay", "max_grad_norm", "save_minutes"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")
        _require(0 <= self.warmup_ratio < 1, f"warmup_ratio: {self.warmup_ratio} must be at least 0 and below 1")
        _require(
            self.schedule_epochs == 0 or self.schedule_epochs >= self.epochs,
            f"schedule_epochs: {self.schedule_epochs} is less than epochs ({self.epochs}); use 0 or more epochs",
        )


@dataclass(frozen=True)
class GenerationSettings:
    """How the opponent answers: y' ~ p_theta_t(.|x)."""

    temperature: float = 1.0
    """1 samples from the model as Algorithm 1 says; 0 is greedy, as the released code decodes in effect."""
    top_k: int = 0
    """0: no truncation (transformers still defaults to 50)."""
    top_p: float = 1.0
    """1: no truncation."""
    max_new_tokens: int = 256
    """Longest generated response (released code: 256; the paper does not say)."""
    batch_size: int = 128
    """Rows decoded together."""
    shard_rows: int = 512
    """Prompts in one finished-or-absent shard."""

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, f"generation.temperature: {self.temperature} is negative")
        _require(self.top_k >= 0, f"generation.top_k: {self.top_k} is negative; 0 switches it off")
        _require(0 < self.top_p <= 1, f"generation.top_p: {self.top_p} must be above 0 and at most 1")
        for name in ("max_new_tokens", "batch_size", "shard_rows"):
            _require(getattr(self, name) > 0, f"generation.{name}: {getattr(self, name)} must be above 0")


@dataclass(frozen=True)
class SpinSettings:
    """Self-play: which settings hold at which iteration."""

    training: TrainingSettings
    """Settings shared by all iterations."""
    iterations: int = 4
    """Number of iterations T (sec. 6.1: 0 to 3)."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rate by iteration; the last one is repeated; empty: that of `training`."""
    betas: tuple[float, ...] = ()
    """Beta by iteration; the last one is repeated; empty: that of `training`."""
    mix_previous: bool = True
    """From iteration 1 on, train on the pairs of t-1 and t together (sec. 6.1)."""

    def __post_init__(self) -> None:
        _require(self.iterations >= 1, f"spin.iterations: {self.iterations} must be at least 1")
        for name in ("learning_rates", "betas"):
            _require(all(v > 0 for v in getattr(self, name)), f"spin.{name}: every value must be above 0")


@dataclass(frozen=True)
class EvaluationSettings:
    """How checkpoints are scored, always through lm-eval."""

    suite: Literal["local", "paper"] = "local"
    """`local`: the held-out demonstrations, one task per family, graded by the row's grader if it has one and
    else by exact match. `paper`: the benchmarks of Table 1, from the hub."""
    tasks: tuple[str, ...] = ()
    """Further lm-eval tasks beside the suite, by name or path of a YAML file; each is a column of its own."""
    limit: int = 0
    """Items per task; 0: all."""
    batch_size: int = 128
    """Rows decoded or scored together."""
    max_new_tokens: int = 128
    """Longest answer in generation tasks."""

    def __post_init__(self) -> None:
        _require(self.limit >= 0, f"evaluation.limit: {self.limit} is negative; 0 means all")
        _require(self.batch_size > 0, f"evaluation.batch_size: {self.batch_size} must be above 0")
        _require(self.max_new_tokens > 0, f"evaluation.max_new_tokens: {self.max_new_tokens} must be above 0")


@dataclass(frozen=True)
class Profile:
    """Everything one reproduction needs to know."""

    name: str
    """Names the folders under results/, figures/ and artifacts/."""
    model: ModelSettings
    demonstrations: DemonstrationSettings
    sft: TrainingSettings | None
    """SFT before self-play; null: the base model is the SFT model, as in the paper."""
    spin: SpinSettings
    sft_more: int = 0
    """Further SFT epochs as the control of Table 5 and Figure 5: would more of the same data do as well?"""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    template: TemplateSettings = field(default_factory=TemplateSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.name) is not None,
            f"name: {self.name!r} names folders; use letters, digits, - and _ only",
        )
        _require(self.sft_more >= 0, f"sft_more: {self.sft_more} is negative")
        _require(self.sft is not None or not self.sft_more, "sft_more: needs the settings of sft, which is null")
