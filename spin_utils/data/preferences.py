"""Preference pairs for DPO: a chosen and a rejected answer to one prompt, from a file or the hub.

A row is `{"prompt", "chosen", "rejected"}`. Each of the three is text or a list of chat messages. An answer that is a
list ends with the assistant's message and may repeat the prompt before it, as in UltraFeedback Binarized (App. B.3);
then the row needs no `prompt`. Longer conversations are refused: the trainer's prompts are single user messages, and
an answer to a conversation is none to its first message. Every row is checked before any work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from spin_utils.data.rows import (
    Row,
    RowError,
    checked_id,
    checked_text,
    conversation,
    first_rows,
    hub_records,
    kind,
    listed,
    read_records,
    repeated_rows,
)
from spin_utils.data.templates import TooLongError, encode_rows
from spin_utils.settings.inputs import PreferenceSettings, TemplateSettings

_logger = logging.getLogger(__name__)


def load(settings: PreferenceSettings) -> list[Row]:
    """Read preference pairs and check every row.

    Faulty rows of a file are errors, because the user can correct it; those of a pinned hub dataset are left out
    with a warning.

    Args:
        settings: source `file` or `hub`, and the number of rows.

    Returns:
        Dicts with `id`, `prompt`, `chosen` and `rejected`, all text, in the order of the source.

    Raises:
        RowError: a file or rows that cannot be used, with file, row and remedy; or too few rows.
    """
    assert settings.source != "samples", "samples are drawn by a stage"
    if settings.source == "file":
        path = Path(settings.train)
        name, stem, records = path.name, path.stem, iter(read_records(path))
    else:
        name, stem = f"{settings.name} [{settings.train}]", settings.train
        records = hub_records(settings.name, settings.revision, settings.train)
    rows, faults, numbers = [], [], []
    for number, record in records:
        try:
            rows.append(as_preference(record, where=f"{name}, row {number}", default_id=f"{stem}-{number}"))
            numbers.append(number)
        except RowError as error:
            faults.append(str(error))
    if settings.source == "file":
        faults += repeated_rows(zip(numbers, rows, strict=True), name, "pair", ("prompt", "chosen", "rejected"))
    if faults and (settings.source == "file" or not rows):
        raise RowError(listed(faults))
    if faults:
        _logger.warning("%s: %d faulty rows left out, the first: %s", name, len(faults), faults[0])
    if not rows:
        raise RowError(f"{name}: no rows; it needs at least one pair")
    return first_rows(rows, settings.rows, "preferences.rows", name)


def as_preference(record: Any, *, where: str, default_id: str) -> Row:
    """Turn one record into a checked pair.

    Args:
        record: an object with chosen and rejected, and with prompt unless they are lists that hold it.
        where: file and row for the error message, such as `pairs.jsonl, row 17`.
        default_id: the row's id where the record has no `id`.

    Raises:
        RowError: something is missing, empty or not text, the answers are equal, or the prompts differ.
    """
    if not isinstance(record, Mapping):
        raise RowError(f"{where}: {kind(record)} where an object with prompt, chosen and rejected is needed")
    chosen, rejected = (_turns(record, name, where) for name in ("chosen", "rejected"))
    parts = [_turns(record, "prompt", where), chosen, rejected] if "prompt" in record else [chosen, rejected]
    prompts = [part["user"] for part in parts if "user" in part]
    if not prompts:
        raise RowError(_missing(record, "prompt", where))
    row = {
        "id": checked_id(record, default_id, where),
        "prompt": checked_text(prompts[0], "prompt", where, remedy="remove the row"),
        "chosen": checked_text(chosen["assistant"], "chosen", where, remedy="remove the row"),
        "rejected": checked_text(rejected["assistant"], "rejected", where, remedy="remove the row"),
    }
    if any(prompt != prompts[0] for prompt in prompts):
        raise RowError(f"{where}: prompt, chosen and rejected hold different prompts; correct or remove the row")
    if row["chosen"] == row["rejected"]:
        raise RowError(f"{where}: chosen and rejected are equal; remove the row")
    return row


def encode_preferences(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Rows of `packing.PAIRS_SCHEMA`: the chosen answer stands as real, the rejected one as generated.

    Args:
        tokenizer: a fast tokenizer.
        template: chat or text template, lengths, and what to do with a pair that is too long.
        rows: from `load`.

    Returns:
        One row per pair in order; fewer when `template.too_long` is `drop`.

    Raises:
        TooLongError: names the answer and the row.
    """
    encoded = {}
    for name in ("chosen", "rejected"):
        answers = [
            {"id": row["id"], "prompt": row["prompt"], "response": row[name], "place": place}
            for place, row in enumerate(rows)
        ]
        try:
            encoded[name] = {answer.row["place"]: answer for answer in encode_rows(tokenizer, template, answers)}
        except TooLongError as error:
            raise TooLongError(f"{name}: {error}") from None
    kept = sorted(encoded["chosen"].keys() & encoded["rejected"].keys())
    if not kept:
        raise TooLongError(f"all {len(rows)} pairs are too long for the template; raise template.max_response_tokens")
    if len(kept) < len(rows):
        _logger.warning("%d of %d pairs are too long for the template and left out", len(rows) - len(kept), len(rows))
    return [
        {
            "id": rows[place]["id"],
            "iteration": 0,
            "prompt_ids": encoded["chosen"][place].prompt_ids,
            "real_ids": encoded["chosen"][place].response_ids,
            "generated_ids": encoded["rejected"][place].response_ids,
            "finish_reason": "stop",  # no end token is added to what the template truncated
            "generated_logp": float("nan"),  # nobody sampled it
        }
        for place in kept
    ]


def _turns(record: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """Contents by role: the user's of a prompt, the assistant's of an answer and the user's if it stands there."""
    if name not in record:
        raise RowError(_missing(record, name, where))
    writer = "user" if name == "prompt" else "assistant"
    if not isinstance(record[name], list):
        return {writer: record[name]}
    turns = conversation(record[name], name, where)
    roles = [role for role, _ in turns]
    if roles != [writer] and (name == "prompt" or roles != ["user", "assistant"]):
        needed = "one user message" if name == "prompt" else "one user message and one assistant message"
        found = ", ".join(map(str, roles)) or "nothing"
        raise RowError(f"{where}: {name} holds messages of {found} where {needed} is needed; shorten or remove the row")
    return dict(turns)


def _missing(record: Mapping[str, Any], name: str, where: str) -> str:
    has = ", ".join(map(str, record)) or "nothing"
    return f"{where}: no key {name!r} (it has {has}); use prompt, chosen and rejected"
