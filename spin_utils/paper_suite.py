"""The paper's benchmarks as lm-eval has them: Table 1, and what Table 6 adds without a judge.

Shots and test sets are in the published table, `data/published/benchmark_settings.csv`. Names and metrics of lm-eval
have changed since the paper's version (46c7966, December 2023); those below are today's for the same items and scores.
"""

from __future__ import annotations

from typing import NamedTuple

from spin_utils import published


class Benchmark(NamedTuple):
    """Where lm-eval has a benchmark, and which of its numbers the paper prints."""

    task: str
    """lm-eval's name of the task or group."""
    folder: str
    """Folder of its files below `lm_eval/tasks`."""
    metric: str
    """Metric per item."""
    filter: str = ""
    """Filter of a generation task."""


LEADERBOARD = {
    "arc": Benchmark("arc_challenge", "arc", "acc_norm"),
    "truthfulqa": Benchmark("truthfulqa_mc2", "truthfulqa", "acc"),  # mc2 under today's name
    "winogrande": Benchmark("winogrande", "winogrande", "acc"),
    "gsm8k": Benchmark("gsm8k", "gsm8k", "exact_match", "strict-match"),  # `flexible-extract` is younger than the paper
    "hellaswag": Benchmark("hellaswag", "hellaswag", "acc_norm"),
    "mmlu": Benchmark("mmlu", "mmlu/default", "acc"),
}
"""Benchmarks of Table 1, in the paper's order."""

OTHERS = {
    "bb_causal": Benchmark("bbh_cot_fewshot_causal_judgement", "bbh/cot_fewshot", "exact_match", "get-answer"),
    "bb_formal": Benchmark("bbh_cot_fewshot_formal_fallacies", "bbh/cot_fewshot", "exact_match", "get-answer"),
    "bb_sports": Benchmark("bbh_cot_fewshot_sports_understanding", "bbh/cot_fewshot", "exact_match", "get-answer"),
    "openbookqa": Benchmark("openbookqa", "openbookqa", "acc_norm"),
}
"""Benchmarks of Table 6 but MT-Bench, which needs a judge."""

SUITES = {"paper": LEADERBOARD, "paper_others": OTHERS}
"""Benchmarks of each suite of `evaluation.suite` that comes from the hub."""


def shots(name: str) -> int:
    """Examples before each item, as the paper prints them.

    >>> shots("arc"), shots("bb_causal")
    (25, 3)
    """
    return int(str(published.benchmark_settings()["shots"][name]).split()[0])
