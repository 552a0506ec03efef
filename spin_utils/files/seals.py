"""Hashes: of files, and inside JSON documents, so that a byte changed on disk is found when they are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIELD = "sha256"
"""Name of the field that holds the hash of all others."""


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def file_hash(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the hash of everything else in it, last.

    >>> is_whole(sealed({"loss": 0.69})), is_whole({**sealed({"loss": 0.69}), "loss": 0.61})
    (True, False)
    """
    content = {name: value for name, value in document.items() if name != FIELD}
    return {**content, FIELD: hashlib.sha256(canonical(content).encode()).hexdigest()}


def is_whole(document: Mapping[str, Any]) -> bool:
    """Whether a document is what was sealed. One without a hash, as earlier versions wrote it, is taken as it is.

    A hash under another name is a damaged name.
    """
    if FIELD in document:
        try:
            return document[FIELD] == sealed(document)[FIELD]
        except ValueError:  # NaN or infinity, which nothing sealed holds
            return False
    return not any(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in document.values())
