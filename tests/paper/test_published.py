"""The paper's numbers are read as printed, and their noise follows from item counts."""

import math

import pandas as pd
import pytest

from spin_utils.experiment.cost import Workload
from spin_utils.paper import published


def test_only_the_last_row_of_table_3_prints_an_average_that_its_cells_do_not_give():
    table = published.leaderboard()
    gap = (table["average_printed"] - table["average_recomputed"]).abs()
    assert list(gap.index[gap > 0.01]) == ["spin-3-dpo"]


def test_table_2_hours_follow_from_the_batch_times_of_appendix_b():
    table = published.numbers("wall_clock_hours").set_index(["stage", "iteration"])["hours"]
    batches = Workload().prompts / 64
    assert table["generation", 0] == pytest.approx(batches * 6.69 / 3600, abs=0.005)
    assert table["training", 0] == pytest.approx(2 * batches * 10 / 3600, abs=0.005)
    for iteration in (1, 2, 3):
        assert table["training", iteration] == pytest.approx(4 * batches * 10 / 3600, abs=0.005)
    assert len(table) == 8


@pytest.mark.parametrize("benchmark", ["arc", "winogrande", "gsm8k", "hellaswag"])
def test_printed_accuracies_lie_on_the_grid_of_their_item_counts(benchmark):
    items = published.benchmark_settings().loc[benchmark, "items"]
    for score in published.leaderboard()[benchmark]:
        nearest = round(score / 100 * items) / items * 100
        assert score == pytest.approx(nearest, abs=0.0051)


def test_figures_4_and_5_agree_with_table_4_where_they_show_the_same_model():
    epochs = published.numbers("figure4_epochs").set_index(["benchmark", "epoch"])
    assert epochs.loc[("average", 2), "score"] == published.score("spin-0", "average")
    assert epochs.loc[("arc", 0), "reference"] == published.score("spin-1", "arc")
    sizes = published.numbers("figure5_training_size")
    spin = sizes[sizes["method"] == "SPIN"].set_index("training_size")["average"]
    assert spin[0] == published.score("sft", "average")
    assert spin[50_000] == epochs.loc[("average", 1), "score"]


def test_the_best_pairing_is_reached_when_only_the_needed_answers_change():
    # 227 of 500 right, then the same and 7 more: the difference of each item is 0 except seven times 1.
    differences = pd.Series([1.0] * 7 + [0.0] * 493)
    noise = published.noise({"spin-0": 1, "sft": -1}, "openbookqa")
    assert noise is not None
    assert noise.error_best == pytest.approx(100 * differences.std(ddof=0) / math.sqrt(500))


@pytest.mark.parametrize(
    ("after", "before", "benchmark", "status"),
    [
        ("spin-3", "sft", "average", "beyond noise"),
        ("spin-1", "spin-0", "bb_sports", "within noise"),
    ],
)
def test_noise_status_of_known_differences(after, before, benchmark, status):
    noise = published.noise({after: 1, before: -1}, benchmark)
    assert noise is not None
    assert noise.status == status
