"""What the time of a training step, of sampling and of scoring goes into.

    python -m benchmarks.where_time_goes --model MODEL_DIRECTORY

The workloads are those of the comparisons with peers, of sampling one full batch. Each loop runs in a process of its
own, after a little work that is not counted: with a clock (for its share of the machine's matrix rate), then under
PyTorch's profiler (for what its time goes into). Time in no operator is Python's, and that of PyTorch's dispatch. A
ratio is the share that a loop would reach if products with weights and attention were all that took time: with
PyTorch's matrix kernels and these shapes, no other code around them can do better.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer

from benchmarks import sample_vs_generate, score_vs_lm_eval, train_vs_trl
from benchmarks.interleaved import (
    column,
    fast_precision,
    hand_over,
    load,
    machine,
    matmul_rate,
    options_parser,
    ratio,
    rounds,
    wall,
    write,
)
from spin_utils.evaluation.lm import PackedLM

KINDS = {
    "products with weights": {"aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"},
    "attention": {
        "aten::bmm",
        "aten::baddbmm",
        "aten::_softmax",
        "aten::_softmax_backward_data",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    },
    "optimizer": {"aten::_fused_adam_"},
}
REST, PYTHON = "other operators", "Python"
"""Norms, activations, rotations, the softmax of sampling, copies; and what is in no operator."""
LOOPS = ("short", "ultrachat", "sample", "score")
"""Training on short pairs and on long ones, as `train_vs_trl` calls them, sampling, and scoring choices."""


def main() -> None:
    parser = options_parser(__doc__, LOOPS)
    options = parser.parse_args()
    if options.way:
        before = matmul_rate(fast_precision())
        found = measure(options.way, options.model)
        hand_over(**found, matmul_gflops=max(before, matmul_rate(fast_precision())))
        return
    runs = rounds(LOOPS, options.runs)
    peak = max(gflops for rows in runs.values() for gflops in column(rows, "matmul_gflops"))
    loops, ratios = {}, {}
    for loop, rows in runs.items():
        parts = {kind: float(np.median([row["parts"][kind] for row in rows])) for kind in rows[0]["parts"]}
        loops[loop] = {"parts": parts, "runs": rows}
        print(f"{loop:10s}", "  ".join(f"{kind} {part:.0%}" for kind, part in parts.items()))
        if "flop" in rows[0]:
            bounds = [row["rate"] * row["flop"] / 1e9 / inside(row["parts"]) for row in rows]
            ratios[f"products_alone_{loop}"] = ratio(bounds, [peak] * len(rows))
            loops[loop]["share"] = ratio([row["rate"] * row["flop"] / 1e9 for row in rows], [peak] * len(rows))
    print(write("where_time_goes", {"machine": machine(), "ratios": ratios, "loops": loops}))


def inside(parts: dict[str, float]) -> float:
    """Part of the time that is products with weights or attention."""
    return parts["products with weights"] + parts["attention"]


def measure(loop: str, model: Path) -> dict[str, Any]:
    """`rate`, runs of the loop in a second; `flop` of one, if they are counted; and `parts` of its time, by kind."""
    if loop in train_vs_trl.REGIMES:
        return of_training(loop, model)
    loaded = load(model)
    if loop == "sample":
        _, longest, batch = sample_vs_generate.MANY
        mean = sample_vs_generate.PROMPT_TOKENS
        prompts = sample_vs_generate.random_prompts(batch, mean, loaded.config.vocab_size)
        flop = batch * longest * sample_vs_generate.flop_per_token(loaded, prompts, longest)
        sample_vs_generate.ours(loaded, prompts[:8], [], 4, batch)
        return of_call(lambda: sample_vs_generate.ours(loaded, prompts, [], longest, batch)) | {"flop": flop}
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    requests = score_vs_lm_eval.build_requests(tokenizer)
    PackedLM(loaded, tokenizer).loglikelihood(requests[:8], disable_tqdm=True)
    return of_call(lambda: PackedLM(loaded, tokenizer).loglikelihood(requests, disable_tqdm=True))


def of_call(call: Callable[[], Any]) -> dict[str, Any]:
    """A function called twice: with a clock, and under the profiler."""
    started = wall()
    call()
    seconds = wall() - started
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = wall()
        call()
        profiled = wall() - started
    return {"rate": 1 / seconds, "parts": parts_of(found, profiled)}


def of_training(regime: str, model: Path) -> dict[str, Any]:
    """Four steps on the same pairs: the first is not counted, the last is profiled."""
    count, config = train_vs_trl.PAIRS[regime], train_vs_trl.config_of(model)
    pairs = train_vs_trl.make_pairs(regime, count, config.vocab_size)
    settings = train_vs_trl.settings_of(count, 4, train_vs_trl.BUDGET)
    found = profile(activities=[ProfilerActivity.CPU])

    def after_step(step: int) -> None:
        if step == 3:
            found.start()
        if step == 4:
            found.stop()

    _, second, third, last = train_vs_trl.seconds_of_steps(load(model), pairs, settings, after_step)
    flop = train_vs_trl.useful_flop(config, pairs)
    return {"rate": 2 / (second + third), "flop": flop, "parts": parts_of(found, last)}


def parts_of(found: profile, seconds: float) -> dict[str, float]:
    """Each kind's part of the time that the profile covers."""
    times = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    sums = {kind: sum(times.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    operators = sum(time for name, time in times.items() if "::" in name)
    sums |= {REST: operators - sum(sums.values()), PYTHON: seconds - operators}
    return {kind: time / seconds for kind, time in sums.items()}


if __name__ == "__main__":
    main()
