"""Tasks of Big-Bench (Srivastava et al. 2022), from the source archive of the package `bigbench`, and their metrics.

The package is data only: its code is neither built nor imported. The `task.json` files of its 167 JSON tasks are taken
from the archive once, as a zip file in the Python environment, by `make setup` or else on first use. Big-Bench is under
the Apache licence 2.0. Its canary string stays in the zip file and goes nowhere else.

    python -m spin_utils.data.big_bench [ARCHIVE]
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urljoin

import numpy as np

from spin_utils.data.rows import Row, RowError
from spin_utils.files.disk import file_hash, replacing

ARCHIVE = "bigbench-1.0.0.tar.gz"
SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
TASKS = Path(sys.prefix) / "share" / "spin-repro" / "bigbench-1.0.0.zip"
"""Every task.json of the archive, by the name of its task."""
CHOICE = "multiple_choice_grade"
GRADER = "big_bench"
"""Name of the grader of rows made here."""
_UTTERANCE = re.compile(r'agent_[AB]: "(.*?)"(?= agent_[AB]: "|$)', re.DOTALL)
"""One turn of a conversation, as topical_chat writes them one after another."""
_SENTENCE = r"[^\.\?\!\;\n]+"
"""What is taken of a free answer unless the task says otherwise: its first sentence."""
_SEED = 42
"""Big-Bench's seed, which sets the order in which a prompt lists the choices."""


class Question(NamedTuple):
    """One example of a task as Big-Bench puts it to a model without examples."""

    number: int
    """Its place in the task's file, from 0."""
    prompt: str
    """Everything before the answer except the task's own prefix."""
    choices: dict[str, float]
    """Every choice and its score; empty for a free answer."""
    targets: list[str]
    """Right answers to a free question."""


def load(name: str) -> dict[str, dict[str, Any]]:
    """A task's JSON under its name, such as `social_iqa`; of a task made of parts, that of each part.

    Raises:
        RowError: There is no such task, or the tasks are not on this machine and cannot be fetched.
    """
    with zipfile.ZipFile(fetch()) as file:
        known = [member.removesuffix("/task.json") for member in file.namelist()]
        if name not in known:
            near = " or ".join(get_close_matches(name, known, n=3)) or "one listed at github.com/google/BIG-bench"
            raise RowError(f"big_bench: {ARCHIVE} has no JSON task {name!r}; did you mean {near}?")
        parts = [name, *sorted(part for part in known if part.startswith(f"{name}/"))]
        tasks = {part: json.loads(file.read(f"{part}/task.json")) for part in parts}
    return {part: task for part, task in tasks.items() if task.get("examples")}


def questions(task: Mapping[str, Any], *, cloze: bool = False) -> list[Question]:
    """Its distinct examples, worded by the task's own prefixes exactly as Big-Bench's `json_task.py` does it.

    `cloze` leaves out the list of choices that most tasks add to the question.
    """
    before, after = task.get("example_input_prefix", "\nQ: "), task.get("example_output_prefix", "\nA: ")
    mark, listed = task.get("choice_prefix", "\n  choice: "), task.get("append_choices_to_input", True) and not cloze
    distinct = {json.dumps(example): number for number, example in reversed(list(enumerate(task["examples"])))}
    found = []
    for number in sorted(distinct.values()):
        example = task["examples"][number]
        choices = example.get("target_scores", {})
        shown = list(np.random.RandomState(_SEED).permutation(sorted(choices))) if choices and listed else []
        prompt = before + example["input"] + "".join(mark + str(choice) for choice in shown) + after
        target = example.get("target", [])
        found.append(Question(number, prompt, choices, target if isinstance(target, list) else [target]))
    return found


def metric_of(task: Mapping[str, Any]) -> str:
    """The task's preferred metric if it scores item by item, else its first that does; BLEU only if there is no other.

    >>> metric_of({"preferred_score": "bleu", "metrics": ["bleu", "rouge"]})
    'rougeLsum'
    """
    other = {"rouge": "rougeLsum", "macro_f1": CHOICE}  # F1 is of all items together, so each gets its grade
    names = [other.get(name, name) for name in (task["preferred_score"], *task["metrics"])]
    return next(name for name in sorted(names, key="bleu".__eq__) if name == CHOICE or name in _METRICS)


def demonstrations(name: str) -> list[Row]:
    """The free answers of a task as demonstrations; in `topical_chat`, people talking, every turn but the first is one.

    Returns:
        Rows whose ids are CONVERSATION/TURN; a question that belongs to no conversation is one of its own. Of a
        conversation the prompt has the last turn, and `earlier` the two before it. The grader is the task's metric.

    Raises:
        RowError: There is no such task, or its questions are answered by choosing.
    """
    rows: list[Row] = []
    turns: Counter[str] = Counter()
    for part, task in load(name).items():
        metric = metric_of(task)
        if metric == CHOICE:
            raise RowError(f"big_bench: {part} has choices and no free answers; use it in evaluation.big_bench")
        for question in questions(task):
            example = task["examples"][question.number]
            said = _UTTERANCE.findall(example["input"])
            talk = str(example["comment"]) if said else f"{part}-{question.number}"
            turns[talk] += 1
            targets = [target.strip() for target in question.targets]
            if said:
                targets = [target.removeprefix('"').removesuffix('"').strip() for target in targets]
            prompt = (task.get("task_prefix") or "") + question.prompt
            row: Row = {"id": f"{talk}/{turns[talk]}", "family": name, "response": targets[0]}
            row["prompt"] = said[-1].strip() if said else prompt.strip()
            if len(said) > 2:
                row["earlier"] = [text.strip() for text in said[-3:-1]]
            row["grader"] = {"dataset": GRADER, "entry": {"metric": metric, "targets": targets}}
            if all(text.strip() for text in (row["prompt"], row["response"], *row.get("earlier", ()))):
                rows.append(row)
    return rows


def cut(text: str, task: Mapping[str, Any]) -> str:
    """The part of a free answer that Big-Bench grades: by default its first sentence.

    >>> cut("42. And more.", {}), cut("= 42. And", {"output_regex": "[0-9]+"})
    ('42', '42')
    """
    stop, regex = task.get("stop_string"), task.get("output_regex")
    if stop and (place := text.find(stop)) > 0:
        text = text[: place + len(stop)]
    if stop and not regex:
        return text.strip()
    match = re.search(regex or _SENTENCE, text)
    return match.group().strip() if match else ""


def grade(metric: str, targets: Sequence[str], text: str) -> float:
    """The score of a free answer, from 0 to 1, by one of Big-Bench's metrics; of several right answers, the nearest.

    >>> grade("numeric_match_with_0_1_relative_error", ["40"], "42"), grade("exact_str_match", ["a", "b"], "b")
    (1.0, 1.0)
    """
    return max(_METRICS[metric](target.strip(), text) for target in targets)


def _numeric(target: str, text: str) -> float:
    """As Big-Bench computes it: where the right answer is negative, any number counts as right."""
    try:
        wanted, found = float(target), float(text)
    except ValueError:
        return 0.0
    return float(abs(found - wanted) / (wanted or 1) <= 0.1)


def _labels(target: str, text: str) -> float:
    wanted, found = target.split(" "), text.split(" ")
    found += ["O"] * (len(wanted) - len(found))
    return sum(a == b for a, b in zip(wanted, found, strict=False)) / len(wanted)


def _rouge(target: str, text: str) -> float:
    from rouge_score.rouge_scorer import RougeScorer  # comes with lm-eval

    lines = [each.replace(" . ", " .\n") for each in (target, text)]
    return float(RougeScorer(["rougeLsum"]).score(*lines)["rougeLsum"].fmeasure)


def _bleu(target: str, text: str) -> float:
    from sacrebleu import sentence_bleu  # comes with lm-eval

    return min(1.0, sentence_bleu(text, [target]).score / 100)


_METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_str_match": lambda target, text: float(text == target),
    "case_insensitive_str_match": lambda target, text: float(text.lower() == target.lower()),
    "numeric_match_with_0_1_relative_error": _numeric,
    "sequence_f1": _labels,
    "rougeLsum": _rouge,
    "bleu": _bleu,  # of sentences; Big-Bench's is of all items together
}
"""Metrics of free answers: right answer and response to a share."""


def fetch(archive: str = "") -> Path:
    """The zip file with all tasks, made from the archive if it is not there yet.

    Args:
        archive: The archive, if it was downloaded by other means; empty: from the package index that pip uses.

    Raises:
        RowError: The archive cannot be had, or is not the pinned one.
    """
    if TASKS.is_file():
        return TASKS
    try:
        with replacing(TASKS) as partial, TemporaryDirectory(dir=TASKS.parent) as folder:
            path = Path(archive or _download(Path(folder)))
            if file_hash(path) != SHA256:
                raise RowError(f"{path}: differs from the pinned release (sha256 {SHA256[:12]}...)")
            with zipfile.ZipFile(partial, "w") as kept, tarfile.open(path) as members:
                for member in members:
                    name = member.name.partition("/benchmark_tasks/")[2]
                    if name.endswith("/task.json") and (content := members.extractfile(member)):
                        kept.writestr(zipfile.ZipInfo(name), content.read(), zipfile.ZIP_DEFLATED, compresslevel=1)
    except (OSError, RowError) as error:
        raise RowError(
            f"{TASKS}: Big-Bench's tasks are not there and cannot be fetched ({' '.join(str(error).split())[:200]}); "
            f"run `make setup` with a network, or download {ARCHIVE} of bigbench 1.0.0 from PyPI elsewhere and run "
            f"`python -m spin_utils.data.big_bench PATH/{ARCHIVE}`"
        ) from error
    return TASKS


def _download(folder: Path) -> Path:
    """The archive, from the index that pip uses."""
    import requests  # needed once

    session = requests.Session()
    session.verify = os.environ.get("PIP_CERT") or True
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    chosen = os.environ.get("PIP_INDEX_URL") or subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    page = session.get(f"{(chosen or 'https://pypi.org/simple').rstrip('/')}/bigbench/", timeout=60)
    page.raise_for_status()
    link = re.search(rf'href="([^"]*{re.escape(ARCHIVE)})', page.text)
    if link is None:
        raise RowError(f"{page.url}: does not offer {ARCHIVE}; set PIP_INDEX_URL to an index that does")
    address, path = urljoin(page.url, html.unescape(link[1])), folder / ARCHIVE
    plain = {"Accept-Encoding": "identity"}  # the archive's own compression is not the connection's
    with session.get(address, stream=True, timeout=60, headers=plain) as answer, path.open("wb") as file:
        answer.raise_for_status()
        file.writelines(answer.iter_content(2**20))
    return path


if __name__ == "__main__":
    try:
        fetch(*sys.argv[1:2])
    except RowError as error:
        sys.exit(str(error))
