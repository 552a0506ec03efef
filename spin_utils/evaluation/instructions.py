"""Verifiable instructions, checked by a program: what takes MT-Bench's place where no model can judge.

A program can tell whether an answer has 20 words, not whether it is a good one, so their score is shown under a name of
its own and never as a grade. They share MT-Bench's way of asking: eight kinds, ten questions each, two turns, and
answers sampled at the temperatures of its categories (`mt_bench.converse`).

The idea is IFEval's (Zhou et al. 2023, arXiv 2311.07911), whose checkers in lm-eval download tokenizer data. As in its
strict accuracy an answer is checked as it is, and an empty one follows nothing.

>>> KINDS["keywords"].follows("Stars shine.", "stars", "night")
False
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from statistics import fmean, stdev
from typing import Any

from spin_utils.evaluation.mt_bench import Question

NAME = "verifiable instructions (programmatic judge)"
"""What their score is called in tables and figures."""
VERSION = 1
"""Part of the artifacts' keys. Raise it with every change of prompts or checks."""
QUESTIONS = 10
"""Questions of each kind unless `mt_bench.limit` says otherwise, as many as a category of MT-Bench has."""


@dataclass(frozen=True)
class Kind:
    """One kind of instruction."""

    category: str
    """The category of MT-Bench at whose temperature it is answered."""
    prompt: str
    """The text of a turn, with places for a topic and for the parameters."""
    topics: tuple[str, ...]
    parameters: tuple[tuple[Any, ...], ...]
    follows: Callable[..., bool]
    """Whether an answer, which comes first, follows the instruction with these parameters."""


@dataclass(frozen=True)
class Instructions:
    """A question of two turns, and what its answers are checked for."""

    kind: str
    question: Question
    parameters: tuple[tuple[Any, ...], tuple[Any, ...]]
    """Of the instruction in each turn."""


def _occurrences(text: str, word: str) -> int:
    return re.findall(r"\w+", text.casefold()).count(word)


def _is_framed(text: str, first: str, last: str) -> bool:
    words = re.findall(r"\w+", text)
    return (words[:1], words[-1:]) == ([first], [last])


def _is_object(text: str, *keys: str) -> bool:
    """Whether a text is a JSON object with exactly these keys, in a Markdown fence or not."""
    fenced = re.fullmatch(r"```(?:json)?\n(.*)```", text.strip(), re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):  # a model may open brackets without end
        return False
    return isinstance(found, dict) and sorted(found) == sorted(keys)


KINDS = {
    "length": Kind(
        "writing",
        "Write a short story about {}. Use at least {} and at most {} words.",
        ("a lighthouse", "an old dog", "a lost key", "the first snow", "a train at night", "two brothers"),
        ((10, 20), (20, 40), (30, 60), (40, 80), (50, 100)),
        lambda text, least, most: least <= len(text.split()) <= most,
    ),
    "start and end": Kind(
        "roleplay",
        'You are {}. Tell me about your day. Begin your answer with the word "{}" and end it with the word "{}".',
        ("a pirate", "a queen", "a cook", "a farmer", "an astronaut", "a detective"),
        (("Hello", "goodbye"), ("Today", "tomorrow"), ("Listen", "promise"), ("Friend", "home"), ("Well", "end")),
        _is_framed,
    ),
    "keywords": Kind(
        "reasoning",
        'Explain why {}. Use the words "{}" and "{}".',
        ("people sleep", "leaves fall", "ships float", "birds sing", "bread rises", "we have friends"),
        (("because", "example"), ("often", "reason"), ("first", "finally"), ("always", "never"), ("water", "time")),
        lambda text, *words: all(_occurrences(text, word) for word in words),
    ),
    "repetition": Kind(
        "math",
        'Write a few lines about {}. Use the word "{}" exactly {} times.',
        ("music", "the sea", "gardens", "old books", "long walks", "winter"),
        (("today", 2), ("today", 3), ("blue", 2), ("blue", 4), ("quiet", 3)),
        lambda text, word, times: _occurrences(text, word) == times,
    ),
    "json": Kind(
        "coding",
        'Describe {} as a JSON object with the keys "{}" and "{}". Write nothing else.',
        ("a book", "a city", "a car", "a person", "a song", "an animal"),
        (("name", "year"), ("name", "size"), ("title", "colour"), ("id", "type"), ("label", "price")),
        _is_object,
    ),
    "list": Kind(
        "extraction",
        'List {} as bullet points, one to a line. Write exactly {} lines, and begin each with "- ".',
        ("animals", "fruits", "countries", "colours", "sports", "tools"),
        ((2,), (3,), (4,), (5,), (6,)),
        lambda text, lines: [line[:2] for line in text.splitlines() if line.strip()] == ["- "] * lines,
    ),
    "case": Kind(
        "stem",
        "What is {}? Answer in {} letters only.",
        ("a planet", "a molecule", "gravity", "electricity", "a cell", "a volcano", "a magnet", "light", "ice", "dust"),
        (("capital",), ("lowercase",)),
        lambda text, case: text.isupper() if case == "capital" else text.islower(),
    ),
    "punctuation": Kind(
        "humanities",
        "Name some {} and say what they are known for. Use {} {}.",
        ("writers", "painters", "philosophers", "composers", "explorers", "kings", "scientists"),
        (("no", "commas", 0, ","), ("no", "full stops", 0, "."), ("exactly two", "exclamation marks", 2, "!")),
        lambda text, _words, _name, times, mark: text.count(mark) == times,
    ),
}
"""The kinds, one for each category of MT-Bench, by name. Prompts are plain: a small chat model follows some of them."""


def questions(limit: int = 0) -> list[Instructions]:
    """The questions, always the same ones; the second turn asks for the same kind with another topic or parameter.

    `limit` is their number per kind, the first ones; 0: `QUESTIONS`. No kind has more than its prompts allow.
    """
    found = []
    for place, (name, kind) in enumerate(KINDS.items()):
        turns = list(product(kind.topics, kind.parameters))
        Random(f"instructions, {name}").shuffle(turns)
        pairs = list(zip(turns[::2], turns[1::2], strict=False))[: limit or QUESTIONS]
        for number, ((topic, first), (other, second)) in enumerate(pairs):
            asked = kind.prompt.format(topic, *first), kind.prompt.format(other, *second)
            question = Question(1000 * (place + 1) + number, kind.category, asked, None)
            found.append(Instructions(name, question, (first, second)))
    return found


def evaluation(asked: Sequence[Instructions], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `results.Evaluation` holds: whether each answer follows its instruction, a task for each kind."""
    items = [
        {
            "task": instructions.kind,
            "id": f"{instructions.question.id}/{turn}",  # both turns of a question are one cluster of an interval
            "score": float(bool(said["text"]) and KINDS[instructions.kind].follows(said["text"], *parameters)),
            "response": said["text"],
            "tokens": said["tokens"],
        }
        for instructions, answer in zip(asked, answers, strict=True)
        for turn, (said, parameters) in enumerate(zip(answer["turns"], instructions.parameters, strict=True), start=1)
    ]
    tasks = {}
    for kind in KINDS:
        scores = [item["score"] for item in items if item["task"] == kind]
        error = stdev(scores) / len(scores) ** 0.5
        tasks[kind] = {"metric": "instructions followed", "n": len(scores), "value": fmean(scores), "stderr": error}
    average = fmean(task["value"] for task in tasks.values())
    return {"kind": "evaluation", "tasks": tasks, "average": average, "items": items}
