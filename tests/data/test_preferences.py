"""Promises of preferences.py: every layout gives the same pair, every fault is named, no token is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_rows import chat
from tiny_tokenizer import byte_tokenizer

from spin_utils.data.preferences import as_preference, encode_preferences, load
from spin_utils.data.rows import RowError
from spin_utils.data.templates import TooLongError, encode_conversation, encode_response
from spin_utils.settings.inputs import PreferenceSettings, TemplateSettings

GOOD = {"prompt": "who sat?", "chosen": "the cat", "rejected": "the dog"}
TEXT = TemplateSettings(kind="text", prompt="Question: {prompt} Answer:")


CHOSEN, REJECTED = chat("who sat?", "the cat"), chat("who sat?", "the dog")
LATER = chat("hi", "yes?")
SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    ("record", "more"),
    [
        (GOOD, {}),
        ({"chosen": CHOSEN, "rejected": REJECTED}, {}),
        ({"prompt": CHOSEN[:1], "chosen": CHOSEN[1:], "rejected": REJECTED[1:]}, {}),
        ({"chosen": [SYSTEM, *CHOSEN], "rejected": [SYSTEM, *REJECTED]}, {"system": "be brief"}),
        (GOOD | {"messages": [SYSTEM, *CHOSEN]}, {"system": "be brief"}),
        (GOOD | {"input": "On the mat."}, {"prompt": "who sat?\n\nOn the mat."}),
        (
            {"question": "who sat?", "chosen": "the cat", "rejected": "the dog", "system": "be brief"},
            {"system": "be brief"},
        ),
        ({"prompt": CHOSEN[:1], "chosen": CHOSEN, "rejected": REJECTED}, {}),
        ({name: f"\n\nHuman: who sat?\n\nAssistant: {GOOD[name]}" for name in ("chosen", "rejected")}, {}),
        ({"prompt": "Human: who sat?\n\nAssistant:", "chosen": " the cat", "rejected": " the dog"}, {}),
        (
            {"chosen": [*LATER, *CHOSEN], "rejected": [*LATER, *REJECTED]},
            {"earlier": ["hi", "yes?"]},
        ),
    ],
)
def test_every_layout_gives_the_same_pair(record: Any, more: dict[str, str]) -> None:
    assert as_preference(record)[0] == GOOD | more


def test_a_conversation_that_a_pair_does_not_repeat_is_named() -> None:
    for talk, unused in ((CHOSEN, []), (CHOSEN[:1], []), ([*LATER, *CHOSEN], ["messages"])):
        assert as_preference(GOOD | {"messages": talk}) == (GOOD, unused)


def test_pairs_that_are_equal_once_cut_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    template = TemplateSettings("text", TEXT.prompt, max_response_tokens=20, too_long="truncate")
    start = " ".join(["dog"] * 30)
    equal = GOOD | {"id": "a", "chosen": f"{start} sat", "rejected": f"{start} ran"}
    encoded = encode_preferences(tokenizer, template, [equal, GOOD | {"id": "b"}])
    assert [row["id"] for row in encoded] == ["b"]
    assert "1 of 2 pairs left out: equal once cut" in caplog.text
    with pytest.raises(
        TooLongError, match=r"all 1 pairs are left out: equal once cut to template\.max_response_tokens"
    ):
        encode_preferences(tokenizer, template, [equal])


def test_pairs_that_differ_in_white_space_that_the_chat_template_strips_are_not_called_too_long() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | trim }}</s>{% endfor %}"
    with pytest.raises(TooLongError, match=r"equal once cut .* or stripped by the chat template$"):
        encode_preferences(tokenizer, TemplateSettings(), [GOOD | {"id": "a", "rejected": f"{GOOD['chosen']} "}])


FAULTS = [
    ({"chosen": "a", "rejected": "b"}, "no key 'prompt' (it has chosen, rejected); use prompt, chosen and rejected"),
    (GOOD | {"system": "be long", "messages": [SYSTEM, *CHOSEN]}, "has different system messages; keep one"),
    (GOOD | {"rejected": None}, "empty rejected; remove the row"),
    (GOOD | {"chosen": chat("a", "b")[::-1]}, "chosen has turns of user, assistant, user; user and"),
    (GOOD | {"chosen": chat("who ran?", "the cat")}, "prompt and chosen have different prompts"),
]
"""A row and what is said about it; tests/malformed has the faults that go through the command line."""


@pytest.mark.parametrize(("record", "message"), FAULTS)
def test_a_faulty_row_of_a_file_is_refused_with_its_place_and_remedy(record: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(record)}\n")
    with pytest.raises(RowError) as caught:
        load(PreferenceSettings("file", train=str(path)))
    assert str(caught.value).startswith("pairs.jsonl, row 2: ")
    assert message in str(caught.value)


def test_pairs_are_the_tokens_of_the_template() -> None:
    tokenizer = byte_tokenizer()
    (pair,) = encode_preferences(tokenizer, TEXT, [GOOD | {"id": "a"}])
    assert pair["prompt_ids"] == encode_conversation(tokenizer, TEXT, ["who sat?"])
    assert pair["real_ids"] == encode_response(tokenizer, TEXT, "the cat")
    assert pair["generated_ids"] == encode_response(tokenizer, TEXT, "the dog")


def test_a_pair_is_dropped_or_truncated_whole(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    long = " ".join(["dog"] * 30)
    rows = [GOOD | {"id": "a", "rejected": long}, GOOD | {"id": "b"}, GOOD | {"id": "c", "chosen": long}]

    def encode(too_long: Any) -> list[dict[str, Any]]:
        return encode_preferences(
            tokenizer, TemplateSettings("text", TEXT.prompt, max_response_tokens=20, too_long=too_long), rows
        )

    assert [row["id"] for row in encode("drop")] == ["b"]
    assert "2 of 3 pairs left out: too long" in caplog.text
    truncated = encode("truncate")
    assert [len(row["generated_ids"]) == 20 for row in truncated] == [True, False, False]
    assert truncated[0]["generated_ids"][-1] != tokenizer.eos_token_id
    rows = [rows[0], rows[2]]
    with pytest.raises(TooLongError, match="all 2 pairs are left out: too long"):
        encode("drop")
