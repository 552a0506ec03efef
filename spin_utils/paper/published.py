"""The paper's own numbers, read from the CSV files in `numbers`.

Nothing here was measured by the kit. Scores are in points (0..100, as printed). Models have the kit's names (`sft`,
`spin-0`, ...), so that our rows and the paper's join on the same key. Table numbers are those of the camera-ready
version (arXiv 2401.01335v3). In the second version Tables 4, 5 and 6 are Tables 2, 3 and 4, and Figures 4 and 5 are
swapped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import pandas as pd

from spin_utils.settings.inputs import OtherBenchmark

LEADERBOARD = ("arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu")
OTHERS: tuple[str, ...] = get_args(OtherBenchmark)
"""The six benchmarks of Tables 1, 3, 4 and 5, and those of Table 6, in the paper's order."""

MODEL = "alignment-handbook/zephyr-7b-sft-full"
"""The hub name of the model that self-play starts from (sec. 6.1)."""

BENCHMARK_LABELS = {
    "arc": "Arc",
    "truthfulqa": "TruthfulQA",
    "winogrande": "Winogrande",
    "gsm8k": "GSM8k",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "average": "Average",
    "mt_bench": "MT-Bench",
    "bb_causal": "BB-causal",
    "bb_formal": "BB-formal",
    "bb_sports": "BB-sports",
    "openbookqa": "OpenBookQA",
}


@cache
def numbers(name: str) -> pd.DataFrame:
    """A file of `numbers`, whose first lines say where it is in the paper and what its columns are."""
    return pd.read_csv(Path(__file__).parent / "numbers" / f"{name}.csv", comment="#", dtype={"shots": str})


def leaderboard() -> pd.DataFrame:
    """Tables 3 and 4 (App. B.3, B.4): the Open LLM Leaderboard, seven models.

    Returns:
        One row per model, indexed by the kit's name: six scores in points, `average_printed` as in the paper
        and `average_recomputed` from the six cells. The two differ in one row, SPIN iteration 3 + DPO: the paper prints
        64.05, but the cells average 64.74, so either the average or a cell is wrong.
    """
    table = numbers("leaderboard").set_index("model")
    return table.assign(average_recomputed=table[list(LEADERBOARD)].mean(axis=1))


def benchmark_settings() -> pd.DataFrame:
    """Table 1 (App. B.1) with the size of each test set, which the paper does not give.

    Returns:
        Indexed by benchmark: `shots` (text, because some are chain-of-thought), `metric`, `items`. All printed scores
        on ARC, Winogrande, GSM8k, HellaSwag, Big-Bench-Hard and OpenBookQA are multiples of 1/items.
    """
    return numbers("benchmark_settings").set_index("benchmark")


def score(model: str, benchmark: str, source: str = "tables") -> float | None:
    """A printed score of a model in points, or None where the paper has none.

    Args:
        model: The kit's name.
        benchmark: A benchmark of Tables 3 to 6, or `average` (the printed average).
        source: What has it: `tables`, `figure4` (epochs of iteration 0, and iteration 1), `figure5` (training sizes of
            iteration 0 from the downloaded SFT model, and the paper's own longer SFT) or `figure5_sft` (that SFT from
            its first epoch on).

    >>> score("spin-0", "gsm8k"), score("spin-1", "average"), score("spin-3", "bb_formal")
    (35.1, 62.12, None)
    >>> score("spin-0-epoch-5", "average", "figure4"), score("sft", "average", "figure5_sft")
    (60.96, 59.04)
    """
    return _scores().get((source, model, benchmark))


def other_tasks(benchmarks: Mapping[str, str]) -> bool:
    """Whether any task is not the paper's, or is measured in a different way.

    >>> other_tasks({"arc": "arc"}), other_tasks({"causal_judgment": "bb_causal"}), other_tasks({"mine": ""})
    (False, True, True)
    """
    return any(task != benchmark for task, benchmark in benchmarks.items())


@dataclass(frozen=True)
class Noise:
    """A difference between the paper's scores compared with the sampling noise of its test sets."""

    difference: float
    """In points, from the cells (the recomputed average, not the printed one)."""
    error_unpaired: float
    """Standard error if the two models' answers were independent, from the number of items alone: the binomial one of a
    share, which for TruthfulQA (mc2, a value in 0..1 per item) is an upper bound. It is also one if the models agree
    more often than chance, so it understates the significance."""
    error_best: float
    """The smallest standard error under any pairing of the answers: a difference d of 0/1 scores over n items needs at
    least a share |d| of changed answers, hence at least sqrt((|d| - d^2) / n)."""
    status: str
    """`beyond noise` (even if unpaired), `within noise` (under any pairing) or `depends on the pairing`, which only the
    paper's unpublished per-item answers could settle. All at two standard errors, two-sided 95 %."""


def noise(contrast: Mapping[str, float], benchmark: str) -> Noise | None:
    """Compare a contrast of the paper's scores, for example {"spin-0": 1, "sft": -1}, with its sampling noise.

    The best-pairing bound holds for plain differences; for other contrasts it is set to 0. None if a score is missing
    or the benchmark is not a share of items (MT-Bench).

    >>> noise({"spin-3": 1, "spin-2": -1}, "average").status
    'depends on the pairing'
    """
    parts = LEADERBOARD if benchmark == "average" else (benchmark,)
    if "mt_bench" in parts or any(score(model, part) is None for model in contrast for part in parts):
        return None
    plain = sorted(contrast.values()) == [-1, 1]
    sizes = benchmark_settings()["items"]
    difference = unpaired = best = 0.0
    for part in parts:
        scores = {model: score(model, part) or 0.0 for model in contrast}
        gain = sum(weight * scores[model] for model, weight in contrast.items())
        difference += gain / len(parts)
        unpaired += sum(w**2 * scores[model] * (100 - scores[model]) for model, w in contrast.items()) / sizes[part]
        if plain and part != "truthfulqa":  # whose mc2 is a probability mass
            best += 100**2 * (abs(gain / 100) - (gain / 100) ** 2) / sizes[part]
    error_unpaired, error_best = math.sqrt(unpaired) / len(parts), math.sqrt(best) / len(parts)
    status = "depends on the pairing"
    if abs(difference) > 1.96 * error_unpaired:
        status = "beyond noise"
    elif abs(difference) <= 1.96 * error_best:
        status = "within noise"
    return Noise(difference, error_unpaired, error_best, status)


@cache
def _scores() -> dict[tuple[str, str, str], float]:
    """Every printed score by source, model and benchmark; Table 5 repeats Table 4's SFT row."""
    scores: dict[tuple[str, str, str], float] = {}
    for name in ("sft_one_more_epoch", "leaderboard", "other_benchmarks"):  # Tables 5, 3 and 4, and 6
        printed = numbers(name).set_index("model").rename(columns={"average_printed": "average"})
        for column in printed.columns.intersection(list(BENCHMARK_LABELS)):
            scores |= {("tables", str(model), column): float(value) for model, value in printed[column].items()}
    for row in numbers("figure4_epochs").to_dict("records"):
        model = f"spin-0-epoch-{row['epoch']}" if row["epoch"] else "sft"
        scores["figure4", model, row["benchmark"]] = row["score"]
        scores["figure4", "spin-1", row["benchmark"]] = row["reference"]
    for row in numbers("figure5_training_size").to_dict("records"):
        ours, more = row["method"] == "SPIN", row["method"] == "SFT" and row["training_size"] > 0
        for source in ["figure5"] * (ours or more) + ["figure5_sft"] * (not ours):
            scores[source, row["model"], "average"] = row["average"]
    return scores
