"""Text to token ids and back: one template for SFT, generation, SPIN and evaluation.

Prompt and response are encoded separately and concatenated, and nothing downstream encodes them again: training sees
exactly the sampled ids. The only special tokens come from the template and the end token. Strings that look like
special tokens inside a user's text stay plain text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from spin_utils.files.paths import KitError
from spin_utils.settings.inputs import TemplateSettings

log = logging.getLogger(__name__)

_MARK = "\ue000user\ue000"
"""Placeholder for the user's text while the frame of a chat template is determined."""
_OTHERWISE = "set template.kind: text and write template.prompt"


class TemplateError(KitError):
    """A text cannot be encoded with the template. The message names the remedy."""


class TooLongError(TemplateError):
    """A prompt or a response has more tokens than the template allows."""


class EncodedRow(NamedTuple):
    """One demonstration as token ids."""

    row: Mapping[str, Any]
    prompt_ids: list[int]
    response_ids: list[int]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, prompt: str, system: str = ""
) -> list[int]:
    """Token ids of a prompt in its template, up to where the response begins.

    Args:
        tokenizer: a fast tokenizer.
        template: chat or text template, and the longest prompt in tokens.
        prompt: the user's text.
        system: the row's own system message, see `encode_conversation`.

    Returns:
        The ids, at most `template.max_prompt_tokens` of them.

    Raises:
        TooLongError: the prompt is longer and `too_long` is not `truncate` (which keeps its end).
        TemplateError: the tokenizer has no chat template.
    """
    ids = encode_conversation(tokenizer, template, [prompt], system)
    if len(ids) > template.max_prompt_tokens:
        if template.too_long != "truncate":
            raise TooLongError(_too_long_message("prompt", len(ids), template.max_prompt_tokens))
        ids = ids[-template.max_prompt_tokens :]
    return ids


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSettings,
    prompts: Sequence[str],
    systems: Sequence[str] | None = None,
) -> list[list[int]]:
    """Token ids of evaluation prompts; none is dropped, because all models answer the same ones.

    `systems` are the prompts' own system messages, if any. Whatever `too_long` is, a prompt with more than
    `template.max_prompt_tokens` tokens is truncated on the left, with a warning.

    Raises:
        TemplateError: the tokenizer has no chat template, or one that leaves out or repeats a text.
    """
    most = template.max_prompt_tokens
    asked = zip(prompts, systems or [""] * len(prompts), strict=True)
    encoded = [encode_conversation(tokenizer, template, [prompt], system) for prompt, system in asked]
    longer = sum(len(ids) > most for ids in encoded)
    if longer:
        log.warning(
            "%d of %d prompts are truncated on the left: template.max_prompt_tokens is %d; raise it to keep them whole",
            longer,
            len(prompts),
            most,
        )
    return [ids[-most:] for ids in encoded]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, texts: Sequence[str], system: str = ""
) -> list[int]:
    """Token ids of a conversation of any length, up to where the next response begins.

    A text template has a single turn; in a longer conversation it is repeated, and each response gets its end token.

    Args:
        tokenizer: a fast tokenizer.
        template: chat or text template.
        texts: the turns, starting and ending with the user's.
        system: this conversation's system message, instead of `template.system`. A text template has no slot for one,
            so it is put before the first turn, followed by a blank line.

    Raises:
        TemplateError: the tokenizer has no chat template, or one that leaves out or repeats a text.
    """
    before, after, _ = _frame(tokenizer, template, str(tokenizer.chat_template or ""))
    if system and template.kind == "text":
        texts, system = [f"{system}\n\n{texts[0]}", *texts[1:]], ""
    said = [system, *texts] if system else list(texts)
    pieces = [before, after]
    if template.kind == "chat" and len(said) > 1:
        pieces = _pieces(tokenizer, template, len(texts), _MARK if system else "")
    elif len(texts) > 1:
        pieces = [before, *[after, (template.end or str(tokenizer.eos_token)) + before] * (len(texts) // 2), after]
    plain = not any(token in text for text in said for token in _special_tokens(tokenizer))
    if plain and template.kind == "chat":
        return _encode(tokenizer, _render(tokenizer, template, texts, system))
    if plain:
        return _encode(tokenizer, pieces[0] + "".join(a + b for a, b in zip(said, pieces[1:], strict=True)))
    # Only the template's own markers may act as markers, so the texts are encoded separately.
    ids = _encode(tokenizer, pieces[0])
    for text, piece in zip(said, pieces[1:], strict=True):
        ids += _encode(tokenizer, text, plain=True) + _encode(tokenizer, piece)
    return ids


def encode_response(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, response: str) -> list[int]:
    """Token ids of the response and its end token.

    The response is encoded in its place after the template. This matters for tokenizers that mark the start of a text
    (SentencePiece): encoded on its own, a response would begin with a token that the model never samples.

    Returns:
        The ids. The last one is the end token, except for a truncated response: there an end token would teach the
        policy to stop mid-sentence.

    Raises:
        TooLongError: more than `template.max_response_tokens` including the end token, and `too_long` is not `truncate`
            (which keeps the start).
        TemplateError: the end token is not a single token of the vocabulary.
    """
    _, after, end_id = _frame(tokenizer, template, str(tokenizer.chat_template or ""))
    anchor = _encode(tokenizer, after)
    if any(token in response for token in _special_tokens(tokenizer)):
        ids = _encode(tokenizer, response, plain=True)
    else:
        ids = _encode(tokenizer, after + response)
        # If the first characters of the response merged with the template's last ones, encode it on its own.
        ids = ids[len(anchor) :] if ids[: len(anchor)] == anchor else _encode(tokenizer, response)
    ids.append(end_id)
    if len(ids) > template.max_response_tokens:
        if template.too_long != "truncate":
            raise TooLongError(_too_long_message("response", len(ids), template.max_response_tokens))
        ids = ids[: template.max_response_tokens]
    return ids


def decode_response(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, ids: Iterable[int]) -> str:
    """Text of a sampled response, up to its first end token and without special tokens."""
    stop = end_ids(tokenizer, template)
    kept = []
    for token in ids:
        if int(token) in stop:
            break
        kept.append(int(token))
    return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def end_ids(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings) -> set[int]:
    """Ids that end a response: the template's end token and the tokenizer's end-of-sequence token."""
    ids = {_frame(tokenizer, template, str(tokenizer.chat_template or ""))[2]}
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return ids


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, rows: Sequence[Mapping[str, Any]]
) -> list[EncodedRow]:
    """Encode demonstrations. Depending on `template.too_long`, rows that are too long raise, are truncated or dropped.

    Args:
        rows: dicts with `id`, `prompt`, `response` and optionally `system`.

    Returns:
        One entry per row in order; with `template.too_long: drop` possibly fewer, with a warning.

    Raises:
        TooLongError: a row is too long; the message names it.
    """
    encoded = []
    for number, row in enumerate(rows, start=1):
        try:
            prompt_ids = encode_prompt(tokenizer, template, row["prompt"], row.get("system", ""))
            response_ids = encode_response(tokenizer, template, row["response"])
        except TooLongError as error:
            if template.too_long == "drop":
                continue
            raise TooLongError(f"row {number} ({row.get('id', 'no id')}): {error}") from None
        encoded.append(EncodedRow(row, prompt_ids, response_ids))
    if rows and not encoded:
        raise TooLongError(f"all {len(rows)} rows are too long for the template; raise template.max_prompt_tokens")
    if len(encoded) < len(rows):
        log.warning("%d of %d rows left out: too long for the template", len(rows) - len(encoded), len(rows))
    return encoded


@lru_cache(maxsize=16)
def _frame(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, chat_template: str) -> tuple[str, str, int]:
    """Text before and after the user's prompt, and the id of the end token.

    `chat_template` is only part of the cache key, in case a tokenizer's template is replaced. A tokenizer may have
    several by name, of which transformers renders the one called default.
    """
    end = template.end or tokenizer.eos_token
    if not end:
        raise TemplateError("the tokenizer has no end-of-sequence token; name one in template.end")
    end_id = tokenizer.get_vocab().get(end)
    if end_id is None:
        raise TemplateError(
            f"template.end: {end!r} is not one token of this tokenizer's vocabulary; use one of its special tokens: "
            + ", ".join(sorted(_special_tokens(tokenizer)))
        )
    if template.kind == "text":
        before, after = template.prompt.split("{prompt}")
        return before, after, end_id
    if not chat_template:
        raise TemplateError(
            "the tokenizer has no chat template; set template.kind: text and write template.prompt, "
            "or add a chat template to the tokenizer"
        )
    before, after = _pieces(tokenizer, template, 1)
    return before, after, end_id


def _pieces(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, texts: int, system: str = "") -> list[str]:
    """The text that a chat template puts before, between and after a conversation's texts and its system message."""
    expected = texts + bool(system)
    pieces = _render(tokenizer, template, [_MARK] * texts, system).split(_MARK)
    if len(pieces) != expected + 1:
        message = "the user's message" if expected == 1 else f"the {expected} messages of a conversation"
        message += " with its system message" if system else ""
        raise TemplateError(
            f"the chat template writes {message} {len(pieces) - 1} times instead of {expected}; {_OTHERWISE}"
        )
    return pieces


def _render(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, texts: Sequence[str], system: str = ""
) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    if system or template.system:
        messages.insert(0, {"role": "system", "content": system or template.system})
    try:  # transformers renders in jinja2's sandbox, which refuses a template that reaches for Python itself
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise TemplateError(
            f"the chat template cannot be rendered ({type(error).__name__}: {error}); correct it, or {_OTHERWISE}"
        ) from None


@lru_cache(maxsize=16)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | {str(token) for token in tokenizer.all_special_tokens})


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool = False) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain) if text else []
    return list(ids)


def _too_long_message(what: str, tokens: int, allowed: int) -> str:
    return (
        f"{what} of {tokens} tokens, but template.max_{what}_tokens is {allowed}; "
        "raise it, or set template.too_long to truncate or drop"
    )
