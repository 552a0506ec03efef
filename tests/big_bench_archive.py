"""A small archive laid out like that of the package `bigbench`, with tasks of the kinds that it has."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from spin_utils.data import big_bench

COLOURS = {
    "metrics": ["multiple_choice_grade"],
    "preferred_score": "multiple_choice_grade",
    "task_prefix": "Name the colour.\n",
    "examples": [
        {"input": "Grass?", "target_scores": {"blue": 0, "green": 1, "red": 0}},
        {"input": "Blood?", "target_scores": {"red": 1, "green": 0, "blue": 0}},
        {"input": "Grass?", "target_scores": {"blue": 0, "green": 1, "red": 0}},
        {"input": "Dusk?", "target_scores": {"red": 0.5, "black": 0.25, "green": 0}},
        {"input": "Sky?", "target_scores": {"blue": 1, "red": 0}},
    ],
}
SORTING = {
    "metrics": ["exact_str_match", "rouge"],
    "preferred_score": "exact_str_match",
    "example_input_prefix": "Sort: ",
    "example_output_prefix": " =>",
    "output_regex": "[a-z ]+",
    "examples": [{"input": "b a", "target": "a b"}, {"input": "d c", "target": ["c d", "c, d"]}],
}
PART = {**COLOURS, "append_choices_to_input": False, "example_output_prefix": ""}


def _conversation(number: int) -> list[dict[str, Any]]:
    """Every turn but the first as an answer to those before it, as topical_chat has them."""
    said = [f"hello from {number}", *(f'I say "{turn}" in {number}' for turn in range(1, 5))]
    return [
        {
            "input": " ".join(f'agent_{"AB"[(turn - i) % 2 == 0]}: "{said[i]}"' for i in range(turn)),
            "target": f'"{said[turn]} "',
            "comment": f"t_{number}",
        }
        for turn in range(1, len(said))
    ]


TALK = {
    "metrics": ["bleu", "rouge"],
    "preferred_score": "bleu",
    "examples": [example for number in range(8) for example in _conversation(number)],
}
TASKS: dict[str, dict[str, Any]] = {
    "colours": COLOURS,
    "sorting": SORTING,
    "talk": TALK,
    "parts": {},
    "parts/one": PART,
    "parts/two": {**PART, "examples": PART["examples"][3:]},
}


def write(path: Path) -> str:
    """Write the archive and return its hash."""
    files = {f"bigbench-1.0.0/bigbench/benchmark_tasks/{n}/task.json": json.dumps(t) for n, t in TASKS.items()}
    files |= {"bigbench-1.0.0/setup.py": "raise SystemExit('run')", "bigbench-1.0.0/other/colours/task.json": "{}"}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the kit read this archive instead of the real one."""
    monkeypatch.setattr(big_bench, "SHA256", write(folder / big_bench.ARCHIVE))
    monkeypatch.setattr(big_bench, "TASKS", folder / "share" / "tasks.zip")
    return big_bench.fetch(str(folder / big_bench.ARCHIVE))
