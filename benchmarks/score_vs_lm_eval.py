"""Multiple-choice requests per second and peak memory: shared-prefix scoring against lm-eval's own `HFLM`.

    python -m benchmarks.score_vs_lm_eval --model MODEL_DIR

Each runs in a process of its own, in turn, after a few requests that are not counted. Both score the same requests
(four choices of several tokens behind ten worked examples) with the same model in the precision that is fast here.
`HFLM` runs at the batch size that is fastest for it on a part of the requests.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.interleaved import column, hand_over, load, machine, options_parser, ratio, rounds, wall, write
from spin_utils.evaluation.lm import PackedLM

QUESTIONS, SHOTS, QUESTION_WORDS, CHOICE_WORDS = 12, 10, 50, 18
"""The words are mean lengths."""
BATCH_SIZES = (1, 2, 4, 8)
"""Tried for HFLM."""


def main() -> None:
    parser = options_parser(__doc__, ["ours", "lm_eval"])
    parser.add_argument("--batch-size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = load(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False, local_files_only=True)
    requests = build_requests(tokenizer)
    if options.way == "ours":
        child(lambda: PackedLM(model, tokenizer), requests)
        return
    stock = functools.partial(HFLM, pretrained=model, tokenizer=tokenizer, add_bos_token=False)
    if options.way == "lm_eval":
        child(functools.partial(stock, batch_size=options.batch_size), requests)
        return
    some = requests[: max(16, len(requests) // 4)]
    tried = {size: seconds(stock(batch_size=size), some)[0] for size in BATCH_SIZES}
    best = min(tried, key=lambda size: tried[size])
    runs = rounds(["ours", "lm_eval"], options.runs, "--batch-size", best)
    ours, theirs = (np.array(runs[way][-1]["answers"])[:, 0].reshape(-1, 4) for way in runs)
    document = {
        "machine": machine(),
        "workload": {"model": options.model.name, "questions": QUESTIONS, "shots": SHOTS},
        "context_tokens": sum(len(tokenizer.encode(r.args[0])) for r in requests) / len(requests),
        "choice_tokens": sum(len(tokenizer.encode(r.args[1])) for r in requests) / len(requests),
        "seconds_of_lm_eval_by_batch_size": tried,
        "runs": {way: [{k: run[k] for k in ("rate", "peak_gib")} for run in rows] for way, rows in runs.items()},
        "largest_difference": float(np.abs(ours - theirs).max()),
        "same_choice": float((ours.argmax(1) == theirs.argmax(1)).mean()),  # log-probabilities in bf16 can tie
        "ratios": {
            "score_vs_lm_eval": ratio(column(runs["ours"], "rate"), column(runs["lm_eval"], "rate")),
            "score_memory_vs_lm_eval": ratio(column(runs["ours"], "peak_gib"), column(runs["lm_eval"], "peak_gib")),
        },
    }
    print(document["ratios"], document["largest_difference"], document["same_choice"])
    print(write("score_vs_lm_eval", document))


def child(make: Callable[[], Any], requests: Sequence[Any]) -> None:
    """One measurement: requests that one way scores per second."""
    seconds(make(), requests[:8])
    # A new object: PackedLM keeps finished answers.
    took, answers = seconds(make(), requests)
    hand_over(rate=len(requests) / took, answers=answers)


def build_requests(tokenizer: PreTrainedTokenizerBase) -> list[Instance]:
    """Made-up questions of four choices, each behind the same worked examples, laid out as lm-eval does."""
    rng = random.Random(0)
    words = sorted(w[1:] for w in tokenizer.get_vocab() if w[:1] == "Ġ" and w[1:].isalpha() and w[1:].isascii())

    def text(mean: int) -> str:
        return " ".join(rng.choices(words, k=max(1, round(mean * rng.uniform(0.6, 1.4)))))

    def question() -> str:
        return f"Question: {text(QUESTION_WORDS)}\nAnswer:"

    examples = "".join(f"{question()} {text(CHOICE_WORDS)}\n\n" for _ in range(SHOTS))
    contexts = [examples + question() for _ in range(QUESTIONS)]
    asked = [(context, f" {text(CHOICE_WORDS)}") for context in contexts for _ in range(4)]
    return [Instance("loglikelihood", {}, arguments, number) for number, arguments in enumerate(asked)]


def seconds(lm: Any, requests: Sequence[Any]) -> tuple[float, list[tuple[float, bool]]]:
    """Time to score requests once, and the answers."""
    started = wall()
    answers = lm.loglikelihood(requests, disable_tqdm=True)
    return wall() - started, answers


if __name__ == "__main__":
    main()
