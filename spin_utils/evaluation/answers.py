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

import torch
from torch import nn

from spin_utils.files import processes
from spin_utils.files.paths import KitError

FILE = "answers.jsonl"
_ELEMENTS = 4096


class EvaluationError(KitError):
    """An evaluation cannot run or is incomplete. The message names the task or file, and the remedy."""


class Answers:
    """Finished answers by request key, in memory and, if a folder is given, in `answers.jsonl` in it.

    Args:
        folder: Folder of the file; None keeps answers in memory only.
        identity: What an answer depends on apart from the request (model, template); part of every key.

    Raises:
        EvaluationError: A line other than the last is not valid.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        self._identity = identity
        self._found: dict[str, Any] = {}
        self._path = folder / FILE if folder is not None else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._load(self._path)

    def key(self, kind: str, request: Any) -> str:
        """Key of a request: any JSON value, such as a context and its generation settings."""
        text = json.dumps([self._identity, kind, request], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers (JSON values by key); they are on disk when this returns. Only the first process writes."""
        self._found.update(answers)
        if self._path is None or processes.rank():
            return
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            for key, answer in answers.items():
                entry = {"key": key, "answer": answer, "check": _check(key, answer)}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(path, end)
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
                whole = entry["check"] == _check(key, answer)
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                raise EvaluationError(
                    f"{path}, line {number}: damaged since it was written; delete the line to ask again"
                )
            self._found[key] = answer


def _check(key: str, answer: Any) -> str:
    """Checksum of a line, because an answer with a changed character would still be JSON."""
    return hashlib.sha256(json.dumps([key, answer], sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(model: nn.Module) -> str:
    """Hash of a sample of every parameter: takes milliseconds, and training changes it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _ELEMENTS)].cpu().contiguous()
        digest.update(f"{name}/{tuple(parameter.shape)}/{parameter.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
