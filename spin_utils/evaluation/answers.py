"""Answers to evaluation requests, kept on disk so that a killed evaluation resumes where it stopped.

One JSON object per line, appended in groups and synced. A kill can leave a torn last line, which is removed when the
file is opened again. Keys contain a fingerprint of the weights, so another model's answers are never reused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_utils.files import processes
from spin_utils.files.paths import KitError

FILE = "answers.jsonl"


class EvaluationError(KitError):
    """An evaluation cannot run or is incomplete. The message names the task or file, and the remedy."""


class Answers(dict[str, Any]):
    """Finished answers (JSON values) by request key, also kept in `answers.jsonl` if a folder is given.

    Args:
        folder: Folder of the file; None keeps answers in memory only.
        identity: What an answer depends on apart from the request (model, template); part of every key.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        super().__init__()
        self._identity = identity
        self._path = folder / FILE if folder is not None else None
        if self._path is not None and self._path.exists():
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            os.truncate(self._path, len(whole))
            self.update((line["key"], line["answer"]) for line in map(json.loads, whole.splitlines()))

    def key(self, kind: str, request: Any) -> str:
        """Key of a request: any JSON value, such as a context and its generation settings."""
        text = json.dumps([self._identity, kind, request], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers; they are on disk when this returns. Only the first process writes."""
        self.update(answers)
        if self._path is None or processes.rank():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            for key, answer in answers.items():
                file.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
