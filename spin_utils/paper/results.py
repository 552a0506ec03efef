"""Results: small JSON files that tables and figures are drawn from.

    results/PROFILE/seed-S/evaluations/MODEL.json    scores of one checkpoint, item by item
    results/PROFILE/seed-S/transfer/MODEL.json       the same on tasks that nothing was trained on
    results/PROFILE/seed-S/training/MODEL.json       metrics of one training run, step by step
    results/PROFILE/seed-S/generations/MODEL.json    what the model answered to the prompts of SPIN
    results/PROFILE/seed-S/heldout/MODEL.json        what an iteration did to pairs that no training saw
    results/PROFILE/seed-S/mt_bench/MODEL.json       a judge's grades of the model's answers to MT-Bench

A file is checked when it is written and again when it is read; a file that is not whole, consistent and
finite is refused with its path and the field. Scores are shares (0..1) here and points in tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from spin_utils.files.disk import SEAL, is_whole, parse_json, sealed, write_text
from spin_utils.paper.document_checks import validate
from spin_utils.paper.documents import (
    DRIFT_FIELDS,
    FIELDS,
    GENERATION_FIELDS,
    GRADE_FIELDS,
    ITEM_FIELDS,
    SCHEMA,
    ResultsError,
    label,
)

__all__ = [
    "SCHEMA",
    "chains",
    "check_one_run",
    "files",
    "ResultsError",
    "label",
    "load_evaluations",
    "load_generations",
    "load_heldout",
    "load_mt_bench",
    "load_summaries",
    "load_training",
    "path_of",
    "read_json",
    "training_seeds",
    "validate",
    "write_json",
]

Scored = Literal["evaluations", "transfer"]
"""Folders of evaluations: of the tasks of the training mix, and of tasks that nothing was trained on."""

_KINDS = {
    "evaluations": "evaluation",
    "transfer": "evaluation",
    "training": "training",
    "generations": "generations",
    "heldout": "heldout",
    "mt_bench": "mt_bench",
}
"""Kind of the files in a folder."""


def path_of(results: Path, seed: int, folder: str, model: str) -> Path:
    """Where a file lies; `results` is results/PROFILE, `folder` one of those at the head of this module."""
    return results / f"seed-{seed}" / folder / f"{model}.json"


def training_seeds(results: Path) -> list[int]:
    """Training seeds that have a folder under results/PROFILE, in order."""
    names = [path.name.removeprefix("seed-") for path in results.glob("seed-*")]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def files(results: Path) -> list[Path]:
    """All results files under results/PROFILE; what else lies there, such as a copy of a folder, is the user's."""
    return [path for folder in _KINDS for path in _files(results, folder, None)]


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a results file: whole or not at all, and the same bytes for the same content.

    Keys keep their order; a list of objects has one object a line, so that files diff well. Documents with a
    `kind` are checked first; the hash of everything else is written last.

    Raises:
        ResultsError: A number is not finite, or the document is not valid for its kind.
    """
    if document.get("kind") in FIELDS:
        validate(document, str(path))
    try:
        text = _render(sealed(document))
    except ValueError as error:
        raise ResultsError(f"{path}: a number is NaN or infinite; JSON has no such number ({error})") from error
    write_text(path, text)


def read_json(path: Path) -> dict[str, Any]:
    """Read and check one results file.

    Raises:
        ResultsError: The file is missing, is not JSON, or is not valid for its kind and its place: the folder
            names give the kind, the seed and the profile, the file name gives the model.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultsError(f"{path}: no such results file; run the stage that writes it") from error
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}); put a file there or run its stage") from error
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON ({error}); delete the file and run its stage again") from error
    if not isinstance(document, dict):
        raise ResultsError(f"{path}: holds a {type(document).__name__}, not an object; delete it and run its stage")
    if not is_whole(document):
        raise ResultsError(f"{path}: not what was written (hash); restore it, or run `spin-repro reproduce` again")
    document.pop(SEAL, None)
    validate(document, str(path))
    *_, profile, seed, _, _ = path.resolve().parts
    place = {"model": path.stem, "seed": seed.removeprefix("seed-"), "profile": profile}
    place["kind"] = _KINDS.get(path.parent.name, str(document["kind"]))
    for field, expected in place.items():
        if str(document[field]) != expected:
            raise ResultsError(f"{path}: {field} is {document[field]!r}, but the file lies at {expected!r}; move it")
    return document


def load_evaluations(
    results: Path, seeds: Sequence[int] | None = None, *, kind_folder: Scored = "evaluations"
) -> pd.DataFrame:
    """All per-item scores under results/PROFILE, one row per seed, model and item.

    Args:
        results: The folder results/PROFILE.
        seeds: Training seeds to read; None: all that are there.
        kind_folder: `transfer` for tasks that nothing was trained on; the two are never mixed.

    Returns:
        Columns `seed`, `model`, `task`, `id`, `score` (0..1), `tokens`, `response`; empty if nothing was run.

    Raises:
        ResultsError: A file is not valid, or two models were not scored on the same items: comparisons are
            paired, so an item may not be missing on one side.
    """
    frames = []
    for document, items in _items(results, kind_folder, seeds, list(ITEM_FIELDS), key=["task", "id"]):
        frames.append(items.assign(seed=document["seed"], model=document["model"]))
    columns = ["seed", "model", "task", "id", "score", "tokens", "response"]
    return _together(frames, columns).astype({"score": float})


def load_generations(results: Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """What every model answered to the prompts of SPIN, one row per seed, model and prompt.

    Returns:
        Columns `seed`, `model` (which generated), `id`, `family`, `prompt`, `real`, `generated`, `real_tokens`,
        `generated_tokens`, `finish_reason` (stop, or length if it was cut); empty if nothing was run.

    Raises:
        ResultsError: A file is not valid, or two models did not answer the same prompts with the same real responses.
    """
    names = list(GENERATION_FIELDS)
    frames = [
        items.assign(seed=document["seed"], model=document["model"])
        for document, items in _items(results, "generations", seeds, names, key=["family", "id"])
    ]
    table = _together(frames, ["seed", "model", *names])
    texts = table[["id", "prompt", "real"]].drop_duplicates()
    if texts["id"].duplicated().any():
        item = texts["id"][texts["id"].duplicated()].iloc[0]
        raise ResultsError(
            f"{results}: the prompt or the real response of item {item!r} differs between generations/ of two models "
            "or seeds; run them again from the same demonstrations"
        )
    return table


def load_heldout(results: Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """What every iteration did to pairs that no training saw, one row per seed, model and prompt.

    Returns:
        Columns `seed`, `model` (spin-t, the policy theta_t+1 of iteration t), `beta`, `id`, `real_drift` and
        `generated_drift` (log p_{theta_t+1} - log p_{theta_t}, nats); empty if nothing was run.

    Raises:
        ResultsError: A file is not valid, or two iterations were not measured on the same prompts.
    """
    frames = [
        items.assign(seed=document["seed"], model=document["model"], beta=float(document["beta"]))
        for document, items in _items(results, "heldout", seeds, list(DRIFT_FIELDS), key=["id"])
    ]
    return _together(frames, ["seed", "model", "beta", *DRIFT_FIELDS])


def load_mt_bench(results: Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """All grades of MT-Bench, one row per seed, model and turn.

    Returns:
        Columns `seed`, `model`, `judge` and `judge_models` (as the endpoint names them), `task` (the category), `id`
        (question/turn), `status` and `grade` (1 to 10, NaN where there is none); empty if nothing was run.

    Raises:
        ResultsError: A file is not valid, or two models were not asked the same questions or not graded by one judge.
    """
    frames = []
    judges: dict[str, Path] = {}
    for document, items in _items(results, "mt_bench", seeds, list(GRADE_FIELDS), key=["category", "id"]):
        judge = {"judge": document["judge"]["name"], "judge_models": ", ".join(document["judge"]["models"])}
        judges.setdefault(judge["judge"], path_of(results, document["seed"], "mt_bench", document["model"]))
        if len(judges) > 1:
            (one, here), (other, there) = judges.items()
            raise ResultsError(f"{here} was graded by {one} and {there} by {other}; grade all models with one judge")
        items = items.rename(columns={"category": "task", "score": "grade"}).astype({"grade": float})
        frames.append(items.assign(seed=document["seed"], model=document["model"], **judge))
    return _together(frames, ["seed", "model", "judge", "judge_models", "task", "id", "status", "grade"])


def load_summaries(results: Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """The summaries of all evaluations: `seed`, `model`, `task`, `metric`, `n`, `value`, `stderr` (0..1)."""
    rows = [
        {"seed": document["seed"], "model": document["model"], "task": task, **summary}
        for document in map(read_json, _files(results, "evaluations", seeds))
        for task, summary in document["tasks"].items()
    ]
    return pd.DataFrame(rows, columns=["seed", "model", "task", "metric", "n", "value", "stderr"])


def chains(results: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Training seed and provenance chain of every evaluation, by seed."""
    for path in _files(results, "evaluations", None):
        document = read_json(path)
        yield document["seed"], document["provenance"]["chain"]


def check_one_run(results: Path) -> None:
    """Refuse results of two runs side by side: a difference between them would be one of settings or data.

    The key of a step stands for its settings and inputs, so of each seed it is the same in every file that names the
    step; that of data and base model is the same for all seeds.

    Raises:
        ResultsError: two files name different artifacts of one step, or a file is not valid.
    """
    found: dict[tuple[int | None, str], tuple[str, Path]] = {}
    for path in files(results):
        document = read_json(path)
        for name, link in document["provenance"]["chain"].items():
            seed = None if link["stage"] in ("data", "base") else document["seed"]
            key, other = found.setdefault((seed, name), (link["key"], path))
            if key != link["key"]:
                raise ResultsError(
                    f"{path}: was made from {name}-{link['key']}, but {other} from {name}-{key}: they are of two runs; "
                    "remove one of them, or run `spin-repro reproduce` again"
                )


def load_training(results: Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """All training records, one row per seed, model and logged step: `seed`, `model`, `step`, `epoch`, `loss`, ..."""
    frames = [
        pd.DataFrame(document["rows"]).assign(seed=document["seed"], model=document["model"])
        for document in map(read_json, _files(results, "training", seeds))
        if document["rows"]
    ]
    if not frames:
        return pd.DataFrame(columns=["seed", "model", "step", "epoch", "loss"])
    table = pd.concat(frames, ignore_index=True)
    return table[["seed", "model", *(name for name in table.columns if name not in ("seed", "model"))]]


def _items(
    results: Path, folder: str, seeds: Sequence[int] | None, columns: list[str], key: list[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Documents of one folder with their items as a table; all must have the same keys."""
    first: tuple[Path, set[tuple[str, ...]]] | None = None
    for path in _files(results, folder, seeds):
        document = read_json(path)
        items = pd.DataFrame(document["items"], columns=columns)
        items["id"] = items["id"].astype(str)
        keys = set(items[key].itertuples(index=False, name=None))
        first = first or (path, keys)
        _check_same_items(path, keys, *first)
        yield document, items


def _together(frames: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _check_same_items(
    path: Path, keys: set[tuple[str, ...]], reference: Path, reference_keys: set[tuple[str, ...]]
) -> None:
    if keys == reference_keys:
        return
    key = min(keys ^ reference_keys)
    *group, item = key
    there, missing = (reference, path) if key in reference_keys else (path, reference)
    raise ResultsError(
        f"{missing}: item {item!r}{f' of task {group[0]!r}' if group else ''} is missing, though {there} has it "
        f"({len(keys ^ reference_keys)} items differ); measure every model on the same items"
    )


def _files(results: Path, folder: str, seeds: Sequence[int] | None) -> Iterator[Path]:
    """Files of one folder over seeds, by seed and then name."""
    for seed in training_seeds(results) if seeds is None else seeds:
        yield from sorted((results / f"seed-{seed}" / folder).glob("*.json"))


def _render(document: Mapping[str, Any]) -> str:
    fields = []
    for name, value in document.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            body = "[\n  " + ",\n  ".join(_compact(row) for row in value) + "\n ]"
        else:
            body = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).replace("\n", "\n ")
        fields.append(f" {json.dumps(name)}: {body}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
