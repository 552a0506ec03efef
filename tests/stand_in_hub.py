"""A hub without a network: the few routes of huggingface.co that the kit uses, answered as the real one answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import httpx2


@dataclass
class StandInHub:
    """What the hub holds and what it was asked."""

    repositories: dict[str, str] = field(default_factory=dict)
    """Commit of each repository, by `models/NAME` or `datasets/NAME`."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content of a repository's files, by `models/NAME` or `datasets/NAME` and then by path."""
    gated: set[str] = field(default_factory=set)
    reachable: bool = True
    requests: list[str] = field(default_factory=list)
    """Their paths."""

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        if not self.reachable:
            raise httpx2.ConnectError("no route to the hub")
        path = request.url.path
        self.requests.append(path)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/auth-check", path):
            return _refused(403, "GatedRepo") if f"{found[1]}/{found[2]}" in self.gated else _told({})
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._repository(f"{found[1]}/{found[2]}", found[3])
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            place = f"{found[1]}/{found[2]}"
            if self.repositories.get(place) != found[3]:
                return _refused(404, "RevisionNotFound" if place in self.repositories else "RepoNotFound")
            held = [p for p in self.files.get(place, {}) if p.startswith(found[4])]
            return _told([{"type": "file", "path": p, "size": 0, "oid": "0" * 40} for p in held])
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.files.get(f"{(found[1] or 'models/')}{found[2]}", {}).get(found[4])
            if content is not None:
                headers = {"ETag": f'"{hash(content):x}"'.replace("-", ""), "X-Repo-Commit": found[3]}
                return httpx2.Response(200, headers=headers, content=content)
        return _refused(404, "EntryNotFound")

    def _repository(self, place: str, revision: str | None) -> httpx2.Response:
        commit = self.repositories.get(place)
        if commit is None:
            return _refused(404, "RepoNotFound")
        if revision not in (None, commit, "main"):
            return _refused(404, "RevisionNotFound")
        siblings = [{"rfilename": path} for path in self.files.get(place, {})]
        return _told({"id": place.partition("/")[2], "sha": commit, "siblings": siblings, "private": False})


def _told(data: Any) -> httpx2.Response:
    return httpx2.Response(200, json=data)


def _refused(status: int, error: str) -> httpx2.Response:
    return httpx2.Response(status, headers={"X-Error-Code": error, "X-Error-Message": error}, json={})
