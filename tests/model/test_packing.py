"""Promises of packing: nothing lost, nothing padded, nothing empty; what was sampled is what is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_utils.model.packing import Group, Pairs, PairsError, micro_batches, pack, write_pairs

TEXT = {"family": "sums", "prompt": "1 + 1?", "real": "2", "generated": "3"}
ROW = {**TEXT, "id": "a", "iteration": 0, "prompt_ids": [1, 2], "real_ids": [3, 9], "finish_reason": "stop"}
ROWS = [
    {**ROW, "generated_ids": [4, 5, 9], "generated_logp": -1.5},
    {**ROW, "id": "b", "generated_ids": [4, 5], "finish_reason": "length", "generated_logp": -2.0},
    {**ROW, "id": "c", "iteration": 1, "generated_ids": [3, 9], "generated_logp": -0.5},
]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200))
def test_micro_batches_hold_every_group_once_within_the_budget(tokens, budget):
    batches = micro_batches(tokens, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(tokens)))
    assert all(len(batch) == 1 or sum(tokens[i] for i in batch) <= budget for batch in batches)
    lengths = [tokens[i] for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_micro_batches_are_of_about_equal_size():
    sizes = [len(batch) for batch in micro_batches([10] * 64, 250)]
    assert max(sizes) - min(sizes) <= 1


def test_groups_of_very_different_length_do_not_share_a_tile():
    batch = pack([Group([1] * 4, ([2],)), Group([1] * 4, ([2],)), Group([1] * 90, ([2],))])
    assert [tuple(tile.segments.shape) for tile in batch.layout.tiles] == [(2, 32), (1, 96)]
    assert [(tile.start, tile.stop) for tile in batch.layout.tiles] == [(0, 10), (10, 101)]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([Group([1], ([2],)), Group([], ([2],))], "group 1: empty prompt"),
        ([Group([1], ([2], []))], "group 0: empty resp"),
    ],
)
def test_empty_parts_are_refused_by_name(groups, message):
    with pytest.raises(PairsError, match=message):
        pack(groups)


def test_token_ids_survive_the_disk_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    first, second = write_pairs(tmp_path / "a.arrow", ROWS[:2]), write_pairs(tmp_path / "b.arrow", ROWS[2:])
    expected = [Group([1, 2], ([3, 9], row["generated_ids"])) for row in ROWS]
    assert list(Pairs([first, second])) == expected
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(PairsError, match="generate again"):
        Pairs([first])


def test_a_length_cut_answer_gets_its_end_only_if_asked(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "a.arrow", ROWS)
    assert [len(g.response_ids[1]) for g in Pairs([path])] == [3, 2, 2]
    assert [g.response_ids[1][-1] for g in Pairs([path], end_truncated=9)] == [9, 9, 9]
