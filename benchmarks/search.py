"""The search behind the cpu profile: settings compared on the validation rows, never on the test rows.

    python -m benchmarks.search --seeds 0 1      run what is missing; rows go to results/cpu/search.jsonl
    python -m benchmarks.search --seeds          only write their summary, results/cpu/search.md

Every row holds the settings that differ from the profile of its commit, the model, and its score.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from itertools import product
from typing import Any

import pandas as pd

from spin_utils.evaluation.harness import evaluate
from spin_utils.experiment import plan, run
from spin_utils.files import artifacts, paths, runtime
from spin_utils.files.disk import write_text
from spin_utils.model import base
from spin_utils.paper.statistics import paired
from spin_utils.settings import profiles

ROWS = {"demonstrations.validation_rows": 600}
VARIANTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (ROWS, ("sft", "spin-0")),
    *(
        ({**ROWS, "spin.learning_rates": [rate], "spin.betas": [beta]}, ("spin-0",))
        for rate, beta in [(1.0e-6, 0.1), (5.0e-6, 0.1), (5.0e-6, 1.0), (1.0e-6, 5.0)]
    ),
]
"""Changes to the profile, by dotted name, and the models that are scored. The record keeps the rows of earlier ones."""

log = logging.getLogger("spin_utils.search")


def main() -> None:
    """Score the models of every variant that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    seeds = parser.parse_args().seeds
    runtime.configure()
    record = paths.results("cpu") / "search.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    for (change, names), seed in product(VARIANTS, seeds):
        steps = plan.make(profiles.load("cpu", {**change, "name": "cpu-search"}), seed)
        for model in names:
            key = {"changes": change, "model": model, "plan": steps.steps[f"eval-{model}"].directory.name, "seed": seed}
            if any(key.items() <= row.items() for row in known):
                continue
            row = key | _score(steps, model)
            log.info("%s", row)
            with record.open("a") as file:
                file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    write_text(record.with_suffix(".md"), summary([row for row in rows if "changes" in row]))


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table: the mean score over seeds, and the gain over SFT of the same data and seeds."""
    text = "# The search behind the cpu profile\n\nWritten by `python -m benchmarks.search` from search.jsonl. "
    text += "Average over the families on validation rows, in points, a mean over the training seeds named. Brackets: "
    text += "95 % intervals over paired items, and seeds if several, where the record has items.\n\n"
    text += "| changes to the profile of the time | model | seeds | rows | average | gain over SFT |\n"
    text += "| --- | --- | --- | ---: | ---: | ---: |\n"
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((json.dumps(row["changes"]), row["model"]), []).append(row)
    for (changes, model), found in groups.items():
        start = json.dumps({k: v for k, v in json.loads(changes).items() if not k.startswith("spin.")})
        average = statistics.mean(row["average"] for row in found)
        seeds = ", ".join(str(row["seed"]) for row in sorted(found, key=lambda row: row["seed"]))
        named = ", ".join(f"`{name}: {value}`" for name, value in json.loads(changes).items()) or "none"
        shown = "" if model == "sft" else _gain(found, groups[start, "sft"])
        text += f"| {named} | {model} | {seeds} | {found[0]['n']} | {average:.1f} | {shown} |\n"
    return text


def _gain(found: list[dict[str, Any]], sft: list[dict[str, Any]]) -> str:
    """The gain of one model over SFT, in points, with its interval if the rows hold single items."""
    if all("items" in row for row in (*found, *sft)):
        items = [
            {"model": row["model"], "seed": row["seed"], "task": task, "id": number, "score": int(correct)}
            for row in (*found, *sft)
            for task, flags in row["items"].items()
            for number, correct in enumerate(flags)
        ]
        gain = paired(pd.DataFrame(items), {found[0]["model"]: 1, "sft": -1}).times(100)
        text = f"{gain.difference:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
    else:
        base = {row["seed"]: row["average"] for row in sft}
        text = f"{statistics.mean(row['average'] - base[row['seed']] for row in found):+.1f}"
    return text.replace("-", "−")


def _score(steps: plan.Plan, model: str) -> dict[str, Any]:
    """Score a model on the validation rows, in points."""
    run.make(steps, steps.steps[f"eval-{model}"].inputs[0])
    folder = steps.checkpoint(model)
    result = evaluate(
        base.load_for_inference(folder),
        base.load_tokenizer(folder),
        run.rows(steps, "validation"),
        template=steps.profile.template,
        settings=steps.profile.evaluation,
    )
    families = {task: round(100 * summary["value"], 1) for task, summary in result["tasks"].items()}
    items = sorted(result["items"], key=lambda item: item["id"])
    correct = {task: "".join(str(int(i["score"])) for i in items if i["task"] == task) for task in families}
    commit = artifacts.environment()["commit"]
    return {
        "n": len(result["items"]),
        "average": round(100 * result["average"], 2),
        "by_family": families,
        "items": correct,
        "commit": commit,
    }


if __name__ == "__main__":
    main()
