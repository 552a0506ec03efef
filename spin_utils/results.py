"""Results: small JSON files that tables and figures are drawn from.

    results/PROFILE/seed-S/evaluations/MODEL.json    scores of one checkpoint, item by item
    results/PROFILE/seed-S/training/MODEL.json       metrics of one training run, step by step

A file is checked when it is written and again when it is read; a file that is not whole, consistent and
finite is refused with its path and the field. Scores are shares (0..1) here and points in tables.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

SCHEMA = 1
"""Version of both kinds of file; a reader refuses any other."""

EVALUATION_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "kind": str,
    "profile": str,
    "seed": int,
    "model": str,
    "tasks": dict,
    "average": (int, float),
    "items": list,
    "provenance": dict,
}
"""Fields of an evaluation. `seed` is the training seed; `average` the unweighted mean over tasks."""

TASK_FIELDS: dict[str, type | tuple[type, ...]] = {
    "metric": str,
    "n": int,
    "value": (int, float),
    "stderr": (int, float),
}
ITEM_FIELDS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "id": (str, int),
    "score": (int, float),
    "response": str,
    "tokens": int,
}
TRAINING_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "kind": str,
    "profile": str,
    "seed": int,
    "model": str,
    "rows": list,
    "provenance": dict,
}
"""Fields of a training record; a row has `step`, `epoch`, `loss` and whatever else the run logs."""

LABELS = {
    r"base": "Base model",
    r"sft": "SFT",
    r"spin-(\d+)": "SPIN iteration {}",
    r"dpo": "DPO",
    r"spin-(\d+)-dpo": "SPIN iteration {} + DPO",
    r"spin-(\d+)-epoch-(\d+)": "SPIN iteration {}, epoch {}",
    r"spin-(\d+)-rows-(\d+)": "SPIN iteration {}, {}/50 of the prompts",
    r"sft-more-(\d+)": "SFT, {} more epochs",
}
"""What a model's name may be, and how it reads. The 50 are the 50k prompts of the paper (Figure 5)."""

_TOLERANCE = 1e-6  # between a stored mean and the mean of the stored items


class ResultsError(ValueError):
    """A results file cannot be trusted. The message names the file, the field and the remedy."""


def label(model: str) -> str:
    """How a model's name reads in a table or figure.

    >>> label("spin-3-dpo"), label("sft-more-1")
    ('SPIN iteration 3 + DPO', 'SFT, 1 more epoch')

    Raises:
        ResultsError: The name is not one of the kit's.
    """
    for pattern, text in LABELS.items():
        match = re.fullmatch(pattern, model)
        if match:
            return text.format(*match.groups()).replace(" 1 more epochs", " 1 more epoch")
    raise ResultsError(f"model is {model!r}; names look like sft, spin-0, spin-0-epoch-1, spin-0-rows-14, dpo")


def evaluation_path(results: Path, seed: int, model: str) -> Path:
    """Where the evaluation of a model lies; `results` is results/PROFILE."""
    return results / f"seed-{seed}" / "evaluations" / f"{model}.json"


def training_path(results: Path, seed: int, model: str) -> Path:
    """Where the training record of a model lies; `results` is results/PROFILE."""
    return results / f"seed-{seed}" / "training" / f"{model}.json"


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a results file: whole or not at all, and the same bytes for the same content.

    Keys keep their order; a list of objects has one object a line, so that files diff well. Documents with a
    `kind` of this module are checked first.

    Raises:
        ResultsError: A number is not finite, or the document is not valid for its kind.
    """
    if document.get("kind") in ("evaluation", "training"):
        validate(document, str(path))
    try:
        text = _render(document)
    except ValueError as error:
        raise ResultsError(f"{path}: a number is NaN or infinite; JSON has no such number ({error})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read and check one results file.

    Raises:
        ResultsError: The file is missing, is not JSON, or is not valid for its kind and its place: the folder
            names give the seed and the profile, the file name gives the model.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultsError(f"{path}: no such results file; run the stage that writes it") from error
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON ({error}); delete the file and run its stage again") from error
    if not isinstance(document, dict):
        raise ResultsError(f"{path}: holds a {type(document).__name__}, not an object; delete it and run its stage")
    validate(document, str(path))
    place = {"model": path.stem, "seed": path.parts[-3].removeprefix("seed-"), "profile": path.parts[-4]}
    for field, expected in place.items():
        if str(document[field]) != expected:
            raise ResultsError(f"{path}: {field} is {document[field]!r}, but the file lies at {expected!r}; move it")
    return document


def validate(document: Mapping[str, Any], where: str) -> None:
    """Check an evaluation or a training record.

    Args:
        document: The parsed file.
        where: Named in errors, usually the path.

    Raises:
        ResultsError: A field is missing, unknown, of the wrong type or not finite; an item appears twice; a
            stored mean is not the mean of the items.
    """
    if document.get("schema") != SCHEMA:
        raise ResultsError(
            f"{where}: schema is {document.get('schema')!r}, this kit reads {SCHEMA}; "
            f"run the stage again or use the version of the kit that wrote the file"
        )
    kind = document.get("kind")
    if kind not in ("evaluation", "training"):
        raise ResultsError(f"{where}: kind is {kind!r}; use 'evaluation' or 'training'")
    _check_fields(document, EVALUATION_FIELDS if kind == "evaluation" else TRAINING_FIELDS, where)
    try:
        label(document["model"])
    except ResultsError as error:
        raise ResultsError(f"{where}: {error}") from error
    for name, value in document.items():
        _check_finite(value, f"{where}: {name}")
    if kind == "evaluation":
        _check_items(document, where)
    else:
        _check_rows(document["rows"], where)


def load_evaluations(results: Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """All per-item scores under results/PROFILE, one row per seed, model and item.

    Args:
        results: The folder results/PROFILE.
        seeds: Training seeds to read; None: all that are there.

    Returns:
        Columns `seed`, `model`, `task`, `id`, `score` (0..1), `tokens`, `response`; empty if nothing was run.

    Raises:
        ResultsError: A file is not valid, or two models were not scored on the same items: comparisons are
            paired, so an item may not be missing on one side.
    """
    frames = []
    reference: tuple[Path, set[tuple[str, str]]] | None = None
    for path in _files(results, "evaluations", seeds):
        document = read_json(path)
        items = pd.DataFrame(document["items"], columns=list(ITEM_FIELDS))
        items["id"] = items["id"].astype(str)
        keys = set(zip(items["task"], items["id"], strict=True))
        reference = reference or (path, keys)
        _check_same_items(path, keys, *reference)
        frames.append(items.assign(seed=document["seed"], model=document["model"]))
    columns = ["seed", "model", "task", "id", "score", "tokens", "response"]
    if not frames:
        return pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True)[columns].astype({"score": float})


def load_summaries(results: Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """The summaries of all evaluations: `seed`, `model`, `task`, `metric`, `n`, `value`, `stderr` (0..1)."""
    rows = [
        {"seed": document["seed"], "model": document["model"], "task": task, **summary}
        for document in map(read_json, _files(results, "evaluations", seeds))
        for task, summary in document["tasks"].items()
    ]
    return pd.DataFrame(rows, columns=["seed", "model", "task", "metric", "n", "value", "stderr"])


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


def _check_items(document: Mapping[str, Any], where: str) -> None:
    scores: dict[str, list[float]] = {task: [] for task in document["tasks"]}
    seen: set[tuple[str, str]] = set()
    for number, item in enumerate(document["items"]):
        place = f"{where}: items[{number}]"
        if not isinstance(item, dict):
            raise ResultsError(f"{place} is not an object")
        _check_fields(item, ITEM_FIELDS, place)
        if item["task"] not in scores:
            raise ResultsError(f"{place}: task {item['task']!r} is not among tasks ({', '.join(scores)})")
        key = (item["task"], str(item["id"]))
        if key in seen:
            raise ResultsError(f"{place}: item {key[1]!r} of task {key[0]!r} appears twice; evaluate again")
        seen.add(key)
        if not 0 <= item["score"] <= 1:
            raise ResultsError(f"{place}: score is {item['score']}, outside 0..1; store shares, not points")
        scores[item["task"]].append(float(item["score"]))
    if not scores:
        raise ResultsError(f"{where}: tasks is empty; an evaluation has at least one")
    for task, summary in document["tasks"].items():
        place = f"{where}: tasks.{task}"
        if not isinstance(summary, dict):
            raise ResultsError(f"{place} is not an object")
        _check_fields(summary, TASK_FIELDS, place)
        if summary["n"] != len(scores[task]) or not scores[task]:
            raise ResultsError(f"{place}.n is {summary['n']}, but items holds {len(scores[task])}; items are missing")
        _check_mean(f"{place}.value", summary["value"], scores[task])
    _check_mean(f"{where}: average", document["average"], [task["value"] for task in document["tasks"].values()])


def _check_rows(rows: Sequence[Any], where: str) -> None:
    previous = -math.inf
    for number, row in enumerate(rows):
        place = f"{where}: rows[{number}]"
        if not isinstance(row, dict):
            raise ResultsError(f"{place} is not an object")
        for field in ("step", "epoch", "loss"):
            if field not in row:
                raise ResultsError(f"{place}: no {field!r}")
        if row["step"] <= previous:
            raise ResultsError(f"{place}: step {row['step']} does not follow {previous}; steps must increase")
        previous = row["step"]


def _check_fields(record: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    for name in fields:
        if name not in record:
            raise ResultsError(f"{where}: no field {name!r}; run the stage that writes the file again")
    for name, value in record.items():
        if name not in fields:
            raise ResultsError(f"{where}: unknown field {name!r}; schema {SCHEMA} has {', '.join(fields)}")
        if not isinstance(value, fields[name]) or isinstance(value, bool):
            raise ResultsError(f"{where}: {name} is {value!r}, a {type(value).__name__}")


def _check_finite(value: Any, where: str) -> None:
    """Walk everything: Python reads NaN and Infinity from JSON without complaint."""
    if isinstance(value, dict):
        for name, part in value.items():
            _check_finite(part, f"{where}.{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _check_finite(part, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(f"{where} is {value}; a result must be a finite number")


def _check_mean(where: str, stored: float, values: Sequence[float]) -> None:
    mean = math.fsum(values) / len(values)
    if abs(stored - mean) > _TOLERANCE:
        raise ResultsError(f"{where} is {stored}, but the mean of its parts is {mean}; the file was altered or cut")


def _check_same_items(
    path: Path, keys: set[tuple[str, str]], reference: Path, reference_keys: set[tuple[str, str]]
) -> None:
    if keys == reference_keys:
        return
    task, item = min(keys ^ reference_keys)
    there, missing = (reference, path) if (task, item) in reference_keys else (path, reference)
    raise ResultsError(
        f"{missing}: item {item!r} of task {task!r} is missing, though {there} has it "
        f"({len(keys ^ reference_keys)} items differ); evaluate every model on the same items"
    )


def _files(results: Path, folder: str, seeds: Sequence[int] | None) -> Iterator[Path]:
    """Files of one folder over seeds, by seed and then name."""
    if seeds is None:
        names = [path.name.removeprefix("seed-") for path in results.glob("seed-*")]
        seeds = sorted(int(name) for name in names if name.isdigit())
    for seed in seeds:
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
