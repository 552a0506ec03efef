"""Preference pairs for DPO: a chosen and a rejected response to one prompt, from a file or the hub.

A row is `{"prompt", "chosen", "rejected"}`, each either text or a conversation (see `rows`). A response given as a
conversation ends with the assistant's message and may repeat the prompt before it, as in UltraFeedback Binarized
(App. B.3); then the row needs no `prompt`. Both must answer the same conversation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from spin_utils.data import rows as records
from spin_utils.data.rows import Row, RowError
from spin_utils.data.templates import EncodedRow, TooLongError, decode_response, encode_rows
from spin_utils.settings.inputs import PreferenceSettings, TemplateSettings

_PROMPTS = ("prompt", "instruction", "question")
"""Columns that may hold the prompt; the first that is there does."""
_logger = logging.getLogger(__name__)


def load(settings: PreferenceSettings) -> list[Row]:
    """Read preference pairs from a file or the hub, and check every row.

    Returns:
        Dicts with `id`, `prompt`, `chosen` and `rejected`, all text, in the source's order.

    Raises:
        RowError: as `checked_rows`, or there are too few rows.
    """
    assert settings.source != "samples", "samples are made by a stage"
    fields = ("prompt", "chosen", "rejected")
    rows = records.checked_rows(settings, settings.train, as_preference, fields)
    return records.first_rows(rows, settings.rows, "preferences.rows", Path(settings.train).name)


def as_preference(record: Mapping[str, Any]) -> tuple[Row, list[str]]:
    """Turn one record into a checked pair, whose `id` is missing if the record has none; also what nothing reads.

    Raises:
        RowError: something is missing, empty or not text, the responses are equal, or the prompts differ.
    """
    asked, said = next((name for name in _PROMPTS if record.get(name) is not None), ""), {}
    # In UltraFeedback Binarized `messages` repeats the chosen conversation; elsewhere it may hold the system message.
    talks = {n: records.conversation(record[n], n) for n in records.CONVERSATIONS if isinstance(record.get(n), list)}
    systems = [system for system, _ in talks.values()]
    for name in ("chosen", "rejected"):
        found, said[name] = records.exchange(record, asked, name) if name in record else ([], [("assistant", "")])
        systems += found
        if [role for role, _ in said[name]] == ["assistant"]:
            missing, has = ("prompt" if name in record else name), ", ".join(map(str, record)) or "nothing"
            raise RowError(f"no key {missing!r} (it has {has}); use prompt, chosen and rejected")
        records.check_turns(said[name], name)
    if said["chosen"][:-1] != said["rejected"][:-1]:
        raise RowError("chosen and rejected have different prompts; correct or remove the row")
    row = records.asked_of(record, asked, systems, said["chosen"][:-1])
    row |= {name: records.checked_text(said[name][-1][1], name) for name in ("chosen", "rejected")}
    if row["chosen"] == row["rejected"]:
        raise RowError("chosen and rejected are equal; remove the row")
    repeated = [name for name, (_, turns) in talks.items() if turns in (said["chosen"], said["chosen"][:-1])]
    return row, records.unread(record, (asked, "chosen", "rejected"), repeated)


def encode_preferences(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Rows of `packing.PAIRS_SCHEMA`, with the chosen response as real and the rejected one as generated.

    Returns:
        One row per pair in order, without those that are too long (`template.too_long: drop`) or equal once cut to the
        template's length.

    Raises:
        TooLongError: a response is too long (names it and the row), or no pair is left.
    """
    encoded: dict[str, dict[int, EncodedRow]] = {}
    for name in ("chosen", "rejected"):
        answers = [{**row, "response": row[name], "place": place} for place, row in enumerate(rows)]
        try:
            encoded[name] = {answer.row["place"]: answer for answer in encode_rows(tokenizer, template, answers)}
        except TooLongError as error:
            raise TooLongError(f"{name}: {error}") from None
    whole = [
        (encoded["chosen"][place], encoded["rejected"][place].response_ids)
        for place in sorted(encoded["chosen"].keys() & encoded["rejected"].keys())
    ]
    # Equal responses give a loss of log 2 and no gradient for any policy: there is nothing to learn from them.
    kept = [(chosen, rejected) for chosen, rejected in whole if chosen.response_ids != rejected]
    for all_of, left, why in (
        (len(rows), len(whole), "too long for the template; raise template.max_response_tokens"),
        (len(whole), len(kept), "equal once cut to template.max_response_tokens or stripped by the chat template"),
    ):
        if not left:
            raise TooLongError(f"all {all_of} pairs are left out: {why}")
        if left < all_of:
            _logger.warning("%d of %d pairs left out: %s", all_of - left, all_of, why)
    text, nan = partial(decode_response, tokenizer, template), float("nan")  # no log-probability: not sampled
    # As if they had stopped: no end token is added to truncated responses.
    return [pair_row(text, chosen, 0, (rejected, "stop", nan)) for chosen, rejected in kept]


def pair_row(
    text: Callable[[Sequence[int]], str], row: EncodedRow, iteration: int, generated: tuple[list[int], str, float]
) -> dict[str, Any]:
    """A row of `packing.PAIRS_SCHEMA`: an encoded row, and token ids, finish reason and logp of a generated response.

    `text` decodes a response.
    """
    ids, reason, logp = generated
    return {
        "id": row.row["id"],
        "iteration": iteration,
        "family": row.row.get("family", ""),
        "prompt": row.row["prompt"],
        "real": text(row.response_ids),
        "generated": text(ids),
        "prompt_ids": row.prompt_ids,
        "real_ids": row.response_ids,
        "generated_ids": ids,
        "finish_reason": reason,
        "generated_logp": logp,
    }
