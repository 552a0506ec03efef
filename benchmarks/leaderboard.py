"""The paper's six leaderboard benchmarks on small checkpoints, and how much any benchmark can show.

    python -m benchmarks.leaderboard --rows ROWS base sft spin-0     checkpoints of the profile cpu, made if missing
    python -m benchmarks.leaderboard --rows ROWS mine=FOLDER         any checkpoint in a folder
    python -m benchmarks.leaderboard                                 only write docs/benchmarks.md

Every model is scored by the code behind `evaluation.suite: paper`, with its prompts, examples and metrics, on a random
sample of the rows: about ten minutes on two cores for 135M parameters. Its first items are also put through lm-eval's
own `HFLM`, unpatched. ROWS holds a folder for each benchmark with the splits of the hub's data sets as JSONL
(arc_challenge/test.jsonl, ...). Only numbers are kept, in results/leaderboard; the hashes say which rows they are from.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

from spin_utils.evaluation import harness, suites
from spin_utils.experiment import plan, run
from spin_utils.files import paths, runtime
from spin_utils.files.artifacts import environment
from spin_utils.files.disk import file_hash, write_text
from spin_utils.model import base
from spin_utils.settings import profiles
from spin_utils.settings.run import EvaluationSettings

RESULTS = paths.home() / "results" / "leaderboard"
WORK = paths.home() / "artifacts" / "leaderboard"
"""Finished answers, so that a stopped run resumes."""
ITEMS = {"arc": 80, "truthfulqa": 100, "winogrande": 200, "gsm8k": 40, "hellaswag": 88, "mmlu": 2}
"""Items of a benchmark, of MMLU in each of its 57 subjects: the cheaper an item, the more of them."""
STOCK = 2
"""Items of a benchmark that lm-eval's own model class scores too."""
STOCK_SUBJECT = "mmlu_college_biology"
"""The subject of MMLU in that comparison."""
SPLITS = {
    "allenai/ai2_arc": ("arc_challenge", {"train": "validation", "test": "test"}),
    "truthfulqa/truthful_qa": ("truthfulqa", {"validation": "validation"}),
    "allenai/winogrande": ("winogrande", {"train": "train", "validation": "validation"}),
    "openai/gsm8k": ("gsm8k", {"train": "train", "test": "test"}),
    "Rowan/hellaswag": ("hellaswag", {"train": "validation", "validation": "validation"}),
    "cais/mmlu": ("mmlu", {"dev": "dev", "test": "test"}),
}
"""By data set, the folder in ROWS and the file for each split. Examples for ARC are taken from its validation split."""
HELLASWAG_EXAMPLES = 12
"""HellaSwag's first rows, where its training split is missing, are examples and the others are items."""


class Rows:
    """Stands in for `datasets.load_dataset`: rows from a folder, and of the scored split a random sample."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes: dict[str, str] = {}
        self._items = {b.dataset: ITEMS[name] for name, b in suites.LEADERBOARD.items()}

    @cache  # noqa: B019 (lives as long as the program)
    def __call__(self, path: str, name: str | None = None, revision: str | None = None, **_: Any) -> Any:
        folder, files = SPLITS[path]
        splits = {split: self._read(folder, file, name) for split, file in files.items()}
        if path == "Rowan/hellaswag":
            splits["train"] = splits["train"][:HELLASWAG_EXAMPLES]
            splits["validation"] = splits["validation"][HELLASWAG_EXAMPLES:]
        scored = "test" if "test" in splits else "validation"
        count = min(self._items[path], len(splits[scored]))
        splits[scored] = random.Random(0).sample(splits[scored], count)
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})

    def _read(self, folder: str, file: str, name: str | None) -> list[dict[str, Any]]:
        path = self.folder / folder / f"{file}.jsonl"
        self.hashes[f"{folder}/{file}.jsonl"] = file_hash(path)
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if folder == "hellaswag" and "ctx_a" not in rows[0]:  # the task's fields, from the whole context
            for row in rows:
                sentences, stop, last = row["ctx"].rpartition(". ")
                row |= {"activity_label": "Video", "ctx_a": (sentences + stop).strip(), "ctx_b": last}
        return [row for row in rows if row.get("subject", name) == name] if folder == "mmlu" else rows


def measure(folder: Path, rows: Rows) -> dict[str, Any]:
    """Score one checkpoint in this machine's faster precision.

    Args:
        folder: weights and tokenizer.
        rows: what is asked.
    """
    here, started = environment(), time.perf_counter()
    model, tokenizer = base.load_for_inference(folder), base.load_tokenizer(folder)
    found, _ = ours(model, tokenizer, rows)
    seconds = time.perf_counter() - started
    scores: dict[str, list[float]] = {task: [] for task in found["tasks"]}
    for item in found["items"]:
        scores[item["task"]].append(round(item["score"], 6))
    kept = ("metric", "n", "value", "stderr", "chance", "rows_sha256")
    return {
        "weights_sha256": file_hash(folder / "model.safetensors"),
        **here,
        "precision": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds),
        "files_sha256": rows.hashes,
        "tasks": {task: {k: s[k] for k in kept} | {"shots": suites.shots(task)} for task, s in found["tasks"].items()},
        "average": found["average"],
        "scores": scores,
    }


def ours(model: Any, tokenizer: Any, rows: Rows, limit: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kit's evaluation, and the samples of lm-eval behind it."""
    samples: dict[str, Any] = {}
    run_tasks = harness.run_tasks

    def keep(*arguments: Any, **options: Any) -> Any:
        output = run_tasks(*arguments, **options)
        samples.update(output["samples"])
        return output

    settings = EvaluationSettings(suite="paper", batch_size=32, max_new_tokens=256, limit=limit)
    with patch.object(harness.hub, "load_rows", rows), patch.object(harness, "run_tasks", keep):
        return harness.evaluate(model, tokenizer, None, template=None, settings=settings, work=WORK), samples


def compare(folder: Path, rows: Rows, items: int) -> dict[str, Any]:
    """The first items in float32, by the kit and by lm-eval's own model class: how far apart they are, by benchmark."""
    model, tokenizer = base.load(folder, torch.float32), base.load_tokenizer(folder)
    subject = suites.LEADERBOARD["mmlu"]._replace(task=STOCK_SUBJECT)
    compared = {}
    with patch.dict(suites.LEADERBOARD, mmlu=subject), patch.object(datasets, "load_dataset", rows):
        _, samples = ours(model, tokenizer, rows, items)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=False)
        for name, (task, _, _, metric, wanted) in suites.LEADERBOARD.items():
            output: Any = lm_eval.simple_evaluate(
                lm, tasks=[task], num_fewshot=suites.shots(name), limit=items, bootstrap_iters=0
            )
            chosen = [
                {sample["doc_id"]: sample for sample in found if sample["filter"] == (wanted or "none")}
                for found in (samples[f"{name}/{task}"], output["samples"][task])
            ]
            compared[name] = differences([(chosen[0][i], chosen[1][i]) for i in chosen[1]], metric)
            print(name, compared[name], flush=True)
    return compared


def differences(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: str) -> dict[str, Any]:
    """Compare lm-eval's samples of the same items, ours first: prompts, answers and scores."""
    answers = [(a[0], b[0]) for x, y in pairs for a, b in zip(x["resps"], y["resps"], strict=True)]
    texts = [a == b for a, b in answers if isinstance(a, str)]
    logps = [(a, b) for a, b in answers if not isinstance(a, str)]
    return {
        "n": len(pairs),
        "requests": len(answers),
        "same_prompts": all([*map(list, x["arguments"])] == [*map(list, y["arguments"])] for x, y in pairs),
        "largest_difference_nats": max((abs(a[0] - b[0]) for a, b in logps), default=None),
        "same_greedy": sum(a[1] == b[1] for a, b in logps) if logps else None,
        "same_texts": sum(texts) if texts else None,
        "largest_difference_of_scores": max(abs(float(x[metric]) - float(y[metric])) for x, y in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="steps of the profile, or NAME=FOLDER")
    parser.add_argument("--rows", type=Path, help="folder with the benchmarks' rows")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stock", type=int, default=STOCK, help="items also scored by lm-eval's own class; 0: none")
    options = parser.parse_args()
    runtime.configure()
    datasets.disable_progress_bars()
    if options.models and not options.rows:
        parser.error("--rows: give the folder with the benchmarks' rows")
    for given in options.models:
        name, _, folder = given.partition("=")
        checkpoint = Path(folder or run.make(plan.make(profiles.load(options.profile), options.seed), name))
        rows, path = Rows(options.rows), RESULTS / f"seed-{options.seed}" / f"{name}.json"
        named = {"schema": 1, "kind": "leaderboard", "model": name, "seed": options.seed}
        document = named | measure(checkpoint, rows)
        write_text(path, json.dumps(document, indent=1) + "\n")
        if options.stock:
            document["stock"] = compare(checkpoint, rows, options.stock)
            write_text(path, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
