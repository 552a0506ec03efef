"""The page of the search says what its record holds."""

import json

import pytest

from benchmarks.search import summary
from spin_utils.files import paths

RECORD = paths.results("cpu") / "search.jsonl"


def test_committed_page_is_what_the_record_gives():
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    assert summary([row for row in rows if "changes" in row]) == RECORD.with_suffix(".md").read_text()


def test_scores_are_the_single_items_counted():
    rows = [row for line in RECORD.read_text().splitlines() if "items" in (row := json.loads(line))]
    assert rows
    for row in rows:
        shares = {task: flags.count("1") / len(flags) for task, flags in row["items"].items()}
        assert sum(map(len, row["items"].values())) == row["n"]
        assert 100 * sum(shares.values()) / len(shares) == pytest.approx(row["average"], abs=0.01)
        assert row["by_family"] == {task: pytest.approx(100 * share, abs=0.1) for task, share in shares.items()}


def test_gains_are_over_sft_of_the_same_data_and_seed():
    base, spin = {"demonstrations.spin_rows": 4}, {"demonstrations.spin_rows": 4, "spin.betas": [0.1]}
    rows = [
        row(base, "sft", 0, "0011"),
        row(base, "sft", 1, "0111"),
        row(spin, "spin-0", 0, "0111"),
        row({}, "sft", 0, "0000"),
    ]
    assert "| spin-0 | 0 | 4 | 75.0 | +25.0 [−86.4, +100.0] |" in summary(rows), "four items show nothing"
    del rows[0]["items"]
    assert "| spin-0 | 0 | 4 | 75.0 | +25.0 |" in summary(rows)


def row(changes, model, seed, flags):
    average = 100 * flags.count("1") / len(flags)
    return {"changes": changes, "model": model, "seed": seed, "n": 4, "average": average, "items": {"sums": flags}}
