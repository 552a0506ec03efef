"""The training step against TRL's DPOTrainer: pairs per second, peak memory, fraction of the matmul peak.

    python -m benchmarks.train_vs_trl --model MODEL_DIRECTORY [--runs 5] [--regimes short ultrachat] [--scale]

Every way runs in a process of its own, in turn, on the same pairs in the same global batches; the first step of
a process is not counted. All compute in the precision that is fast here. `trl` is DPOTrainer as it comes (its bf16 is
left on unless it is emulated), with the global batch reached by accumulation; `tuned` has weights in that precision,
precomputed reference log-probabilities, no gradient checkpointing, the memory allocator settings that we use, and the
fastest micro-batch of a short search. Precomputing is counted for neither side. Useful FLOP count each token of a
packed pair once (prompt shared), causal attention exactly, and the head on response tokens: 6 FLOP per weight and
token, forward and backward.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig, TrainerCallback

from benchmarks.interleaved import (
    alone,
    column,
    fast_precision,
    hand_over,
    load,
    machine,
    matmul_rate,
    ratio,
    wall,
    write,
)
from spin_utils.experiment import cost, estimate
from spin_utils.files.runtime import ENVIRONMENT
from spin_utils.model.packing import Group, Pairs, write_pairs
from spin_utils.settings.run import Precision, TrainingSettings
from spin_utils.training.loop import train

EOS, LONGEST = 1, 1000
REGIMES = {"short": (40, 20, 20), "ultrachat": (128, 300, 230)}
"""Mean tokens of prompt, real and generated response; lengths are log-normal around them."""
PAIRS = {"short": 32, "ultrachat": 4}
"""Pairs in a global batch."""
MICRO_BATCHES = {"short": (8, 16, 32, 64), "ultrachat": (1, 2, 4, 8, 16)}
"""Pairs in a micro-batch of TRL that the search tries."""


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


def run_ours(
    model: Path, regime: str, count: int, steps: int, precision: Precision, budget: int, disk: bool
) -> list[float]:
    """Seconds of steps of our trainer: on the same pairs each, or once through `steps` times as many from disk."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    with tempfile.TemporaryDirectory() as folder:
        pairs: Sequence[Group] = make_pairs(regime, count * (steps if disk else 1), config.vocab_size)
        if disk:
            names = ("prompt_ids", "real_ids", "generated_ids")
            kept = [dict(zip(names, (pair.prompt_ids, *pair.response_ids), strict=True)) for pair in pairs]
            pairs = Pairs([write_pairs(Path(folder) / "pairs.arrow", kept)])
        settings = TrainingSettings(
            learning_rate=1e-6,
            epochs=1 if disk else steps,
            batch_size=count,
            max_grad_norm=1.0,
            micro_batch_tokens=budget,
            precision=precision,
            save_minutes=1e6,
        )
        loaded = load(model, precision)
        opponent = np.full((len(pairs), 2), -50.0, dtype=np.float32)
        edges = [wall()]
        rows = train(
            loaded,
            pairs,
            settings,
            opponent_logps=opponent,
            seed=0,
            work=Path(folder) / "work",
            stops=dict.fromkeys(range(1, settings.epochs + 1), lambda model: edges.append(wall())),
        ).rows
    return [row["seconds"] for row in rows] if disk else [b - a for a, b in pairwise(edges)]


def run_trl(
    model: Path, regime: str, count: int, steps: int, precision: Precision, micro_batch: int, tuned: bool
) -> list[float]:
    """Seconds of steps of DPOTrainer."""
    from benchmarks import trl_peer

    config = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    pairs = make_pairs(regime, count, config.vocab_size)
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
    return times


def child(arguments: argparse.Namespace) -> None:
    """One measurement; its result is the last line of standard output."""
    common = (arguments.model, arguments.regime, arguments.count, arguments.steps, arguments.precision)
    peak = matmul_rate(arguments.precision)
    if arguments.way == "ours":
        seconds = run_ours(*common, arguments.budget, arguments.disk)
    else:
        seconds = run_trl(*common, arguments.micro_batch, arguments.way == "tuned")
    hand_over(seconds=seconds, matmul_gflops=max(peak, matmul_rate(arguments.precision)))


def rate(pairs: int, seconds: Sequence[float]) -> float:
    """Pairs per second over all steps but the first."""
    return pairs * len(seconds[1:]) / sum(seconds[1:])


def measure(way: str, arguments: argparse.Namespace, regime: str, count: int, steps: int, **options: Any) -> dict:
    """Run `child` in a process of its own, and add its `pairs_per_second`."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not True]
    flags += [f"--{name.replace('_', '-')}" for name, value in options.items() if value is True]
    flags += [f"--way={way}", f"--regime={regime}", f"--count={count}", f"--steps={steps}"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment = plain if way == "trl" else {**plain, **ENVIRONMENT}
    environment |= {"SPIN_HEADLESS": "1", "PYTHONWARNINGS": "ignore"}
    result = alone(*flags, f"--precision={arguments.precision}", environment=environment)
    result["pairs_per_second"] = rate(count, result["seconds"])
    print(
        f"{regime:9} {way:5} {options}: {result['pairs_per_second']:.3f} pairs/s, {result['peak_gib']:.2f} GiB",
        flush=True,
    )
    return result


def best_micro_batch(arguments: argparse.Namespace, regime: str, count: int) -> int:
    """The fastest micro-batch of tuned TRL, each tried for two steps."""
    sizes = [size for size in MICRO_BATCHES[regime] if count % size == 0]
    rates = {s: measure("tuned", arguments, regime, count, 2, micro_batch=s)["pairs_per_second"] for s in sizes}
    return max(sizes, key=lambda size: rates[size])


def compare(arguments: argparse.Namespace, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ratios of one regime, and the runs behind them."""
    count = PAIRS[regime]
    config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=False, local_files_only=True)
    flop_per_pair = useful_flop(config, make_pairs(regime, count, config.vocab_size)) / count
    best = best_micro_batch(arguments, regime, count)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "tuned": []}
    for _ in range(arguments.runs):
        runs["ours"].append(measure("ours", arguments, regime, count, 4, budget=arguments.budget))
        runs["trl"].append(measure("trl", arguments, regime, count, 2, micro_batch=min(8, count)))
        runs["tuned"].append(measure("tuned", arguments, regime, count, 2, micro_batch=best))

    ours, trl, tuned = runs["ours"], runs["trl"], runs["tuned"]
    peak = max(rate for rows in runs.values() for rate in column(rows, "matmul_gflops"))
    useful = [rate * flop_per_pair / 1e9 for rate in column(ours, "pairs_per_second")]
    ratios = {
        "train_vs_trl": ratio(column(ours, "pairs_per_second"), column(trl, "pairs_per_second")),
        "train_vs_trl_tuned": ratio(column(ours, "pairs_per_second"), column(tuned, "pairs_per_second")),
        "memory_vs_trl_tuned": ratio(column(ours, "peak_gib"), column(tuned, "peak_gib")),
        "fraction_of_matmul_peak": ratio(useful, [peak] * len(useful)),
    }
    details = {"pairs": count, "tuned_micro_batch": best, "matmul_gflops": peak, "useful_gflops": useful, "runs": runs}
    return ratios, details


def scale(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds per pair and peak memory with ten times the pairs, read from disk."""
    runs: dict[str, list[dict[str, Any]]] = {"once": [], "tenfold": []}
    for _ in range(arguments.runs):
        for name, steps in (("once", 2), ("tenfold", 20)):
            options = {"budget": arguments.budget, "disk": True}
            runs[name].append(measure("ours", arguments, "short", PAIRS["short"] // 2, steps, **options))
    seconds = {name: [1 / rate for rate in column(rows, "pairs_per_second")] for name, rows in runs.items()}
    memory = {name: column(rows, "peak_gib") for name, rows in runs.items()}
    ratios = {
        "cost_per_pair_at_10x": ratio(seconds["tenfold"], seconds["once"]),
        "memory_at_10x": ratio(memory["tenfold"], memory["once"]),
    }
    return ratios, {"runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of a causal language model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--regimes", nargs="*", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--budget", type=int, default=2560, help="tokens in one of our micro-batches")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="of all ways; the one that is fast here")
    parser.add_argument("--scale", action="store_true", help="measure ten times the pairs instead")
    parser.add_argument("--way", choices=["ours", "trl", "tuned"], help=argparse.SUPPRESS)
    parser.add_argument("--regime", help=argparse.SUPPRESS)
    for name in ("--count", "--steps", "--micro-batch"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--disk", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.model = arguments.model.resolve()
    arguments.precision = arguments.precision or fast_precision()
    if arguments.way:
        child(arguments)
        return
    name, ratios, details = "train_vs_trl", {}, {}
    if arguments.scale:
        name = "train_at_scale"
        ratios, details = scale(arguments)
    for regime in [] if arguments.scale else arguments.regimes:
        found, details[regime] = compare(arguments, regime)
        ratios |= {key if regime == "ultrachat" else f"{key}_{regime}": value for key, value in found.items()}
    for key, value in ratios.items():
        print(f"{key:32} {value['median']:.2f}  ({value['low']:.2f} to {value['high']:.2f}, {value['runs']} runs)")
    run = {"machine": machine(), "precision": arguments.precision}
    path = write(name, {**run, "ratios": ratios, "details": details})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
