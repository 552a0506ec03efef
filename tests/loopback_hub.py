"""A hub on loopback: the few routes of huggingface.co that the kit uses, answered as the real one answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import loopback


@dataclass
class LoopbackHub:
    """What the hub holds and what it was asked."""

    url: str = ""
    repositories: dict[str, str] = field(default_factory=dict)
    """Commit of each repository, by `models/NAME` or `datasets/NAME`."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content of a repository's files, by `models/NAME` or `datasets/NAME` and then by path."""
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    """Their paths."""


@contextmanager
def serve() -> Iterator[LoopbackHub]:
    """Run an empty hub on a free port of this machine."""
    hub = LoopbackHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append(self.path)
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/auth-check", path):
                gated = f"{found[1]}/{found[2]}" in hub.gated
                return self._answer(403, {}, "GatedRepo") if gated else self._answer(200, {})
            if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                return self._repository(f"{found[1]}/{found[2]}", found[3])
            if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
                held = [p for p in hub.files.get(f"{found[1]}/{found[2]}", {}) if p.startswith(found[4])]
                return self._answer(200, [{"type": "file", "path": p, "size": 0, "oid": "0" * 40} for p in held])
            if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                content = hub.files.get(f"{(found[1] or 'models/')}{found[2]}", {}).get(found[4])
                if content is not None:
                    return self._answer(200, content, file=found[3])
            return self._answer(404, {}, "EntryNotFound")

        def do_HEAD(self) -> None:
            self.do_GET()

        def _repository(self, place: str, revision: str | None) -> None:
            commit = hub.repositories.get(place)
            if commit is None:
                return self._answer(404, {}, "RepoNotFound")
            if revision not in (None, commit, "main"):
                return self._answer(404, {}, "RevisionNotFound")
            siblings = [{"rfilename": path} for path in hub.files.get(place, {})]
            about = {"id": place.partition("/")[2], "sha": commit, "siblings": siblings, "private": False}
            return self._answer(200, about)

        def _answer(
            self, status: int, data: dict[str, Any] | list[Any] | bytes, error: str = "", file: str = ""
        ) -> None:
            body = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if file:
                self.send_header("ETag", f'"{hash(body):x}"'.replace("-", ""))
                self.send_header("X-Repo-Commit", file)
            if error:
                self.send_header("X-Error-Code", error)
                self.send_header("X-Error-Message", error)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with loopback.serving(Handler) as hub.url:
        yield hub
