"""A model card with a run's settings and numbers, all of it from `results/` and the profile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from spin_utils.drawing import draw, tables
from spin_utils.experiment import plan
from spin_utils.files import paths
from spin_utils.files.disk import write_text
from spin_utils.files.paths import KitError
from spin_utils.paper import published, results
from spin_utils.settings import profiles
from spin_utils.settings.names import label
from spin_utils.settings.run import Profile


def write(profile: Profile, model: str, seed: int = 0) -> Path:
    """Write the card of a model, such as `spin-3`, to results/PROFILE/seed-S/cards/MODEL.md.

    Raises:
        ResultsError: the model has no results.
        KitError: the profile does not train it, or not as it was when the results were made.
    """
    made = plan.make(profile, seed)
    if profile.released or (model == "sft" and profile.sft is None):
        raise KitError(f"{model}: profile {profile.name} does not train it; it has a card of its own")
    if f"eval-{model}" not in made.steps:
        raise KitError(f"{model}: unknown{profiles.nearest(model, made.models())}")
    folder, step = paths.results(profile.name), made.steps[f"eval-{model}"].inputs[0]
    record = results.read_json(results.path_of(folder, seed, "evaluations", model))
    chain = record["provenance"]["chain"]
    found, wanted = f"{step}-{chain.get(step, {}).get('key')}", made.directory(step).name
    if found != wanted:
        raise KitError(
            f"{model}: its results are from {found}, but the profile's current settings give {wanted}; undo "
            "the changes to the profile, or reproduce it again"
        )
    name = f"{label(model)} ({profile.name})"
    settings = {step: _public(made.steps[step].settings) for step in chain if step in made.steps}
    card = ModelCard.from_template(
        metadata(profile, name, record),
        template_path=str(Path(__file__).parent / "templates" / "card.md.j2"),
        name=name,
        scores=list(_scores(profile, model, seed, record)),
        seed=seed,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        chain=chain,
    )
    path = folder / f"seed-{seed}" / "cards" / f"{model}.md"
    write_text(path, f"{card}\n")
    return path


def metadata(profile: Profile, name: str, record: dict[str, Any]) -> ModelCardData:
    """What the hub reads: the names of base model and data there, and the scores of an evaluation."""
    data, base = profile.demonstrations, profile.model
    return ModelCardData(
        model_name=name,
        base_model=base.name if base.source == "hub" else None,
        datasets=[data.name] if data.source == "hub" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["self-play", "spin", "arxiv:2401.01335"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=task,
                dataset_name=published.BENCHMARK_LABELS.get(task, task),
                metric_type=summary["metric"],
                metric_value=round(100 * summary["value"], 2),
            )
            for task, summary in record["tasks"].items()
        ],
    )


def _scores(profile: Profile, model: str, seed: int, record: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of the table: each task, and the average of those that count, if any does."""
    results.check_one_run(paths.results(profile.name))
    scores = draw.scores(profile)
    scores = scores[scores["seed"] == seed]
    benchmark, outside, averaged = tables.benchmarks(scores), tables.outside(scores), results.judged(scores)
    for row, names in [*((task, [task]) for task in record["tasks"]), *[("average", averaged)] * bool(averaged)]:
        shown = scores[scores["task"].isin(names)]
        level, gain = (tables.measure(shown, model, other) for other in ("", "sft"))
        over_sft = "" if model == "sft" or "value" not in gain else tables.cell_text(gain, sign=True)
        column = "average" if row == "average" else benchmark[row]
        theirs = published.score(model, column) if column else None
        name = f"{row} ({outside[row]})" if row in outside else row
        cells = [name, str(level["n"]), tables.cell_text(level), over_sft, published.BENCHMARK_LABELS.get(column, "")]
        yield [*cells, "" if theirs is None else f"{theirs:.2f}"]


def _public(value: Any) -> Any:
    """Settings without the folders of this machine: only the last part of a path is kept, since a card is public."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
