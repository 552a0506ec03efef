"""A model's answers to MT-Bench: turn 1 of every question, then turn 2, which sees the model's own first answer.

As FastChat does it (gen_model_answer.py): one answer a turn at the category's temperature, and what turn 2 and the
judge see of an answer is its text without special tokens and without space around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_utils.data.templates import decode_response, encode_conversation, end_ids
from spin_utils.evaluation.mt_bench_questions import Question
from spin_utils.files import artifacts
from spin_utils.model.sampling import sample
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.mt_bench import MtBenchSettings
from spin_utils.settings.run import GenerationSettings


def converse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSettings,
    asked: Sequence[Question],
    settings: MtBenchSettings,
    *,
    seed: int,
    scratch: Path,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Answer both turns of each question.

    Args:
        model: Llama, Mistral or Qwen2 for causal language modelling.
        tokenizer: of the model.
        template: of the conversation; its limits on lengths are those of training and do not hold here.
        asked: the questions.
        settings: temperatures, truncation and longest answer.
        seed: of the answers; a question has the same random numbers whichever others are asked.
        scratch: folder where a finished turn is kept, so that a killed run goes on after it.
        progress: called with the number of newly finished answers.

    Returns:
        For each question `id`, `category` and `turns`, two of `text`, `tokens` (its end token included),
        `finish_reason` and `cut_tokens`: tokens of the conversation's start that the model's context had no room for.
    """
    said: list[list[str]] = [[] for _ in asked]
    turns = []
    for turn in (0, 1):
        for texts, question in zip(said, asked, strict=True):
            texts.append(question.turns[turn])
        path = scratch / f"turn-{turn + 1}.json"
        if not path.is_file():
            answers = _answer(model, tokenizer, template, asked, said, settings, seed, progress)
            artifacts.write_json(path, answers)
        elif progress is not None:
            progress(len(asked))
        turns.append(json.loads(path.read_text(encoding="utf-8")))
        for texts, answer in zip(said, turns[-1], strict=True):
            texts.append(answer["text"])
    return [
        {"id": question.id, "category": question.category, "turns": list(both)}
        for question, *both in zip(asked, *turns, strict=True)
    ]


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSettings,
    asked: Sequence[Question],
    said: Sequence[Sequence[str]],
    settings: MtBenchSettings,
    seed: int,
    progress: Callable[[int], object] | None,
) -> list[dict[str, Any]]:
    """One turn: the conversations of each temperature together."""
    prompts = [_prompt(tokenizer, template, texts, settings) for texts in said]
    room = max(1, model.config.max_position_embeddings - settings.max_new_tokens)
    temperatures = [settings.temperatures[question.category] for question in asked]
    answers: dict[int, dict[str, Any]] = {}
    for temperature in sorted(set(temperatures)):
        places = [place for place, other in enumerate(temperatures) if other == temperature]
        samples = sample(
            model,
            [prompts[place][-room:] for place in places],
            eos_ids=end_ids(tokenizer, template),
            settings=GenerationSettings(
                temperature=temperature,
                top_k=settings.top_k,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
            ),
            seed=seed,
            streams=[2 * asked[place].id + len(said[place]) // 2 for place in places],
            progress=progress,
        )
        for place, drawn in zip(places, samples, strict=True):
            answers[place] = {
                "text": decode_response(tokenizer, template, drawn.token_ids).strip(),
                "tokens": len(drawn.token_ids),
                "finish_reason": drawn.finish_reason,
                "cut_tokens": max(0, len(prompts[place]) - room),
            }
    return [answers[place] for place in range(len(asked))]


def _prompt(
    tokenizer: PreTrainedTokenizerBase, template: TemplateSettings, texts: Sequence[str], settings: MtBenchSettings
) -> list[int]:
    ids = encode_conversation(tokenizer, template, texts)
    start = tokenizer.bos_token_id
    if settings.add_start_token and start is not None and ids[:1] != [start]:
        ids.insert(0, start)
    return ids
