"""Promises of DeepSpeed ZeRO-3: those of the other ways of sharing, kept by two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from process_runs import assert_like_one, in_one, in_two

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")


def test_two_processes_train_as_one_does_each_with_its_share_and_resume_each_other(tmp_path: Path) -> None:
    one = in_one(tmp_path / "one")
    in_two(tmp_path, ["zero3"], one["logps"])
    assert_like_one(one, tmp_path / "zero3", share=0.5, apart=1e-4)  # fast_layers computes in one process only
