"""The judge's endpoint, on a real HTTP server: what is sent, what becomes of every answer, and where the key stays."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import fastchat_source
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback_judge import KEY, LoopbackJudge, Reply, failed, judged, serving

from spin_utils.evaluation import judge
from spin_utils.evaluation.judge import Judge, MtBenchError
from spin_utils.settings.machine import MtBenchSettings

pytestmark = pytest.mark.usefixtures("judge_key")
ASK = [{"role": "system", "content": "You grade."}, {"role": "user", "content": "2 + 2 = 5"}]
GOOD = judged("Wrong, but short. Rating: [[3]]")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float | None]]:
    """What `pause` was asked; nothing waits."""
    asked: list[tuple[int, float | None]] = []

    def pause(tries: int, seconds: float | None) -> float:
        asked.append((tries, seconds))
        return 0.0

    monkeypatch.setattr(judge, "pause", pause)
    return asked


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    with serving(lambda body, number: GOOD) as running:
        yield running


def settings(server: LoopbackJudge, **options: Any) -> MtBenchSettings:
    return MtBenchSettings(**{"judge": "gpt-4", "base_url": server.url, "retries": 2, **options})


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
    "reply",
    [
        failed(429, Retry_After="7"),
        failed(503),
        Reply(status=502, body=b"<html>Bad gateway</html>", content_type="text/html"),
        Reply(instead="drop"),
        Reply(b'{"choices": [', instead="cut"),
        Reply(instead="stall"),
        Reply(b"{}"),
    ],
    ids=str,
)
def test_a_failure_that_may_pass_is_tried_again(
    server: LoopbackJudge, waits: list[tuple[int, float | None]], reply: Reply
) -> None:
    answers(server, reply, reply, GOOD)
    options = settings(server, timeout_s=0.3 if reply.instead == "stall" else 30.0)
    assert Judge(options).grade(ASK)["score"] == 3.0
    asked = 7.0 if reply.status == 429 else None
    assert waits == [(1, asked), (2, asked)]
    assert len(server.requests) == 3


def test_after_the_last_try_it_stops_and_says_how_to_resume(server: LoopbackJudge, waits: object) -> None:
    answers(server, failed(503))
    with pytest.raises(MtBenchError, match=r"gpt-4 at http.*: status 503 \(3 tries\); run the same command"):
        Judge(settings(server)).grade(ASK)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (failed(401, "invalid_api_key", "bad key"), "status 401: .*bad key.*; check OPENAI_API_KEY"),
        (failed(404, "model_not_found", "no such model"), "no such model.*; check mt_bench.judge"),
        (failed(400, "unsupported_parameter", "use max_completion_tokens"), "use max_completion_tokens"),
        (failed(429, "insufficient_quota", "pay first"), "pay first.*; check the account"),
    ],
)
def test_a_failure_that_will_not_pass_stops_at_once_with_the_servers_words(
    server: LoopbackJudge, reply: Reply, words: str
) -> None:
    answers(server, reply)
    with pytest.raises(MtBenchError, match=words):
        Judge(settings(server)).grade(ASK)
    assert len(server.requests) == 1


def test_the_key_is_cut_out_of_whatever_the_server_says(
    server: LoopbackJudge, waits: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "spin_utils")
    echo = f"you sent {KEY}"
    answers(server, Reply(echo.encode()), judged(f"{echo} [[5]] \ud800", model=KEY))
    grade = Judge(settings(server)).grade(ASK)
    assert grade["judgment"] == "you sent [key] [[5]] ?", "half a character could not be written to a file"
    answers(server, failed(401, words=echo))
    with pytest.raises(MtBenchError) as caught:
        Judge(settings(server)).grade(ASK)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "you sent" in caplog.text
    assert KEY not in caplog.text + str(grade) + str(caught.value)


def test_a_stopped_judge_does_not_wait_for_the_next_try(server: LoopbackJudge) -> None:
    answers(server, failed(429, Retry_After="100"))
    asked = Judge(settings(server))
    asked.stop()
    with pytest.raises(MtBenchError, match="stopped"):
        asked.grade(ASK)
    assert len(server.requests) == 1


def test_pauses_follow_the_server_within_reason_and_else_grow() -> None:
    assert judge.pause(1, 7.0) == 7.0
    assert judge.pause(1, 3600.0) == judge.LONGEST_WAIT_S
    for tries in range(1, 40):
        longest = min(2.0 ** (tries - 1), judge.LONGEST_WAIT_S)
        assert longest / 2 <= judge.pause(tries, None) <= longest


@pytest.mark.parametrize("text", ["", "sk-a b"])
def test_a_missing_or_broken_key_is_refused_without_showing_it(
    server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", text)
    with pytest.raises(MtBenchError, match="OPENAI_API_KEY") as caught:
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
