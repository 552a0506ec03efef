"""Promises of demonstrations.py and rows.py: every layout read, every fault named, every split disjoint."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_utils.data.demonstrations import load
from spin_utils.data.rows import RowError, as_row, read_rows, write_rows
from spin_utils.settings.inputs import DemonstrationSettings, FamilySettings

DATA = Path(__file__).parents[1] / "example_rows"
REVISION = "0" * 40


def file_settings(train: str | Path, **sizes: Any) -> DemonstrationSettings:
    """A file source with nothing held out unless asked."""
    return DemonstrationSettings(source="file", train=str(train), **{"validation_rows": 0, "test_rows": 0, **sizes})


def pairs(count: int, name: str = "p") -> list[dict[str, str]]:
    return [{"prompt": f"{name} question {i}", "response": f"answer {i}"} for i in range(count)]


def messages_of(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


BROKEN = {
    "empty_response.jsonl": r"empty_response\.jsonl, row 3: empty response; remove the row or set drop_empty: true",
    "blank_prompt.jsonl": r"row 2: empty prompt; remove the row or set drop_empty: true",
    "missing_key.jsonl": r"row 2: no key 'prompt' \(it has instruction, output\); use prompt and response, or messages",
    "wrong_type.jsonl": r"row 2: response is a number; it must be text",
    "null_response.jsonl": r"row 2: response is null; it must be text",
    "not_an_object.jsonl": r"row 2: text where an object with prompt and response is needed",
    "bad_json.jsonl": r"bad_json\.jsonl, line 3: bad JSON",
    "same_row_twice.jsonl": r"row 4: same prompt and response as row 1; remove one of them",
    "same_id_twice.jsonl": r"row 2: same id 'a' as row 1",
    "roles.jsonl": r"row 1: messages begins with assistant and user; it must begin with user and assistant",
    "message_keys.jsonl": r"row 1: message 1 of messages needs the keys role and content",
    "messages_text.jsonl": r"row 1: messages is text; it must be a list",
    "list_not_lines.jsonl": r"line 1: a list where one object per line is needed; name the file \.json",
    "lines_not_list.json": r"line 2: bad JSON .*then name the file \.jsonl",
    "object.json": r"object\.json: the top level is an object; write a list of objects",
    "bad.json": r"bad\.json, line 3: bad JSON",
    "nothing.jsonl": r"nothing\.jsonl: the file is empty",
    "utf16.jsonl": r"utf16\.jsonl, line 1: not UTF-8 \(byte 0xff\); save it as UTF-8",
    "latin1.jsonl": r"latin1\.jsonl, line 2: not UTF-8 \(byte 0xe9\)",
    "rows.csv": r"rows\.csv: unknown extension '\.csv'; use \.json, \.jsonl or \.parquet",
    "not_parquet.parquet": r"not_parquet\.parquet: damaged or not Parquet",
    "grader.jsonl": r"row 1: grader needs the keys dataset and entry",
    "goood.jsonl": r"goood\.jsonl: no such file; did you mean .*good\.jsonl\?",
    "": r"a folder, not a file; name a file in it, such as bad\.json",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_file_row_and_remedy(name: str) -> None:
    with pytest.raises(RowError, match=BROKEN[name]):
        load(file_settings(DATA / name))


def test_every_data_file_has_its_test() -> None:
    used = {*BROKEN, "good.json", "good.jsonl", "bom.jsonl", "five_faults.jsonl"} - {"", "goood.jsonl"}
    assert {path.name for path in DATA.iterdir()} == used


def test_several_faults_are_reported_together_five_at_most() -> None:
    with pytest.raises(RowError) as caught:
        load(file_settings(DATA / "five_faults.jsonl"))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"five_faults.jsonl, row {i}" for i in range(1, 6)]
    assert lines[5] == "and 2 more rows"


@pytest.mark.parametrize("name", ["good.json", "good.jsonl", "bom.jsonl"])
def test_json_jsonl_and_a_byte_order_mark_are_read(name: str) -> None:
    rows = load(file_settings(DATA / name)).sft
    assert len(rows) == (3 if name == "bom.jsonl" else 12)
    assert {"prompt": "p question 1", "response": "answer 1"}.items() <= next(
        row for row in rows if row["prompt"] == "p question 1"
    ).items()


def test_three_layouts_give_the_same_pair() -> None:
    user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    later = [{"role": "user", "content": "and"}, {"role": "assistant", "content": "so"}]
    for record in (
        {"prompt": "x", "response": "y"},
        {"messages": [user, assistant]},
        {"messages": [user, assistant, *later]},
        {"prompt": "x", "prompt_id": "1", "messages": [user, assistant, *later]},
        {"real": [user, assistant], "generated": [user, {"role": "assistant", "content": "z"}]},
    ):
        row = as_row(record, where="here", default_id="here-1")
        assert (row["prompt"], row["response"], row["id"]) == ("x", "y", "here-1")


SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [SYSTEM, *messages_of("x", "y")]},
        {"prompt": "x", "response": "y", "system": "be brief"},
        {"prompt": "x", "response": "y", "messages": [SYSTEM, *messages_of("x", "y")]},
        {"real": [SYSTEM, *messages_of("x", "y")], "system": "be brief"},
    ],
)
def test_a_system_message_stays_with_its_row(record: dict[str, Any]) -> None:
    row = as_row(record, where="here", default_id="1")
    assert (row["system"], row["prompt"], row["response"]) == ("be brief", "x", "y")


@pytest.mark.parametrize("name", ["input", "context"])
def test_an_input_follows_the_prompt(name: str) -> None:
    record = {"prompt": "Translate.", name: "Wort", "response": "word"}
    assert as_row(record, where="here", default_id="1")["prompt"] == "Translate.\n\nWort"
    assert as_row(record | {name: ""}, where="here", default_id="1")["prompt"] == "Translate."


def test_rows_with_equal_prompts_and_other_system_messages_are_different_rows(tmp_path: Path) -> None:
    rows = [{"system": f"Reply in style {i}", "prompt": "Who are you?", "response": "I"} for i in range(12)]
    made = load(file_settings(write_rows(tmp_path / "d.jsonl", rows), test_rows=3))
    assert (len(made.sft), len(made.test)) == (9, 3)
    with pytest.raises(RowError, match="same prompt and response as row 1"):
        load(file_settings(write_rows(tmp_path / "d.jsonl", [*rows, rows[0]])))


def test_a_column_that_nothing_reads_is_named_with_its_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row | ({"topic": "t"} if i % 2 else {"score": 1}) for i, row in enumerate(pairs(5))]
    load(file_settings(write_rows(tmp_path / "d.jsonl", rows)))
    assert caplog.messages == ["d.jsonl: columns that are not used: score (3 rows), topic (2 rows)"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"system": 3}, "here: the system message of system is a number; it must be text"),
        ({"input": ["a"]}, "here: input is a list; it must be text"),
        ({"system": "a", "messages": [SYSTEM, *messages_of("x", "y")]}, "hold different system messages; keep one"),
    ],
)
def test_an_unclear_system_message_or_input_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        as_row({"prompt": "x", "response": "y", **record}, where="here", default_id="1")


def test_parquet_with_messages_is_read_and_a_cut_file_refused(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(5)]
    path = tmp_path / "chat.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"messages": messages}), path)
    assert sorted(row["prompt"] for row in load(file_settings(path)).sft) == [f"q{i}" for i in range(5)]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RowError, match=r"chat\.parquet: damaged or not Parquet"):
        load(file_settings(path))


def test_drop_empty_leaves_out_empty_rows_and_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = load(file_settings(DATA / "empty_response.jsonl", drop_empty=True)).sft
    assert len(rows) == 2
    assert "1 rows with an empty prompt or response left out" in caplog.text


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
        with pytest.raises(RowError, match="with a prompt of their own"):
            load(asked)
        return
    made = load(asked)
    assert (len(made.validation), len(made.test)) == (validation, test)
    assert len(made.sft) == len(prompts) - validation - test
    splits = [{row["prompt"] for row in rows} for rows in (made.sft, made.validation, made.test)]
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert load(asked) == made


def test_the_same_prompt_in_train_and_test_is_an_error_naming_both(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", pairs(5))
    test = write_rows(tmp_path / "held.jsonl", [*pairs(3, "other"), {"prompt": "p question 2", "response": "new"}])
    message = r"train\.jsonl, row train-3: the prompt is also row held-4 of test; remove one of them"
    with pytest.raises(RowError, match=message):
        load(file_settings(train, test=str(test)))


def test_a_prompt_in_validation_and_test_is_named_in_its_file_and_left_out_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = {name: str(write_rows(tmp_path / f"{name}.jsonl", pairs(3, name))) for name in ("train", "held", "test")}
    write_rows(tmp_path / "test.jsonl", [*pairs(3, "test"), {"prompt": "held question 1", "response": "new"}])
    with pytest.raises(RowError, match=r"held\.jsonl, row held-2: the prompt is also row test-4 of test"):
        load(file_settings(files["train"], validation=files["held"], test=files["test"]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision, split: ultrachat(split, 3))
    splits = {"train": "train", "validation": "held", "test": "test"}
    made = load(DemonstrationSettings(source="hub", name="someone/rows", revision=REVISION, **splits))
    assert [row["prompt"] for row in made.validation] == ["held 0", "held 1", "held 2"]
    assert "held: 1 rows left out because their prompts are in test" in caplog.text


def test_a_missing_test_file_is_noticed_before_the_training_file_is_read(tmp_path: Path) -> None:
    broken = tmp_path / "train.jsonl"
    broken.write_text("{")
    with pytest.raises(RowError, match=r"tset\.jsonl: no such file"):
        load(file_settings(broken, test=str(tmp_path / "tset.jsonl")))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"sft_rows": 13}, r"sft_rows: asks for 13 rows where .*good\.jsonl has 12; add rows or set it to 12 or less"),
        ({"spin_rows": 13}, "spin_rows: asks for 13 rows where the SFT rows has 12"),
        ({"test_rows": 12}, r"test_rows asks to hold out 12 and training needs some too"),
        ({"test_rows": 6, "validation_rows": 7}, r"validation_rows asks to hold out 7"),
    ],
)
def test_too_few_rows_for_the_sizes_is_an_error(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RowError, match=message):
        load(file_settings(DATA / "good.jsonl", **sizes))


def ultrachat(split: str, count: int) -> datasets.Dataset:
    """A data set with UltraChat200k's columns, a repeated row, an empty one, and one prompt that is in both splits."""
    records = []
    for i in range(count):
        turns = [("user", f"{split} {i}"), ("assistant", f"answer {i}"), ("user", "more"), ("assistant", "less")]
        messages = [{"role": role, "content": content} for role, content in turns]
        records.append({"prompt": f"{split} {i}", "prompt_id": f"{i:064x}", "messages": messages})
    records.append(records[0])
    shared = [{"role": "user", "content": "in both"}, {"role": "assistant", "content": split}]
    records.append({"prompt": "in both", "prompt_id": "b", "messages": shared})
    empty = [{"role": "user", "content": "empty"}, {"role": "assistant", "content": ""}]
    records.append({"prompt": "empty", "prompt_id": "e", "messages": empty})
    return datasets.Dataset.from_list(records)


def test_hub_rows_are_first_turns_without_faults_repeats_or_overlap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def load_dataset(name: str, **given: Any) -> datasets.Dataset:
        calls.append((name, given))
        return ultrachat(given["split"], 10)

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
    with caplog.at_level(logging.WARNING):
        made = load(asked)
    assert calls[0] == ("someone/ultrachat", {"revision": REVISION, "split": "train_sft"})
    assert {row["prompt"] for row in made.test} == {*(f"test_sft {i}" for i in range(10)), "in both"}
    assert len(made.sft) == 8
    assert {row["response"] for row in made.sft + made.validation} == {f"answer {i}" for i in range(10)}
    assert "1 faulty rows left out, the first: someone/ultrachat [train_sft], row 13: empty response" in caplog.text
    assert "1 repeated rows left out" in caplog.text
    assert "1 rows left out because their prompts are in test" in caplog.text


def test_an_unreachable_hub_names_data_set_revision_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **given: Any) -> datasets.Dataset:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    asked = DemonstrationSettings(source="hub", name="a/b", revision=REVISION, train="train")
    with pytest.raises(RowError, match=r"a/b \[train\] at revision 0{12}: no route .* source: file"):
        load(asked)


def test_nothing_is_loaded_from_the_hub_without_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: pytest.fail("loaded"))
    with pytest.raises(RowError, match="a/b: no revision; pin its commit"):
        load(DemonstrationSettings(source="hub", name="a/b", train="train"))


def test_generated_demonstrations_have_the_asked_sizes() -> None:
    families = {"sum": FamilySettings("chain_sum"), "count": FamilySettings("letter_counting")}
    asked = DemonstrationSettings(
        source="reasoning_gym", families=families, sft_rows=20, spin_rows=6, validation_rows=4, test_rows=8
    )
    made = load(asked)
    assert [len(rows) for rows in (made.sft, made.spin, made.validation, made.test)] == [20, 6, 4, 8]
    assert made.spin == made.sft[:6]


def test_written_rows_come_back_equal_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    rows = load(
        DemonstrationSettings(source="reasoning_gym", families={"s": FamilySettings("chain_sum")}, sft_rows=9)
    ).sft
    first = write_rows(tmp_path / "one.jsonl", rows)
    second = write_rows(tmp_path / "deep" / "two.jsonl", [dict(reversed(row.items())) for row in rows])
    assert read_rows(first) == rows
    assert first.read_bytes() == second.read_bytes()
    assert load(file_settings(first)).sft != []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "one.jsonl"]


def test_no_rows_come_back_as_no_rows(tmp_path: Path) -> None:
    assert read_rows(write_rows(tmp_path / "none.jsonl", [])) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", pairs(2))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_rows(path, [{"prompt": "x", "response": {1, 2}}])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_text_with_line_separators_survives_a_round_trip(tmp_path: Path) -> None:
    rows = [{"prompt": "a\u2028b\u0085c\n\td", "response": "é 🙂", "id": "1", "family": "f"}]
    assert read_rows(write_rows(tmp_path / "r.jsonl", rows)) == rows
    assert json.loads((tmp_path / "r.jsonl").read_text(encoding="utf-8")) == rows[0]
