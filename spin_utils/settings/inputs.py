"""Settings of what goes in: the base model, the demonstrations, preference pairs, and the template of a row.

`settings.py` holds what is done with them. Values are checked here, so an impossible one never reaches a stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

LARGEST_SEED = 2**31
"""Seeds are below it: a stream of random numbers is 1000 times the seed and more, in 64 bits."""
FAMILY_NAME = re.compile(r"\w([\w .,:+-]{0,62}[\w.,:+-])?")
"""A family names a task and its file, so it holds no slash, does not begin with a dot or end in a space."""
FAMILY_RULE = (
    "names a task and its file; use at most 64 letters, digits, spaces and . , : + - _, and begin with a letter or "
    "digit"
)
"""The same for people."""
MOST_GENERATED = 1_000_000
"""Rows of a split: a million already take minutes to make, in memory."""
BENCHMARKS = ("arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu")
"""The columns of Tables 1 and 3 to 5, for which families can stand in."""
OTHER_BENCHMARKS = ("mt_bench", "bb_causal", "bb_formal", "bb_sports", "openbookqa")
"""The columns of Table 6."""


class SettingsError(ValueError):
    """A setting is impossible. The message names the setting, its value and the remedy."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)


def is_temperature(value: float) -> bool:
    """Whether one can sample at it: logits divided by next to nothing are beyond any number."""
    return value == 0 or value >= 1e-6


def is_family_name(text: str) -> bool:
    """Whether a family can be called so: `FAMILY_NAME`, and in UTF-8 with room for an extension in a file's name."""
    return FAMILY_NAME.fullmatch(text) is not None and len(text.encode()) <= 200


def require_hub_dataset(name: str, revision: str, split: str) -> None:
    require("/" in name, f"name: {name!r} is not a hub id; write it as owner/name")
    require(
        re.fullmatch(r"([0-9a-f]{40})?", revision) is not None,
        f"revision: {revision!r} is not a commit; pin 40 hexadecimal digits",
    )
    require(bool(split), "train: empty; name the split, such as train_sft")


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
    """The commit to load (`hub`): 40 hexadecimal digits, because a branch name moves. Empty: must be given on the
    command line, and nothing is loaded until it is."""
    path: str = ""
    """Folder of the model (`directory`) or of the GGUF file inside the package."""
    sha256: str = ""
    """Expected hash of the GGUF file."""
    hidden_size: int = field(default=64, metadata={"source": "tiny"})
    """Width of a `tiny` model."""
    layers: int = field(default=2, metadata={"source": "tiny"})
    """Depth of a `tiny` model."""
    vocabulary_size: int = field(default=384, metadata={"source": "tiny"})
    """Size of the tokenizer trained for a `tiny` model."""

    def __post_init__(self) -> None:
        if self.source == "hub":
            require("/" in self.name, f"model.name: {self.name!r} is not a hub id; write it as owner/name")
            require(
                re.fullmatch(r"([0-9a-f]{40})?", self.revision) is not None,
                f"model.revision: {self.revision!r} is not a commit; pin 40 hexadecimal digits (a branch name moves)",
            )
        if self.source == "directory":
            require(bool(self.path), "model.path: empty; name the folder that holds config.json and *.safetensors")
        if self.source == "gguf_package":
            require(bool(self.name and self.path), "model.name and model.path: name the package and its GGUF file")
        if self.source == "tiny":
            require(
                self.name in ("llama", "mistral", "qwen2"),
                f"model.name: {self.name!r} is not a tiny model; use llama, mistral or qwen2",
            )
            require(self.hidden_size >= 16 and self.hidden_size % 16 == 0, "model.hidden_size: use a multiple of 16")
            require(self.layers >= 1, "model.layers: at least 1")
            require(self.vocabulary_size >= 300, "model.vocabulary_size: at least 300 (256 bytes and the markers)")
            for name, largest in (("hidden_size", 4096), ("layers", 128), ("vocabulary_size", 100_000)):
                size = getattr(self, name)
                require(size <= largest, f"model.{name}: {size} is no tiny model; use at most {largest}")


@dataclass(frozen=True)
class FamilySettings:
    """One task family of the `reasoning_gym` source."""

    dataset: str
    """Name of the generator in reasoning-gym."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its keyword options (difficulty)."""
    benchmark: str = ""
    """The paper's benchmark whose column this family stands in for, empty if none."""

    def __post_init__(self) -> None:
        known = (*BENCHMARKS, *OTHER_BENCHMARKS)
        require(
            not self.benchmark or self.benchmark in known,
            f"benchmark: {self.benchmark!r} is none of the paper's; use {', '.join(known)}, or leave it out",
        )


@dataclass(frozen=True)
class DemonstrationSettings:
    """The SFT data: prompts x and human responses y."""

    source: Literal["reasoning_gym", "file", "hub"]
    """`reasoning_gym`: generated task families. `file`: JSON, JSONL or Parquet. `hub`: a pinned hub dataset."""
    families: dict[str, FamilySettings] = field(default_factory=dict)
    """Task families by name (`reasoning_gym`)."""
    wordings: Literal["varied", "fixed"] = "varied"
    """`varied`: every row of a family chooses among its ways to write a solution, so that two right answers can differ.
    `fixed`: all rows of a family are written in the same way (`reasoning_gym`)."""
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
    expected_rows: int = 0
    """Distinct rows that the training file or split must have, so that another upload of the same name is noticed;
    0: any number."""
    drop_empty: bool = False
    """Leave out rows with an empty prompt or response instead of refusing the file."""
    transfer: dict[str, FamilySettings] = field(default_factory=dict)
    """Task families that nothing is trained on (`reasoning_gym`), for Table 6: does the gain carry over?"""
    transfer_rows: int = 0
    """Rows of these families."""
    seed: int = 0
    """Seed of the generators and of the held-out choice; it is not the training seed."""

    def __post_init__(self) -> None:
        require(
            not self.transfer or self.source == "reasoning_gym",
            "demonstrations.transfer: only generated families can be held out; use evaluation.tasks for other tasks",
        )
        shared = sorted(self.transfer.keys() & self.families.keys())
        for name in (*self.families, *self.transfer):
            same = [other for other in (*self.families, *self.transfer) if other.lower() == name.lower()]
            require(
                is_family_name(name),
                f"demonstrations.families: {name[:80]!r} {FAMILY_RULE}",
            )
            require(
                len(set(same)) == 1,
                f"demonstrations.families: {' and '.join(sorted(set(same)))} differ only by case, and some file "
                "systems take them for one; rename one",
            )
        require(not shared, f"demonstrations.transfer: {', '.join(shared)} is also trained on; give it another name")
        require(
            bool(self.transfer) == bool(self.transfer_rows),
            "demonstrations.transfer_rows: give transfer families and their rows together, or neither",
        )
        require(0 <= self.seed < LARGEST_SEED, f"demonstrations.seed: {self.seed}; use 0 to {LARGEST_SEED - 1}")
        if self.source == "reasoning_gym":
            require(bool(self.families), "demonstrations.families: empty; name at least one reasoning-gym family")
            require(self.sft_rows > 0, "demonstrations.sft_rows: generated data need a number of rows above 0")
            require(not self.expected_rows, "demonstrations.expected_rows: sft_rows says how many are generated")
            for name in ("sft_rows", "validation_rows", "test_rows", "transfer_rows"):
                rows = getattr(self, name) or 0
                require(
                    rows <= MOST_GENERATED,
                    f"demonstrations.{name}: {rows} rows; at most {MOST_GENERATED} can be generated",
                )
        if self.source == "file":
            require(bool(self.train), "demonstrations.train: empty; name a .json, .jsonl or .parquet file")
        if self.source == "hub":
            require_hub_dataset(self.name, self.revision, self.train)
        for name in ("sft_rows", "spin_rows", "validation_rows", "test_rows", "expected_rows", "transfer_rows"):
            require((getattr(self, name) or 0) >= 0, f"demonstrations.{name}: {getattr(self, name)} is negative")
        if self.sft_rows and self.spin_rows:
            require(
                self.spin_rows <= self.sft_rows,
                f"demonstrations.spin_rows: {self.spin_rows} is more than sft_rows ({self.sft_rows})",
            )


@dataclass(frozen=True)
class PreferenceSettings:
    """Pairs (x, y_w, y_l) of a chosen and a rejected answer to the same prompt (sec. 4.2), for DPO."""

    source: Literal["samples", "file", "hub"]
    """`samples`: the start model's own answers, labelled by the grader of the demonstration. `file`: JSON, JSONL or
    Parquet. `hub`: a pinned hub dataset (App. B.3: UltraFeedback Binarized)."""
    train: str = ""
    """File with the pairs (`file`) or split name (`hub`; UltraFeedback Binarized: train_prefs)."""
    name: str = ""
    """Hub id of the dataset (`hub`)."""
    revision: str = ""
    """The dataset's commit (`hub`): 40 hexadecimal digits. Empty: must be given on the command line, and nothing
    is loaded until it is."""
    rows: int = 0
    """Pairs used, the first ones (App. B.3: 62k, all of UltraFeedback Binarized); 0: all of them."""

    def __post_init__(self) -> None:
        if self.source == "file":
            require(bool(self.train), "train: empty; name a .json, .jsonl or .parquet file")
        if self.source == "hub":
            require_hub_dataset(self.name, self.revision, self.train)
        require(self.rows >= 0, f"rows: {self.rows} is negative; 0 means all")


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
    """What to do with a longer row. `error`: refuse it before training. `truncate` keeps the end of prompts and the
    start of responses, as the released collator does. `drop` leaves it out of training and of the held-out pairs, and
    says how many. An evaluation leaves out no prompt, so that all models are scored on the same ones: a longer one,
    such as that of a further task with its examples, keeps its end, and a warning says how many do."""

    def __post_init__(self) -> None:
        if self.kind == "text":
            require(self.prompt.count("{prompt}") == 1, "template.prompt: must hold {prompt} exactly once")
        require(self.max_prompt_tokens > 0, "template.max_prompt_tokens: at least 1")
        require(self.max_response_tokens > 0, "template.max_response_tokens: at least 1")
