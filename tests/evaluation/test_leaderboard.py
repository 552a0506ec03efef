"""The leaderboard on rows from a folder: the same prompts and answers as stock lm-eval, and no text is kept."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import hub_rows
import pytest
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from benchmarks import leaderboard


def test_a_checkpoint_is_scored_as_by_stock_lm_eval_and_only_numbers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaderboard, "WORK", tmp_path / "work")
    hub, rows, model = hub_rows.Hub(items=13), tmp_path / "rows", tmp_path / "model"
    subjects = ("abstract_algebra", "college_biology")
    for path, (folder, files) in leaderboard.SPLITS.items():
        (rows / folder).mkdir(parents=True)
        named = {"allenai/ai2_arc": "ARC-Challenge", "allenai/winogrande": "winogrande_xl", "openai/gsm8k": "main"}
        names = {"cais/mmlu": subjects, "truthfulqa/truthful_qa": ("multiple_choice",)}.get(path, (named.get(path),))
        for split, file in files.items():
            found = [row for each in names for row in hub(path, each)["train" if path.endswith("arc") else split]]
            kept = [{k: v for k, v in row.items() if k not in ("ctx_a", "ctx_b", "activity_label")} for row in found]
            (rows / folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    subject = leaderboard.suites.LEADERBOARD["mmlu"]._replace(task="mmlu_abstract_algebra")
    monkeypatch.setitem(leaderboard.suites.LEADERBOARD, "mmlu", subject)
    tiny_model("llama", vocabulary=320, max_position_embeddings=8192).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    compared = leaderboard.compare(model, leaderboard.Rows(rows), 1)
    assert set(compared) == set(leaderboard.ITEMS)
    for name, found in compared.items():
        assert found["same_prompts"], name
        assert found["same_answers"] == found["requests"], name
        assert found["nats_apart"] is None if name == "gsm8k" else found["nats_apart"] < 1e-3
    measured = leaderboard.measure(model, leaderboard.Rows(rows))
    assert {task: len(values) for task, values in measured["scores"].items()}["mmlu"] == leaderboard.ITEMS["mmlu"]
    assert not any(word in json.dumps(measured) for word in ("thing", "cups", "sink", "Ann met"))


def test_the_tables_of_the_page_are_what_the_committed_results_give() -> None:
    again = "python -m benchmarks.leaderboard"
    assert leaderboard.page() == leaderboard.PAGE.read_text(encoding="utf-8"), f"write the page again: {again}"


def test_a_folder_by_its_own_name_is_in_the_scores_and_without_sft_of_its_seed_not_among_the_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = json.loads((leaderboard.RESULTS / "spin-0-seed-7.json").read_text())
    (tmp_path / "mine-seed-0.json").write_text(json.dumps(kept | {"model": "mine", "seed": 0}))
    monkeypatch.setattr(leaderboard, "RESULTS", tmp_path)
    _, (_, scores), (_, differences) = islice(leaderboard.tables(), 3)
    assert [row["model"] for row in scores][3:] == ["mine, seed 0", "Base model, published"]
    assert scores[3]["gsm8k"] == "0.0 [0.0, 8.8]", "of 40 wrong answers nothing is known to within 0"
    assert differences == []
    (tmp_path / "sft-seed-0.json").write_text(json.dumps(kept | {"model": "sft", "seed": 0}))
    _, _, (_, (same,)) = islice(leaderboard.tables(), 3)
    assert same["gsm8k"] == "no item differs"
