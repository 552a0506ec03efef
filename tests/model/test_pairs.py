"""Pairs on disk: what was sampled is what is trained on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from spin_utils.model import pairs
from spin_utils.model.packing import Group

ROW = {"id": "a", "iteration": 0, "prompt_ids": [1, 2], "real_ids": [3, 9], "finish_reason": "stop"}
ROWS = [
    {**ROW, "generated_ids": [4, 5, 9], "generated_logp": -1.5},
    {**ROW, "id": "b", "generated_ids": [4, 5], "finish_reason": "length", "generated_logp": -2.0},
    {**ROW, "id": "c", "iteration": 1, "generated_ids": [3, 9], "generated_logp": -0.5},
]


def test_token_ids_survive_the_disk(tmp_path: Path) -> None:
    table = pairs.Pairs([pairs.write(tmp_path / "a.arrow", ROWS[:2]), pairs.write(tmp_path / "b.arrow", ROWS[2:])])
    expected = [Group([1, 2], ([3, 9], row["generated_ids"])) for row in ROWS]
    assert list(table) == expected
    assert table[-1] == expected[-1]
    assert table[0:2] == expected[:2]
    with pytest.raises(IndexError):
        table[3]


def test_a_length_cut_answer_gets_its_end_only_if_asked(tmp_path: Path) -> None:
    path = pairs.write(tmp_path / "a.arrow", ROWS)
    assert [len(g.response_ids[1]) for g in pairs.Pairs([path])] == [3, 2, 2]
    assert [g.response_ids[1][-1] for g in pairs.Pairs([path], end_truncated=9)] == [9, 9, 9]


def test_pandas_reads_the_file(tmp_path: Path) -> None:
    frame = pd.read_feather(pairs.write(tmp_path / "a.arrow", ROWS))
    assert frame["generated_ids"].map(list).tolist() == [row["generated_ids"] for row in ROWS]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = pairs.write(tmp_path / "a.arrow", ROWS)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(pairs.PairsError, match="generate again"):
        pairs.Pairs([path])
