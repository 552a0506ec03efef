"""What would end a run after hours is refused before any work: pairs, rows and lengths against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin_utils.data.rows import RowError, write_rows
from spin_utils.data.templates import encode_prompt
from spin_utils.evaluation.answers import EvaluationError
from spin_utils.experiment import plan, preflight, run
from spin_utils.files import artifacts
from spin_utils.model import base
from spin_utils.settings import profiles
from spin_utils.settings.inputs import ModelSettings

GOOD = {"prompt": "who sat?", "chosen": "the cat", "rejected": "the dog"}


def pairs(tmp_path: Path, *records: Any) -> dict[str, str]:
    return {"source": "file", "train": str(write_rows(tmp_path / "pairs.jsonl", records))}


def test_pairs_with_a_held_out_prompt_are_refused_before_any_work(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": f"Say {i}", "response": f"{i}"} for i in range(20)])
    write_rows(tmp_path / "test.jsonl", [{"id": "t", "prompt": "Say it", "response": "it"}])
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    changes = {"demonstrations": {"source": "file", **files}, "dpo.preferences": pairs(tmp_path, GOOD)}
    profile = profiles.load("smoke", changes)
    preflight.check_inputs(profile)
    pairs(tmp_path, GOOD, GOOD | {"prompt": "Say it"})
    with pytest.raises(RowError, match=r"dpo\.preferences, row pairs-2: .* is held out for evaluation \(row t\)"):
        preflight.check_inputs(profile)


def test_what_would_end_a_run_after_its_main_chain_is_refused_before_any_work(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"Say {i}", "response": f"{i}"} for i in range(30)])
    data = {"source": "file", "train": str(tmp_path / "rows.jsonl"), "spin_rows": 20}
    with pytest.raises(RowError, match=r"spin\.subsets: 1 fiftieths of 20 prompts is less than one; raise"):
        preflight.check_inputs(profiles.load("smoke", {"demonstrations": data, "spin.subsets": [1]}))


def test_a_notebook_on_its_own_refuses_a_task_before_training(home: Path) -> None:
    (home / "mine.yaml").write_text("task: mine")
    made = plan.make(profiles.load("smoke", {"evaluation.tasks": [str(home / "mine.yaml")]}), 0)
    with pytest.raises(EvaluationError, match=r"mine\.yaml cannot be loaded"):
        run.make(made, "eval-sft")
    assert artifacts.is_complete(made.directory("base"))
    assert not artifacts.is_complete(made.directory("sft"))


def test_prompts_and_answers_that_need_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), tmp_path, ["some words"], seed=0)
    rows = {"spin": [{"id": "1", "prompt": "some words", "response": "yes"}]}
    profile = profiles.load("smoke")
    preflight.check_fit(tmp_path, profile, rows)
    with pytest.raises(base.ModelError, match=r"has 2048 positions, .* needs .* lower .* generation\.max_new_tokens"):
        preflight.check_fit(tmp_path, profiles.load("smoke", {"generation.max_new_tokens": 2048}), rows)
    prompt = len(encode_prompt(base.load_tokenizer(tmp_path), profile.template, "some words"))
    full = {"generation.max_new_tokens": 2048 - prompt, "evaluation.max_new_tokens": 2048 - prompt}
    preflight.check_fit(tmp_path, profiles.load("smoke", {**full, "spin.training.end_truncated": False}), rows)
    with pytest.raises(base.ModelError, match="needs 2049; shorten it"):
        preflight.check_fit(tmp_path, profiles.load("smoke", full), rows)
    rows = {"transfer": [{"id": "1", "prompt": "some more words", "response": "yes"}]}
    with pytest.raises(base.ModelError, match=r"the longest transfer prompt .* evaluation\.max_new_tokens"):
        preflight.check_fit(tmp_path, profiles.load("smoke", full), rows)


def test_rows_and_pairs_longer_than_the_model_are_refused_before_training(tmp_path: Path) -> None:
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), tmp_path, ["some words"], seed=0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}))
    rows = [{"id": "1", "prompt": "some words", "response": "cat " * 100}]
    few = {"generation.max_new_tokens": 8, "evaluation.max_new_tokens": 8}
    for split in ("sft", "spin"):
        with pytest.raises(base.ModelError, match=f"has 96 positions, and the longest {split} row needs"):
            preflight.check_fit(tmp_path, profiles.load("smoke", few), {split: rows})
    profile = profiles.load("smoke", {"dpo.preferences": pairs(tmp_path, GOOD | {"rejected": "cat " * 100})})
    with pytest.raises(base.ModelError, match=r"the longest row of dpo\.preferences needs"):
        preflight.check_pair_lengths(tmp_path, profile)
