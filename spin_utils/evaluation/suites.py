"""The paper's benchmarks in lm-eval: those in Table 1, and those that Table 6 adds without a judge.

Shots and test sets are in the published table, `paper/numbers/benchmark_settings.csv`. lm-eval's names and metrics have
changed since the paper's version (46c7966, December 2023); these are the current ones for the same items and scores.
"""

from __future__ import annotations

from typing import NamedTuple

from spin_utils.paper import published


class Benchmark(NamedTuple):
    """A benchmark in lm-eval, and which of its numbers the paper reports."""

    task: str
    """lm-eval's name for the task or group."""
    folder: str
    """Folder of its files below `lm_eval/tasks`."""
    dataset: str
    """Its dataset on the hub."""
    metric: str
    """Metric per item."""
    filter: str = ""
    """Filter of a generation task."""


_BBH = ("bbh/cot_fewshot", "SaylorTwift/bbh", "exact_match", "get-answer")

LEADERBOARD = {
    "arc": Benchmark("arc_challenge", "arc", "allenai/ai2_arc", "acc_norm"),
    "truthfulqa": Benchmark("truthfulqa_mc2", "truthfulqa", "truthfulqa/truthful_qa", "acc"),  # mc2 under today's name
    "winogrande": Benchmark("winogrande", "winogrande", "allenai/winogrande", "acc"),
    # The other filter, flexible-extract, was added after the paper.
    "gsm8k": Benchmark("gsm8k", "gsm8k", "openai/gsm8k", "exact_match", "strict-match"),
    "hellaswag": Benchmark("hellaswag", "hellaswag", "Rowan/hellaswag", "acc_norm"),
    "mmlu": Benchmark("mmlu", "mmlu/default", "cais/mmlu", "acc"),
}
"""Benchmarks in Table 1, in the paper's order."""

OTHERS = {
    "bb_causal": Benchmark("bbh_cot_fewshot_causal_judgement", *_BBH),
    "bb_formal": Benchmark("bbh_cot_fewshot_formal_fallacies", *_BBH),
    "bb_sports": Benchmark("bbh_cot_fewshot_sports_understanding", *_BBH),
    "openbookqa": Benchmark("openbookqa", "openbookqa", "allenai/openbookqa", "acc_norm"),
}
"""Benchmarks in Table 6, except for MT-Bench, which needs a judge."""

REVISIONS = {
    "allenai/ai2_arc": "210d026faf9955653af8916fad021475a3f00453",
    "truthfulqa/truthful_qa": "741b8276f2d1982aa3d5b832d3ee81ed3b896490",
    "allenai/winogrande": "01e74176c63542e6b0bcb004dcdea22d94fb67b5",
    "openai/gsm8k": "e53f048856ff4f594e959d75785d2c2d37b678ee",
    "Rowan/hellaswag": "218ec52e09a7e7462a5400043bb9a69a41d06b76",
    "cais/mmlu": "c30699e8356da336a370243923dbaf21066bb9fe",
    "SaylorTwift/bbh": "b5306be6f827cfafbb545ff5a51f96916029b0fd",
    "allenai/openbookqa": "388097ea7776314e93a529163e0fea805b8a6454",
}
"""Commits of the benchmarks' datasets. Further tasks on the same datasets use them too."""

SUITES = {"paper": LEADERBOARD, "paper_others": OTHERS}
"""Benchmarks of the suites that come from the hub (`evaluation.suite`)."""


def shots(name: str) -> int:
    """Number of few-shot examples in the paper."""
    return int(published.benchmark_settings()["shots"][name].split()[0])
