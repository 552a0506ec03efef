"""Task families from reasoning-gym: generated demonstrations whose answers a program can grade.

No prompt occurs twice, and nothing here depends on the date, the network or Python's hash seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from random import Random
from typing import Any

from spin_utils.data import big_bench
from spin_utils.data.rows import RowError
from spin_utils.data.worked_solutions import write
from spin_utils.settings.inputs import FamilySettings

SPLITS = ("train", "validation", "test")
_SPLIT_STRIDE = 100_000_000
"""Distance between the seeds of two splits: the library seeds item i with seed + i, so nearby seeds share items."""
_SEED_STRIDE = len(SPLITS) * _SPLIT_STRIDE
_DATE_BOUND = frozenset({"time_intervals", "calendar_arithmetic"})
"""Generators whose items depend on today's date."""
_ANSWER = "Answer:"
_NUMBERED = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, SyntaxError, AssertionError)
"""What the library's scorers raise on answers they cannot parse, for example words instead of numbers, and its
generators if a required option is missing."""


def generate(
    families: Mapping[str, FamilySettings], sizes: Mapping[str, int], *, seed: int, wordings: str = "varied"
) -> dict[str, list[dict[str, Any]]]:
    """Demonstrations of all families, by split.

    Args:
        families: generator and options by family name.
        sizes: rows by split (`train`, `validation`, `test`), divided equally among families; any remainder goes to the
            first ones.
        seed: of the items, their wording and their order.

    Returns:
        Rows with `id`, `prompt`, `response`, `family` and `grader`, shuffled within each split. A smaller training
        split is not a prefix of a larger one.

    Raises:
        RowError: a generator or option is unknown, or there are too few distinct items.
    """
    seen: set[str] = set()
    splits: dict[str, list[dict[str, Any]]] = {}
    # The small held-out splits come first, so that their rows do not depend on the size of the training split.
    for split in reversed(SPLITS):
        rows = []
        for place, (name, family) in enumerate(families.items()):
            share, rest = divmod(sizes.get(split, 0), len(families))
            wanted = share + (place < rest)
            single = _rows(name, family, split, wanted * family.questions, seed, seen, wordings)
            rows += [_sheet(single[i : i + family.questions]) for i in range(0, len(single), family.questions)]
        Random(f"order/{split}/{seed}").shuffle(rows)
        splits[split] = rows
    return splits


def grade(row: Mapping[str, Any], response: str) -> float:
    """1.0 if the response's final answer gets full marks from the library's own scorer, else 0.0; the mean over its
    numbered answers if the row has several questions. A row of Big-Bench is graded from 0 to 1 by its task's metric.

    The answer is whatever follows the response's last `Answer:`, or all of it.
    """
    grader = row["grader"]
    if grader["dataset"] == big_bench.GRADER:
        return big_bench.grade(grader["entry"]["metric"], grader["entry"]["targets"], response.strip())
    if isinstance(grader["entry"], list):
        answers = dict(_NUMBERED.findall(response))
        scores = [
            grade({"grader": grader | {"entry": entry}}, answers.get(str(number), ""))
            for number, entry in enumerate(grader["entry"], 1)
        ]
        return sum(scores) / len(scores)
    try:
        score = _scorer(grader["dataset"]).score_answer(final_answer(response), grader["entry"])
    except _UNREADABLE:
        return 0.0
    return 1.0 if score >= 1.0 else 0.0


def final_answer(response: str) -> str:
    """The text after the last `Answer:` in a response; all of it if there is none.

    >>> final_answer("4 - 1 = 3, 3 - 7 = -4. Answer: -4")
    '-4'
    """
    return response.rpartition(_ANSWER)[2].strip()


def _sheet(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of one family as one, with numbered questions and answers; a single row stays as it is."""
    if len(rows) == 1:
        return rows[0]

    def numbered(column: str) -> str:
        return "\n".join(f"{number}. {row[column]}" for number, row in enumerate(rows, 1))

    grader = {"dataset": rows[0]["grader"]["dataset"], "entry": [row["grader"]["entry"] for row in rows]}
    return rows[0] | {"prompt": numbered("prompt"), "response": numbered("response"), "grader": grader}


def _rows(
    name: str, family: FamilySettings, split: str, count: int, seed: int, seen: set[str], wordings: str
) -> list[dict[str, Any]]:
    """`count` rows of one family; prompts already in `seen` are skipped, new ones are added to it."""
    if count == 0:
        return []
    limit = 20 * count + 1000
    dataset = _dataset(name, family, size=limit, seed=seed * _SEED_STRIDE + SPLITS.index(split) * _SPLIT_STRIDE)
    rng = Random(f"wording/{name}/{split}/{seed}")
    rows: list[dict[str, Any]] = []
    for index in range(limit):
        # A round trip through JSON, so that the row equals one read from a file.
        entry = json.loads(json.dumps(dataset[index], default=str))
        choice = rng if wordings == "varied" else Random(f"wording/{name}/{seed}")
        written = write(family.dataset, entry, choice) if isinstance(entry["answer"], str) else None
        if written is None or written[0] in seen:
            continue
        if family.questions > 1 and "\n" in written[1]:
            raise RowError(
                f"demonstrations.families.{name}: {family.dataset} has answers of several lines, which are not graded "
                "by number; set questions to 1 or choose another generator"
            )
        row: dict[str, Any] = {
            "id": f"{name}-{split}-{index}",
            "prompt": written[0],
            "response": written[1],
            "family": name,
            "grader": {"dataset": family.dataset, "entry": entry},
        }
        if grade(row, row["response"]) != 1.0:
            continue
        seen.add(row["prompt"])
        rows.append(row)
        if len(rows) == count:
            return rows
    raise RowError(
        f"demonstrations.families.{name}: {family.dataset} gave {len(rows)} distinct rows, but {split} needs {count} "
        f"({limit} items tried); ask for fewer rows, widen its options or choose another generator"
    )


def _dataset(name: str, family: FamilySettings, *, size: int, seed: int) -> Any:
    import reasoning_gym  # takes two seconds, which file and hub sources can skip
    from reasoning_gym.factory import DATASETS

    if family.dataset not in DATASETS:
        near = get_close_matches(family.dataset, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see reasoning_gym.factory.DATASETS for the names"
        raise RowError(f"demonstrations.families.{name}: no generator {family.dataset!r} in reasoning-gym; {hint}")
    if family.dataset in _DATE_BOUND:
        raise RowError(
            f"demonstrations.families.{name}: {family.dataset} depends on today's date, so its rows cannot be "
            "reproduced; choose another generator"
        )
    try:
        return reasoning_gym.create_dataset(family.dataset, size=size, seed=seed, **family.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise RowError(f"demonstrations.families.{name}.options: {family.dataset} refuses them: {error}") from error


@cache
def _scorer(dataset: str) -> Any:
    """A generator, used only for its `score_answer`, which depends on the item and not on the options."""
    import reasoning_gym

    return reasoning_gym.create_dataset(dataset, size=1, seed=0)
