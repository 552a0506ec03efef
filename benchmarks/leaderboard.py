"""The paper's six leaderboard benchmarks on small checkpoints, and how much any benchmark can show.

    python -m benchmarks.leaderboard --rows ROWS base sft spin-0     checkpoints of the profile cpu, made if missing
    python -m benchmarks.leaderboard --rows ROWS mine=FOLDER         any checkpoint in a folder
    python -m benchmarks.leaderboard                                 only write docs/benchmarks.md

Every model is scored by the code behind `evaluation.suite: paper`, with its prompts, examples and metrics, on a random
sample of the rows: about seven minutes of one core for 135M parameters. ROWS holds a folder for each benchmark with the
splits of the hub's data sets as JSONL (arc_challenge/test.jsonl, ...). Only numbers are kept, in results/leaderboard;
the hashes say which rows they are from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pandas as pd

from spin_utils.drawing import draw
from spin_utils.evaluation import harness, suites
from spin_utils.experiment import plan, run
from spin_utils.files import paths, runtime
from spin_utils.files.artifacts import environment
from spin_utils.files.disk import file_hash, write_text
from spin_utils.model import base
from spin_utils.paper import power, published, results
from spin_utils.settings import profiles
from spin_utils.settings.names import label
from spin_utils.settings.run import EvaluationSettings

RESULTS = paths.home() / "results" / "leaderboard"
PAGE = paths.REPOSITORY / "docs" / "benchmarks.md"
WORK = paths.home() / "artifacts" / "leaderboard"
"""Finished answers, so that a stopped run resumes."""
ITEMS = {"arc": 80, "truthfulqa": 100, "winogrande": 200, "gsm8k": 40, "hellaswag": 88, "mmlu": 2}
"""Items of a benchmark, of MMLU in each of its 57 subjects: the cheaper an item, the more of them."""
SPLITS = {
    "allenai/ai2_arc": ("arc_challenge", {"train": "validation", "test": "test"}),
    "truthfulqa/truthful_qa": ("truthfulqa", {"validation": "validation"}),
    "allenai/winogrande": ("winogrande", {"train": "train", "validation": "validation"}),
    "openai/gsm8k": ("gsm8k", {"train": "train", "test": "test"}),
    "Rowan/hellaswag": ("hellaswag", {"train": "validation", "validation": "validation"}),
    "cais/mmlu": ("mmlu", {"dev": "dev", "test": "test"}),
}
"""By data set, the folder in ROWS and the file for each split. Examples for ARC are taken from its validation split."""
HELLASWAG_EXAMPLES = 12  # its first rows, for want of its training split; the others are items
PUBLISHED = {"arc": "37.3 (with ARC-Easy)", "gsm8k": 1.4, "hellaswag": 40.9, "mmlu": "29.3 (cloze)"}
"""Of the base model, from its authors' model card: another harness, zero-shot but for GSM8K, unquantised weights."""


class Rows:
    """Stands in for `datasets.load_dataset`: rows from a folder, and of the scored split a random sample."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hashes = folder, dict[str, str]()
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
    """Score one checkpoint in this machine's faster precision."""
    here, started = environment(), time.process_time()
    model, tokenizer = base.load_for_inference(folder), base.load_tokenizer(folder)
    settings = EvaluationSettings(suite="paper", batch_size=32, max_new_tokens=256)
    with patch.object(harness.hub, "load_rows", rows):
        found = harness.evaluate(model, tokenizer, None, template=None, settings=settings, work=WORK)
    seconds = time.process_time() - started
    scores: dict[str, list[float]] = {task: [] for task in found["tasks"]}
    for item in found["items"]:
        scores[item["task"]].append(round(item["score"], 6))
    return {
        "weights_sha256": file_hash(folder / "model.safetensors"),
        **here,
        "precision": str(model.dtype).removeprefix("torch."),
        "cpu_seconds": round(seconds),
        "files_sha256": rows.hashes,
        "tasks": {task: {**told, "shots": suites.shots(task), "source": ""} for task, told in found["tasks"].items()},
        "average": found["average"],
        "scores": scores,
    }


def tables() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The tables of docs/benchmarks.md by name, from results/leaderboard and results/cpu."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    files.sort(key=lambda f: (f["model"] != "base", f["model"] != "sft", f["model"].startswith("sft-more"), f["model"]))
    first, sizes = files[0], published.benchmark_settings()["items"]
    rows = [
        (f["seed"], f["model"], t, str(i), s)
        for f in files
        for t, own in f["scores"].items()
        for i, s in enumerate(own)
    ]
    scores = pd.DataFrame(rows, columns=["seed", "model", "task", "id", "score"])
    measured, gains = {"sft", "spin-0"} <= set(scores["model"]), []
    tasks = first["tasks"]
    heads: dict[str, dict[str, Any]] = {
        "shots": {task: own["shots"] for task, own in tasks.items()},
        "items": {task: own["n"] for task, own in tasks.items()},
        "chance": {task: f"{100 * own['chance']:.0f}" if own["chance"] else "" for task, own in tasks.items()},
    }
    shown = [{"model": name, **values} for name, values in heads.items()]
    shown += [{"model": _name(f), **{task: _cell(f["tasks"][task]) for task in tasks}} for f in files]
    shown.append({"model": "Base model, published", **{task: PUBLISHED.get(task, "") for task in tasks}})
    sft = {f["seed"] for f in files if f["model"] == "sft"}
    trained = [f for f in files if f["model"] not in ("base", "sft") and f["seed"] in sft]
    over = [{"model": _name(f), **dict(_over_sft(f, files))} for f in trained]
    for task, own in tasks.items():
        gain: dict[str, Any] = {"benchmark": task}
        for scale, n in (("here", own["n"]), ("`gpu`", min(500, int(sizes[task]))), ("`paper`", int(sizes[task]))):
            error = 100 * own["stderr"] * (own["n"] / n) ** 0.5
            found = power.detectable(2**0.5 * error, n - 1)  # of two models whose answers are independent
            if measured:
                found = power.plan(scores[scores["task"] == task], items=n, seeds=1)["detectable"][0]
            gain |= {f"items, {scale}": n, f"error, {scale}": f"{error:.1f}", f"gain, {scale}": f"{found:.1f}"}
        gains.append(gain)
    yield "gains", gains
    yield "scores", shown
    yield "over SFT", over
    yield "cpu", list(_at_cpu())


def _at_cpu() -> Iterator[dict[str, Any]]:
    """One iteration over SFT, column by column; each kind of evaluation ends with its average."""
    for kind in ("evaluations", "transfer"):
        scores = draw.scores(profiles.load("cpu"), kind)
        summaries = results.load_summaries(paths.results("cpu"), kind=kind)
        chance, errors = results.at_chance(summaries), summaries[summaries["model"] == "sft"].groupby("task")["stderr"]
        counted = results.counted(scores)
        for task, own in [*scores.groupby("task"), *([("average", counted)] if len(counted) else [])]:
            n = own[["task", "id"]].drop_duplicates().shape[0]
            outside = "" if task == "average" or task in set(counted["task"]) else ", aside"
            row = {"column": f"{task}, at chance" if task in chance else f"{task}{outside}", "items": n}
            row["error"] = f"{100 * errors.mean()[task]:.1f}" if task in errors.groups else ""
            for seeds in (1, 3, 8):
                row[f"gain, seeds: {seeds}"] = f"{power.plan(own, items=n, seeds=seeds)['detectable'][0]:.1f}"
            yield row


def _name(file: Mapping[str, Any]) -> str:
    shown = file["model"]
    with contextlib.suppress(paths.KitError):  # no step of a profile: the name that was given with a folder
        shown = label(shown)
    return f"{shown}, seed {file['seed']}"


def _over_sft(file: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The mean difference to the SFT model of the same seed, item by item, and its standard error, by benchmark."""
    sft = next(other for other in files if (other["model"], other["seed"]) == ("sft", file["seed"]))
    for task, own in file["scores"].items():
        apart = 100 * (np.array(own) - np.array(sft["scores"][task]))
        error = apart.std(ddof=1) / len(apart) ** 0.5
        yield task, f"{apart.mean():+.1f} ± {error:.1f}".replace("-", "−") if apart.any() else "no item differs"


def _cell(task: Mapping[str, Any]) -> str:
    low = task["chance"] is not None and task["value"] <= task["chance"] + 2 * task["stderr"]
    value, error = 100 * task["value"], 100 * task["stderr"]
    spread = f"± {error:.1f}"
    if not error:  # all answers are wrong, or right: Clopper and Pearson's interval (1934, Biometrika 26)
        reach = 100 * (1 - 0.025 ** (1 / task["n"]))
        spread = f"[{max(0.0, value - reach):.1f}, {min(100.0, value + reach):.1f}]"
    return f"{value:.1f} {spread}{', at chance' if low else ''}"


def page() -> str:
    """docs/benchmarks.md with its tables, each below the comment with its name."""
    text = PAGE.read_text(encoding="utf-8")
    for name, rows in tables():
        table = pd.DataFrame(rows, dtype=object).to_markdown(index=False, missingval="", disable_numparse=True)
        text = re.sub(rf"(?<=<!-- {name} -->\n).*?(?=\n\n|\Z)", table, text, count=1, flags=re.DOTALL)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="steps of the profile, or NAME=FOLDER")
    parser.add_argument("--rows", type=Path, default=Path(), help="folder with the benchmarks' rows")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runtime.configure()
    datasets.disable_progress_bars()
    for name, _, folder in (given.partition("=") for given in options.models):
        checkpoint = Path(folder or run.make(plan.make(profiles.load("cpu"), options.seed), name))
        head = {"schema": 1, "kind": "leaderboard", "model": name, "seed": options.seed}
        document = {**head, **measure(checkpoint, Rows(options.rows))}
        write_text(RESULTS / f"{name}-seed-{options.seed}.json", json.dumps(document, indent=1) + "\n")
    PAGE.write_text(page(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
