"""MT-Bench's judge, a model on this machine or behind an OpenAI-compatible endpoint, and every way it can go wrong.

The `openai` client tries again what may pass: rate limits, server errors and lost connections.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from spin_utils.evaluation.answers import Answers
from spin_utils.evaluation.mt_bench import Message
from spin_utils.files import disk
from spin_utils.files.paths import KitError
from spin_utils.settings.inputs import ModelSettings, TemplateSettings
from spin_utils.settings.machine import MtBenchSettings, judge_identity
from spin_utils.settings.run import GenerationSettings

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key, which is never written."""
WORKERS, RETRIES, TIMEOUT_S = 4, 8, 120.0
"""Requests at the same time, how often a failed one is sent again, and after how many seconds it counts as lost."""
_FILTERED = ("content_filter", "content_policy_violation")
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))  # FastChat: one_score_pattern, _backup
_LATER = "run the same command later to resume"
_REMEDIES = {401: f"check {KEY}", 403: f"check {KEY}", 404: "check mt_bench.judge and mt_bench.base_url"}

Grade = dict[str, Any]
"""`status` (graded, refused or unparsable), `score` (1 to 10, or None), `judgment` (the judge's words) and
`judge_model` (the model that the endpoint reports, or empty)."""


def can_grade(settings: MtBenchSettings) -> bool:
    """Whether the judge is a program or a model on this machine, or there is a key."""
    return settings.is_programmatic or settings.judge_model is not None or bool(os.environ.get(KEY, "").strip())


def rating(judgment: str) -> float | None:
    """The rating in a judgment: the first match of FastChat's two patterns, or None.

    FastChat accepts any number; here a number outside 1 to 10 counts as no rating.

    >>> rating("A good answer. Rating: [[8]]"), rating("Rating: [7.5]"), rating("Rating: 7"), rating("[[11]]")
    (8.0, 7.5, None, None)
    """
    match = next(filter(None, (pattern.search(judgment) for pattern in _RATINGS)), None)
    score = float(match[1]) if match else 0.0
    return score if 1 <= score <= 10 else None


class Judge:
    """A connection to the judge. Safe to use from several threads.

    Raises:
        KitError: no key in the environment, or the `openai` client is not installed.
    """

    def __init__(self, settings: MtBenchSettings) -> None:
        self.settings, self._openai = settings, client_library()
        key = os.environ.get(KEY, "").strip()
        if not re.fullmatch("[!-~]+", key):
            raise KitError(f"{KEY}: not set, or not a key; put the key for {settings.base_url} in the environment")
        self._client = self._openai.OpenAI(
            api_key=key, base_url=settings.base_url, timeout=TIMEOUT_S, max_retries=RETRIES
        )

    def grade(self, messages: Sequence[Message]) -> Grade:
        """Ask for one grade; the client retries temporary failures.

        Raises:
            KitError: the endpoint rejects the request, or still fails after `RETRIES`.
        """
        settings, openai = self.settings, self._openai
        options: dict[str, Any] = {settings.token_limit: settings.judge_max_tokens}
        if settings.judge_temperature is not None:
            options["temperature"] = settings.judge_temperature
        text, where = "", f"judge {settings.judge} at {settings.base_url}"
        try:
            reply = self._client.chat.completions.with_raw_response.create(
                model=settings.judge, messages=list(messages), **options
            )
            text = reply.http_response.text
            body = json.loads(text)
            choice, model = body["choices"][0], str(body.get("model") or "")
            content, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        except openai.APIStatusError as error:
            words, status = error.message[:300], error.status_code
            if status == 400 and error.code in _FILTERED:
                return _grade(words, "", refused=True)
            remedy = _REMEDIES.get(status, _LATER if status == 429 or status >= 500 else "see mt_bench in the profile")
            raise KitError(f"{where}: status {status}: {words}; {remedy}") from None
        except openai.OpenAIError as error:
            raise KitError(f"{where}: no answer ({error.__cause__ or error}); {_LATER}") from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise KitError(
                f"{where}: a reply that is not a chat completion: {text[:80]!r}; check mt_bench.base_url"
            ) from None
        refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
        return _grade(str(refusal or content or ""), model, refused)


def grade_all(
    requests: Mapping[str, Sequence[Message]],
    settings: MtBenchSettings,
    folder: Path,
    advance: Callable[[int], object] = lambda units: None,
) -> dict[str, Grade]:
    """A grade for every request, by name, several at a time; `folder` keeps them, and none is requested again.

    Raises:
        KitError: the judge cannot be asked. Requests in flight still finish, and their grades are kept.
    """
    kept, lock = Answers(folder, disk.canonical(judge_identity(settings))), threading.Lock()
    keys = {name: kept.key("grade", list(messages)) for name, messages in requests.items()}
    missing = {key: requests[name] for name, key in keys.items() if key not in kept}
    advance(sum(key not in missing for key in keys.values()))
    if missing and settings.judge_model is not None:
        _grade_here(missing, settings.judge_model, settings, folder, kept, advance)
    elif missing:
        asked = Judge(settings)

        def grade(key: str) -> None:
            answer = asked.grade(missing[key])
            with lock:
                kept.add({key: answer})

        with ThreadPoolExecutor(WORKERS) as pool:
            for _ in pool.map(grade, missing):  # after an error, it cancels what has not begun
                advance(1)
    return {name: kept[key] for name, key in keys.items()}


def _grade_here(
    requests: Mapping[str, Sequence[Message]],
    judge: ModelSettings,
    settings: MtBenchSettings,
    folder: Path,
    kept: Answers,
    advance: Callable[[int], object],
) -> None:
    """Grade with a model on this machine, under its own chat template, a batch at a time."""
    from spin_utils.data import templates
    from spin_utils.model import base
    from spin_utils.model.general import positions
    from spin_utils.model.sampling import sample

    work, chat = folder / "judge", TemplateSettings(kind="chat")
    work.mkdir(parents=True, exist_ok=True)
    place = base.materialise(judge, work, (), 0)
    model, tokenizer = base.load_for_inference(place), base.load_tokenizer(place)
    generation = GenerationSettings(
        temperature=settings.judge_temperature or 0.0,
        max_new_tokens=settings.judge_max_tokens,
        batch_size=settings.batch_size,
    )
    ends = templates.end_ids(tokenizer, chat)

    def encoded(system: Message, asked: Message) -> list[int]:
        try:
            return templates.encode_conversation(tokenizer, chat, [asked["content"]], system["content"])
        except templates.TemplateError:  # the templates of Mistral and Gemma 2 know no system message
            return templates.encode_conversation(tokenizer, chat, [f"{system['content']}\n\n{asked['content']}"])

    prompts = {key: encoded(*messages) for key, messages in requests.items()}
    longest, most = max(map(len, prompts.values())), positions(model.config)
    if longest + settings.judge_max_tokens > most:
        raise KitError(
            f"mt_bench.judge_model: a request of {longest} tokens leaves no room for mt_bench.judge_max_tokens "
            f"({settings.judge_max_tokens}) in its {most} positions; lower it, or use a judge with a longer context"
        )
    waiting = iter(prompts)
    while keys := list(islice(waiting, settings.batch_size)):
        batch = [prompts[key] for key in keys]
        answers = sample(model, batch, eos_ids=ends, settings=generation, seed=0, progress=advance)
        texts = [templates.decode_response(tokenizer, chat, answer.token_ids) for answer in answers]
        kept.add({key: _grade(text, settings.judge_name) for key, text in zip(keys, texts, strict=True)})


def client_library() -> Any:
    """The `openai` client, or a `KitError` if it is not installed."""
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise KitError("openai: not installed; mt_bench needs it to reach the judge; run `make setup`") from None


def _grade(judgment: str, model: str, refused: bool = False) -> Grade:
    score = None if refused else rating(judgment)
    status = "refused" if refused else "unparsable" if score is None else "graded"
    return {"status": status, "score": score, "judgment": judgment, "judge_model": model}
