"""The search behind the cpu profile: settings compared on the validation rows, never on the test rows.

    python -m benchmarks.search            run what is missing; rows go to results/cpu/search.jsonl

Every row holds the settings that differ from the profile as it is now, the model, and its score.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from spin_utils import artifacts, models, paths, plan, profiles, runtime, stages
from spin_utils.evaluation import evaluate

SEED = 0
VARIANTS: list[dict[str, Any]] = [
    {},
    {"spin.learning_rates": [1.0e-5], "spin.betas": [0.1]},
]
"""Changes to the profile, by dotted name."""
MODELS = ("sft", "sft-more-1", "spin-0-epoch-1", "spin-0", "spin-0-epoch-5")

log = logging.getLogger("spin_utils.search")


def main() -> None:
    """Score the models of every variant that has no row yet."""
    runtime.configure()
    record = paths.results("cpu") / "search.jsonl"
    known = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    for change in VARIANTS:
        steps = plan.make(profiles.load("cpu", {**change, "name": "cpu-search"}), SEED)
        for model in MODELS:
            key = {"changes": change, "model": model, "plan": steps.steps[f"eval-{model}"].directory.name}
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
        "seed": SEED,
        "n": len(result["items"]),
        "average": round(100 * result["average"], 2),
        "by_family": families,
        "commit": commit,
    }


if __name__ == "__main__":
    main()
