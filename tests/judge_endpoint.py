"""A judge's endpoint that the `openai` client reaches instead of the network: it speaks chat completions, and
misbehaves when told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

KEY = "sk-stand-in-0123456789"
URL = "https://judge.test/v1"
Reply = dict[str, Any] | httpx2.TransportError
"""Fields of the response, or what happens to the connection instead."""


def judged(text: str | None, *, model: str = "judge-1", finish: str = "stop", refusal: str | None = None) -> Reply:
    """A chat completion with these words."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
    return {"status_code": 200, "json": {**head, "choices": [choice]}}


def failed(status: int, code: str | None = None, words: str = "no", **headers: str) -> Reply:
    """An error of the endpoint."""
    body = {"error": {"message": words, "type": "error", "code": code}}
    return {"status_code": status, "json": body, "headers": {k.replace("_", "-"): v for k, v in headers.items()}}


@dataclass
class Endpoint:
    """What the judge says, and what it was asked."""

    script: Callable[[dict[str, Any], int], Reply] = lambda body, number: judged("Wrong, but short. Rating: [[3]]")
    """Reply to a request's body and number, from 0."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests, with `url` and `authorization`."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        with self.lock:
            number = len(self.requests)
            self.requests.append({**body, "url": str(request.url), "authorization": request.headers["Authorization"]})
        reply = self.script(body, number)
        if isinstance(reply, httpx2.TransportError):
            raise reply
        return httpx2.Response(**reply)
