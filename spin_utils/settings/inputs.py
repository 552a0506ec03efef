"""Settings of the inputs: the base model, the demonstrations, preference pairs, and the template of a row.

What is done with them is in `run`. Types and ranges are in the annotations; what pydantic cannot express is checked in
`__post_init__`, whose messages begin with the field.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, field, fields, is_dataclass
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from spin_utils.files.paths import KitError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""For every class of settings: unknown names are refused, and "2" does not count as 2, nor true as 1."""
LARGEST_SEED = 2**31
"""Random streams are numbered from 1000 times the seed, in 64 bits."""
Seed = Annotated[int, Field(ge=0, lt=LARGEST_SEED)]
Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40})?$")]
"""40 hexadecimal digits, because a branch name moves. Empty: to be given on the command line."""
FAMILY_NAME = re.compile(r"\w([\w .,:+-]{0,62}[\w.,:+-])?")
"""A family names a task and its file, so it has no slash, no leading dot and no trailing space."""
FAMILY_RULE = (
    "names a task and its file; use at most 64 letters, digits, spaces and . , : + - _, and begin with a letter or "
    "digit"
)
"""The same rule in words."""
OtherBenchmark = Literal["mt_bench", "bb_causal", "bb_formal", "bb_sports", "openbookqa"]
"""The columns of Table 6."""


class SettingsError(KitError):
    """A setting is impossible. The message names the setting, its value and the remedy."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)


def require_line_breaks(prompt: str) -> None:
    require(r"\n" not in prompt, r"prompt: has a backslash and an n, which are a line break in double quotes only")


EFFECTLESS = {"identity": "never"}
"""Metadata of a setting that does not change the result."""
LATER = {"identity": "if set"}
"""Metadata of a setting that is younger than the first artifacts: they keep their keys where it has its default."""


def identity(settings: Any) -> Any:
    """What a result depends on, as JSON data."""
    if isinstance(settings, dict):
        return {name: identity(value) for name, value in settings.items()}
    if not is_dataclass(settings):
        return settings
    found = {}
    for each in fields(settings):
        value, counts = getattr(settings, each.name), each.metadata.get("identity")
        default = {} if each.default is MISSING else each.default
        if counts is None or (counts == "if set" and value != default):
            found[each.name] = identity(value)
    return found


def _require_fields(settings: Any, **read: str) -> None:
    """Raise if a field that the source needs is empty, one that it does not read is set, or a hub id is none.

    `read` names what each source reads; what it can do without has a question mark.
    """
    for name in read[settings.source].split():
        given = name.endswith("?") or bool(getattr(settings, name))
        require(given, f"{name}: empty; the source {settings.source} needs it")
    for each in fields(settings):
        readers = [source for source, names in read.items() if each.name in names.replace("?", "").split()]
        value = getattr(settings, each.name)
        require(
            not readers or settings.source in readers or not value or value == each.default,
            f"{each.name}: the source {settings.source} does not read it; set source to {' or '.join(readers)} as well",
        )
    if settings.source == "hub":
        require(settings.name.count("/") == 1, f"name: {settings.name!r} is not a hub id; write it as owner/name")


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """Where the base model comes from."""

    source: Literal["hub", "directory", "gguf_package", "tiny"]
    """`hub`: at a pinned revision. `directory`: a local folder of safetensors. `gguf_package`: a GGUF file inside an
    installed Python package. `tiny`: random weights, with a tokenizer trained on the demonstrations."""
    name: str = ""
    """Hub id (`hub`), import name of the package (`gguf_package`) or model type (`tiny`: llama, mistral, qwen2)."""
    revision: Commit = ""
    """The commit to load (`hub`)."""
    path: str = ""
    """Folder of the model (`directory`) or of the GGUF file inside the package."""
    sha256: str = ""
    """Expected hash of the GGUF file."""
    hidden_size: Annotated[int, Field(ge=16, multiple_of=16)] = field(default=64, metadata={"source": "tiny"})
    """Width of a `tiny` model."""
    layers: PositiveInt = field(default=2, metadata={"source": "tiny"})
    """Depth of a `tiny` model."""
    vocabulary_size: Annotated[int, Field(ge=300)] = field(default=384, metadata={"source": "tiny"})
    """Of the tokenizer trained for a `tiny` model: 256 bytes, the markers, and some merges."""

    def __post_init__(self) -> None:
        _require_fields(
            self,
            hub="name revision?",
            directory="path",
            gguf_package="name path sha256?",
            tiny="name hidden_size? layers? vocabulary_size?",
        )
        if self.source == "tiny":
            known = ("llama", "mistral", "qwen2")
            require(self.name in known, f"name: {self.name!r} is not a tiny model; use {', '.join(known)}")


@dataclass(frozen=True, config=STRICT)
class FamilySettings:
    """One task family of the `reasoning_gym` source."""

    dataset: str
    """Name of the generator in reasoning-gym."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its keyword options, which set the difficulty."""
    questions: PositiveInt = field(default=1, metadata=LATER)
    """Questions in a row, numbered; the score is the share answered right. The longer a response is, the easier it is
    to tell from a real one."""


@dataclass(frozen=True, config=STRICT)
class BigBenchSettings:
    """How one task of Big-Bench is measured."""

    limit: NonNegativeInt = 0
    """Items, a random sample that is the same for every model; 0: `evaluation.limit`."""
    shots: NonNegativeInt = 0
    """Examples in the prompt, drawn from the task's other items."""
    cloze: bool = False
    """The prompt does not list the choices, which are compared by log-probability a character (lm-eval's acc_norm).
    Small models can show more that way; it is not Big-Bench's own."""
    benchmark: Literal["", OtherBenchmark] = ""
    """The benchmark of Table 6 that it is, measured with the transfer tasks; empty: none, measured with every model."""


@dataclass(frozen=True, config=STRICT)
class DemonstrationSettings:
    """The SFT data: prompts x and human responses y."""

    source: Literal["reasoning_gym", "file", "hub", "big_bench"]
    """`reasoning_gym`: generated task families. `file`: JSON, JSONL or Parquet. `hub`: a pinned dataset. `big_bench`:
    the free answers of a task of Big-Bench, split by conversation."""
    families: dict[str, FamilySettings] = field(default_factory=dict)
    """Task families by name (`reasoning_gym`)."""
    wordings: Literal["varied", "fixed"] = "varied"
    """Whether the rows of a family word their solutions in several ways, so that two right answers can differ
    (`reasoning_gym`)."""
    train: str = ""
    """File with the training rows (`file`) or name of the split (`hub`)."""
    validation: str = ""
    """File or split for validation; empty: held out from the training rows."""
    test: str = ""
    """File or split for the test; empty: held out from the training rows."""
    name: str = ""
    """Hub id of the dataset (`hub`), or the task, such as topical_chat (`big_bench`)."""
    revision: Commit = ""
    """The dataset's commit (`hub`)."""
    config: str = field(default="", metadata=LATER)
    """Configuration of the dataset, such as main of openai/gsm8k (`hub`); empty: its only one, or the default."""
    sft_rows: NonNegativeInt = 0
    """Rows used for SFT; 0: all of them."""
    spin_rows: NonNegativeInt = 0
    """Rows used for SPIN, the first of the SFT rows (sec. 6.1: 50k of Ultrachat200k); 0: all of them."""
    validation_rows: NonNegativeInt | None = None
    """Rows for choosing settings. Null: the file or split, else a tenth, at most 300; none of generated rows."""
    test_rows: NonNegativeInt | None = None
    """Rows for the reported numbers. Null: the file or split, else a tenth, at most 600; none of generated rows."""
    expected_rows: NonNegativeInt = field(default=0, metadata=EFFECTLESS)
    """Distinct rows that the training file or split must have, so that another upload is noticed; 0: any number."""
    turns: Literal["first", "last", "all"] = field(default="first", metadata=LATER)
    """Which answers of a conversation are trained on. `first`: the first, as SPIN's rows of Ultrachat200k (sec. 6.1).
    `last`: the last, with all turns before it as its prompt. `all`: each; held-out rows are asked for the last."""
    drop_empty: bool = False
    """Drop rows with an empty prompt or response instead of refusing the file."""
    transfer: dict[str, FamilySettings] = field(default_factory=dict)
    """Task families not used in training (`reasoning_gym`), for Table 6."""
    transfer_rows: NonNegativeInt = 0
    """Number of rows from these families."""
    seed: Seed = 0
    """Of generated and held-out rows; separate from the training seed."""

    def __post_init__(self) -> None:
        for name in (*self.families, *self.transfer):
            require(FAMILY_NAME.fullmatch(name) is not None, f"families: {name[:80]!r} {FAMILY_RULE}")
        shared = sorted(self.transfer.keys() & self.families.keys())
        require(not shared, f"transfer: {', '.join(shared)} is also trained on; give it another name")
        require(
            bool(self.transfer) == bool(self.transfer_rows),
            "transfer_rows: give transfer families and their rows together, or neither",
        )
        rows = "train validation? test? expected_rows? turns? drop_empty? sft_rows?"
        _require_fields(
            self,
            reasoning_gym="families wordings? transfer? sft_rows",
            file=rows,
            hub=f"name revision? config? {rows}",
            big_bench="name sft_rows?",
        )
        require(
            not self.sft_rows or self.spin_rows <= self.sft_rows,
            f"spin_rows: {self.spin_rows} is more than sft_rows ({self.sft_rows})",
        )


@dataclass(frozen=True, config=STRICT)
class PreferenceSettings:
    """Pairs (x, y_w, y_l) of a chosen and a rejected response to the same prompt (sec. 4.2), for DPO."""

    source: Literal["samples", "file", "hub"]
    """`samples`: the start model's own responses, labelled by the demonstrations' graders. `file`: JSON, JSONL or
    Parquet. `hub`: a pinned dataset (App. B.3: UltraFeedback Binarized)."""
    train: str = ""
    """File with the pairs (`file`) or split name (`hub`; UltraFeedback Binarized: train_prefs)."""
    name: str = ""
    """Hub id of the dataset (`hub`)."""
    revision: Commit = ""
    """The dataset's commit (`hub`)."""
    config: str = field(default="", metadata=LATER)
    """Configuration of the dataset, such as main of openai/gsm8k (`hub`); empty: its only one, or the default."""
    rows: NonNegativeInt = 0
    """Pairs used, the first ones (App. B.3: 62k, all of UltraFeedback Binarized); 0: all of them."""

    def __post_init__(self) -> None:
        _require_fields(self, samples="", file="train", hub="name revision? config? train")


@dataclass(frozen=True, config=STRICT)
class TemplateSettings:
    """How a prompt and a response become tokens, with one template for generation and training.

    The released code generates with `### Instruction:` and trains with the Zephyr chat format (spin/generate.py,
    spin/run_spin.py); here training uses exactly what was sampled.
    """

    kind: Literal["chat", "text"] = "chat"
    """`chat`: the tokenizer's own chat template. `text`: the two strings below."""
    prompt: str = "{prompt}"
    """Text around the prompt (`text`); must hold {prompt} once."""
    end: str = ""
    """Token that ends a response; empty: that of the chat template, or else the tokenizer's end-of-sequence token."""
    date: str = field(default="2024-07-26", metadata=LATER)
    """The date that chat templates write as today's, so that keys and prompts do not depend on the day of the run."""
    system: str = ""
    """System message for rows without their own; empty: what the chat template writes without one, mostly nothing."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt in tokens (released configs: 512; the paper does not say)."""
    max_response_tokens: PositiveInt = 512
    """Longest response in tokens (released configs: 1024 - 512; sec. B.1 says 2048 for the whole)."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """What to do with a longer row. `error`: refuse it before training. `truncate`: keep the end of prompts and the
    start of responses, as in the released collator. `drop`: leave it out of training and of the held-out pairs.
    Evaluation keeps the end of a longer prompt, so that all models are scored on the same ones, with a warning."""

    def __post_init__(self) -> None:
        if self.kind == "text":
            require(self.prompt.count("{prompt}") == 1, "prompt: must hold {prompt} exactly once")
        require_line_breaks(self.prompt)
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise SettingsError(f"date: {self.date!r} is not a date; write one such as 2024-07-26") from None
