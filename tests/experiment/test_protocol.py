"""The report says whether the protocol is older than the results, by the history of the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spin_utils.experiment import publish
from spin_utils.files import paths
from spin_utils.paper import results


def test_a_protocol_is_compared_with_the_commits_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(message: str) -> str:
        git("add", "-A")
        git("commit", "-qm", message)
        return git("rev-parse", "HEAD")

    made_at: list[str] = []
    monkeypatch.setattr(results, "chains", lambda _: [("", {"eval-sft": {"commit": each}}) for each in made_at])
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    folder = tmp_path / "results" / "cpu"
    monkeypatch.setattr(paths, "results", lambda profile: tmp_path / "results" / profile)
    git("init", "-q")
    (tmp_path / "code").write_text("1")
    before = commit("code")
    assert publish.protocol("cpu") == ""
    folder.mkdir(parents=True)
    (folder / "protocol.md").write_text("n = 900")
    assert "has uncommitted changes" in publish.protocol("cpu")
    planned = commit("protocol")
    made_at.append(planned)
    assert publish.protocol("cpu").endswith(f"(commit {planned[:12]}) is older than every result.")
    made_at.append(before)
    assert "is not older than all results:" in publish.protocol("cpu")
    (folder / "protocol.md").write_text("n = 90")
    assert "has uncommitted changes" in publish.protocol("cpu")
