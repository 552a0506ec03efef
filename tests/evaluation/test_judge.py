"""The judge's endpoint, on a real HTTP server: what is sent, what becomes of every answer, and where the key stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fastchat_source
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback_judge import KEY, LoopbackJudge, Reply, failed, judged, serving

from spin_utils.evaluation import judge
from spin_utils.evaluation.judge import Judge
from spin_utils.files.paths import KitError
from spin_utils.settings.machine import MtBenchSettings

pytestmark = pytest.mark.usefixtures("judge_key")
ASK = [{"role": "system", "content": "You grade."}, {"role": "user", "content": "2 + 2 = 5"}]
GOOD = judged("Wrong, but short. Rating: [[3]]")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client meant to wait; it does not."""
    asked: list[float] = []
    monkeypatch.setattr(openai._base_client, "time", SimpleNamespace(**{**vars(time), "sleep": asked.append}))
    return asked


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    with serving(lambda body, number: GOOD) as running:
        yield running


def settings(server: LoopbackJudge, **options: Any) -> MtBenchSettings:
    return MtBenchSettings(**{"judge": "gpt-4", "base_url": server.url, **options})


def answers(server: LoopbackJudge, *replies: Reply) -> None:
    """Let the server give these replies in order, the last one forever."""
    server.script = lambda body, number: replies[min(number, len(replies) - 1)]


def test_a_request_is_what_fastchat_sends_and_a_grade_holds_the_judges_words(server: LoopbackJudge) -> None:
    grade = Judge(settings(server)).grade(ASK)
    assert grade == {
        "status": "graded",
        "score": 3.0,
        "judgment": "Wrong, but short. Rating: [[3]]",
        "judge_model": "judge-1",
    }
    (request,) = server.requests
    assert request == {
        "path": "/v1/chat/completions",
        "authorization": f"Bearer {KEY}",
        "model": "gpt-4",
        "messages": ASK,
        "temperature": 0.0,
        "max_tokens": 2048,
    }


def test_newer_models_get_their_own_name_of_the_limit_and_no_temperature(server: LoopbackJudge) -> None:
    options = settings(server, judge_temperature=None, token_limit="max_completion_tokens", judge_max_tokens=77)
    Judge(options).grade(ASK)
    assert server.requests[0]["max_completion_tokens"] == 77
    assert not {"temperature", "max_tokens"} & set(server.requests[0])


@pytest.mark.parametrize(
    ("reply", "status", "score"),
    [
        (judged("Rating: [[7.5]]"), "graded", 7.5),
        (judged("The answer is long, and so is", finish="length"), "unparsable", None),
        (judged(None), "unparsable", None),
        (judged(None, refusal="I will not grade this."), "refused", None),
        (judged("Rating: [[9]]", finish="content_filter"), "refused", None),
        (failed(400, "content_filter", "The prompt was filtered."), "refused", None),
    ],
)
def test_every_judgment_becomes_a_grade_a_refusal_or_unparsable(
    server: LoopbackJudge, reply: Reply, status: str, score: float | None
) -> None:
    answers(server, reply)
    grade = Judge(settings(server)).grade(ASK)
    assert (grade["status"], grade["score"]) == (status, score)
    assert len(server.requests) == 1, "what the judge said is not asked for again"


@pytest.mark.parametrize(
    "reply", [failed(429, Retry_After="7"), failed(503), Reply(instead="drop"), Reply(instead="stall")], ids=str
)
def test_a_failure_that_may_pass_is_tried_again(
    server: LoopbackJudge, waits: list[float], reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(server, reply, reply, GOOD)
    monkeypatch.setattr(judge, "TIMEOUT_S", 0.3 if reply.instead == "stall" else 30.0)
    assert Judge(settings(server)).grade(ASK)["score"] == 3.0
    assert len(server.requests) == 3
    assert waits == [7, 7] if reply.status == 429 else len(waits) == 2


@pytest.mark.parametrize(("reply", "words"), [(failed(503), "status 503: .*no"), (Reply(instead="drop"), "no answer")])
def test_after_the_last_try_it_stops_and_says_how_to_resume(
    server: LoopbackJudge, waits: list[float], reply: Reply, words: str
) -> None:
    answers(server, reply)
    with pytest.raises(KitError, match=rf"gpt-4 at http.*: {words}.*; run the same command"):
        Judge(settings(server)).grade(ASK)
    assert len(server.requests) == 1 + judge.RETRIES


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (failed(401, "invalid_api_key", "bad key"), "status 401: .*bad key.*; check OPENAI_API_KEY"),
        (failed(404, "model_not_found", "no such model"), "no such model.*; check mt_bench.judge"),
        (failed(400, "unsupported_parameter", "use max_completion_tokens"), "use max_completion_tokens"),
        (Reply(b"{}"), "a reply that is not a chat completion: '{}'; check mt_bench.base_url"),
        (Reply(b"<html>Welcome</html>"), "not a chat completion: '<html>Welcome"),
    ],
)
def test_a_failure_that_will_not_pass_stops_at_once_with_the_servers_words(
    server: LoopbackJudge, reply: Reply, words: str
) -> None:
    answers(server, reply)
    with pytest.raises(KitError, match=words):
        Judge(settings(server)).grade(ASK)
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["", "sk-a b"])
def test_a_missing_or_broken_key_is_refused_without_showing_it(
    server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", text)
    with pytest.raises(KitError, match="OPENAI_API_KEY") as caught:
        Judge(settings(server))
    assert not text or text not in str(caught.value)


@given(st.lists(st.sampled_from(["[[", "[", "]]", "]", "7", "10", "11", "0", ".5", ".", " ", "Rating: ", "-"])))
def test_ratings_are_read_as_fastchat_reads_them_but_for_numbers_off_the_scale(parts: list[str]) -> None:
    text = "".join(parts)
    fastchat = fastchat_source.rules()
    match = fastchat["one_score_pattern"].search(text) or fastchat["one_score_pattern_backup"].search(text)
    # FastChat evaluates the match as Python, which a number such as 07 is not; here it is 7.
    expected = float(match.groups()[0]) if match else None
    assert judge.rating(text) == (expected if expected is not None and 1 <= expected <= 10 else None)
