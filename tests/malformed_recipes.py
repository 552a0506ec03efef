"""Malformed inputs that cannot be kept as files: models, made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_utils.model import base
from spin_utils.settings.inputs import ModelSettings

_TEXTS = ["What is 3 + 4? Answer: 7", "Spell this word backward: sun"] * 10


def sound_model(folder: Path) -> Path:
    """A tiny model that can be trained, which `broken_model` copies."""
    folder.mkdir()
    base.materialise(ModelSettings("tiny", name="llama", hidden_size=16, layers=1), folder, _TEXTS, seed=0)
    return folder


def broken_model(sound: Path, change: Mapping[str, Any], folder: Path) -> Path:
    """A copy of a sound model with one thing changed; the index says what."""
    shutil.copytree(sound, folder)
    for name, fields in change.get("merge", {}).items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))
    for name, other in change.get("rename", {}).items():
        (folder / name).rename(folder / other)
    for name, text in change.get("write", {}).items():
        (folder / name).write_text(text)
    for name, size in change.get("cut", {}).items():
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
    for name in change.get("delete", []):
        (folder / name).unlink()
    return folder
