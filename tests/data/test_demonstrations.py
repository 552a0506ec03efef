"""Promises of demonstrations.py and rows.py: every layout read, every fault named, every split disjoint."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hub_rows import chat
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_utils.data.demonstrations import load
from spin_utils.data.preferences import as_preference
from spin_utils.data.rows import COMMON, LAYOUTS, RowError, as_row, question, read_rows, write_rows
from spin_utils.settings.inputs import DemonstrationSettings, FamilySettings

REVISION = "0" * 40


def file_settings(train: str | Path, **sizes: Any) -> DemonstrationSettings:
    """A file source with nothing held out unless asked."""
    return DemonstrationSettings(source="file", train=str(train), **{"validation_rows": 0, "test_rows": 0, **sizes})


def pairs(count: int, name: str = "p") -> list[dict[str, str]]:
    return [{"prompt": f"{name} question {i}", "response": f"answer {i}"} for i in range(count)]


ROW = '{"id": "a", "prompt": "x", "response": "y"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'{ROW}"text"', r"rows\.jsonl, row 2: 'text' instead of an object with prompt and response"),
        (ROW + ROW.replace("y", "z"), r"row 2: same id 'a' as row 1"),
        (ROW + r'{"prompt": "x", "response": "cut \ud83d"}', r"row 2: response has '\\ud83d', half of a character"),
        ('{"question": "x", "answers": ["y"]}', r"row 1: no key 'response' \(it has question, answers\)"),
        ('{"messages": [{"content": "x"}]}', r"row 1: message 1 of messages needs the keys role and content"),
        (f"[{ROW.strip()}]\n", r"row 1: \[\{'id'.* instead of an object .*; a \.jsonl file has one object per line"),
    ],
)
def test_a_broken_file_is_refused_with_file_row_and_remedy(content: str, message: str, tmp_path: Path) -> None:
    """tests/malformed has the faults that go through the command line."""
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(RowError, match=message):
        load(file_settings(tmp_path / "rows.jsonl"))


def test_a_misspelt_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "good.jsonl", pairs(2))
    with pytest.raises(RowError, match=r"goood\.jsonl: no such file; did you mean .*good\.jsonl\?"):
        load(file_settings(tmp_path / "goood.jsonl"))


def test_several_faults_are_reported_together_five_at_most(tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught:
        load(file_settings(write_rows(tmp_path / "faults.jsonl", [{"prompt": "a"}] * 7)))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"faults.jsonl, row {i}" for i in range(1, 6)]
    assert lines[5] == "and 2 more rows"


def test_json_jsonl_a_byte_order_mark_and_parquet_with_messages_give_the_same_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", pairs(5))
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "c.json").write_text(json.dumps(pairs(5)))
    chats = [chat(row["prompt"], row["response"]) for row in pairs(5)]
    pyarrow.parquet.write_table(pyarrow.table({"messages": chats}), tmp_path / "d.parquet")
    for path in tmp_path.iterdir():
        rows = load(file_settings(path)).sft
        found = sorted((row["prompt"], row["response"]) for row in rows)
        assert found == [(row["prompt"], row["response"]) for row in pairs(5)], path.name


CHAT, SYSTEM = chat("x", "y"), {"role": "system", "content": "be brief"}
LATER = chat("and", "so")


@pytest.mark.parametrize(
    ("record", "system"),
    [
        ({"prompt": "x", "response": "y"}, None),
        ({"prompt": "x", "prompt_id": "1", "messages": [*CHAT, *LATER]}, None),
        ({"real": CHAT, "generated": chat("x", "z")}, None),
        ({"messages": [SYSTEM, *CHAT]}, "be brief"),
        ({"prompt": "x", "response": "y", "system": "be brief"}, "be brief"),
        ({"prompt": "x", "response": "y", "messages": [SYSTEM, *CHAT]}, "be brief"),
        ({"prompt": "x", "response": "y", "messages": []}, None),
        ({"messages": [SYSTEM, *CHAT], "context": "x"}, "be brief"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, CHAT[1]]}, None),
        ({"real": [SYSTEM, *CHAT], "system": "be brief"}, "be brief"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}, None),
        ({"conversations": [{"from": m["role"], "value": m["content"]} for m in [SYSTEM, *CHAT]]}, "be brief"),
        ({"messages": [{"role": "developer", "content": "be brief"}, *CHAT, *LATER]}, "be brief"),
        ({"instruction": "x", "input": "", "output": "y"}, None),
        ({"system_prompt": "be brief", "question": "x", "response": "y"}, "be brief"),
        ({"question": "x", "answer": "y"}, None),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, None),
        ({"prompt": "x", "completion": "y", "label": True}, None),
        ({"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"}, None),
        ({"chosen": "Human: x\n\nAssistant: y", "rejected": "Human: x\n\nAssistant: z"}, None),
        ({"prompt": "Human: x\n\nAssistant:", "response": " y"}, None),
        ({"conversations": [{"from": "Human", "value": "x"}, {"from": "bing", "value": "y"}]}, None),
        ({"chosen": [SYSTEM, *CHAT], "rejected": [SYSTEM, *chat("x", "z")]}, "be brief"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, None),
    ],
)
def test_every_layout_gives_the_same_pair_and_keeps_its_system_message(
    record: dict[str, Any], system: str | None
) -> None:
    row, _ = as_row(record)
    assert (row["prompt"], row["response"], row.get("system")) == ("x", "y", system)


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = sorted({*COMMON, "chosen", "rejected", "label", *(name for each in LAYOUTS for name in each)})
ROLE = st.sampled_from(["user", "assistant", "system"]) | SCALAR
RECORD = st.dictionaries(
    st.sampled_from(COLUMNS), VALUE | st.lists(st.fixed_dictionaries({"role": ROLE, "content": VALUE}))
)


@given(RECORD)
def test_a_record_ends_in_a_checked_row_or_a_row_error(record: dict[str, Any]) -> None:
    for make, names in ((as_row, ("prompt", "response")), (as_preference, ("chosen", "rejected"))):
        with contextlib.suppress(RowError):
            row, _ = make(record)
            assert row is None or all(isinstance(row[name], str) and row[name].strip() for name in names)


def test_an_answer_that_is_a_dialogue_is_one_text() -> None:
    dialogue = "Human: hi\n\nAssistant: hello"
    row, _ = as_row({"prompt": "Write a dialogue.", "response": dialogue})
    assert (row["prompt"], row["response"]) == ("Write a dialogue.", dialogue)


TALK = [SYSTEM, *CHAT, *LATER, {"role": "user", "content": "unanswered"}]


def test_of_a_conversation_the_first_answer_is_trained_on_or_the_last_or_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"messages": TALK}])

    def read(turns: str) -> list[tuple[Any, ...]]:
        rows = load(file_settings(path, turns=turns)).sft
        keys = ("id", "system", "earlier", "prompt", "response")
        return sorted(tuple(row.get(key) for key in keys) for row in rows)

    assert read("last") == [("d-1", "be brief", ["x", "y"], "and", "so")]
    assert read("all") == [
        ("d-1/1", "be brief", None, "x", "y"),
        ("d-1/2", "be brief", ["x", "y"], "and", "so"),
    ]
    assert not caplog.messages
    assert read("first") == [("d-1", "be brief", None, "x", "y")]
    write_rows(path, [{"messages": [*CHAT, {"role": "assistant", "content": "and more"}]}])
    assert read("first") == [("d-1", None, None, "x", "y")]
    assert caplog.messages == ["d.jsonl: unused columns: later turns of messages (1 rows)"] * 2


def test_no_conversation_is_in_two_splits_whatever_turns_are_trained_on(tmp_path: Path) -> None:
    begun = [{"messages": chat(f"b{i}", "y")} for i in range(12)]
    talks = [{"messages": [*chat(f"b{i}", "y"), *chat("and", "so")]} for i in range(12)]
    made = load(file_settings(write_rows(tmp_path / "b.jsonl", talks + begun), turns="all", test_rows=9))
    assert len(made.test) == 9
    assert not {question(row) for row in made.test} & {question(row) for row in made.sft}
    talks = [{"messages": [*chat(f"x{i}", "y"), *chat("and", f"so{i}")]} for i in range(12)]
    made = load(file_settings(write_rows(tmp_path / "d.jsonl", talks), turns="all", test_rows=3))
    assert [len(made.sft), len(made.test)] == [18, 3]
    assert all(row["prompt"] == "and" and len(row["earlier"]) == 2 for row in made.test)
    held = {row["earlier"][0] for row in made.test}
    assert not held & {row.get("earlier", [row["prompt"]])[0] for row in made.sft}


def test_conversations_that_begin_alike_give_each_turn_once(tmp_path: Path) -> None:
    talks = [{"messages": [*chat("x", f"y{i // 2}"), *chat("and", f"so{i}")]} for i in range(4)]
    made = load(file_settings(write_rows(tmp_path / "d.jsonl", talks), turns="all"))
    assert sorted(row["response"] for row in made.sft) == ["so0", "so1", "so2", "so3", "y0", "y1"]


def test_bad_and_empty_answers_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"x{i}", "completion": "y" * (i < 5), "label": i % 3 > 0} for i in range(6)]
    assert len(load(file_settings(write_rows(tmp_path / "d.jsonl", rows), drop_empty=True)).sft) == 3
    assert "d.jsonl: 2 rows with the label false left out" in caplog.text
    assert "1 rows with an empty prompt or response left out" in caplog.text
    for asked, layout in {
        "instruction": {"output": "y"},
        "input": {"instruction": "x", "output": "y"},
        "system": {"messages": CHAT},
    }.items():
        rated = [{**layout, asked: f"x{i}", "label": i > 1} for i in range(5)]
        assert len(load(file_settings(write_rows(tmp_path / "d.jsonl", rated))).sft) == 3, layout
    with pytest.raises(RowError, match="d.jsonl, row 1: label is 'false'; a good answer has true, a bad one false"):
        load(file_settings(write_rows(tmp_path / "d.jsonl", [rows[0] | {"label": "false"}])))


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            [row | ({"topic": "t"} if i % 2 else {"score": 1}) for i, row in enumerate(pairs(5))],
            "score (3 rows), topic (2 rows)",
        ),
        (
            [{"prompt": "x", "response": "y", "completion": "z", "label": "joy", "instruction": "w"}],
            "completion (1 rows), label (1 rows), instruction (1 rows)",
        ),
        ([{"prompt": "x", "response": "another", "messages": CHAT}], "response (1 rows)"),
        ([{"prompt": "x", "chosen": "y", "rejected": "z"}], "rejected (1 rows)"),
        (
            [
                {"messages": [CHAT[0], CHAT[1] | {"reasoning_content": "hm", "weight": 0}]},
                {"messages": [*chat("z", "y")[:1], CHAT[1] | {"weight": 0, "tool_calls": None}]},
            ],
            "reasoning_content in messages (1 rows), weight in messages (2 rows)",
        ),
    ],
)
def test_what_nothing_reads_is_named_with_its_count(
    rows: list[dict[str, Any]], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(file_settings(write_rows(tmp_path / "d.jsonl", rows)))
    (warning,) = caplog.messages
    assert sorted(warning.partition("columns: ")[2].split(", ")) == sorted(named.split(", "))


def test_rows_with_equal_prompts_and_other_system_messages_are_different_rows(tmp_path: Path) -> None:
    rows = [{"system": f"Reply in style {i}", "prompt": "Who are you?", "response": "I"} for i in range(12)]
    made = load(file_settings(write_rows(tmp_path / "d.jsonl", rows), test_rows=3))
    assert (len(made.sft), len(made.test)) == (9, 3)
    with pytest.raises(RowError, match="same prompt and response as row 1"):
        load(file_settings(write_rows(tmp_path / "d.jsonl", [*rows, rows[0]])))


def test_spin_rows_are_the_first_sft_rows_and_a_random_subset(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", pairs(100))
    made = load(file_settings(path, sft_rows=80, spin_rows=20))
    assert len(made.sft) == 80
    assert made.spin == made.sft[:20]
    places = [int(row["prompt"].split()[-1]) for row in made.spin]
    assert max(places) > 60
    assert load(file_settings(path, sft_rows=80, spin_rows=10)).spin == made.spin[:10]
    assert load(file_settings(path)).spin == load(file_settings(path)).sft


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.integers(0, 40), min_size=30, max_size=60),
    validation=st.integers(0, 4),
    test=st.integers(0, 4),
    seed=st.integers(0, 5),
)
def test_no_prompt_is_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[int], validation: int, test: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "d.jsonl"
    write_rows(path, [{"prompt": f"q{p}", "response": f"a{i}"} for i, p in enumerate(prompts)])
    asked = file_settings(path, validation_rows=validation, test_rows=test, seed=seed)
    if sum(prompts.count(p) == 1 for p in prompts) < validation + test:
        with pytest.raises(RowError, match="with a unique prompt"):
            load(asked)
        return
    made = load(asked)
    assert (len(made.validation), len(made.test)) == (validation, test)
    assert len(made.sft) == len(prompts) - validation - test
    splits = [{row["prompt"] for row in rows} for rows in (made.sft, made.validation, made.test)]
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert load(asked) == made


def test_a_prompt_in_two_splits_of_files_is_named(tmp_path: Path) -> None:
    files = {name: str(write_rows(tmp_path / f"{name}.jsonl", pairs(3, name))) for name in ("train", "held", "test")}
    leaking = str(write_rows(tmp_path / "leaking.jsonl", pairs(3, "train")))
    with pytest.raises(RowError, match=r"train\.jsonl, row train-1: the prompt is also row leaking-1 of test; remove"):
        load(file_settings(files["train"], test=leaking))
    write_rows(tmp_path / "test.jsonl", [*pairs(3, "test"), {"prompt": "held question 1", "response": "new"}])
    with pytest.raises(RowError, match=r"held\.jsonl, row held-2: the prompt is also row test-4 of test"):
        load(file_settings(files["train"], validation=files["held"], test=files["test"]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"sft_rows": 13}, r"sft_rows: asks for 13 rows, but .*good\.jsonl has 12; add rows or set it to 12 or less"),
        ({"spin_rows": 13}, "spin_rows: asks for 13 rows, but the SFT split has 12"),
        ({"test_rows": 12}, r"test_rows asks to hold out 12 and training needs some too"),
    ],
)
def test_too_few_rows_for_the_sizes_is_an_error(sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=message):
        load(file_settings(write_rows(tmp_path / "good.jsonl", pairs(12)), **sizes))


def test_hub_rows_are_first_turns_without_faults_repeats_or_overlap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def load_dataset(*name: str, split: str, revision: str) -> datasets.Dataset:
        """UltraChat200k's columns, with a repeated row, an empty one, and one prompt that is in both splits."""
        calls.append((name, {"split": split, "revision": revision}))
        said = [(f"{split} {i}", f"answer {i}") for i in range(10)]
        said += [said[0], ("in both", split), ("empty", "")]
        made = [{"prompt": x, "prompt_id": x, "messages": [*chat(x, y), *chat("more", "less")]} for x, y in said]
        return datasets.Dataset.from_list(made)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    asked = DemonstrationSettings(
        source="hub",
        name="someone/ultrachat",
        revision=REVISION,
        train="train_sft",
        test="test_sft",
        validation_rows=2,
        test_rows=0,
    )
    made = load(asked)
    assert calls[0] == (("someone/ultrachat",), {"revision": REVISION, "split": "train_sft"})
    assert {row["prompt"] for row in made.test} == {*(f"test_sft {i}" for i in range(10)), "in both"}
    assert len(made.sft) == 8
    assert {row["response"] for row in made.sft + made.validation} == {f"answer {i}" for i in range(10)}
    left_out = "2 faulty or repeated rows left out, the first: someone/ultrachat [train_sft], row 11: same prompt and"
    assert left_out in caplog.text
    assert "1 rows left out because their prompts are in test" in caplog.text
    load(replace(asked, config="main"))
    assert calls[-1][0] == ("someone/ultrachat", "main")


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no route\nto it"), datasets.exceptions.DatasetGenerationError("no route to it")],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_cannot_give_and_a_missing_revision_are_named_with_the_remedy(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(name: str, **given: Any) -> datasets.Dataset:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RowError, match=r"a/b \[train\] at revision 0{12}: no route to it; .* source: file"):
        load(DemonstrationSettings(source="hub", name="a/b", revision=REVISION, train="train"))
    with pytest.raises(RowError, match="a/b: no revision; pin its commit"):
        load(DemonstrationSettings(source="hub", name="a/b", train="train"))


def test_written_rows_come_back_equal_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    families = {"sum": FamilySettings("chain_sum"), "count": FamilySettings("letter_counting")}
    made = load(DemonstrationSettings("reasoning_gym", families=families, sft_rows=20, spin_rows=6, test_rows=8))
    assert (len(made.sft), len(made.test), made.spin) == (20, 8, made.sft[:6])
    rows = [*made.sft, {"id": "1", "prompt": "a\u2028b\u0085c\n\td", "response": "é 🙂", "family": "f"}]
    first = write_rows(tmp_path / "one.jsonl", rows)
    second = write_rows(tmp_path / "deep" / "two.jsonl", [dict(reversed(row.items())) for row in rows])
    assert read_rows(first) == rows
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(TypeError):
        write_rows(first, [{"prompt": "x", "response": {1, 2}}])
    assert read_rows(first) == rows, "a failed write leaves the old file"
