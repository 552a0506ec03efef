"""The search behind the cpu profile: settings compared on the validation rows, never on the test rows.

    python -m benchmarks.search --seeds 0 1      run what is missing; rows go to results/cpu/search.jsonl

Every row holds the settings that differ from the profile of its commit, the model, and its score.
"""

from __future__ import annotations

import argparse
import json
import logging
from itertools import product
from pathlib import Path
from typing import Any

import torch

from spin_utils import artifacts, models, paths, plan, profiles, runtime, stages
from spin_utils.evaluation import evaluate

ROWS = {"demonstrations.validation_rows": 600, "demonstrations.test_rows": 900}
FIXED = {"demonstrations.wordings": "fixed", **ROWS, "sft.epochs": 2}
VARIED = {**ROWS, "sft.epochs": 2}
SPIN = ("spin-0-epoch-1", "spin-0")
VARIANTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (FIXED, ("sft", "sft-more-1", *SPIN)),
    ({**FIXED, "spin.learning_rates": [2.0e-5], "spin.betas": [1.0]}, SPIN[:1]),
    ({**FIXED, "spin.learning_rates": [1.0e-6], "spin.training.batch_size": 16}, SPIN),
    (VARIED, ("sft", "sft-more-1", *SPIN)),
    ({**VARIED, "spin.learning_rates": [1.0e-6], "spin.training.batch_size": 16}, SPIN),
    ({**VARIED, "spin.learning_rates": [1.0e-6], "spin.betas": [0.1], "spin.training.batch_size": 16}, SPIN),
    ({**VARIED, "spin.learning_rates": [2.0e-6], "spin.training.batch_size": 16}, SPIN),
]
"""Changes to the profile, by dotted name, and the models that are scored."""

log = logging.getLogger("spin_utils.search")


def main() -> None:
    """Score the models of every variant that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    seeds = parser.parse_args().seeds
    runtime.configure()
    record = paths.results("cpu") / "search.jsonl"
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


def _score(steps: plan.Plan, model: str) -> dict[str, Any]:
    """Score a model on the validation rows, in points."""
    stages.run(steps, steps.steps[f"eval-{model}"].inputs[0])
    data, folder = stages.run(steps, "data"), steps.checkpoint(model)
    result = evaluate(
        models.load(folder, torch.bfloat16),
        models.load_tokenizer(folder),
        Path(data) / "validation.jsonl",
        template=steps.profile.template,
        settings=steps.profile.evaluation,
    )
    families = {task: round(100 * summary["value"], 1) for task, summary in result["tasks"].items()}
    commit = artifacts.environment()["commit"]
    return {
        "n": len(result["items"]),
        "average": round(100 * result["average"], 2),
        "by_family": families,
        "commit": commit,
    }


if __name__ == "__main__":
    main()
