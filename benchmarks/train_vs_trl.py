"""The training step against TRL's DPOTrainer: pairs per second, peak memory, fraction of the matmul peak.

    python -m benchmarks.train_vs_trl --model MODEL_DIRECTORY [--runs 5] [--scale]

Every way runs in a process of its own, in turn, on the same pairs in the same global batches; the first step of
a process is not counted. All compute in the precision that is fast here. `trl` is DPOTrainer as it comes (its bf16 is
left on unless it is emulated), with the global batch reached by accumulation; `tuned` has weights in that precision,
precomputed reference log-probabilities, no gradient checkpointing, the memory allocator settings that we use, and the
fastest micro-batch of a short search. Precomputing is counted for neither side. Useful FLOP count each token of a
packed pair once (prompt shared), causal attention exactly, and the head on response tokens: 6 FLOP per weight and
token, forward and backward. With `--scale`, ours once through the pairs of 2 and of 20 steps, read from disk.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, TrainerCallback

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
from spin_utils.experiment import cost, estimate
from spin_utils.model.packing import Group, Pairs, write_pairs
from spin_utils.settings.run import TrainingSettings
from spin_utils.training.loop import Schedule, train

EOS, LONGEST = 1, 1000
REGIMES = {"short": (40, 20, 20), "ultrachat": (128, 300, 230)}
"""Mean tokens of prompt, real and generated response; lengths are log-normal around them."""
PAIRS = {"short": 32, "ultrachat": 4}
"""Pairs in a global batch."""
BUDGET, MICRO_BATCHES = 2560, {"short": (8, 16, 32), "ultrachat": (1, 2, 4)}
"""Tokens in a micro-batch of ours, and the pairs in one of TRL's that the search tries."""
STEPS = {"ours": 4, "trl": 2, "tuned": 2, "once": 2, "tenfold": 20}
"""Steps of each way; the last two are those of `--scale`."""


def make_pairs(regime: str, count: int, vocabulary: int) -> list[Group]:
    """Random tokens with log-normal lengths; no row longer than `LONGEST`."""
    draw = random.Random(0)

    def ids(mean: int, end: Sequence[int] = ()) -> list[int]:
        length = max(4, min(LONGEST // 2, int(mean * draw.lognormvariate(-0.15, 0.55))))
        return [*(draw.randrange(5, vocabulary) for _ in range(length - len(end))), *end]

    prompt, real, generated = REGIMES[regime]
    return [Group(ids(prompt), (ids(real, [EOS]), ids(generated, [EOS]))) for _ in range(count)]


def useful_flop(config: PretrainedConfig, pairs: Sequence[Group]) -> float:
    """Forward and backward FLOP of the pairs, nothing computed twice."""
    sizes = estimate.of_config(config)
    return 3 * sum(cost.forward_flops(sizes, len(p.prompt_ids), *map(len, p.response_ids)) for p in pairs)


def run_ours(model: Path, regime: str, count: int, steps: int, budget: int, *, disk: bool = False) -> float:
    """Pairs per second of our trainer: the same pairs in each step, or once through `steps` times as many from disk."""
    with tempfile.TemporaryDirectory() as folder:
        pairs: Sequence[Group] = make_pairs(regime, count * (steps if disk else 1), config_of(model).vocab_size)
        if disk:
            names = ("prompt_ids", "real_ids", "generated_ids")
            kept = [dict(zip(names, (pair.prompt_ids, *pair.response_ids), strict=True)) for pair in pairs]
            pairs = Pairs([write_pairs(Path(folder) / "pairs.arrow", kept)])
        return rate(count, seconds_of_steps(load(model), pairs, settings_of(count, 1 if disk else steps, budget)))


def settings_of(count: int, epochs: int, budget: int) -> TrainingSettings:
    """How ours trains in global batches of so many pairs and micro-batches of so many tokens; no state is saved."""
    return TrainingSettings(
        learning_rate=1e-6,
        epochs=epochs,
        batch_size=count,
        max_grad_norm=1.0,
        micro_batch_tokens=budget,
        precision=fast_precision(),
        save_minutes=1e6,
    )


def seconds_of_steps(
    model: PreTrainedModel,
    pairs: Sequence[Group],
    settings: TrainingSettings,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Seconds of each step of our trainer; `after_step` is given the number of each, counted from 1."""
    edges = [wall()]

    def stop(_: PreTrainedModel) -> None:
        edges.append(wall())
        after_step(len(edges) - 1)

    with tempfile.TemporaryDirectory() as work:
        train(
            model,
            pairs,
            settings,
            opponent_logps=np.full((len(pairs), 2), -50.0, dtype=np.float32),
            seed=0,
            work=Path(work),
            stops=dict.fromkeys(range(1, Schedule(len(pairs), settings, 0).steps + 1), stop),
        )
    return [after - before for before, after in pairwise(edges)]


def run_trl(model: Path, regime: str, count: int, steps: int, micro_batch: int, *, tuned: bool) -> float:
    """Pairs per second of DPOTrainer."""
    from benchmarks import trl_peer

    pairs, precision = make_pairs(regime, count, config_of(model).vocab_size), fast_precision()
    options: dict[str, Any] = {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": count // micro_batch,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "optim": "rmsprop",
        "bf16": precision == "bfloat16",
        "max_length": None,
        "disable_tqdm": True,
    }
    if tuned:
        options |= {
            "precompute_ref_log_probs": True,
            "precompute_ref_batch_size": micro_batch,
            "gradient_checkpointing": False,
        }
    policy = load(model, precision if tuned else "float32")
    reference = None if tuned else load(model, "float32")
    trainer = trl_peer.dpo_trainer(policy, reference, pairs, EOS, **options)
    times: list[float] = []

    class Timer(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(-wall())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times[-1] += wall()

    trainer.add_callback(Timer())
    trainer.train()
    return rate(count, times)


def config_of(model: Path) -> PretrainedConfig:
    return AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)


def rate(pairs: int, seconds: Sequence[float]) -> float:
    """Pairs per second over all steps but the first."""
    return pairs * len(seconds[1:]) / sum(seconds[1:])


def child(model: Path, way: str, regime: str, micro_batch: int) -> None:
    """One measurement."""
    before, count = matmul_rate(fast_precision()), PAIRS[regime]
    if way in ("once", "tenfold"):
        found = run_ours(model, regime, count // 2, STEPS[way], BUDGET, disk=True)
    elif way == "ours":
        found = run_ours(model, regime, count, STEPS[way], BUDGET)
    else:
        size = micro_batch if way == "tuned" else min(8, count)
        found = run_trl(model, regime, count, STEPS[way], size, tuned=way == "tuned")
    hand_over(rate=found, matmul_gflops=max(before, matmul_rate(fast_precision())))


def compare(model: Path, regime: str, runs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ratios of one regime, and the runs behind them."""
    config, asked = config_of(model), ("--regime", regime, "--micro-batch")
    flop_per_pair = useful_flop(config, make_pairs(regime, PAIRS[regime], config.vocab_size)) / PAIRS[regime]
    tried = {size: rounds(["tuned"], 1, *asked, size)["tuned"][0]["rate"] for size in MICRO_BATCHES[regime]}
    best = max(tried, key=lambda size: tried[size])
    found = rounds(["ours", "trl", "tuned"], runs, *asked, best, plain=["trl"])
    ours, trl, tuned = (column(rows, "rate") for rows in found.values())
    peak = max(gflops for rows in found.values() for gflops in column(rows, "matmul_gflops"))
    ratios = {
        "train_vs_trl": ratio(ours, trl),
        "train_vs_trl_tuned": ratio(ours, tuned),
        "memory_vs_trl_tuned": ratio(column(found["ours"], "peak_gib"), column(found["tuned"], "peak_gib")),
        "fraction_of_matmul_peak": ratio([speed * flop_per_pair / 1e9 for speed in ours], [peak] * len(ours)),
    }
    return ratios, {"pairs": PAIRS[regime], "tuned_micro_batch": best, "matmul_gflops": peak, "runs": found}


def scale(runs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds per pair and peak memory with ten times the pairs, read from disk."""
    found = rounds(["once", "tenfold"], runs)
    ratios = {
        "cost_per_pair_at_10x": ratio(column(found["once"], "rate"), column(found["tenfold"], "rate")),
        "memory_at_10x": ratio(column(found["tenfold"], "peak_gib"), column(found["once"], "peak_gib")),
    }
    return ratios, {"runs": found}


def main() -> None:
    parser = options_parser(__doc__, list(STEPS))
    parser.add_argument("--scale", action="store_true", help="measure ten times the pairs instead")
    parser.add_argument("--regime", choices=list(REGIMES), default="short", help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options.model, options.way, options.regime, options.micro_batch)
        return
    name, ratios, details = "train_vs_trl", {}, {}
    if options.scale:
        name = "train_at_scale"
        ratios, details = scale(options.runs)
    for regime in [] if options.scale else REGIMES:
        found, details[regime] = compare(options.model, regime, options.runs)
        ratios |= {key if regime == "ultrachat" else f"{key}_{regime}": value for key, value in found.items()}
    print(write(name, {"machine": machine(), "ratios": ratios, "details": details}))


if __name__ == "__main__":
    main()
