"""TRL's DPOTrainer on given token ids, for the equality test and the benchmark.

TRL tokenises text itself. To give it exact token ids, every id is written as a word of its own and a
word-level tokenizer reads it back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from spin_utils.model.packing import Group

END = "</s>"
"""Word of the end token; it must not occur inside another word."""


def word_tokenizer(vocabulary: int, eos_id: int) -> PreTrainedTokenizerFast:
    """A tokenizer that reads id 7 from the word `w7`, and the end token from `</s>`."""
    words = {f"w{i}": i for i in range(vocabulary) if i != eos_id} | {END: eos_id}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def dataset(pairs: Sequence[Group], eos_id: int) -> datasets.Dataset:
    """Pairs as text. Every response must end with the end token, or TRL appends it."""

    def text(ids: Sequence[int]) -> str:
        return "".join(f" {END}" if i == eos_id else f" w{i}" for i in ids)

    return datasets.Dataset.from_list(
        [
            {
                "prompt": text(p.prompt_ids)[1:],
                "chosen": text(p.response_ids[0]),
                "rejected": text(p.response_ids[1]),
            }
            for p in pairs
        ]
    )


def dpo_trainer(
    model: PreTrainedModel, reference: PreTrainedModel | None, pairs: Sequence[Group], eos_id: int, **options: Any
) -> DPOTrainer:
    """A DPOTrainer with the given options of DPOConfig; everything else as it comes."""
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": model.device.type == "cpu",
    }
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(**(settings | options)),
        train_dataset=dataset(pairs, eos_id),
        processing_class=word_tokenizer(model.config.vocab_size, eos_id),
    )
