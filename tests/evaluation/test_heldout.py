"""Held-out prompts; what whole runs measure on them is in tests/experiment/test_experiments.py."""

from __future__ import annotations

from pathlib import Path

from tiny_models import trainable_folder

from spin_utils.evaluation import heldout
from spin_utils.settings.inputs import TemplateSettings
from spin_utils.settings.run import GenerationSettings


def test_of_a_real_response_that_was_cut_only_the_bytes_that_are_scored_are_counted(tmp_path: Path) -> None:
    model = trainable_folder(tmp_path / "tiny")
    row = {"id": "1", "prompt": "What is 3 + 4?", "response": "Answer: 7. " * 20}
    template = TemplateSettings("text", "{prompt} ", max_response_tokens=9, too_long="truncate")
    generation = GenerationSettings(max_new_tokens=4)
    cut, whole = heldout.drifts(
        model, model, [row, row | {"response": "7 \u2212 0"}], template=template, generation=generation, seed=0
    )
    assert 9 <= cut["real_bytes"] <= 9 * len("Answer:")
    assert row["response"].encode()[: cut["real_bytes"]].decode() in row["response"]
    assert whole["real_bytes"] == len("7 \u2212 0".encode())
