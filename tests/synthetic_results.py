"""Made-up results with the shape of real ones, written into a test's temporary folder and nowhere else.

Every item has a difficulty that all models share, so that two models' answers agree more often than chance,
as they do in practice; a model passes an item when its ability and a draw of its own exceed the difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from spin_utils.paper import results
from spin_utils.settings.machine import CATEGORIES

BENCHMARKS = {
    "letter_counting": "arc",
    "syllogism": "truthfulqa",
    "family_relationships": "winogrande",
    "chain_sum": "gsm8k",
    "sentence_reordering": "hellaswag",
    "simple_equations": "mmlu",
}
"""Task and the benchmark of the paper that it is taken for."""

TRANSFER = {
    "long_sums": "bb_causal",
    "long_syllogisms": "bb_formal",
    "long_words": "bb_sports",
    "long_families": "openbookqa",
}
"""The same for tasks that nothing was trained on, and Table 6."""


def benchmarked(table: pd.DataFrame, known: Mapping[str, str] = BENCHMARKS | TRANSFER) -> pd.DataFrame:
    """A table by `task` with the benchmark of the paper that each is; without the tasks that are not named."""
    return table[table["task"].isin(list(known))].assign(benchmark=lambda kept: kept["task"].map(known))


def words(figure: Figure) -> str:
    """All that a figure says, on one line."""
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


ABILITIES = {"sft": 0.00, "spin-0": 0.16, "spin-1": 0.24, "spin-2": 0.29, "spin-3": 0.30}
OTHER_ABILITIES = {
    "dpo": 0.18,
    "spin-3-dpo": 0.36,
    "sft-more-1": -0.05,
    "sft-more-2": -0.02,
    "spin-0-epoch-1": 0.15,
    "spin-0-epoch-2": 0.16,
    "spin-0-epoch-3": 0.18,
    "spin-0-epoch-4": 0.17,
    "spin-0-epoch-5": 0.18,
    "spin-0-rows-14": 0.07,
    "spin-0-rows-26": 0.12,
}


def evaluation(model: str, seed: int, *, ability: float, items: int = 100, profile: str = "cpu", names=BENCHMARKS):
    """One valid evaluation document on some tasks; the same arguments give the same document."""
    rows, tasks = [], {}
    own = np.random.default_rng([seed, *model.encode()])
    for number, task in enumerate(names):
        difficulty = np.random.default_rng([7, number]).normal(0.1 * number - 0.2, 1.0, size=items)
        passed = ability + own.normal(0, 0.03) + own.normal(0, 0.5, size=items) > difficulty
        lengths = own.integers(12, 30, size=items) - int(10 * ability)
        rows += [
            {"task": task, "id": str(i), "score": float(ok), "response": f"answer {i}", "tokens": int(length)}
            for i, (ok, length) in enumerate(zip(passed, lengths, strict=True))
        ]
        mean = float(passed.mean())
        error = float(passed.std(ddof=1) / np.sqrt(items)) if items > 1 else 0.0
        tasks[task] = {"metric": "exact_match", "n": items, "value": mean, "stderr": error}
    average = float(np.mean([task["value"] for task in tasks.values()]))
    document = head("evaluation", profile, seed, model, provenance(f"eval-{model}", "evaluation"))
    return document | {"tasks": tasks, "average": average, "items": rows}


def head(kind: str, profile: str, seed: int, model: str, provenance: dict) -> dict:
    """What every kind of results file begins with, and where its numbers come from."""
    return {"schema": 1, "kind": kind, "profile": profile, "seed": seed, "model": model, "provenance": provenance}


def provenance(step: str, stage: str) -> dict:
    """The shortest valid chain: of a step that nothing went into."""
    return {"step": step, "chain": {step: link(stage)}}


def link(stage: str, **more) -> dict:
    """One valid link of a provenance chain: an artifact that nothing else went into."""
    what = {"manifest_sha256": "0" * 64, "stage": stage, "key": "0" * 12, "seed": 0, "inputs": {}, "settings": {}}
    when = {"seconds": 1.0, "started": "2026-01-01T00:00:00Z", "commit": "0" * 40, "dirty": False}
    return what | when | {"device": "cpu", "versions": {"torch": "2.13.0"}} | more


def training(model: str, seed: int) -> dict:
    """One valid training record of 60 steps whose loss starts at log 2."""
    done = np.linspace(0, 1, 60)
    noise = np.random.default_rng([seed, *model.encode()]).normal(0, 0.07, (2, 60)) * (done > 0)
    table = pd.DataFrame({"step": range(1, 61), "epoch": 2 * np.arange(1, 61) / 60, "seconds": 1.0})
    table["rewards_real"], table["rewards_generated"] = 0.5 * done + noise[0], -1.2 * done + noise[1]
    table["margin"] = table["rewards_real"] - table["rewards_generated"]
    rows = table.assign(loss=np.log1p(np.exp(-table["margin"])), accuracy=0.5 + 0.4 * done).to_dict("records")
    rows[-1]["matrix_share"] = 0.41  # of runs that are long enough to measure
    return head("training", "cpu", seed, model, provenance(model, "spin")) | {"rows": rows}


def generations(model: str, seed: int, *, ability: float, items: int) -> dict:
    """Valid generations: with more ability, more of them are right and they ramble less."""
    own = np.random.default_rng([seed, *model.encode(), 5])
    rows = []
    for number in range(items):
        family = ("chain_sum", "letter_counting", "syllogism")[number % 3]
        a, b = (int(value) for value in np.random.default_rng([11, number]).integers(2, 90, size=2))
        total = a + b if own.random() < 0.3 + ability else a + b + int(own.integers(1, 9))
        rambling = int(own.integers(0, 4)) if own.random() < 0.6 - ability else 0
        said = "".join(f" Check: {total} - {b} = {total - b}." for _ in range(rambling))
        rows.append(
            {
                "id": f"{family}-train-{number}",
                "family": family,
                "prompt": f"What is {a} + {b}?\nGive the steps | and then the answer.",
                "real": f"{a} + {b} = {a + b}. Answer: {a + b}",
                "generated": f"{a} + {b} = {total}.{said} Answer: {total}",
                "real_tokens": 14,
                "generated_tokens": 14 + 12 * rambling,
                "finish_reason": "length" if rambling == 3 else "stop",
            }
        )
    return head("generations", "cpu", seed, model, provenance("pairs-0", "pairs")) | {"items": rows}


def heldout(model: str, seed: int, *, gap: float, items: int) -> dict:
    """Valid drifts on held-out pairs, `gap` nats apart on average."""
    own = np.random.default_rng([seed, *model.encode(), 9])
    drifts = zip(own.normal(gap / 2, 0.4, items), own.normal(-gap / 2, 0.4, items), strict=True)
    rows = [
        {"id": f"validation-{number}", "real_drift": float(real), "generated_drift": float(generated)}
        | {"real_logp": float(real) - 20, "real_bytes": 10}
        for number, (real, generated) in enumerate(drifts)
    ]
    return head("heldout", "cpu", seed, model, provenance(model, "spin")) | {"beta": 1.0, "items": rows}


def mt_bench(model: str, seed: int, *, ability: float) -> dict:
    """Valid grades of all categories; a few answers are refused or have no rating."""
    own = np.random.default_rng([seed, *model.encode(), 3])
    same = {"response": "an answer", "judgment": "a reason", "tokens": 20, "finish_reason": "stop", "cut_tokens": 0}
    rows = []
    for (place, category), number, turn in product(enumerate(CATEGORIES), range(10), (1, 2)):
        level = np.random.default_rng([13, place, number]).normal(5 - 0.25 * place, 1.5)
        score = float(np.clip(round(level + 4 * ability + own.normal(0, 1) - 0.4 * (turn == 2)), 1, 10))
        status = "graded" if own.random() > 0.02 else str(own.choice(["refused", "unparsable"]))
        found = {"category": category, "status": status, "score": score if status == "graded" else None}
        rows.append({"id": f"{81 + 10 * place + number}/{turn}", **found, **same})
    scores = [row["score"] for row in rows if row["score"] is not None]
    judge = {"name": "made-up-judge", "base_url": "http://localhost/v1", "models": ["made-up-judge-1"]}
    counts = {name: sum(row["status"] == name for row in rows) for name in ("graded", "refused", "unparsable")}
    document = head("mt_bench", "cpu", seed, model, provenance(f"mt-bench-{model}", "mt_bench"))
    return document | {"judge": judge, "grades": counts, "average": float(np.mean(scores)), "items": rows}


def write_mt_bench(root: Path, *, seeds=(0,)) -> None:
    """Write grades of the whole chain under results/PROFILE."""
    for seed in seeds:
        for model, ability in ABILITIES.items():
            results.write_json(results.path_of(root, seed, "mt_bench", model), mt_bench(model, seed, ability=ability))


def write_generations(root: Path, *, seeds=(0, 1), items: int = 30) -> None:
    """Write transfer evaluations, generations and held-out pairs of the whole chain under results/PROFILE."""
    for seed in seeds:
        for place, (model, ability) in enumerate(ABILITIES.items()):
            document = evaluation(model, seed, ability=ability, items=items, names=TRANSFER)
            results.write_json(results.path_of(root, seed, "transfer", model), document)
            if model != "spin-3":
                document = generations(model, seed, ability=ability, items=items)
                results.write_json(results.path_of(root, seed, "generations", model), document)
            if model != "sft":
                document = heldout(model, seed, gap=1.2 / place, items=items)
                results.write_json(results.path_of(root, seed, "heldout", model), document)


def write(folder: Path, *, seeds=(0, 1, 2), models=None, items: int = 100) -> Path:
    """Write evaluations and training records of several models and seeds; returns results/PROFILE."""
    root = folder / "results" / "cpu"
    for seed in seeds:
        for model, ability in (ABILITIES if models is None else models).items():
            document = evaluation(model, seed, ability=ability, items=items)
            results.write_json(results.path_of(root, seed, "evaluations", model), document)
            if model != "sft" and "epoch" not in model:
                results.write_json(results.path_of(root, seed, "training", model), training(model, seed))
    return root
