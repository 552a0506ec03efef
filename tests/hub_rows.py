"""Rows with exactly the columns of the hub's data sets, and a `datasets.load_dataset` that gives them.

The hub cannot be reached from a test. Columns and types are those of the data set viewers; the texts are made up.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import datasets

MMLU_COLUMNS = datasets.Features(
    {
        "question": datasets.Value("string"),
        "subject": datasets.Value("string"),
        "choices": datasets.List(datasets.Value("string")),
        "answer": datasets.ClassLabel(names=["A", "B", "C", "D"]),
    }
)


def _arc(i: int) -> dict[str, Any]:
    # A few rows of ARC are labelled by digits.
    labels = ["A", "B", "C", "D"] if i % 2 else ["1", "2", "3", "4"]
    choices = {"text": [f"thing {i + k}" for k in range(4)], "label": labels}
    return {"id": f"Mercury_{i}", "question": f"Which thing is {i}?", "choices": choices, "answerKey": labels[i % 4]}


def _truthfulqa(i: int) -> dict[str, Any]:
    return {
        "question": f"What is {i}?",
        "mc1_targets": {"choices": ["It is so", "It is not"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["So", "Quite so", "Not so", "No", "Never"], "labels": [1, 1, 0, 0, 0]},
    }


def _winogrande(i: int) -> dict[str, Any]:
    sentence = f"Ann met Eve on day {i} because _ was home."
    return {"sentence": sentence, "option1": "Ann", "option2": "Eve", "answer": str(1 + i % 2)}


def _hellaswag(i: int) -> dict[str, Any]:
    return {
        "ind": i,
        "activity_label": "Washing [step] up",
        "ctx_a": f"A man stands at sink {i}.",
        "ctx_b": "he",
        "ctx": f"A man stands at sink {i}. he",
        "endings": [f"takes cup {k} [title] and dries it." for k in range(4)],
        "source_id": f"activitynet~v_{i}",
        "split": "val",
        "split_type": "indomain",
        "label": str(i % 4),
    }


def _gsm8k(i: int) -> dict[str, Any]:
    return {"question": f"Ann has {i} cups and buys 2. How many?", "answer": f"{i} + 2 = {i + 2}\n#### {i + 2}"}


def _mmlu(subject: str, i: int) -> dict[str, Any]:
    choices = [str(i + k) for k in range(4)]
    return {"question": f" What is {i}? ", "subject": subject, "choices": choices, "answer": i % 4}


def _bbh(i: int) -> dict[str, Any]:
    return {"input": f"Is sentence {i} plausible?", "target": "yes" if i % 2 else "no"}


def _openbookqa(i: int) -> dict[str, Any]:
    choices = {"text": [f"stone {k}" for k in range(4)], "label": ["A", "B", "C", "D"]}
    return {
        "id": f"7-{i}",
        "question_stem": f"On day {i} a man finds a",
        "choices": choices,
        "answerKey": "ABCD"[i % 4],
    }


def chat(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def spin_row(i: int) -> dict[str, Any]:
    """A row of UCLA-AGI/SPIN_iter0."""
    return {
        "real": chat(f"Say {i}.", f"This is {i}, as you asked."),
        "generated": chat(f"Say {i}.", f"{i} {i} {i}"),
    }


def _ultrachat(i: int) -> dict[str, Any]:
    turns = [turn for n in range(3) for turn in chat(f"Tell me {n} of {i}.", f"Here is {n} of {i}.")]
    return {"prompt": f"Tell me 0 of {i}.", "prompt_id": f"{i:064x}", "messages": turns}


def _preference(i: int) -> dict[str, Any]:
    return {
        "prompt": f"Add 1 to {i}.",
        "prompt_id": f"{i:064x}",
        "chosen": chat(f"Add 1 to {i}.", f"It is {i + 1}."),
        "rejected": chat(f"Add 1 to {i}.", "No."),
        "messages": chat(f"Add 1 to {i}.", f"It is {i + 1}."),
        "score_chosen": 8.0,
        "score_rejected": 2.0,
    }


_SPLITS: dict[tuple[str, str | None], tuple[Any, tuple[str, ...]]] = {
    ("allenai/ai2_arc", "ARC-Challenge"): (_arc, ("train", "validation", "test")),
    ("truthfulqa/truthful_qa", "multiple_choice"): (_truthfulqa, ("validation",)),
    ("allenai/winogrande", "winogrande_xl"): (_winogrande, ("train", "validation", "test")),
    ("Rowan/hellaswag", None): (_hellaswag, ("train", "validation", "test")),
    ("openai/gsm8k", "main"): (_gsm8k, ("train", "test")),
    ("allenai/openbookqa", "main"): (_openbookqa, ("train", "validation", "test")),
    ("UCLA-AGI/SPIN_iter0", None): (spin_row, ("train", "test")),
    ("HuggingFaceH4/ultrachat_200k", None): (_ultrachat, ("train_sft", "test_sft")),
    ("HuggingFaceH4/ultrafeedback_binarized", None): (_preference, ("train_prefs",)),
}
_FIRST = {"train": 100, "dev": 100, "train_prefs": 0, "train_sft": 200}
"""Number of a split's first row, so that no row is in two splits."""


class Hub:
    """Stands in for `datasets.load_dataset`, with so many items in each split that is scored or trained on."""

    def __init__(self, items: int) -> None:
        self.items = items

    def __call__(
        self, path: str, name: str | None = None, *, split: str | None = None, revision: str | None = None
    ) -> Any:
        found = self._make(path, name)
        return found if split is None else found[split]

    @cache  # noqa: B019 (lives as long as a test)
    def _make(self, path: str, name: str | None) -> datasets.DatasetDict:
        features = None
        if path == "cais/mmlu":
            made, splits, features = (lambda i: _mmlu(str(name), i)), ("test", "validation", "dev"), MMLU_COLUMNS
        elif path == "SaylorTwift/bbh":
            made, splits = _bbh, ("test",)
        else:
            made, splits = _SPLITS[path, name]
        trained_on = path == "UCLA-AGI/SPIN_iter0"
        # Examples are drawn from the others.
        sizes = {s: 30 if s in ("train", "dev") and not trained_on else self.items for s in splits}
        rows = {s: [made(_FIRST.get(s, 0) + i) for i in range(n)] for s, n in sizes.items()}
        return datasets.DatasetDict({s: datasets.Dataset.from_list(r, features=features) for s, r in rows.items()})
