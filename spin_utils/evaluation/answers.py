"""Answers of a model to evaluation requests, kept on disk so that a killed evaluation goes on where it stopped.

One JSON object per line, appended in groups and synced; a torn last line is what a kill leaves behind and is cut
off when the file is opened again. Keys hold a fingerprint of the weights, so no other model's answers are found.
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

FILE = "answers.jsonl"
_ELEMENTS = 4096


class AnswersError(ValueError):
    """The file of answers is damaged. The message names the line and the remedy."""


class Answers:
    """Finished answers by request key, in memory and, if a folder is given, in `answers.jsonl` in it.

    Args:
        folder: Where the file lies; None keeps answers in memory only.
        identity: Whatever decides an answer besides the request (model, template); part of every key.

    Raises:
        AnswersError: A line other than the last is not valid.
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
        """Keep answers (JSON values by key); on disk when this returns. Of several processes the first writes."""
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
                raise AnswersError(
                    f"{path}, line {number}: not an answer as it was written; delete the line, and it is asked again"
                )
            self._found[key] = answer


def _check(key: str, answer: Any) -> str:
    """Part of every line: a changed character in an answer is still JSON."""
    return hashlib.sha256(json.dumps([key, answer], sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(model: nn.Module) -> str:
    """Hash of a sample of every parameter's bytes: changes when training changes the model, in milliseconds."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _ELEMENTS)].cpu().contiguous()
        digest.update(f"{name}/{tuple(parameter.shape)}/{parameter.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
