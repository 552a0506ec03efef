"""The paper's benchmarks: prompts, examples, metrics and averages, on rows with the columns of the hub's data sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pytest
from hub_rows import Hub
from lm_eval.api.instance import Instance
from tiny_models import tiny_model
from tiny_tokenizer import byte_tokenizer

from spin_utils.evaluation import harness, suites
from spin_utils.evaluation.lm import PackedLM
from spin_utils.settings.run import EvaluationSettings

ITEMS = 3
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def hub() -> Iterator[Hub]:
    with pytest.MonkeyPatch.context() as patch:
        hub = Hub(ITEMS)
        patch.setattr(datasets, "load_dataset", hub)
        datasets.disable_progress_bars()
        yield hub


def test_the_shots_of_table_6_are_in_the_prompt() -> None:
    """The prompts of Table 1 are compared with those of stock lm-eval in test_leaderboard.py."""
    for name, leaves in harness._load(harness._paper_columns("paper_others")).items():
        (task,) = leaves.values()
        task.build_all_requests(limit=1)
        prompt, more = task.instances[0].args
        if name == "openbookqa":
            assert prompt.count("a man finds a") == 1 + 1
            assert prompt.endswith("\n\nOn day 0 a man finds a")
        else:
            assert prompt.count("A: Let's think step by step.\n") == 3 + 1
            assert not more["do_sample"]


class Answering(PackedLM):
    """Answers by a rule instead of a model: the first choice is likeliest, and texts hold right or wrong results."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        # Per character less likely the longer it is, so that normalising by length matters.
        return [(-float(len(continuation)), False) for _, _, continuation in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        texts = []
        for request in requests:
            question = request.args[0].rsplit("Q", 1)[1]
            digits = [int(word) for word in question.replace("?", "").split() if word.isdigit()]
            if "cups" in question:
                # The right number without the mark counts only by flexible-extract.
                texts.append(f"It is\n#### {digits[0] + 2}." if digits[0] else "The answer is 2.")
            else:
                texts.append("Let us see. So the answer is yes.")
        return texts

    def length(self, request: Instance) -> int:
        return 1


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, Any]]:
    model = tiny_model("mistral", vocabulary=len(TOKENIZER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "PackedLM", Answering)
        return {
            suite: harness.evaluate(model, TOKENIZER, None, template=None, settings=EvaluationSettings(suite=suite))
            for suite in ("paper", "paper_others")
        }


def test_each_column_has_the_papers_metric_over_all_items(records: dict[str, dict[str, Any]]) -> None:
    found = {name: (task["metric"], task["n"]) for record in records.values() for name, task in record["tasks"].items()}
    metrics = dict.fromkeys(("arc", "hellaswag", "openbookqa"), "acc_norm")
    metrics |= dict.fromkeys(("truthfulqa", "winogrande", "mmlu"), "acc")
    metrics |= dict.fromkeys(("gsm8k", "bb_causal", "bb_formal", "bb_sports"), "exact_match")
    assert found == {name: (metric, ITEMS * (57 if name == "mmlu" else 1)) for name, metric in metrics.items()}


def test_scores_are_those_of_the_papers_metric(records: dict[str, dict[str, Any]]) -> None:
    values = {name: task["value"] for record in records.values() for name, task in record["tasks"].items()}
    assert values["gsm8k"] == pytest.approx(2 / 3), "strict match: an answer without #### is wrong"
    assert values["bb_sports"] == pytest.approx(1 / 3), "the word behind `the answer is`"
    weights = [math.exp(-len(TOKENIZER.encode(f" {word}"))) for word in ("So", "Quite so", "Not so", "No", "Never")]
    assert values["truthfulqa"] == pytest.approx(sum(weights[:2]) / sum(weights)), "mc2: mass of the true answers"
    assert values["mmlu"] == pytest.approx(1 / 3), "all choices are as likely, so the first: row 0 of each subject"
    six = [values[name] for name in suites.LEADERBOARD]
    assert records["paper"]["average"] == pytest.approx(math.fsum(six) / 6), "unweighted, as the paper's average"


def test_a_limit_is_shared_among_the_tasks_of_a_group() -> None:
    columns = [column for column in harness._paper_columns("paper") if column.name in ("mmlu", "arc")]
    counts = {name: harness._counts(leaves, 114) for name, leaves in harness._load(columns).items()}
    assert counts["arc"] == {"arc/arc_challenge": ITEMS}
    assert set(counts["mmlu"].values()) == {2}
    assert len(counts["mmlu"]) == 57
