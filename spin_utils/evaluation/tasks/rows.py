"""Functions that the task files of this folder name: their rows, and grading.

lm-eval imports this file by its path. Arguments are the task's `dataset_kwargs` or the lm_eval command's `--metadata`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from spin_utils.data import big_bench as tasks
from spin_utils.data.families import grade
from spin_utils.data.rows import read_rows


def responses(rows: str | Sequence[Mapping[str, Any]], family: str = "", **_: Any) -> dict[str, datasets.Dataset]:
    """Demonstrations as a generation task: prompt, expected response, and the whole row as JSON for the grader.

    Args:
        rows: Rows with `id`, `prompt` and `response`, or their JSONL file.
        family: Keep only rows of this family; empty: all rows.
    """
    if isinstance(rows, str):
        rows = read_rows(Path(rows))
    columns = [
        {
            "id": str(row["id"]),
            "prompt": row["prompt"],
            "response": row["response"],
            "spin_before": json.dumps({name: row[name] for name in ("system", "earlier") if row.get(name)}),
            "row": json.dumps(row),
        }
        for row in rows
        if not family or row.get("family") == family
    ]
    return {"test": datasets.Dataset.from_list(columns)}


def big_bench_questions(big_bench: str, cloze: bool = False, **_: Any) -> dict[str, datasets.Dataset]:
    """The questions of a Big-Bench task, or of a part of it, in one random order: the first ones are a fair sample."""
    task = tasks.load(big_bench)[big_bench]
    asked = tasks.questions(task, cloze=cloze)
    random.Random(0).shuffle(asked)
    rules = {name: task.get(name) or "" for name in ("task_prefix", "stop_string", "output_regex")}
    shared = {"metric": tasks.metric_of(task), "cloze": cloze, **rules}
    documents: list[dict[str, Any]] = []
    for question in asked:
        document = {"id": str(question.number), "prompt": question.prompt, **shared}
        if shared["metric"] == tasks.CHOICE:
            scores = [float(score) for score in question.choices.values()]
            document |= {"choices": list(question.choices), "scores": scores, "target": scores.index(max(scores))}
        else:
            document["target"] = [str(target) for target in question.targets]
        documents.append(document)
    return {"test": datasets.Dataset.from_list(documents)}


def grade_choice(document: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The score of the likeliest choice, and the expected score of one drawn by the choices' probabilities.

    If one choice is right, the latter is its probability. In a cloze the likeliest is so a character.
    """
    logps, scores = [logp for logp, _ in results], document["scores"]
    compared = logps
    if document["cloze"]:
        compared = [logp / len(choice) for logp, choice in zip(logps, document["choices"], strict=True)]
    weights = [math.exp(logp - max(logps)) for logp in logps]
    drawn = math.fsum(weight * score for weight, score in zip(weights, scores, strict=True)) / math.fsum(weights)
    return {tasks.CHOICE: scores[compared.index(max(compared))], "drawn": drawn}


def grade_text(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """A free answer by the task's metric."""
    return {document["metric"]: tasks.grade(document["metric"], document["target"], tasks.cut(results[0], document))}


def grade_response(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The row's own grader where it has one, else whether the text is the expected one but for outer white space."""
    row = json.loads(document["row"])
    if row.get("grader"):
        return {"score": float(grade(row, results[0]))}
    return {"score": float(results[0].strip() == document["response"].strip())}
