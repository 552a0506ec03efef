"""The leaderboard on rows from a folder: the same prompts and answers as stock lm-eval, and no text is kept."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import hub_rows
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from benchmarks import leaderboard
from spin_utils.evaluation import harness, suites
from spin_utils.model import base
from spin_utils.settings.run import EvaluationSettings


def test_a_checkpoint_is_scored_as_by_stock_lm_eval_and_only_numbers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaderboard, "WORK", tmp_path / "work")
    named = {"allenai/ai2_arc": "ARC-Challenge", "allenai/winogrande": "winogrande_xl", "openai/gsm8k": "main"}
    named |= {"cais/mmlu": "abstract_algebra", "truthfulqa/truthful_qa": "multiple_choice"}
    hub, rows, model = hub_rows.Hub(items=13), tmp_path / "rows", tmp_path / "model"
    for path, (folder, files) in leaderboard.SPLITS.items():
        (rows / folder).mkdir(parents=True)
        for split, file in files.items():
            found = hub(path, named.get(path))["train" if path.endswith("arc") else split]
            kept = [{k: v for k, v in row.items() if k not in ("ctx_a", "ctx_b", "activity_label")} for row in found]
            (rows / folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    subject = suites.LEADERBOARD["mmlu"]._replace(task="mmlu_abstract_algebra")
    monkeypatch.setitem(suites.LEADERBOARD, "mmlu", subject)
    tiny_model("llama", vocabulary=320, max_position_embeddings=8192).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    measured = leaderboard.measure(model, given := leaderboard.Rows(rows))
    assert {task: len(values) for task, values in measured["scores"].items()}["mmlu"] == leaderboard.ITEMS["mmlu"]
    assert not any(word in json.dumps(measured) for word in ("thing", "cups", "sink", "Ann met"))

    samples: dict[str, list[Any]] = {}
    run_tasks = harness.run_tasks
    monkeypatch.setattr(harness, "run_tasks", lambda *a, **b: samples.update((o := run_tasks(*a, **b))["samples"]) or o)
    monkeypatch.setattr(harness.hub, "load_rows", given)
    monkeypatch.setattr(datasets, "load_dataset", given)
    loaded, tokenizer = base.load(model, torch.float32), base.load_tokenizer(model)
    settings = EvaluationSettings(suite="paper", max_new_tokens=256, limit=1)
    harness.evaluate(loaded, tokenizer, None, template=None, settings=settings)
    stock = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=1, add_bos_token=False)
    known = TaskManager()
    for name, (task, _, _, metric, wanted) in suites.LEADERBOARD.items():
        shots = {"num_fewshot": suites.shots(name), "limit": 1, "task_manager": known}
        theirs = simple_evaluate(stock, tasks=[task], bootstrap_iters=0, **shots)["samples"][task]
        both = samples[f"{name}/{task}"], theirs
        a, b = (next(s for s in found if s["filter"] == (wanted or "none")) for found in both)
        assert [*map(list, a["arguments"])] == [*map(list, b["arguments"])], name
        assert a[metric] == pytest.approx(b[metric], abs=1e-3), name
        for (our,), (their,) in zip(a["resps"], b["resps"], strict=True):
            assert name == "gsm8k" or tuple(our) == (pytest.approx(their[0], abs=1e-3), their[1]), name
            assert name != "gsm8k" or our == their


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
