"""Text to token ids and back: one template for SFT, generation, SPIN and evaluation.

Prompt and response are encoded separately and concatenated, and nothing downstream encodes them again: training sees
exactly the sampled ids. What stands around an answer is read off the tokenizer's own chat template, see `Frame`.
Strings that look like special tokens inside a user's text stay plain text.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from spin_utils.files.paths import KitError
from spin_utils.settings.inputs import TemplateSettings

log = logging.getLogger(__name__)

_MARK, _ANSWER = "\ue000user\ue000", "\ue000answer\ue000"
"""Placeholders for the texts while the frame of a chat template is determined."""
_OTHERWISE = "set template.kind: text and write template.prompt"
_TODAY = re.compile(r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(['"])([^'"]*)\1\s*\)""")
"""How a chat template writes today's date."""


class TemplateError(KitError):
    """A text cannot be encoded with the template. The message names the remedy."""


class TooLongError(TemplateError):
    """A prompt or a response has more tokens than the template allows."""


class Frame(NamedTuple):
    """What a template puts around a user's text and the answer.

    The prompt of a row is `before`, the text and `after`; its response is `lead`, the answer, `trail` and `end`.
    """

    before: str
    after: str
    """From the user's text to the answer: the generation prompt, and what the chat template writes behind it, such as
    an empty thought, which a model then does not have to sample."""
    lead: str
    """Spaces at the answer's start, as in `[/INST] 3`: they are part of its first token."""
    trail: str
    """What stands between answer and end token, mostly nothing."""
    tail: str
    """Everything that the chat template writes behind an answer."""
    opening: str
    """The end of `after` that the generation prompt does not have."""
    end: str
    end_id: int


class EncodedRow(NamedTuple):
    """One demonstration as token ids."""

    row: Mapping[str, Any]
    prompt_ids: list[int]
    response_ids: list[int]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSettings,
    prompts: Sequence[str],
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> list[list[int]]:
    """Token ids of prompts that are only asked; none is dropped, because all models answer the same ones.

    `rows` hold the prompts' own `system` messages and `earlier` turns, if any. Whatever `too_long` is, a prompt with
    more than `template.max_prompt_tokens` tokens is truncated on the left, with a warning. Errors as in
    `encode_conversation`.
    """
    most = template.max_prompt_tokens
    encoded = [
        encode_conversation(tokenizer, template, [*row.get("earlier", ()), prompt], str(row.get("system") or ""))
        for prompt, row in zip(prompts, rows or [{}] * len(prompts), strict=True)
    ]
    if longer := sum(len(ids) > most for ids in encoded):
        told = "%d of %d prompts are truncated on the left: template.max_prompt_tokens is %d; raise it to keep all"
        log.warning(told, longer, len(prompts), most)
    return [ids[-most:] for ids in encoded]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, texts: Sequence[str], system: str = ""
) -> list[int]:
    """Token ids of a conversation of any length, up to where the next response begins.

    In a longer conversation a text template is repeated, and each response gets its end token.

    Args:
        texts: the turns, starting and ending with the user's.
        system: instead of `template.system`. A text template has no slot for either: it comes before the first turn,
            with a blank line between.

    Raises:
        TemplateError: as `frame`, or the chat template rewrites a text.
    """
    made = frame(tokenizer, template)
    if template.kind == "text" and (system or template.system):
        texts, system = [f"{system or template.system}\n\n{texts[0]}", *texts[1:]], ""
    said = [system, *texts] if system else list(texts)
    plain = not any(token in text for text in said for token in _special_tokens(tokenizer))
    if template.kind == "chat":
        pieces = _pieces(tokenizer, template, texts, system) if len(said) > 1 or not plain else []
        if plain:
            return _encode(tokenizer, _render(tokenizer, template, texts, system) + made.opening)
        said = [text.strip() for text in said]
    else:
        pieces = [made.before, *[made.after, made.end + made.before] * (len(texts) // 2), made.after]
    whole = pieces[0] + "".join(text + piece for text, piece in zip(said, pieces[1:], strict=True))
    if plain:
        return _encode(tokenizer, whole)
    if template.kind == "chat" and whole != _render(tokenizer, template, texts, system):
        raise TemplateError(
            "the chat template rewrites a message that holds one of its special tokens; take the token out, or "
            + _OTHERWISE
        )
    # Only the template's own markers may act as markers, so the texts are encoded separately.
    ids = _encode(tokenizer, pieces[0])
    for text, piece in zip(said, [*pieces[1:-1], pieces[-1] + made.opening], strict=True):
        ids += _after(tokenizer, made, text) if ids else _encode(tokenizer, text, plain=True)
        ids += _after(tokenizer, made, piece, own=True)
    return ids


def encode_response(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, response: str) -> list[int]:
    """Token ids of the response and its end token.

    The response is encoded in its place after the template. This matters for tokenizers that mark the start of a text
    (SentencePiece): encoded on its own, a response would begin with a token that the model never samples. A truncated
    response has no end token, which would teach the policy to stop mid-sentence.

    Raises:
        TooLongError: more than `template.max_response_tokens` including the end token, and `too_long` is not `truncate`
            (which keeps the start).
        TemplateError: as `frame`, or the end token is in the response and cannot be split.
    """
    made = frame(tokenizer, template)
    text = made.lead + _written(tokenizer, template, made, response) + made.trail
    ids = [*_after(tokenizer, made, text), made.end_id]
    if made.end_id in ids[:-1]:
        raise TemplateError(
            f"the response holds {made.end!r}, which ends it; take it out, or mark the token as special in "
            "tokenizer.json"
        )
    _check_length("response", ids, template.max_response_tokens, template)
    return ids[: template.max_response_tokens]


def encode_beginning(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, text: str) -> list[int]:
    """Token ids of the first words of a response that is to be continued, in their place after the template."""
    made = frame(tokenizer, template)
    return _after(tokenizer, made, made.lead + text)


def _after(tokenizer: PreTrainedTokenizerBase, made: Frame, text: str, own: bool = False) -> list[int]:
    """Ids of a text that follows another, without the mark that a tokenizer may put at the start of a text.

    Special tokens act as such only in the template's `own` text.
    """
    plain = not own and any(token in text for token in _special_tokens(tokenizer))
    # If its first characters merged with the template's last ones, it is encoded behind a token that does not merge.
    for before in (made.after, made.end):
        anchor, ids = (_encode(tokenizer, each, plain) for each in (before, before + text))
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
    return _encode(tokenizer, text, plain)


def decode_response(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, ids: Iterable[int]) -> str:
    """Text of a sampled response, up to its first end token and without special tokens and the template's spaces."""
    stop, made = end_ids(tokenizer, template), frame(tokenizer, template)
    kept, trail = [], ""
    for token in ids:
        if int(token) in stop:
            trail = made.trail
            break
        kept.append(int(token))
    text = str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return text.removeprefix(made.lead).removesuffix(trail)


def end_ids(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings) -> set[int]:
    """Ids that end a response: the template's end token, the tokenizer's, and those of generation_config.json."""
    ids = {frame(tokenizer, template).end_id, *declared_ends(str(tokenizer.name_or_path))}
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return ids


@lru_cache(maxsize=16)
def declared_ends(folder: str) -> frozenset[int]:
    """The end tokens in a model folder's generation_config.json, if it has one."""
    path = Path(folder) / "generation_config.json"
    if not folder or not path.is_file():
        return frozenset()
    ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    found = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    if not all(isinstance(end, int) for end in found):
        raise TemplateError(f"{path.name}: eos_token_id is {ends!r}; write the token's id, a whole number, or a list")
    return frozenset(found)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, rows: Sequence[Mapping[str, Any]]
) -> list[EncodedRow]:
    """Encode demonstrations: dicts with `id`, `prompt`, `response` and optionally `system` and `earlier`.

    Depending on `template.too_long`, rows that are too long raise, are truncated (a prompt keeps its end), or are left
    out with a warning.

    Raises:
        TooLongError: a row is too long, or all are; the message names it.
        TemplateError: as `frame`, or the chat template rewrites a text, such as a response with a thought of its own.
    """
    encoded = []
    frame(tokenizer, template)  # a fault of the template is not one of the first row
    for number, row in enumerate(rows, start=1):
        try:
            texts = [*row.get("earlier", ()), row["prompt"]]
            prompt_ids = encode_conversation(tokenizer, template, texts, row.get("system", ""))
            _check_length("prompt", prompt_ids, template.max_prompt_tokens, template)
            response_ids = encode_response(tokenizer, template, row["response"])
        except TemplateError as error:
            if isinstance(error, TooLongError) and template.too_long == "drop":
                continue
            raise type(error)(f"row {number} ({row.get('id', 'no id')}): {error}") from None
        encoded.append(EncodedRow(row, prompt_ids[-template.max_prompt_tokens :], response_ids))
    if rows and not encoded:
        raise TooLongError(
            f"all {len(rows)} rows are too long for the template; raise template.max_prompt_tokens or "
            "template.max_response_tokens"
        )
    if len(encoded) < len(rows):
        log.warning("%d of %d rows left out: too long for the template", len(rows) - len(encoded), len(rows))
    return encoded


def frame(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings) -> Frame:
    """What stands around prompts and responses.

    A chat template is rendered once with a user's and an assistant's marker, and once with the user's and a generation
    prompt. The first must begin like the second; the end token is the first token of its own behind the answer.

    Raises:
        TemplateError: the tokenizer has no chat template, one that leaves out or repeats a text, one whose answers do
            not follow its generation prompt, or no end token.
    """
    return _frame(tokenizer, template, str(tokenizer.chat_template or ""))


@lru_cache(maxsize=16)
def _frame(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, chat_template: str) -> Frame:
    # `chat_template` is only part of the cache key, in case a tokenizer's template is replaced.
    lead = opening = tail = ""
    if template.kind == "text":
        before, after = template.prompt.split("{prompt}")
        _warn_of_start(tokenizer, before)
    elif not chat_template:
        raise TemplateError(f"the tokenizer has no chat template; {_OTHERWISE}, or add one to the tokenizer")
    else:
        before, after = _pieces(tokenizer, template, [_MARK])
        whole = _render(tokenizer, template, [_MARK, _ANSWER], asked=False)
        places = whole.split(_MARK), whole.split(_ANSWER)
        if [len(parts) for parts in places] != [2, 2] or _ANSWER in places[0][0]:
            counts = f"the user's message {len(places[0]) - 1} times and the answer {len(places[1]) - 1} times"
            raise TemplateError(f"the chat template writes {counts}, not once each in this order; {_OTHERWISE}")
        between, tail = places[0][1].split(_ANSWER)
        if places[0][0] != before or not between.startswith(after):
            raise TemplateError(
                "in the chat template an answer does not follow the generation prompt: it writes "
                f"{_legible(whole)!r}, but asks with {_legible(before + _MARK + after)!r}; {_OTHERWISE}"
            )
        opening = between[len(after) :]
        opening = opening.rstrip(" ") if opening.strip() else ""
        after, lead = after + opening, between[len(after + opening) :]
        if opening:
            log.info("chat template: %r stands between generation prompt and answer, and is part of prompts", opening)
    end, trail = _end(tokenizer, template, tail)
    end_id = tokenizer.get_vocab().get(end)
    if end_id is None:
        raise TemplateError(
            f"template.end: {end!r} is not one token of this tokenizer's vocabulary; use one of its special tokens: "
            + ", ".join(sorted(_special_tokens(tokenizer)))
        )
    return Frame(before, after, lead, trail, tail, opening, end, end_id)


def _end(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, tail: str) -> tuple[str, str]:
    """The end token, and what stands between an answer and it."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | _special_tokens(tokenizer)
    found = [(tail.index(token), -len(token), token) for token in added if token.strip() and token in tail]
    end = template.end or (min(found)[2] if found else str(tokenizer.eos_token or ""))
    if not end:
        raise TemplateError("the tokenizer has no end-of-sequence token; name one in template.end")
    if template.kind == "chat" and end not in tail:
        told = "the chat template does not write %r behind an answer (it writes %r); responses end in it all the same"
        log.warning(told, end, tail)
    return end, tail.partition(end)[0] if end in tail else ""


def _warn_of_start(tokenizer: PreTrainedTokenizerBase, before: str) -> None:
    """Say so if a text template lacks a token that the tokenizer puts before every text."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    start = str(tokenizer.decode(whole[: whole.index(plain[0])])) if plain and plain[0] in whole else ""
    if start and not before.startswith(start):
        told = "this tokenizer puts %r before a text, and template.prompt does not begin with it; "
        log.warning(told + "if the model was trained with it, write it there", start)


def _written(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, made: Frame, response: str) -> str:
    """A response as the chat template writes it, which may strip white space."""
    if template.kind == "text":
        return response
    whole = _render(tokenizer, template, [_MARK, response], asked=False)
    start = made.before + _MARK + made.after + made.lead
    written = whole[len(start) : len(whole) - len(made.tail)]
    if whole != start + written + made.tail or written.strip() != response.strip():
        raise TemplateError(
            f"the chat template rewrites the response to {whole.rpartition(_MARK)[2][-300:]!r}; take out what it "
            f"rewrites, such as a thought, or {_OTHERWISE}"
        )
    return written


def _pieces(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, texts: Sequence[str], system: str = ""
) -> list[str]:
    """The text that a chat template puts before, between and after the stripped texts of a conversation."""
    marked = [text.replace(text.strip(), _MARK, 1) for text in texts]  # an answer can be empty
    expected = len(texts) + bool(system)
    pieces = _render(tokenizer, template, marked, system and system.replace(system.strip(), _MARK, 1)).split(_MARK)
    if len(pieces) != expected + 1:
        message = "the user's message" if expected == 1 else f"the {expected} messages of a conversation"
        message += " with its system message" if system else ""
        raise TemplateError(
            f"the chat template writes {message} {len(pieces) - 1} times instead of {expected}; {_OTHERWISE}"
        )
    return pieces


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSettings,
    texts: Sequence[str],
    system: str = "",
    *,
    asked: bool = True,
) -> str:
    """A conversation in the chat template, with a generation prompt if it is `asked` for an answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    if system or template.system:
        messages.insert(0, {"role": "system", "content": system or template.system})
    options: dict[str, Any] = {"add_generation_prompt": asked, "tokenize": False}
    try:  # transformers renders in jinja2's sandbox, which refuses a template that reaches for Python itself
        frozen = _frozen(str(tokenizer.get_chat_template()), template.date)
        return str(tokenizer.apply_chat_template(messages, chat_template=frozen, **options))
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise TemplateError(
            f"the chat template cannot be rendered ({type(error).__name__}: {error}); correct it, or {_OTHERWISE}"
        ) from None


@lru_cache(maxsize=16)
def _frozen(chat_template: str, day: str) -> str:
    """A chat template that writes a fixed day where it would write today's date."""
    frozen = _TODAY.sub(lambda call: repr(date.fromisoformat(day).strftime(call[2])), chat_template)
    if re.search(r"strftime_now(?!\s+is\s+(not\s+)?defined)", frozen):
        raise TemplateError(
            "the chat template writes today's date in a way that is not read off it, so the same settings would give "
            f"other prompts tomorrow; write strftime_now('%d %b %Y') in it, or {_OTHERWISE}"
        )
    return frozen


def _legible(text: str) -> str:
    return text.replace(_MARK, "{prompt}").replace(_ANSWER, "{answer}")


def training_text(tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, row: Mapping[str, Any]) -> str:
    """A row as the model is trained on it, for people to read: its text with every special token, and its tokens.

    Errors as in `encode_rows`.
    """
    made, (encoded,) = frame(tokenizer, template), encode_rows(tokenizer, template, [row])
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in sorted(end_ids(tokenizer, template)))
    parts = {"prompt, no loss": encoded.prompt_ids, "response, with loss": encoded.response_ids}
    without, with_loss = map(len, parts.values())
    lines = [
        f"row {row.get('id', '')}: {without} tokens without loss, {with_loss} with loss",
        f"from prompt to response: {made.after!r}",
        f"responses end in {made.end!r}; sampling stops at {stops}",
    ]
    for what, ids in parts.items():
        tokens = [f"{tokenizer.decode([token])!r}={token}" for token in ids]
        tokens = [" ".join(tokens[start : start + 10]) for start in range(0, len(tokens), 10)]
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        lines += ["", f"--- {what}", text, f"--- its {len(ids)} tokens", *tokens]
    return "\n".join(lines)


@lru_cache(maxsize=16)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | {str(token) for token in tokenizer.all_special_tokens})


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain) if text else []


def _check_length(what: str, ids: Sequence[int], allowed: int, template: TemplateSettings) -> None:
    if len(ids) > allowed and template.too_long != "truncate":
        raise TooLongError(
            f"{what} of {len(ids)} tokens, but template.max_{what}_tokens is {allowed}; "
            "raise it, or set template.too_long to truncate or drop"
        )
