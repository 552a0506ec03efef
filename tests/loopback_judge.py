"""A judge on the loopback interface: a real HTTP server that speaks chat completions, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import loopback

KEY = "sk-loopback-0123456789"


@dataclass
class Reply:
    """What the server sends, or does instead."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    instead: str = ""
    """`drop`: close the connection unanswered. `stall`: never answer."""


@dataclass
class LoopbackJudge:
    """A running server."""

    url: str
    script: Callable[[dict[str, Any], int], Reply]
    """Reply to a request's body and number, from 0."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests, with `path` and `authorization`."""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


def judged(text: str | None, *, model: str = "judge-1", finish: str = "stop", refusal: str | None = None) -> Reply:
    """A chat completion with these words."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
    return Reply(json.dumps({**head, "choices": [choice]}).encode())


def failed(status: int, code: str = "", words: str = "no", **headers: str) -> Reply:
    """An error of the endpoint."""
    body = {"error": {"message": words, "type": "error", "code": code or None}}
    return Reply(json.dumps(body).encode(), status, {name.replace("_", "-"): text for name, text in headers.items()})


@contextmanager
def serving(script: Callable[[dict[str, Any], int], Reply]) -> Iterator[LoopbackJudge]:
    """Run a server for the duration of a block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                number = len(judge.requests)
                judge.requests.append({**body, "path": self.path, "authorization": self.headers["Authorization"]})
            reply = judge.script(body, number)
            if reply.instead == "stall":
                judge.over.wait()
            if reply.instead in ("drop", "stall"):
                self.close_connection = True
                return
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply.body)))
            for name, text in reply.headers.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(reply.body)

    with loopback.serving(Handler) as address:
        judge = LoopbackJudge(f"{address}/v1", script)
        try:
            yield judge
        finally:
            judge.over.set()
