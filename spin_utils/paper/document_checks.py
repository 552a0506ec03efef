"""Is a results file valid: its fields, their types, and the agreement of its parts."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from spin_utils.paper.documents import (
    DRIFT_FIELDS,
    FIELDS,
    GENERATION_FIELDS,
    GRADE_FIELDS,
    ITEM_FIELDS,
    LINK_FIELDS,
    METRICS,
    PAIR_METRICS,
    SCHEMA,
    TASK_FIELDS,
    Fields,
    ResultsError,
    label,
)
from spin_utils.settings.machine import CATEGORIES

_LARGEST = 2**53  # larger whole numbers are not exact in most readers of JSON
_TOLERANCE = 1e-6  # between a stored mean and the mean of the stored items
_STEP, _KEY = re.compile("[a-z][a-z0-9-]*"), re.compile("[0-9a-f]{12}")  # together the name of an artifact's folder
_HALF = re.compile("[\ud800-\udfff]")


def validate(document: Mapping[str, Any], where: str) -> None:
    """Check a results file of any kind.

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
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ResultsError(f"{where}: kind is {kind!r}; use {', '.join(map(repr, FIELDS))}")
    _check_fields(document, FIELDS[kind], where)
    try:
        label(document["model"])
    except ResultsError as error:
        raise ResultsError(f"{where}: {error}") from error
    for name, value in document.items():
        _check_values(value, f"{where}: {name}")
    _PARTS[kind](document, where)
    _check_provenance(document["provenance"], f"{where}: provenance")


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
        _check_not_negative(item, ("tokens",), place)
        scores[item["task"]].append(float(item["score"]))
    if not scores:
        raise ResultsError(f"{where}: tasks is empty; an evaluation has at least one")
    for task, summary in document["tasks"].items():
        place = f"{where}: tasks.{task}"
        if not isinstance(summary, dict):
            raise ResultsError(f"{place} is not an object")
        _check_fields(summary, TASK_FIELDS, place)
        _check_not_negative(summary, ("stderr",), place)
        if summary["n"] != len(scores[task]) or not scores[task]:
            raise ResultsError(f"{place}.n is {summary['n']}, but items holds {len(scores[task])}; items are missing")
        _check_mean(f"{place}.value", summary["value"], scores[task])
    _check_mean(f"{where}: average", document["average"], [task["value"] for task in document["tasks"].values()])


def _check_rows(document: Mapping[str, Any], where: str) -> None:
    fields = METRICS if document["model"].startswith("sft") else METRICS + PAIR_METRICS
    previous = -math.inf
    for number, row in enumerate(document["rows"]):
        place = f"{where}: rows[{number}]"
        if not isinstance(row, dict):
            raise ResultsError(f"{place} is not an object")
        for field in fields:
            if field not in row:
                raise ResultsError(f"{place}: no {field!r}; run the stage that writes the file again")
        for field, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ResultsError(f"{place}: {field} is {value!r}; every metric is a number")
        _check_not_negative(row, ("seconds",), place)
        if row["step"] <= previous:
            raise ResultsError(f"{place}: step {row['step']} does not follow {previous}; steps must increase")
        previous = row["step"]


def _check_provenance(provenance: Mapping[str, Any], where: str) -> None:
    chain, step = provenance.get("chain"), provenance.get("step")
    if not isinstance(chain, dict):
        raise ResultsError(f"{where}.chain is not an object; run the stage that writes the file again")
    if not isinstance(step, str) or step not in chain:
        raise ResultsError(f"{where}.step names no link of its chain; run the stage that writes the file again")
    for name, link in chain.items():
        place = f"{where}.chain.{name}"
        if not isinstance(link, dict) or not isinstance(link.get("dirty"), bool):
            raise ResultsError(f"{place} does not say whether the tree was dirty; run the stage that writes the file")
        _check_fields({field: link[field] for field in LINK_FIELDS if field in link}, LINK_FIELDS, place)
        if not (_STEP.fullmatch(name) and _KEY.fullmatch(link["key"])):
            raise ResultsError(f"{place}: key is {link['key']!r}; a step and its key name a folder; run the step again")
        weights = link.get("weights_sha256", {})
        texts = [*link["versions"].values(), *(weights.values() if isinstance(weights, dict) else [None])]
        if "torch" not in link["versions"] or not all(isinstance(text, str) for text in texts):
            raise ResultsError(f"{place}: versions or weights_sha256 damaged; run the step again")
        if not link["inputs"] and not isinstance(link.get("settings"), dict):
            raise ResultsError(f"{place}: has neither inputs nor settings; run the step again")
        _check_time(link, place)
        for other, reference in link["inputs"].items():
            if (
                other not in chain
                or not isinstance(reference, dict)
                or not all(isinstance(reference.get(field), str) for field in ("artifact", "manifest"))
            ):
                raise ResultsError(f"{place}.inputs.{other} does not lead to a link of the chain; run the step again")


def _check_time(link: Mapping[str, Any], where: str) -> None:
    """When a step started and how long it took are a time and a duration."""
    try:
        started = datetime.datetime.fromisoformat(link["started"])
        started + datetime.timedelta(seconds=link["seconds"])
    except (ValueError, OverflowError):
        raise ResultsError(
            f"{where}: started {link['started']!r} and seconds {link['seconds']} are no time; run the step again"
        ) from None
    _check_not_negative(link, ("seconds",), where)


def _check_generations(document: Mapping[str, Any], where: str) -> None:
    for number, item in enumerate(_distinct(document["items"], GENERATION_FIELDS, where)):
        place = f"{where}: items[{number}]"
        if item["finish_reason"] not in ("stop", "length"):
            raise ResultsError(f"{place}: finish_reason is {item['finish_reason']!r}; use 'stop' or 'length'")
        _check_not_negative(item, ("real_tokens", "generated_tokens"), place)


def _check_grades(document: Mapping[str, Any], where: str) -> None:
    judge = document["judge"]
    models = judge.get("models")
    if not (
        isinstance(judge.get("name"), str) and isinstance(models, list) and all(isinstance(one, str) for one in models)
    ):
        raise ResultsError(f"{where}: judge is {judge!r}; it needs its name and models; grade again")
    counts = dict.fromkeys(("graded", "refused", "unparsable"), 0)
    scores = []
    for number, item in enumerate(_distinct(document["items"], GRADE_FIELDS, where)):
        place, status, score = f"{where}: items[{number}]", item["status"], item["score"]
        if status not in counts:
            raise ResultsError(f"{place}: status is {status!r}; use {', '.join(counts)}")
        if item["category"] not in CATEGORIES:
            raise ResultsError(f"{place}: category is {item['category']!r}; use {', '.join(CATEGORIES)}")
        if (score is None) == (status == "graded") or (score is not None and not 1 <= score <= 10):
            raise ResultsError(f"{place}: score is {score} where status is {status}; a grade is 1 to 10, others null")
        counts[status] += 1
        scores += [] if score is None else [score]
    if document["grades"] != counts:
        raise ResultsError(f"{where}: grades is {document['grades']}, but items hold {counts}; items are missing")
    if (document["average"] is None) != (not scores):
        raise ResultsError(f"{where}: average is {document['average']} for {len(scores)} graded answers")
    if scores:
        _check_mean(f"{where}: average", document["average"], scores)


def _check_drifts(document: Mapping[str, Any], where: str) -> None:
    if re.fullmatch(r"spin-\d+", document["model"]) is None:
        raise ResultsError(f"{where}: model is {document['model']!r}; only an iteration of SPIN has an opponent")
    if document["beta"] <= 0:
        raise ResultsError(f"{where}: beta is {document['beta']}; it must be above 0")
    _distinct(document["items"], DRIFT_FIELDS, where)


_PARTS = {
    "evaluation": _check_items,
    "training": _check_rows,
    "generations": _check_generations,
    "mt_bench": _check_grades,
    "heldout": _check_drifts,
}
"""What looks at the parts of a document of each kind."""


def _distinct(items: Sequence[Any], fields: Fields, where: str) -> Sequence[dict[str, Any]]:
    """The items, after a check that there are some, that they have these fields and that no id appears twice."""
    if not items:
        raise ResultsError(f"{where}: items is empty; run the stage that writes the file again")
    seen: set[str] = set()
    for number, item in enumerate(items):
        place = f"{where}: items[{number}]"
        if not isinstance(item, dict):
            raise ResultsError(f"{place} is not an object")
        _check_fields(item, fields, place)
        if item["id"] in seen:
            raise ResultsError(f"{place}: item {item['id']!r} appears twice; run the stage that writes the file again")
        seen.add(item["id"])
    return items


def _check_fields(record: Mapping[str, Any], fields: Fields, where: str) -> None:
    for name in fields:
        if name not in record:
            raise ResultsError(f"{where}: no field {name!r}; run the stage that writes the file again")
    for name, value in record.items():
        if name not in fields:
            raise ResultsError(f"{where}: unknown field {name!r}; schema {SCHEMA} has {', '.join(fields)}")
        if not isinstance(value, fields[name]) or isinstance(value, bool):
            raise ResultsError(f"{where}: {name} is {value!r}, a {type(value).__name__}")


def _check_not_negative(record: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if record[name] < 0:
            raise ResultsError(f"{where}: {name} is {record[name]}; it cannot be below 0; run the stage again")


def _check_values(value: Any, where: str) -> None:
    """Walk everything: Python reads NaN, Infinity and halves of characters from JSON without complaint."""
    if isinstance(value, dict):
        for name, part in value.items():
            _check_values(part, f"{where}.{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _check_values(part, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(f"{where} is {value}; a result must be a finite number")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise ResultsError(f"{where} has {value.bit_length()} bits; a whole number here is below 2**53")
    elif isinstance(value, str) and _HALF.search(value):
        raise ResultsError(f"{where} holds half of a character, which no file takes; run the stage again")


def _check_mean(where: str, stored: float, values: Sequence[float]) -> None:
    mean = math.fsum(values) / len(values)
    if abs(stored - mean) > _TOLERANCE:
        raise ResultsError(f"{where} is {stored}, but the mean of its parts is {mean}; the file was altered or cut")
