"""A model card with a run's settings and numbers, and the upload of both to the hub.

Everything in a card comes from `results/` and from the profile. Nothing is pushed without results of the very
checkpoint: its manifest must be the one that they name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from spin_utils.drawing import draw, tables
from spin_utils.experiment import plan
from spin_utils.experiment.plan import Plan
from spin_utils.files import artifacts, disk, paths
from spin_utils.files.disk import write_text
from spin_utils.files.paths import KitError
from spin_utils.paper import published, results
from spin_utils.paper.statistics import paired
from spin_utils.settings import profiles
from spin_utils.settings.names import label
from spin_utils.settings.run import Profile

PUSHED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja")
"""Files of a checkpoint that make up the model; anything else in there belongs to the run."""


class CardError(KitError):
    """A card cannot be written or pushed. The message names the model and the remedy."""


def write(profile: Profile, model: str, seed: int = 0) -> Path:
    """Write the card of a model to results/PROFILE/seed-S/cards/MODEL.md.

    Args:
        profile: the validated profile.
        model: row of a table, such as `spin-3`.
        seed: training seed.

    Raises:
        ResultsError: the model has no results.
        CardError: the profile does not train it, or not as it was when the results were made.
    """
    card = text(profile, model, seed)
    made = plan.make(profile, seed)
    step, link = _link(made, model)
    found, wanted = f"{step}-{link.get('key')}", made.directory(step).name
    if found != wanted:
        raise CardError(
            f"{model}: its results are from {found}, but the profile's current settings give {wanted}; undo "
            "the changes to the profile, or reproduce it again"
        )
    path = paths.results(profile.name) / f"seed-{seed}" / "cards" / f"{model}.md"
    write_text(path, card)
    return path


def text(profile: Profile, model: str, seed: int = 0) -> str:
    """The card: the hub's metadata, then Markdown. Errors as in `write`."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    made = plan.make(profile, seed)
    _link(made, model)  # refuses what the profile does not make
    record = results.read_json(results.path_of(paths.results(profile.name), seed, "evaluations", model))
    name = f"{label(model)} ({profile.name})"
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=published.BENCHMARK_LABELS.get(task, task),
            metric_type=summary["metric"],
            metric_value=round(100 * summary["value"], 2),
        )
        for task, summary in record["tasks"].items()
    ]
    data, base = profile.demonstrations, profile.model
    card = ModelCardData(
        model_name=name,
        base_model=base.name if base.source == "hub" else None,
        datasets=[data.name] if data.source == "hub" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["self-play", "spin", "arxiv:2401.01335"],
        eval_results=scores,
    )
    chain = record["provenance"]["chain"]
    settings = {name: _public(made.steps[name].settings) for name in chain if name in made.steps}
    filled = ModelCard.from_template(
        card,
        template_path=str(Path(__file__).parent / "templates" / "card.md.j2"),
        name=name,
        scores=list(_scores(profile, model, seed, record)),
        seed=seed,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        chain=chain,
    )
    return f"{filled}\n"


def push(profile: Profile, model: str, repository: str, seed: int = 0, *, public: bool = False) -> str:
    """Upload a checkpoint and its card as one commit.

    Args:
        profile: the validated profile.
        model: such as `spin-3`.
        repository: hub id, owner/name; made if it is not there.
        seed: training seed.
        public: whether a repository that is made is public.

    Returns:
        The commit's address.

    Raises:
        CardError: no token in the environment, no such checkpoint, or results of another one.
        ResultsError: the model has no results.
        ArtifactError: the checkpoint is missing or damaged.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise CardError("HF_TOKEN: not set; create a token with write access at https://huggingface.co/settings/tokens")
    if repository.count("/") != 1:
        raise CardError(f"{repository!r} is not a hub id; write it as owner/name")
    card = text(profile, model, seed)
    made = plan.make(profile, seed)
    step, link = _link(made, model)
    artifacts.verify(made.directory(step))
    if link.get("manifest_sha256") != disk.file_hash(made.directory(step) / artifacts.MANIFEST):
        raise CardError(f"{model}: its results belong to another checkpoint; run `spin-repro reproduce` again")
    folder = made.checkpoint(model)
    files = sorted({path for pattern in (*PUSHED, *TOKENIZER) for path in folder.glob(pattern)})
    operations = [CommitOperationAdd(path.name, path) for path in files]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi(token=token)
    try:
        api.create_repo(repository, visibility="public" if public else "private", exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=f"{label(model)}, seed {seed}")
    except Exception as error:  # the hub client raises a dozen kinds; all mean the same to the reader
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(token, "***")
        raise CardError(f"{repository}: not pushed ({reason}); check name, network and the token's rights") from None
    return str(done.commit_url)


def _link(made: Plan, model: str) -> tuple[str, dict[str, Any]]:
    """The step that makes a model's checkpoint, and its provenance in the results, or {}."""
    profile = made.profile
    if profile.released:
        raise CardError(f"{model}: profile {profile.name} trains nothing; released models have cards of their own")
    if model == "sft" and profile.sft is None:
        raise CardError(f"{model}: is the base model of profile {profile.name}, which has a card of its own")
    if f"eval-{model}" not in made.steps:
        raise CardError(f"{model}: unknown{profiles.nearest(model, made.models())}")
    step = made.steps[f"eval-{model}"].inputs[0]
    path = results.path_of(paths.results(profile.name), made.seed, "evaluations", model)
    return step, results.read_json(path)["provenance"]["chain"].get(step, {})


def _scores(profile: Profile, model: str, seed: int, record: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of the table: each task and their average."""
    results.check_one_run(paths.results(profile.name))
    scores = draw.scores(profile)
    scores = scores[scores["seed"] == seed]
    benchmark = tables.benchmarks(scores)
    tasks = {task: [task] for task in record["tasks"]} | {
        "average": [t for t in record["tasks"] if t in results.judged(scores)]
    }
    for row, names in tasks.items():
        level = paired(scores, {model: 1.0}, tasks=names).times(100)
        gain = ""
        if model != "sft" and "sft" in set(scores["model"]):
            change = paired(scores, {model: 1.0, "sft": -1.0}, tasks=names).times(100)
            gain = f"{change.difference:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"
        column = "average" if row == "average" else benchmark[row]
        theirs = published.score(model, column) if column else None
        cells = [row, str(level.n_items), f"{level.difference:.1f} [{level.low:.1f}, {level.high:.1f}]", gain]
        yield [*cells, published.BENCHMARK_LABELS.get(column, ""), "" if theirs is None else f"{theirs:.2f}"]


def _public(value: Any) -> Any:
    """Settings without the folders of this machine: only the last part of a path is kept, since a card is public."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
