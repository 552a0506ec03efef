"""TRL's DPOTrainer on given token ids, for the equality test and the benchmark."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from spin_utils.model.packing import Group

END = "</s>"


class _OnIds(DPOTrainer):
    def _prepare_dataset(self, dataset: datasets.Dataset, *given: Any) -> datasets.Dataset:
        return dataset  # where TRL would tokenise text


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
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, map(list, (pair.prompt_ids, *pair.response_ids)), strict=True)) for pair in pairs]
    only_end = Tokenizer(models.WordLevel({END: eos_id}, unk_token=END))  # which pads
    return _OnIds(
        model=model,
        ref_model=reference,
        args=DPOConfig(**(settings | options)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=only_end, eos_token=END, pad_token=END),
    )
