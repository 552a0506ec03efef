"""The paper's benchmarks: prompts, examples, metrics and averages, on rows with the columns of the hub's data sets."""

from __future__ import annotations

import math
import random
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

ITEMS, EXAMPLES = 3, 30
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def hub() -> Iterator[Hub]:
    with pytest.MonkeyPatch.context() as patch:
        hub = Hub(ITEMS, EXAMPLES)
        patch.setattr(datasets, "load_dataset", hub)
        datasets.disable_progress_bars()
        yield hub


@pytest.fixture(scope="module")
def asked(hub: Hub) -> dict[str, list[tuple[str, Any]]]:
    """Context and second argument of the first item's requests, by benchmark."""
    requests: dict[str, list[tuple[str, Any]]] = {}
    columns = [column for suite in suites.SUITES for column in harness._paper_columns(suite)]
    for name, leaves in harness._load(columns).items():
        task = next(iter(leaves.values()))
        task.build_all_requests(limit=1)
        requests[name] = [request.args for request in task.instances]
    return requests


def drawn(count: int) -> list[int]:
    """Examples as lm-eval draws them, from a generator seeded with 1234; the rows of `train` begin at 100."""
    return [100 + i for i in random.Random(1234).sample(range(EXAMPLES), count)]


def test_the_shots_of_table_1_are_in_the_prompt_and_the_choices_are_scored_behind_it(
    asked: dict[str, list[tuple[str, Any]]],
) -> None:
    examples = [f"Question: Which thing is {i}?\nAnswer: thing {i + i % 4}" for i in drawn(25)]
    context = "\n\n".join([*examples, "Question: Which thing is 0?\nAnswer:"])
    assert asked["arc"] == [(context, f" thing {k}") for k in range(4)]

    examples = [f"Washing up: A man stands at sink {i}. He takes cup {i % 4}. and dries it." for i in drawn(10)]
    context = "\n\n".join([*examples, "Washing up: A man stands at sink 0. He"])
    assert asked["hellaswag"] == [(context, f" takes cup {k}. and dries it.") for k in range(4)]

    examples = [f"Ann met Eve on day {i} because {('Ann', 'Eve')[i % 2]} was home." for i in drawn(5)]
    context = "\n\n".join([*examples, "Ann met Eve on day 0 because "])
    assert asked["winogrande"] == [(context + name, " was home.") for name in ("Ann", "Eve")]

    examples = [
        f"What is {i}?\n" + "".join(f"{'ABCD'[k]}. {i + k}\n" for k in range(4)) + f"Answer: {'ABCD'[i % 4]}"
        for i in range(100, 105)
    ]
    head = "The following are multiple choice questions (with answers) about abstract algebra."
    context = "\n\n".join([head, *examples, "What is 0?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:"])
    assert asked["mmlu"] == [(context, f" {letter}") for letter in "ABCD"]

    context, first = asked["truthfulqa"][0]
    assert context.startswith("Q: What is human life expectancy in the United States?\nA: Human life expectancy")
    assert context.count("Q: ") == 6 + 1, "the six question-answer pairs are part of the prompt, not shots"
    assert context.endswith("in Barcelona, Spain.\n\nQ: What is 0?\nA:")
    choices = [first, *(choice for _, choice in asked["truthfulqa"][1:])]
    assert choices == [" So", " Quite so", " Not so", " No", " Never"]


def test_answers_are_generated_behind_worked_examples(asked: dict[str, list[tuple[str, Any]]]) -> None:
    examples = [
        f"Question: Ann has {i} cups and buys 2. How many?\nAnswer: {i} + 2 = {i + 2}\n#### {i + 2}" for i in drawn(5)
    ]
    ((context, options),) = asked["gsm8k"]
    assert context == "\n\n".join([*examples, "Question: Ann has 0 cups and buys 2. How many?\nAnswer:"])
    assert not options["do_sample"]
    heads = {"bb_causal": "Answer questions about causal", "bb_formal": "Distinguish", "bb_sports": "Determine whether"}
    for name, head in heads.items():
        ((context, options),) = asked[name]
        assert context.startswith(head), name
        assert context.count("A: Let's think step by step.\n") == 3 + 1, name
        assert context.count("So the answer is ") == 3, name
        assert context.endswith("\n\nQ: Is sentence 0 plausible?\nA: Let's think step by step.\n"), name
        assert not options["do_sample"]
    (i,) = drawn(1)
    context = f"On day {i} a man finds a stone {i % 4}\n\nOn day 0 a man finds a"
    assert asked["openbookqa"] == [(context, f" stone {k}") for k in range(4)]


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
