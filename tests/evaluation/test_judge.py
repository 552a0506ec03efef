"""The judge's endpoint: what is sent, what becomes of every answer, and where the key stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fastchat_source
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_endpoint import KEY, URL, Endpoint, Reply, failed, judged

from spin_utils.evaluation import judge
from spin_utils.evaluation.judge import Judge
from spin_utils.files.paths import KitError
from spin_utils.settings.machine import MtBenchSettings

ASK = [{"role": "system", "content": "You grade."}, {"role": "user", "content": "2 + 2 = 5"}]
SETTINGS = MtBenchSettings("gpt-4", base_url=URL)
LOST = httpx2.ReadTimeout("nothing came")


def test_a_request_is_what_fastchat_sends_and_a_grade_holds_the_judges_words(endpoint: Endpoint) -> None:
    grade = Judge(SETTINGS).grade(ASK)
    assert grade == {
        "status": "graded",
        "score": 3.0,
        "judgment": "Wrong, but short. Rating: [[3]]",
        "judge_model": "judge-1",
    }
    (request,) = endpoint.requests
    assert request == {
        "url": f"{URL}/chat/completions",
        "authorization": f"Bearer {KEY}",
        "model": "gpt-4",
        "messages": ASK,
        "temperature": 0.0,
        "max_tokens": 2048,
    }


def test_newer_models_get_their_own_name_of_the_limit_and_no_temperature(endpoint: Endpoint) -> None:
    options: dict[str, Any] = {"judge_temperature": None, "token_limit": "max_completion_tokens"}
    Judge(replace(SETTINGS, judge_max_tokens=77, **options)).grade(ASK)
    assert endpoint.requests[0]["max_completion_tokens"] == 77
    assert not {"temperature", "max_tokens"} & set(endpoint.requests[0])


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
    endpoint: Endpoint, reply: Reply, status: str, score: float | None
) -> None:
    endpoint.script = lambda body, number: reply
    grade = Judge(SETTINGS).grade(ASK)
    assert (grade["status"], grade["score"]) == (status, score)
    assert len(endpoint.requests) == 1, "what the judge said is not asked for again"


@pytest.mark.parametrize(("reply", "words"), [(failed(503), "status 503: .*no"), (LOST, "no answer")])
def test_after_the_last_try_it_stops_and_says_how_to_resume(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, reply: Reply, words: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    endpoint.script = lambda body, number: reply
    with pytest.raises(KitError, match=rf"gpt-4 at http.*: {words}.*; run the same command"):
        Judge(SETTINGS).grade(ASK)
    assert len(endpoint.requests) == 1 + judge.RETRIES


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (failed(401, "invalid_api_key", "bad key"), "status 401: .*bad key.*; check OPENAI_API_KEY"),
        (failed(404, "model_not_found", "no such model"), "no such model.*; check mt_bench.judge"),
        (failed(400, "unsupported_parameter", "use max_completion_tokens"), "use max_completion_tokens"),
        (
            {"status_code": 200, "content": b"{}"},
            "a reply that is not a chat completion: '{}'; check mt_bench.base_url",
        ),
        ({"status_code": 200, "content": b"<html>Welcome</html>"}, "not a chat completion: '<html>Welcome"),
    ],
)
def test_a_failure_that_will_not_pass_stops_at_once_with_the_endpoints_words(
    endpoint: Endpoint, reply: Reply, words: str
) -> None:
    endpoint.script = lambda body, number: reply
    with pytest.raises(KitError, match=words):
        Judge(SETTINGS).grade(ASK)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("text", ["", "sk-a b"])
def test_a_missing_or_broken_key_is_refused_without_showing_it(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", text)
    with pytest.raises(KitError, match="OPENAI_API_KEY") as caught:
        Judge(SETTINGS)
    assert not text or text not in str(caught.value)


@given(st.lists(st.sampled_from(["[[", "[", "]]", "]", "7", "10", "11", "0", ".5", ".", " ", "Rating: ", "-"])))
def test_ratings_are_read_as_fastchat_reads_them_but_for_numbers_off_the_scale(parts: list[str]) -> None:
    text = "".join(parts)
    fastchat = fastchat_source.rules()
    match = fastchat["one_score_pattern"].search(text) or fastchat["one_score_pattern_backup"].search(text)
    # FastChat evaluates the match as Python, which a number such as 07 is not; here it is 7.
    expected = float(match.groups()[0]) if match else None
    assert judge.rating(text) == (expected if expected is not None and 1 <= expected <= 10 else None)
