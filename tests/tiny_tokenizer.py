"""Tokenizers for tests, trained on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "The cat sat on the mat. The dog saw the cat. Question: who sat? Answer: the cat, of course. One two three."
START = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
"""Puts the first token before a text."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges, with a start token that the tokenizer adds when asked for special tokens."""
    specials = ["<s>", "</s>"]
    made = trained([TEXT] * 3, specials, size=320, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.backend_tokenizer.post_processor = START
    return made


def trained(
    texts: list[str], specials: list[str], *, byte_level: bool = True, size: int = 400, **tokens: str
) -> PreTrainedTokenizerFast:
    """A tokenizer of byte-level BPE, or one that marks the start of a text with a space of its own, as Llama 2's."""
    inner = Tokenizer(models.BPE(unk_token=tokens.get("unk_token")))
    in_bytes: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = in_bytes if byte_level else pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace(prepend_scheme="first")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **tokens)
