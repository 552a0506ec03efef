"""Promises of preferences.py: every layout gives the same pair, every fault is named, no token is lost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from tiny_tokenizer import byte_tokenizer

from spin_utils.data.demonstrations import DemonstrationError
from spin_utils.data.preferences import as_preference, encode_preferences, load
from spin_utils.data.rows import RowError, write_rows
from spin_utils.data.templates import TooLongError, encode_prompt, encode_response
from spin_utils.experiment import answering, input_checks, plan, stages
from spin_utils.model import base, packing
from spin_utils.model.packing import Group
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings, PreferenceSettings, TemplateSettings

REVISION = "0" * 40
GOOD = {"prompt": "who sat?", "chosen": "the cat", "rejected": "the dog"}
TEXT = TemplateSettings(kind="text", prompt="Question: {prompt} Answer:")


def messages(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = {"user": ("user", "assistant"), "assistant": ("assistant", "user")}[first]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def file_of(tmp_path: Path, *records: Any) -> PreferenceSettings:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return PreferenceSettings("file", train=str(path))


def test_every_layout_gives_the_same_pair() -> None:
    chosen, rejected = messages("who sat?", "the cat"), messages("who sat?", "the dog")
    system = {"role": "system", "content": "be brief"}
    for record in (
        GOOD,
        {"chosen": chosen, "rejected": rejected},
        {"prompt": "who sat?", "prompt_id": "1", "chosen": chosen, "rejected": rejected, "messages": chosen},
        {"prompt": messages("who sat?"), "chosen": chosen[1:], "rejected": rejected[1:]},
        {"chosen": [system, *chosen], "rejected": [system, *rejected]},
    ):
        assert as_preference(record, where="here", default_id="7") == {"id": "7", **GOOD}


FAULTS = [
    ({"chosen": "a", "rejected": "b"}, "no key 'prompt' (it has chosen, rejected); use prompt, chosen and rejected"),
    ({"prompt": "a", "chosen": "b"}, "no key 'rejected' (it has prompt, chosen)"),
    (GOOD | {"prompt": ""}, "empty prompt; remove the row"),
    (GOOD | {"chosen": " \n"}, "empty chosen; remove the row"),
    (GOOD | {"rejected": messages("who sat?", "")}, "empty rejected; remove the row"),
    (GOOD | {"chosen": 3}, "chosen is a number; it must be text"),
    (GOOD | {"rejected": None}, "rejected is null; it must be text"),
    (GOOD | {"chosen": {"role": "assistant"}}, "chosen is an object; it must be text"),
    (GOOD | {"chosen": "a\x00"}, "chosen holds U+0000 at character 2"),
    (GOOD | {"rejected": "the cat"}, "chosen and rejected are equal; remove the row"),
    (GOOD | {"chosen": messages("who ran?", "the cat")}, "hold different prompts; correct or remove the row"),
    (
        {"chosen": messages("who sat?", "the cat"), "rejected": messages("who ran?", "the dog")},
        "hold different prompts; correct or remove the row",
    ),
    (
        {"chosen": messages("a", "b", "c", "d"), "rejected": messages("a", "b", "c", "e")},
        "chosen holds messages of user, assistant, user, assistant where one user message and one assistant message",
    ),
    (GOOD | {"chosen": messages("a", "b", first="assistant")}, "chosen holds messages of assistant, user where"),
    (GOOD | {"chosen": []}, "chosen holds messages of nothing where"),
    (GOOD | {"prompt": messages("a", "b")}, "prompt holds messages of user, assistant where one user message"),
    (GOOD | {"chosen": ["the cat"]}, "message 1 of chosen needs the keys role and content"),
    ("text", "text where an object with prompt, chosen and rejected is needed"),
]


@pytest.mark.parametrize(("record", "message"), FAULTS)
def test_a_faulty_row_of_a_file_is_refused_with_its_place_and_remedy(record: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught:
        load(file_of(tmp_path, GOOD, record))
    assert str(caught.value).startswith("pairs.jsonl, row 2: ")
    assert message in str(caught.value)


def test_several_faults_are_reported_together_five_at_most(tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught:
        load(file_of(tmp_path, *[{"prompt": "a"}] * 7))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"pairs.jsonl, row {i}" for i in range(1, 6)]
    assert lines[5] == "and 2 more rows"


def test_json_jsonl_and_parquet_give_the_same_pairs(tmp_path: Path) -> None:
    chats = [{"chosen": messages(f"q{i}", "yes"), "rejected": messages(f"q{i}", "no")} for i in range(3)]
    write_rows(tmp_path / "p.jsonl", chats)
    (tmp_path / "p.json").write_text(json.dumps(chats))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), tmp_path / "p.parquet")
    expected = [{"id": f"p-{i + 1}", "prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(3)]
    for suffix in ("jsonl", "json", "parquet"):
        assert load(PreferenceSettings("file", train=str(tmp_path / f"p.{suffix}"))) == expected


def test_the_first_rows_are_taken_and_more_than_there_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, *[GOOD | {"prompt": f"q{i}"} for i in range(4)]).train
    assert [row["prompt"] for row in load(PreferenceSettings("file", train=path, rows=2))] == ["q0", "q1"]
    with pytest.raises(RowError, match=r"preferences\.rows: asks for 5 rows where pairs\.jsonl has 4"):
        load(PreferenceSettings("file", train=path, rows=5))


def test_faulty_hub_rows_are_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []
    same = {"chosen": messages("q", "a"), "rejected": messages("q", "a")}
    good = {"chosen": messages("q", "a"), "rejected": messages("q", "b")}

    def load_dataset(name: str, **given: Any) -> datasets.Dataset:
        calls.append((name, given))
        return datasets.Dataset.from_list([same, good, good])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    asked = PreferenceSettings("hub", name="someone/prefs", revision=REVISION, train="train_prefs")
    with caplog.at_level(logging.WARNING):
        rows = load(asked)
    assert calls == [("someone/prefs", {"revision": REVISION, "split": "train_prefs"})]
    assert [row["id"] for row in rows] == ["train_prefs-2", "train_prefs-3"]
    assert "1 faulty rows left out, the first: someone/prefs [train_prefs], row 1: chosen and" in caplog.text


def test_pairs_are_the_tokens_of_the_template_and_survive_the_file(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    encoded = encode_preferences(tokenizer, TEXT, [GOOD | {"id": "a"}])
    prompt = encode_prompt(tokenizer, TEXT, "who sat?")
    answers = tuple(encode_response(tokenizer, TEXT, answer) for answer in ("the cat", "the dog"))
    stored = packing.Pairs(
        [packing.write_pairs(tmp_path / "pairs.arrow", encoded)], end_truncated=tokenizer.eos_token_id
    )
    assert list(stored) == [Group(prompt, answers)]
    assert stored.table["id"].to_pylist() == ["a"]


def test_a_pair_is_dropped_truncated_or_refused_whole(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    long = " ".join(["dog"] * 30)
    rows = [GOOD | {"id": "a", "rejected": long}, GOOD | {"id": "b"}, GOOD | {"id": "c", "chosen": long}]

    def encode(too_long: Any) -> list[dict[str, Any]]:
        return encode_preferences(
            tokenizer, TemplateSettings("text", TEXT.prompt, max_response_tokens=20, too_long=too_long), rows
        )

    with pytest.raises(TooLongError, match=r"chosen: row 3 \(c\): response of \d+ tokens where .* allows 20"):
        encode("error")
    with caplog.at_level(logging.WARNING):
        assert [row["id"] for row in encode("drop")] == ["b"]
    assert "2 of 3 pairs are too long" in caplog.text
    truncated = encode("truncate")
    assert [len(row["generated_ids"]) == 20 for row in truncated] == [True, False, False]
    assert truncated[0]["generated_ids"][-1] != tokenizer.eos_token_id
    rows = [rows[0], rows[2]]
    with pytest.raises(TooLongError, match="all 2 pairs are too long"):
        encode("drop")


@pytest.fixture
def run_with_pairs(tmp_path: Path) -> Any:
    """A function that looks at the inputs of a small run with these pairs for DPO."""
    write_rows(tmp_path / "train.jsonl", [{"prompt": f"Say {i}", "response": f"{i}"} for i in range(20)])
    write_rows(tmp_path / "test.jsonl", [{"id": "t", "prompt": "Say it", "response": "it"}])

    def look(*pairs: Any, **changes: Any) -> None:
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
        changes |= {"demonstrations": {"source": "file", **files}}
        changes["dpo.preferences"] = {"source": "file", "train": file_of(tmp_path, *pairs).train}
        stages.check_inputs(profiles.load("smoke", changes))

    return look


def test_pairs_with_a_held_out_prompt_are_refused_before_any_work(run_with_pairs: Any) -> None:
    run_with_pairs(GOOD)
    with pytest.raises(
        RowError, match=r"dpo\.preferences, row pairs-2: the prompt is held out to evaluate on \(row t\)"
    ):
        run_with_pairs(GOOD, GOOD | {"prompt": "Say it"})


def test_what_would_end_a_run_after_its_main_chain_is_refused_before_any_work(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"Say {i}", "response": f"{i}"} for i in range(30)])
    data = {"source": "file", "train": str(tmp_path / "rows.jsonl"), "spin_rows": 20}
    with pytest.raises(DemonstrationError, match=r"spin\.subsets: 1 fiftieths of 20 prompts are not one; raise"):
        stages.check_inputs(profiles.load("smoke", {"demonstrations": data, "spin.subsets": [1]}))
    write_rows(
        tmp_path / "rows.jsonl", [{"prompt": f"Say {i}", "response": "x", "family": "Average"} for i in range(30)]
    )
    with pytest.raises(RowError, match="family 'Average' is what tables call the mean of all; rename it"):
        stages.check_inputs(profiles.load("smoke", {"demonstrations": data, "spin.subsets": [25]}))


def test_prompts_and_answers_that_need_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), tmp_path, ["some words"], seed=0)
    rows = {"spin": [{"id": "1", "prompt": "some words", "response": "yes"}]}
    profile = profiles.load("smoke")
    input_checks.check_fit(tmp_path, profile, rows)
    with pytest.raises(base.ModelError, match=r"has 2048 positions, .* generation\.max_new_tokens \(2048\) needs"):
        input_checks.check_fit(tmp_path, profiles.load("smoke", {"generation.max_new_tokens": 2048}), rows)
    prompt = len(encode_prompt(base.load_tokenizer(tmp_path), profile.template, "some words"))
    full = {"generation.max_new_tokens": 2048 - prompt, "evaluation.max_new_tokens": 2048 - prompt}
    input_checks.check_fit(tmp_path, profiles.load("smoke", {**full, "spin.training.end_truncated": False}), rows)
    with pytest.raises(base.ModelError, match="needs 2049 with its end token"):
        input_checks.check_fit(tmp_path, profiles.load("smoke", full), rows)
    rows = {"transfer": [{"id": "1", "prompt": "some more words", "response": "yes"}]}
    with pytest.raises(base.ModelError, match=r"the longest transfer prompt .* evaluation\.max_new_tokens"):
        input_checks.check_fit(tmp_path, profiles.load("smoke", full), rows)


def test_rows_that_are_asked_are_measured_as_they_are_asked_and_others_as_they_are_trained_on() -> None:
    template = TemplateSettings("text", TEXT.prompt, max_prompt_tokens=20, too_long="drop")
    rows = [GOOD | {"id": "a", "response": "yes"}, {"id": "b", "prompt": 99 * "who sat? ", "response": "yes"}]
    longest, whole = input_checks.check_lengths(
        byte_tokenizer(), template, dict.fromkeys(("spin", "test", "transfer"), rows)
    )
    assert longest["spin"] < longest["test"] == longest["transfer"] == 20
    assert whole["spin"] > longest["spin"]


def test_rows_of_every_use_are_measured_before_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Path, profile: Any, splits: dict[str, Any]) -> None:
        raise TooLongError(" ".join(splits))

    monkeypatch.setattr(input_checks, "read_rows", lambda file: [])
    monkeypatch.setattr(base, "load_tokenizer", lambda folder: None)
    monkeypatch.setattr(input_checks, "check_fit", refuse)
    made = plan.make(profiles.load("smoke"), 0)
    with pytest.raises(TooLongError, match="spin validation test transfer"):
        stages._make_sft(made, made.steps["sft"], home)
    tuned = plan.make(profiles.load("smoke", {"sft": None, "sft_more": 0}), 0)
    with pytest.raises(TooLongError, match="spin validation test transfer"):
        answering.make_pairs(tuned, tuned.steps["pairs-0"], home)


def test_rows_and_pairs_longer_than_the_model_are_refused_before_training(tmp_path: Path) -> None:
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), tmp_path, ["some words"], seed=0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}))
    rows = [{"id": "1", "prompt": "some words", "response": "cat " * 100}]
    few = {"generation.max_new_tokens": 8, "evaluation.max_new_tokens": 8}
    for split in ("sft", "spin"):
        with pytest.raises(base.ModelError, match=f"has 96 positions, and the longest {split} row has"):
            input_checks.check_fit(tmp_path, profiles.load("smoke", few), {split: rows})
    file = file_of(tmp_path, GOOD | {"rejected": "cat " * 100}).train
    profile = profiles.load("smoke", {"dpo.preferences": {"source": "file", "train": file}})
    with pytest.raises(base.ModelError, match=r"the longest row of dpo\.preferences has"):
        input_checks.check_pair_lengths(tmp_path, profile)


def test_pairs_that_are_too_long_are_refused_before_the_main_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    template = {"kind": "text", "prompt": "Q: {prompt} A:", "max_response_tokens": 3}
    profile = profiles.load("smoke", {"template": template})
    monkeypatch.setattr(base, "load_tokenizer", lambda folder: byte_tokenizer())
    with pytest.raises(TooLongError, match=r"dpo\.preferences, chosen: row 1 \(smoke_preferences-1\): response of"):
        input_checks.check_pair_lengths(Path(), profile)
