"""MT-Bench's judge behind an OpenAI-compatible endpoint: one request per grade, and every way it can go wrong.

| the endpoint | what happens |
|---|---|
| a judgment with a rating from 1 to 10 | `graded` |
| a judgment without one | `unparsable` |
| a refusal, or a content filter | `refused` |
| rate limit, server error, timeout, lost connection, a reply that is no chat completion | retried, then an error |
| wrong key, unknown model, used-up quota, any other rejected request | an error at once, in the server's words |

The key is read from the environment and never written: a key of 8 or more characters is removed from everything the
server says.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from spin_utils.evaluation.mt_bench import Message, MtBenchError
from spin_utils.files import disk
from spin_utils.settings.machine import MtBenchSettings, judge_identity

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key."""
_SECRET = 8
"""Length of the shortest key that is removed. A shorter one, like `x` for a local server, is not a secret and occurs in
ordinary words."""
LONGEST_WAIT_S = 120.0
"""Longest pause before a retry, whatever the server asks for."""
_FILTERED = ("content_filter", "content_policy_violation")
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))  # FastChat: one_score_pattern, _backup

Grade = dict[str, Any]
"""`status` (graded, refused or unparsable), `score` (1 to 10, or None), `judgment` (the judge's words) and
`judge_model` (the model that the endpoint reports, or empty)."""


class _Later(Exception):  # noqa: N818 (a request to try again, not an error)
    """A temporary failure, with the seconds that the server asks to wait, if any."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


def has_key() -> bool:
    """Whether the environment has a key."""
    return bool(os.environ.get(KEY, "").strip())


def rating(judgment: str) -> float | None:
    """The rating in a judgment: the first match of FastChat's two patterns, or None.

    FastChat accepts any number; here a number outside 1 to 10 counts as no rating.

    >>> rating("A good answer. Rating: [[8]]"), rating("Rating: [7.5]"), rating("Rating: 7"), rating("[[11]]")
    (8.0, 7.5, None, None)
    """
    for pattern in _RATINGS:
        match = pattern.search(judgment)
        if match:
            score = float(match[1])
            return score if 1 <= score <= 10 else None
    return None


class Judge:
    """A connection to the judge. Safe to use from several threads.

    Args:
        settings: endpoint, model, timeout and retries.

    Raises:
        MtBenchError: no key in the environment, or the `openai` client is not installed.
    """

    def __init__(self, settings: MtBenchSettings) -> None:
        self.settings = settings
        self._key = os.environ.get(KEY, "").strip()
        self._stopped = threading.Event()
        if not self._key:
            raise MtBenchError(f"{KEY}: not set; put the key for {settings.base_url} in the environment")
        for name in (KEY, "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):  # the client sends all three as headers
            if not re.fullmatch(r"[!-~]*", os.environ.get(name, "").strip()):
                raise MtBenchError(f"{name}: contains a space or a character that no key has; copy it again")
        self._openai = client_library()
        try:
            self._client = self._openai.OpenAI(
                api_key=self._key, base_url=settings.base_url, timeout=settings.timeout_s, max_retries=0
            )
        except (
            ValueError,
            ImportError,
            OSError,
        ) as error:  # the client reads proxies and certificates from the environment
            raise self._error(
                f"cannot make a client ({self._clean(error)})", "check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
            ) from None

    def grade(self, messages: Sequence[Message]) -> Grade:
        """Ask for one grade, retrying after temporary failures.

        Raises:
            MtBenchError: the endpoint rejects the request, or fails more often than `retries` allows.
        """
        for tries in range(1, self.settings.retries + 2):
            try:
                return self._ask(messages)
            except _Later as failure:
                if tries > self.settings.retries:
                    raise self._error(f"{failure} ({tries} tries)", "run the same command later to resume") from None
                seconds = pause(tries, failure.seconds)
                log.info("judge: %s; next try in %.0f s", failure, seconds)
                if self._stopped.wait(seconds):
                    raise self._error("stopped", "run the same command to resume") from None
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Cancel all waiting retries."""
        self._stopped.set()

    def _ask(self, messages: Sequence[Message]) -> Grade:
        settings, openai = self.settings, self._openai
        options: dict[str, Any] = {settings.token_limit: settings.judge_max_tokens}
        if settings.judge_temperature is not None:
            options["temperature"] = settings.judge_temperature
        try:
            reply = self._client.chat.completions.with_raw_response.create(
                model=settings.judge, messages=list(messages), **options
            )
            return self._read(reply.http_response.text)
        except openai.APITimeoutError:
            raise _Later(f"no answer within {settings.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise _Later(f"no connection ({self._clean(error.__cause__ or error)})") from None
        except openai.APIStatusError as error:
            return self._refused_request(error)
        except openai.OpenAIError as error:
            raise self._error(self._clean(error), "see mt_bench in the profile") from None

    def _read(self, text: str) -> Grade:
        """The grade in the body of a successful reply."""
        try:
            body = json.loads(text)
            choice = body["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
            if not isinstance(content, (str, type(None))):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Later(f"a reply that is not a chat completion: {self._clean(text)[:80]!r}") from None
        words = refusal or content or ""
        judgment, model = self._clean(words), self._clean(body.get("model") or "")
        if refusal or choice.get("finish_reason") == "content_filter":
            return _grade("refused", None, judgment, model)
        score = rating(words)
        return _grade("unparsable" if score is None else "graded", score, judgment, model)

    def _refused_request(self, error: Any) -> Grade:
        """Handle a status of 400 or above: a refusal to judge, a temporary failure, or an error."""
        status, code, words = error.status_code, error.code, self._clean(error.message)[:300]
        if status == 400 and code in _FILTERED:
            return _grade("refused", None, words, "")
        passing = status in (408, 409, 429) or status >= 500
        if passing and code != "insufficient_quota":
            raise _Later(f"status {status}", _seconds(error.response.headers.get("retry-after")))
        remedies = {401: f"check {KEY}", 403: f"check {KEY}", 404: "check mt_bench.judge and mt_bench.base_url"}
        remedy = remedies.get(status, "check the account" if passing else "see mt_bench in the profile")
        raise self._error(f"status {status}: {words}", remedy) from None

    def _error(self, reason: str, remedy: str) -> MtBenchError:
        return MtBenchError(f"judge {self.settings.judge} at {self.settings.base_url}: {reason}; {remedy}")

    def _clean(self, text: object) -> str:
        """The server's words without the key, and without lone surrogates, which cannot be encoded as UTF-8."""
        words = str(text)
        if len(self._key) >= _SECRET:
            words = words.replace(self._key, "[key]")
        return words.encode(errors="replace").decode()


def grade_all(
    requests: Mapping[str, Sequence[Message]],
    settings: MtBenchSettings,
    folder: Path,
    advance: Callable[[int], object] = lambda units: None,
) -> dict[str, Grade]:
    """A grade for every request, several at a time; each is written to disk as soon as it arrives.

    Args:
        requests: messages to the judge, by name.
        settings: the judge.
        folder: keeps the grades; those already there are not requested again.
        advance: called with the number of new grades.

    Raises:
        MtBenchError: the judge cannot be asked. Requests in flight still finish, and their grades are kept.
    """
    from spin_utils.evaluation.answers import Answers  # needs torch

    kept, lock = Answers(folder, disk.canonical(judge_identity(settings))), threading.Lock()
    keys = {name: kept.key("grade", list(messages)) for name, messages in requests.items()}
    missing = {key: requests[name] for name, key in keys.items() if key not in kept}
    advance(sum(key not in missing for key in keys.values()))
    if missing:
        asked = Judge(settings)

        def grade(key: str) -> None:
            answer = asked.grade(missing[key])
            with lock:
                kept.add({key: answer})

        with ThreadPoolExecutor(settings.workers) as pool:
            futures = [pool.submit(grade, key) for key in missing]
            try:
                for future in as_completed(futures):
                    future.result()
                    advance(1)
            except BaseException:
                asked.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return {name: kept[key] for name, key in keys.items()}


def client_library() -> Any:
    """The `openai` client.

    Raises:
        MtBenchError: it is not installed.
    """
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise MtBenchError("openai: not installed; mt_bench needs it to reach the judge; run `make setup`") from None


def pause(tries: int, asked: float | None) -> float:
    """Seconds before the next try: what the server asks for, or exponential backoff with jitter.

    Args:
        tries: failed tries so far.
        asked: seconds in the server's Retry-After, or None.
    """
    if asked is not None:
        return min(asked, LONGEST_WAIT_S)
    return min(2.0 ** (tries - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; a date is ignored."""
    return float(header) if header is not None and re.fullmatch(r"\d+(\.\d+)?", header.strip()) else None


def _grade(status: str, score: float | None, judgment: str, model: str) -> Grade:
    return {"status": status, "score": score, "judgment": judgment, "judge_model": model}
